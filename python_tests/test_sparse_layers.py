"""SparseLinear and SparseConv2d: formats, gradients, state dicts, compile."""

from __future__ import annotations

import copy
import io
import pickle
from typing import Any

import pytest
import torch
from sparse_cases import DTYPES, check
from torch import Tensor, nn

import r2kd_ext
from r2kd_ext import SparseConv2d, SparseLinear

FORMATS = ("csr", "2:4", "dense")


def two_of_four(weight: Tensor) -> Tensor:
    """The weight with the first and third of every four inputs at zero."""
    mask = torch.tensor([0.0, 1.0, 0.0, 1.0]).repeat(weight[0].numel() // 4)
    return weight * mask.view(weight[0].shape)


def linear(cols: int = 24, rows: int = 10, *, bias: bool = True) -> nn.Linear:
    torch.manual_seed(0)
    layer = nn.Linear(cols, rows, bias=bias)
    with torch.no_grad():
        layer.weight.copy_(two_of_four(layer.weight))
    return layer


def conv(**options: Any) -> nn.Conv2d:
    torch.manual_seed(0)
    layer = nn.Conv2d(8, 12, **({"kernel_size": 3} | options))
    with torch.no_grad():
        layer.weight.copy_(two_of_four(layer.weight))
    return layer


@pytest.mark.parametrize("dtype", DTYPES)
@pytest.mark.parametrize("format", FORMATS)
@pytest.mark.parametrize("bias", [True, False])
@torch.no_grad()
def test_linear(dtype: torch.dtype, format: str, bias: bool) -> None:
    layer = linear(bias=bias).to(dtype)
    made = SparseLinear.from_dense(layer, format)
    for shape in ((24,), (5, 24), (2, 3, 24), (0, 24)):
        x = torch.randn(shape).to(dtype)
        y = made(x)
        assert y.shape == (*shape[:-1], 10)
        check(y.view(-1, 10), nn.functional.linear, x.view(-1, 24), layer.weight, layer.bias)
    assert torch.equal(made.dense_weight(), layer.weight)


@pytest.mark.parametrize("format", FORMATS)
@pytest.mark.parametrize(
    "options",
    [
        {},
        {"kernel_size": (1, 1), "bias": False},
        {"kernel_size": (2, 4), "stride": (2, 1), "padding": (1, 2), "dilation": (1, 2)},
        {"groups": 4, "padding": 1, "kernel_size": (2, 2)},
        {"padding": "same", "kernel_size": (2, 4)},
        {"padding": "valid"},
        {"padding": 2, "padding_mode": "reflect"},
        {"padding": (1, 2), "padding_mode": "circular"},
        {"padding": 1, "padding_mode": "replicate", "stride": 2},
    ],
    ids=str,
)
@torch.no_grad()
def test_conv2d(format: str, options: dict[str, Any]) -> None:
    layer = conv(**options)
    made = SparseConv2d.from_dense(layer, format)

    def dense(x: Tensor, weight: Tensor, bias: Tensor | None) -> Tensor:
        wide = conv(**options).double()
        wide.weight, wide.bias = nn.Parameter(weight), bias if bias is None else nn.Parameter(bias)
        return wide(x)

    for x in (torch.randn(3, 8, 9, 11), torch.randn(3, 9, 11, 8).permute(0, 3, 1, 2)):
        check(made(x), dense, x, layer.weight, layer.bias)
    torch.testing.assert_close(made(x[0]), made(x)[0], rtol=1e-6, atol=1e-6)
    assert torch.equal(made.dense_weight(), layer.weight)


@pytest.mark.parametrize("format", FORMATS)
def test_no_gradient_of_weights(format: str) -> None:
    made = SparseLinear.from_dense(linear(), format)
    assert not any(p.requires_grad for p in made.parameters())
    x = torch.randn(2, 24)
    assert not made(x).requires_grad
    made.requires_grad_(True)
    with pytest.raises(RuntimeError, match=r"forward only and gives no gradient of its .*bias"):
        made(x)
    with torch.no_grad():
        made(x)


@pytest.mark.parametrize("layer", [linear(), conv()], ids=["linear", "conv2d"])
def test_no_gradient_of_input(layer: nn.Linear | nn.Conv2d) -> None:
    x = torch.randn((2, 24) if isinstance(layer, nn.Linear) else (2, 8, 5, 5))
    x.requires_grad_()
    made: nn.Module
    if isinstance(layer, nn.Linear):
        made = SparseLinear.from_dense(layer)
    else:
        made = SparseConv2d.from_dense(layer)
    with pytest.raises(RuntimeError, match="no gradient of its input"):
        made(x)
    with torch.no_grad():
        made(x)
    made(x.detach())


# --- state dicts ---------------------------------------------------------------------------------


@pytest.mark.parametrize("format", FORMATS)
@torch.no_grad()
def test_state_dict_round_trip(format: str) -> None:
    """Into a layer made without a weight, with another number of nonzero entries."""
    made = SparseConv2d.from_dense(conv(padding=1), format)
    file = io.BytesIO()
    torch.save(made.state_dict(), file)
    file.seek(0)
    for options in ({}, {"assign": True}):
        file.seek(0)
        empty = SparseConv2d(8, 12, 3, padding=1, format=format)
        empty.load_state_dict(torch.load(file, weights_only=True), **options)
        x = torch.randn(2, 8, 6, 6)
        assert torch.equal(empty(x), made(x))
        assert not any(p.requires_grad for p in empty.parameters())
    meta = SparseConv2d(8, 12, 3, padding=1, format=format, device="meta")
    meta.load_state_dict(made.state_dict(), assign=True)
    assert torch.equal(meta(x), made(x))


@torch.no_grad()
def test_copies() -> None:
    made = SparseLinear.from_dense(linear())
    x = torch.randn(2, 24)
    assert torch.equal(copy.deepcopy(made)(x), made(x))
    assert torch.equal(pickle.loads(pickle.dumps(made))(x), made(x))


def _broken(name: str) -> dict[str, Tensor]:
    """The state dict of a layer 24 -> 10, damaged."""
    state = {k: v.clone() for k, v in SparseLinear.from_dense(linear()).state_dict().items()}
    columns, row_offsets = state["columns"], state["row_offsets"]
    if name == "beyond":
        columns[11] = 24
    elif name == "negative":
        columns[0] = -1
    elif name == "descends":
        columns[[12, 13]] = columns[[13, 12]]
    elif name == "twice":
        columns[13] = columns[12]
    elif name == "short":
        state["columns"] = columns[:-1]
    elif name == "values":
        state["values"] = state["values"][:-1]
    elif name == "int64":
        state["columns"] = columns.long()
    elif name == "float":
        state["row_offsets"] = row_offsets.float()
    elif name == "rows":
        state["row_offsets"] = row_offsets[:-1]
    elif name == "offsets descend":
        row_offsets[3] = 0
    elif name == "start":
        row_offsets[0] = 1
    elif name == "end":
        row_offsets[-1] += 5
    elif name == "matrix":
        state["columns"] = columns[None]
    elif name == "int values":
        state["values"] = state["values"].int()
    elif name == "alone":
        del state["columns"]
    elif name == "meta":
        state["columns"] = columns.to("meta")
    return state


BROKEN = {
    "beyond": r"net\.columns must be in \[0, 24\), got 24",
    "negative": r"net\.columns must be in \[0, 24\), got -1",
    "descends": r"net\.columns must ascend within each row, got 3 before 1 in row 1",
    "twice": r"net\.columns must ascend within each row",
    "short": r"net\.columns must have one element per value, 120, got 119",
    "values": r"net\.columns must have one element per value, 119, got 120",
    "int64": r"net\.columns must have dtype torch\.int32, got torch\.int64",
    "float": r"net\.row_offsets must have dtype torch\.int32, got torch\.float32",
    "rows": r"net\.row_offsets must have one element more than the weight has rows, 11, got 10",
    "offsets descend": r"net\.row_offsets must not descend",
    "start": r"net\.row_offsets must go from 0 to the number of values, 120, got 1 to 120",
    "end": r"net\.row_offsets must go from 0 to the number of values, 120, got 0 to 125",
    "matrix": r"net\.columns must have one dimension, got shape \(1, 120\)",
    "int values": r"net\.values must have a floating-point dtype, got torch\.int32",
    "meta": r"net\.columns must have numbers, got a tensor on the meta device",
    "alone": r"net\.values, row_offsets must come together with net\.columns",
}


@pytest.mark.parametrize("name", BROKEN)
@torch.no_grad()
def test_damaged_state(name: str) -> None:
    """Named, found before a kernel reads it, and the layer stays as it was."""
    model = nn.ModuleDict({"net": SparseLinear.from_dense(linear())})
    x = torch.randn(2, 24)
    before = model["net"](x)
    state = {f"net.{key}": value for key, value in _broken(name).items()}
    with pytest.raises(RuntimeError, match=BROKEN[name]):
        model.load_state_dict(state)
    assert torch.equal(model["net"](x), before)


@torch.no_grad()
def test_indices_changed_in_place() -> None:
    made = SparseLinear.from_dense(linear())
    x = torch.randn(2, 24)
    made(x)
    made.columns[7] = 1 << 30
    with pytest.raises(ValueError, match=r"columns must be in \[0, 24\)"):
        made(x)


def test_2_4_state_that_is_not() -> None:
    made = SparseLinear.from_dense(linear(), "2:4")
    state = made.state_dict()
    state["weight"] = torch.ones(10, 24)
    with pytest.raises(RuntimeError, match=r"at most 2 nonzero entries in every 4"):
        made.load_state_dict(state)
    with pytest.raises(RuntimeError, match=r"Unexpected key.*values"):
        made.load_state_dict(SparseLinear.from_dense(linear()).state_dict())


# --- errors --------------------------------------------------------------------------------------


def test_errors_of_from_dense() -> None:
    with pytest.raises(ValueError, match=r"format must be one of 'csr', '2:4', 'dense', got 'coo'"):
        SparseLinear.from_dense(linear(), "coo")
    with pytest.raises(TypeError, match=r"layer must be a torch\.nn\.Linear, got Conv2d"):
        SparseLinear.from_dense(conv())  # type: ignore[arg-type]
    with pytest.raises(TypeError, match=r"layer must be a torch\.nn\.Conv2d, got Linear"):
        SparseConv2d.from_dense(linear())  # type: ignore[arg-type]
    with pytest.raises(TypeError, match=r"float32, bfloat16, float16, got torch\.float64"):
        SparseLinear.from_dense(linear().double())
    with pytest.raises(
        ValueError, match=r"at most 2 nonzero entries .* got 4 in row 0 from column 0"
    ):
        SparseLinear.from_dense(nn.Linear(8, 3), "2:4")
    with pytest.raises(ValueError, match=r"divisible by 4 for format '2:4', got 6"):
        SparseLinear.from_dense(nn.Linear(6, 3), "2:4")
    with pytest.raises(ValueError, match="run the lazy layer on one batch first"):
        SparseLinear.from_dense(nn.LazyLinear(3))


@torch.no_grad()
def test_errors_of_calls() -> None:
    made = SparseLinear.from_dense(linear())
    with pytest.raises(ValueError, match=r"x must have shape \(\.\.\., 24\), got \(2, 23\)"):
        made(torch.randn(2, 23))
    with pytest.raises(TypeError, match=r"dtype of the weight, torch\.float32, got torch\.float16"):
        made(torch.randn(2, 24).half())
    with pytest.raises(TypeError, match="x must be a Tensor, got list"):
        made([1.0])
    with pytest.raises(ValueError, match="x must be on the device of the weight, cpu, got meta"):
        made(torch.randn(2, 24, device="meta"))
    with pytest.raises(TypeError, match=r"takes weights of .*, got torch\.float64"):
        copy.deepcopy(made).double()(torch.randn(2, 24).double())
    image = SparseConv2d.from_dense(conv())
    with pytest.raises(ValueError, match=r"x must have shape \(B, 8, H, W\) or \(8, H, W\)"):
        image(torch.randn(2, 7, 5, 5))
    with pytest.raises(ValueError, match="x must be at least as wide"):
        image(torch.randn(2, 8, 5, 2))


# --- the rest of torch ---------------------------------------------------------------------------


@torch.no_grad()
def test_dtype_can_change() -> None:
    made = SparseLinear.from_dense(linear()).to(torch.bfloat16)
    assert made.columns.dtype == torch.int32
    x = torch.randn(3, 24).bfloat16()
    check(made(x), nn.functional.linear, x, made.dense_weight(), made.bias)


@pytest.mark.parametrize("format", FORMATS)
@torch.no_grad()
def test_autocast(format: str) -> None:
    layer = linear()
    x = torch.randn(3, 24)
    with torch.autocast("cpu", torch.bfloat16):
        y = SparseLinear.from_dense(layer, format)(x)
    assert y.dtype == torch.bfloat16
    low = [t.detach().bfloat16() for t in (x, layer.weight, layer.bias)]
    check(y, nn.functional.linear, *low)


@torch.no_grad()
def test_compile() -> None:
    model = nn.Sequential(
        SparseConv2d.from_dense(conv(padding=1)), nn.Flatten(),
        SparseLinear.from_dense(linear(12 * 16, 10)),
    )  # fmt: skip
    x = torch.randn(2, 8, 4, 4)
    compiled = torch.compile(model, fullgraph=True, backend="aot_eager")
    torch.testing.assert_close(compiled(x), model(x))


def test_2_4_names_its_kernel() -> None:
    made = SparseLinear.from_dense(linear(), "2:4")
    assert made.kernel.startswith("dense (semi-structured kernels need an NVIDIA GPU")
    assert made.kernel in repr(made)
    assert "sparsity=0.5" in repr(SparseLinear.from_dense(linear()))


def test_exported() -> None:
    assert {"SparseLinear", "SparseConv2d", "sparsify"} <= set(r2kd_ext.__all__)
