"""`TeacherEnsemble` against networks blended by hand."""

from __future__ import annotations

import copy
import pickle
from typing import Any

import pytest
import torch
from torch import Tensor, nn
from torch.nn.utils import prune as torch_prune

import r2kd_ext
from r2kd_ext import TeacherEnsemble


def make_teacher(dtype: torch.dtype = torch.float64) -> nn.Sequential:
    """A network with batch norm, whose statistics are not the initial ones, and dropout."""
    torch.manual_seed(3)
    model = nn.Sequential(
        nn.Conv2d(2, 4, 3),
        nn.BatchNorm2d(4),
        nn.ReLU(),
        nn.Flatten(),
        nn.Dropout(0.5),
        nn.Linear(64, 8),
        nn.BatchNorm1d(8),
        nn.Linear(8, 5),
    ).to(dtype)
    model(images(32, dtype, seed=1) * 3 + 1)  # moves the running statistics
    return model


def images(count: int, dtype: torch.dtype = torch.float64, seed: int = 0) -> Tensor:
    source = torch.Generator().manual_seed(seed)
    return torch.randn(count, 2, 6, 6, generator=source, dtype=torch.float64).to(dtype)


def pruned_by_torch(model: nn.Module, amount: float) -> nn.Module:
    model = copy.deepcopy(model)
    for layer in model.modules():
        if isinstance(layer, (nn.Conv2d, nn.Linear)):
            torch_prune.l1_unstructured(layer, "weight", amount=amount)
            torch_prune.remove(layer, "weight")
    return model


def logits(model: nn.Module, x: Tensor) -> Tensor:
    with torch.no_grad():
        output: Tensor = model(x)
    return output


def state(module: nn.Module) -> dict[str, Tensor]:
    return {name: value.clone() for name, value in module.state_dict().items()}


def same(a: dict[str, Tensor], b: dict[str, Tensor]) -> bool:
    return a.keys() == b.keys() and all(torch.equal(a[name], b[name]) for name in a)


def batch_norms(module: nn.Module) -> list[nn.Module]:
    return [m for m in module.modules() if isinstance(m, (nn.BatchNorm1d, nn.BatchNorm2d))]


def test_published_blend() -> None:
    teacher, x = make_teacher(), images(9)
    got = TeacherEnsemble(teacher)(x)
    dense, pruned = logits(teacher.eval(), x), logits(pruned_by_torch(teacher, 0.1).eval(), x)
    assert not torch.allclose(dense, pruned, rtol=1e-3)  # else the weights could be confused
    torch.testing.assert_close(got, 0.7 * dense + 0.3 * pruned, rtol=1e-14, atol=1e-14)
    assert got.shape == (9, 5)


@pytest.mark.parametrize("dense_weight", [0, 0.0, 0.25, 1, 1.0])
@pytest.mark.parametrize("amount", [0.0, 0.5])
def test_blend(dense_weight: float, amount: float) -> None:
    teacher, x = make_teacher(), images(4)
    got = TeacherEnsemble(teacher, amount, dense_weight)(x)
    dense, pruned = logits(teacher.eval(), x), logits(pruned_by_torch(teacher, amount).eval(), x)
    want = dense_weight * dense + (1 - dense_weight) * pruned
    torch.testing.assert_close(got, want, rtol=1e-14, atol=1e-14)


@pytest.mark.parametrize(("dense_weight", "unused"), [(1, "pruned"), (0, "teacher")])
def test_network_of_weight_zero_does_not_run(dense_weight: float, unused: str) -> None:
    ensemble = TeacherEnsemble(make_teacher(), 0.5, dense_weight)
    for parameter in getattr(ensemble, unused).parameters():
        parameter.fill_(float("nan"))
    assert ensemble(images(4)).isfinite().all()


def test_global_pruning() -> None:
    teacher = make_teacher()
    ensemble = TeacherEnsemble(teacher, 0.4, method="global_l1")
    assert same(state(ensemble.pruned), state(r2kd_ext.prune(teacher, 0.4, "global_l1")))
    assert not same(state(ensemble.pruned), state(r2kd_ext.prune(teacher, 0.4)))


def test_frozen() -> None:
    ensemble = TeacherEnsemble(make_teacher())
    x = images(4).requires_grad_()
    got = ensemble(x)
    assert not any(parameter.requires_grad for parameter in ensemble.parameters())
    assert not got.requires_grad
    assert torch.is_grad_enabled()


def test_a_student_learns_and_the_ensemble_does_not() -> None:
    ensemble, x = TeacherEnsemble(make_teacher()), images(8)
    student = nn.Sequential(nn.Flatten(), nn.Linear(72, 5).double())
    trainer = nn.ModuleDict({"student": student, "teacher": ensemble}).train()
    before, own = state(ensemble), state(student)
    optimizer = torch.optim.SGD(trainer.parameters(), lr=0.1, weight_decay=0.1, momentum=0.9)
    for _ in range(2):
        optimizer.zero_grad()
        r2kd_ext.correlation_kd(student(x), ensemble(x)).backward()
        optimizer.step()
    assert same(state(ensemble), before)
    assert not same(state(student), own)


@pytest.mark.parametrize("mode", [True, False])
def test_eval_mode_also_after_train(mode: bool) -> None:
    ensemble, x = TeacherEnsemble(make_teacher()), images(6)
    want, before = ensemble(x), state(ensemble)
    parent = nn.Sequential(ensemble, nn.Dropout())
    for module in (ensemble, parent):
        assert module.train(mode) is module
        assert not any(m.training for m in ensemble.modules())
        assert torch.equal(ensemble(x), want)  # no dropout, no statistics of the batch
    assert parent[1].training == mode
    assert same(state(ensemble), before)


@pytest.mark.parametrize("retrained", [False, True])
def test_batchnorm_in_training_mode(retrained: bool) -> None:
    """The published code's behaviour, made by hand from torch's own modes."""
    teacher, amount = make_teacher(), 0.4
    ensemble = TeacherEnsemble(teacher, amount, pruned_batchnorm="train")
    if retrained:
        nn.Sequential(ensemble).train().eval()  # neither changes anything
    assert all(m.training for m in batch_norms(ensemble.pruned))
    assert not any(m.training for m in ensemble.teacher.modules())
    pruned = pruned_by_torch(teacher, amount).eval()
    for module in batch_norms(pruned):
        module.train()
    for seed in (5, 6):  # the second batch finds statistics that the first has moved
        x = images(6, seed=seed)
        want = 0.7 * logits(teacher.eval(), x) + 0.3 * logits(pruned, x)
        torch.testing.assert_close(ensemble(x), want, rtol=1e-14, atol=1e-14)
    assert same(state(ensemble.pruned), state(pruned))
    assert same(state(ensemble.teacher), state(teacher))
    assert ensemble.pruned.get_buffer("1.num_batches_tracked") == 3


def test_batchnorm_modes_differ_in_what_a_sample_depends_on() -> None:
    x = images(6)
    for mode, alone in (("eval", True), ("train", False)):
        ensemble = TeacherEnsemble(make_teacher(), pruned_batchnorm=mode)
        together, half = ensemble(x)[:3], ensemble(x[:3])
        assert torch.allclose(together, half, rtol=1e-9, atol=1e-9) == alone


@pytest.mark.parametrize("mode", ["eval", "train"])
def test_module_given_is_unaffected(mode: str) -> None:
    teacher = make_teacher().train()
    before = state(teacher)
    ensemble = TeacherEnsemble(teacher, 0.5, pruned_batchnorm=mode)
    ensemble.train()
    ensemble(images(6))
    assert same(state(teacher), before)
    assert all(m.training for m in teacher.modules())
    assert all(p.requires_grad for p in teacher.parameters())
    want = state(ensemble)
    with torch.no_grad():
        for parameter in teacher.parameters():
            parameter.zero_()
    assert same(state(ensemble), want)


def test_state_dict_round_trip() -> None:
    x = images(5)
    source = TeacherEnsemble(make_teacher(), 0.3)
    other = make_teacher()
    nn.init.normal_(other.get_parameter("0.weight"))
    target = TeacherEnsemble(other, 0.3)
    assert not torch.equal(source(x), target(x))
    assert set(state(target)) == {f"{n}.{k}" for n in ("teacher", "pruned") for k in state(other)}
    target.load_state_dict(source.state_dict())
    assert torch.equal(source(x), target(x))
    assert not any(parameter.requires_grad for parameter in target.parameters())


@pytest.mark.parametrize("copier", ["deepcopy", "pickle"])
@pytest.mark.parametrize("mode", ["eval", "train"])
def test_copies(copier: str, mode: str) -> None:
    ensemble = TeacherEnsemble(make_teacher(), 0.3, 0.6, pruned_batchnorm=mode)
    twin = copy.deepcopy(ensemble) if copier == "deepcopy" else pickle.loads(pickle.dumps(ensemble))
    twin.train()
    assert same(state(twin), state(ensemble))
    assert torch.equal(twin(images(5)), ensemble(images(5)))
    assert not any(parameter.requires_grad for parameter in twin.parameters())
    twin.teacher.get_parameter("0.weight").zero_()
    assert ensemble.teacher.get_parameter("0.weight").any()


@pytest.mark.parametrize("dtype", [torch.float32, torch.bfloat16])
def test_dtype_follows_the_teacher(dtype: torch.dtype) -> None:
    got = TeacherEnsemble(make_teacher(dtype))(images(4, dtype))
    want = TeacherEnsemble(make_teacher(dtype).double())(images(4, dtype).double())
    assert got.dtype == dtype
    torch.testing.assert_close(got.double(), want, rtol=0.1, atol=0.05)


def test_described() -> None:
    text = repr(TeacherEnsemble(make_teacher(), 0.2, 0.6, pruned_batchnorm="train"))
    assert "dense_weight=0.6" in text
    assert "pruned_batchnorm='train'" in text


@pytest.mark.parametrize(
    ("options", "error", "message"),
    [
        ({"dense_weight": 1.1}, ValueError, r"dense_weight must be a number in \[0, 1\], got 1.1"),
        ({"dense_weight": -0.1}, ValueError, r"dense_weight must be .* got -0.1"),
        ({"dense_weight": float("nan")}, ValueError, r"dense_weight must be .* got nan"),
        ({"dense_weight": "0.7"}, TypeError, r"dense_weight must be .* got '0.7' of type str"),
        ({"dense_weight": None}, TypeError, r"dense_weight must be .* got None"),
        ({"dense_weight": True}, TypeError, r"dense_weight must be .* got True of type bool"),
        ({"amount": 1.0}, ValueError, r"amount must be a number in \[0, 1\), got 1.0"),
        ({"method": "l2"}, ValueError, r"method must be one of .* got 'l2'"),
        (
            {"pruned_batchnorm": "batch"},
            ValueError,
            r"pruned_batchnorm must be one of 'eval', 'train', got 'batch'",
        ),
        ({"teacher": nn.ReLU()}, ValueError, r"teacher must have at least one Conv2d or Linear"),
        ({"teacher": None}, TypeError, r"teacher must be a torch.nn.Module, got NoneType"),
    ],
)
def test_refused(options: dict[str, Any], error: type[Exception], message: str) -> None:
    with pytest.raises(error, match=message):
        TeacherEnsemble(**{"teacher": make_teacher(), **options})


class Pair(nn.Module):
    def __init__(self) -> None:
        super().__init__()
        self.layer = nn.Linear(3, 2)

    def forward(self, x: Tensor) -> tuple[Tensor, Tensor]:
        return self.layer(x), x


def test_teacher_that_returns_no_tensor() -> None:
    ensemble = TeacherEnsemble(Pair())
    with pytest.raises(TypeError, match="teacher must return one tensor of logits, got tuple"):
        ensemble(torch.ones(1, 3))
