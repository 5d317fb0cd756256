"""The losses of the trainer against formulas in float64, values and gradients."""

from __future__ import annotations

from typing import Any

import pytest
import torch
from torch import Tensor, nn

from r2kd_ext import prune, soft_rank, teacher
from r2kd_ext.train.augment import View
from r2kd_ext.train.config import MethodConfig
from r2kd_ext.train.losses import LossParts, Method, highest_entropy

BATCH, CLASSES, SIZE = 12, 7, 4


def network(seed: int) -> nn.Sequential:
    with torch.random.fork_rng(devices=[]):
        torch.manual_seed(seed)
        net = nn.Sequential(
            nn.Conv2d(3, 6, 3, padding=1), nn.BatchNorm2d(6), nn.ReLU(), nn.Flatten(),
            nn.Linear(6 * SIZE**2, CLASSES),
        )  # fmt: skip
    return net.double()


@pytest.fixture
def batch() -> tuple[Tensor, Tensor, View]:
    generator = torch.Generator().manual_seed(7)
    clean = torch.randn(BATCH, 3, SIZE, SIZE, generator=generator, dtype=torch.float64)
    labels = torch.randint(CLASSES, (BATCH,), generator=generator)
    view = torch.randn(BATCH, 3, SIZE, SIZE, generator=generator, dtype=torch.float64)
    return clean, labels, View(view)


def run(config: MethodConfig, batch: tuple[Tensor, Tensor, View], **options: Any) -> LossParts:
    clean, labels, view = batch
    method = Method(config, network(1), num_classes=CLASSES)
    student = network(2).train()
    parts = method.loss(student, clean, labels, view, method.prepare(clean, view), **options)
    parts.total.backward()
    parts.parts["gradient"] = torch.cat([p.grad.flatten() for p in student.parameters()])  # type: ignore[union-attr]
    return parts


def softmax(x: Tensor) -> Tensor:
    e = (x - x.amax(1, keepdim=True)).exp()
    return e / e.sum(1, keepdim=True)


def cross_entropy(logits: Tensor, labels: Tensor, smoothing: float = 0.0) -> Tensor:
    log_p = softmax(logits).log()
    hard = -log_p[torch.arange(len(labels)), labels].mean()
    return (1 - smoothing) * hard - smoothing * log_p.mean()


def correlation(z: Tensor, y: Tensor, config: MethodConfig) -> Tensor:
    """DESIGN: T² w [1 - mean r] over rows and columns, and the rank term without T²."""
    p, q = softmax(z / config.temperature), softmax(y / config.temperature)

    def mean_r(a: Tensor, b: Tensor) -> Tensor:
        if config.correlation == "pearson":
            a, b = a - a.mean(1, keepdim=True), b - b.mean(1, keepdim=True)
        return ((a * b).sum(1) / (a.norm(dim=1) * b.norm(dim=1) + 1e-8)).mean()

    value = config.inter_weight * (1 - mean_r(p, q)) + config.intra_weight * (1 - mean_r(p.T, q.T))
    total = config.temperature**2 * value
    if config.rank != "none":
        if config.rank == "hard":
            a, b = (x.argsort(1).argsort(1).double() for x in (z.detach(), y))
        else:
            a, b = (soft_rank(x, config.rank_strength) for x in (z, y))
        scale = CLASSES * (CLASSES + 1) / 2  # of the published ranks, which eps is added to
        a, b = ((x - x.mean(1, keepdim=True)) / scale for x in (a, b))
        rho = ((a * b).sum(1) / (a.norm(dim=1) * b.norm(dim=1) + 1e-8)).mean()
        total = total + config.rank_weight * (1 - rho)
    return total


def gradient_of(loss: Tensor, student: nn.Module) -> Tensor:
    return torch.cat([g.flatten() for g in torch.autograd.grad(loss, list(student.parameters()))])


def check(found: LossParts, expected: Tensor, student: nn.Module) -> None:
    torch.testing.assert_close(found.total, expected)
    torch.testing.assert_close(found.parts.pop("gradient"), gradient_of(expected, student))
    torch.testing.assert_close(sum(found.parts.values()), found.total.detach())
    assert all(part.shape == () and not part.requires_grad for part in found.parts.values())


def test_ce(batch: tuple[Tensor, Tensor, View]) -> None:
    clean, labels, _ = batch
    found = run(MethodConfig("ce", label_smoothing=0.1), batch)
    student = network(2).train()
    check(found, cross_entropy(student(clean), labels, 0.1), student)
    assert set(found.parts) == {"ce"}


def test_ce_needs_no_teacher(batch: tuple[Tensor, Tensor, View]) -> None:
    clean, labels, _ = batch
    method = Method(MethodConfig("ce"), None, num_classes=CLASSES)
    assert method.teacher is None
    assert method.prepare(clean, None).clean is None
    method.loss(network(2), clean, labels, None, method.prepare(clean, None))


def test_kl(batch: tuple[Tensor, Tensor, View]) -> None:
    clean, labels, _ = batch
    config = MethodConfig.published("kl", temperature=3.0)
    found = run(config, batch)
    student, teacher = network(2).train(), network(1).eval()
    logits = student(clean)
    p, q = softmax(logits / 3), softmax(teacher(clean).detach() / 3)
    divergence = (q * (q.log() - p.log())).sum(1).mean()
    check(found, 0.1 * cross_entropy(logits, labels) + 0.9 * 9 * divergence, student)


def dkd_parts(z: Tensor, y: Tensor, labels: Tensor, t: float) -> tuple[Tensor, Tensor]:
    """Row by row, as the paper defines them, in probabilities."""
    target, other = [], []
    for zi, yi, label in zip(z, y, labels, strict=True):
        p, q = softmax(zi[None] / t)[0], softmax(yi[None] / t)[0]
        rest = torch.tensor([j for j in range(CLASSES) if j != label])
        b_p = torch.stack([p[label], 1 - p[label]])
        b_q = torch.stack([q[label], 1 - q[label]])
        target.append((b_q * (b_q / b_p).log()).sum())
        hat_p, hat_q = p[rest] / p[rest].sum(), q[rest] / q[rest].sum()
        other.append((hat_q * (hat_q / hat_p).log()).sum())
    return t**2 * torch.stack(target).mean(), t**2 * torch.stack(other).mean()


@pytest.mark.parametrize(("epoch", "share"), [(1, 0.05), (10, 0.5), (20, 1.0), (200, 1.0)])
def test_dkd(batch: tuple[Tensor, Tensor, View], epoch: int, share: float) -> None:
    clean, labels, _ = batch
    found = run(MethodConfig.published("dkd"), batch, epoch=epoch)
    student, teacher = network(2).train(), network(1).eval()
    logits = student(clean)
    target, other = dkd_parts(logits, teacher(clean).detach(), labels, 4.0)
    expected = cross_entropy(logits, labels) + share * (1.0 * target + 8.0 * other)
    check(found, expected, student)
    assert set(found.parts) == {"ce", "target_kd", "other_kd"}


def test_dkd_with_the_teachers_weight_is_kl(batch: tuple[Tensor, Tensor, View]) -> None:
    """KL = target part + (1 - p_t) other part, row by row: an identity of the paper."""
    from r2kd_ext.train.losses import decoupled_divergences, kl_divergence

    clean, labels, _ = batch
    z, y = network(2).eval()(clean), network(1).eval()(clean)
    total = torch.zeros((), dtype=torch.float64)
    for i in range(BATCH):
        row = slice(i, i + 1)
        target, other = decoupled_divergences(z[row], y[row], labels[row], 4.0)
        total += target + (1 - softmax(y[row] / 4)[0, labels[i]]) * other
    torch.testing.assert_close(total / BATCH, kl_divergence(z, y, 4.0))


def test_dkd_of_a_teacher_that_is_sure() -> None:
    """1 - p_t is 0 in float32; what it is made of is not."""
    from r2kd_ext.train.losses import decoupled_divergences

    teacher = torch.tensor([[200.0, 3.0, 1.0, 0.0]])
    student = torch.tensor([[1.0, 2.0, 0.5, 0.0]], requires_grad=True)
    labels = torch.tensor([0])
    target, other = decoupled_divergences(student, teacher, labels, 1.0)
    exact = decoupled_divergences(student.double(), teacher.double(), labels, 1.0)
    torch.testing.assert_close((target.double(), other.double()), exact)
    (gradient,) = torch.autograd.grad(target + other, student)
    assert torch.isfinite(gradient).all()


def test_dkd_warm_up_needs_the_epoch(batch: tuple[Tensor, Tensor, View]) -> None:
    with pytest.raises(ValueError, match="needs the epoch"):
        run(MethodConfig.published("dkd"), batch)
    run(MethodConfig.published("dkd", dkd_warmup_epochs=0), batch)


def test_dist(batch: tuple[Tensor, Tensor, View]) -> None:
    clean, labels, _ = batch
    config = MethodConfig.published("dist")
    assert (config.correlation, config.rank, config.temperature) == ("pearson", "none", 4.0)
    found = run(config, batch)
    student, teacher = network(2).train(), network(1).eval()
    logits = student(clean)
    expected = cross_entropy(logits, labels) + correlation(logits, teacher(clean).detach(), config)
    check(found, expected, student)


@pytest.mark.parametrize("rank", ["none", "hard", "soft"])
@pytest.mark.parametrize("augmented_view", [True, False])
@pytest.mark.parametrize("pruned_teacher", [True, False])
@pytest.mark.parametrize("intra_weight", [2.0, 0.0])
def test_r2kd(
    batch: tuple[Tensor, Tensor, View],
    rank: Any,
    augmented_view: bool,
    pruned_teacher: bool,
    intra_weight: float,
) -> None:
    clean, labels, view = batch
    config = MethodConfig(
        rank=rank,
        augmented_view=augmented_view,
        pruned_teacher=pruned_teacher,
        intra_weight=intra_weight,
        pruning_amount=0.4,
    )
    found = run(config, batch)
    student, teacher = network(2).train(), network(1).eval()
    pruned = prune(teacher, 0.4).eval()

    def target(images: Tensor) -> Tensor:
        dense: Tensor = teacher(images).detach()
        return 0.7 * dense + 0.3 * pruned(images).detach() if pruned_teacher else dense

    logits = student(clean)
    expected = cross_entropy(logits, labels) + correlation(logits, target(clean), config)
    if augmented_view:
        expected = expected + correlation(student(view.images), target(view.images), config)
    check(found, expected, student)


def test_published_pruned_teacher_normalises_with_the_batch(
    batch: tuple[Tensor, Tensor, View],
) -> None:
    clean, _, view = batch
    method = Method(MethodConfig(pruned_batchnorm="train"), network(1), num_classes=CLASSES)
    pruned = prune(network(1), 0.1).train()
    teacher = network(1).eval()
    targets = method.prepare(clean, view)
    assert targets.clean is not None
    torch.testing.assert_close(targets.clean, 0.7 * teacher(clean) + 0.3 * pruned(clean))


def test_cutmix_pick_keeps_the_mixed_images_of_most_entropy(
    batch: tuple[Tensor, Tensor, View],
) -> None:
    clean, labels, view = batch
    config = MethodConfig()
    method = Method(config, network(1), num_classes=CLASSES)
    targets = method.prepare(clean, View(view.images, 5))
    everything = method.prepare(clean, view)
    assert everything.view is not None
    assert targets.kept is not None
    assert targets.clean is not None
    q = softmax(everything.view)
    entropy = -(q * q.log()).sum(1)
    best = sorted(sorted(range(BATCH), key=lambda i: -float(entropy[i]))[:5])
    assert targets.kept.tolist() == best
    student = network(2).train()
    found = method.loss(student, clean, labels, View(view.images, 5), targets)
    student = network(2).train()
    logits = student(clean)
    expected = cross_entropy(logits, labels) + correlation(logits, targets.clean, config)
    expected = expected + correlation(student(view.images[best]), everything.view[best], config)
    torch.testing.assert_close(found.total, expected)
    assert method.prepare(clean, View(view.images, 100)).kept is None  # no more than there are


def test_entropy_of_ruled_out_classes() -> None:
    logits = torch.tensor([[0.0, -torch.inf, 0.0], [5.0, 0.0, 0.0], [0.0, 0.0, 0.0]])
    assert highest_entropy(logits, 2).tolist() == [0, 2]


def test_the_teacher_stays_as_it_was(batch: tuple[Tensor, Tensor, View]) -> None:
    teacher = network(1).train()
    before = {key: value.clone() for key, value in teacher.state_dict().items()}
    clean, labels, view = batch
    method = Method(MethodConfig(), teacher, num_classes=CLASSES).train()
    targets = method.prepare(clean, view)
    method.loss(network(2), clean, labels, view, targets).total.backward()
    assert teacher.training
    assert all(torch.equal(value, before[key]) for key, value in teacher.state_dict().items())
    assert not any(p.requires_grad for p in method.parameters())


def test_teacher_in_bfloat16(
    batch: tuple[Tensor, Tensor, View], monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(teacher, "processor_has_bfloat16", lambda: True)
    clean, view = batch[0].float(), View(batch[2].images.float())
    method = Method(
        MethodConfig(), network(1).float(), num_classes=CLASSES, teacher_dtype=torch.bfloat16
    )
    exact = Method(MethodConfig(), network(1).float(), num_classes=CLASSES)
    found, expected = method.prepare(clean, view), exact.prepare(clean, view)
    for a, b in ((found.clean, expected.clean), (found.view, expected.view)):
        assert a is not None
        assert b is not None
        assert a.dtype == torch.float32
        assert not torch.equal(a, b)
        torch.testing.assert_close(a, b, atol=0.05, rtol=0.05)


def test_autocast_does_not_reach_the_teacher(batch: tuple[Tensor, Tensor, View]) -> None:
    clean, view = batch[0].float(), View(batch[2].images.float())
    method = Method(MethodConfig(), network(1).float(), num_classes=CLASSES)
    expected = method.prepare(clean, view)
    with torch.autocast("cpu", torch.bfloat16):
        found = method.prepare(clean, view)
    assert found.clean is not None
    assert expected.clean is not None
    assert torch.equal(found.clean, expected.clean)


def test_complaints(batch: tuple[Tensor, Tensor, View]) -> None:
    clean, labels, view = batch
    with pytest.raises(ValueError, match="'kl' needs a teacher"):
        Method(MethodConfig("kl"), None, num_classes=CLASSES)
    method = Method(MethodConfig(), network(1), num_classes=CLASSES)
    with pytest.raises(ValueError, match=r"needs augment\.view"):
        method.prepare(clean, None)
    wrong = Method(MethodConfig(), network(1), num_classes=CLASSES + 1)
    with pytest.raises(ValueError, match=r"teacher must return logits \(B, 8\), got \(12, 7\)"):
        wrong.prepare(clean, view)
    with pytest.raises(ValueError, match=r"student must return logits \(B, 7\), got \(12, 96\)"):
        method.loss(network(2)[:-1], clean, labels, view, method.prepare(clean, view))
