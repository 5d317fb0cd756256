"""The op winograd_conv2d against float64, and which layers of a network it computes."""

from __future__ import annotations

from fractions import Fraction

import pytest
import torch
from hypothesis import given
from hypothesis import strategies as st
from instruction_sets import LEVELS, rerun
from torch import Tensor, nn
from torch.nn import functional as F
from zoo import filled

import r2kd_ext
from r2kd_ext import backends, fusion, winograd
from r2kd_ext.backends import Choice
from r2kd_ext.folding import fold_batchnorm
from r2kd_ext.fusion import fuse_activations
from r2kd_ext.ops_winograd import winograd_conv2d, winograd_conv2d_
from r2kd_ext.winograd import transform_weight

LAYOUTS = ("channels-last", "contiguous", "every second", "expanded")


def images(shape: tuple[int, int, int, int], layout: str = "channels-last") -> Tensor:
    batch, channels, height, width = shape
    if layout == "every second":
        return torch.randn(batch, channels, height, 2 * width)[..., ::2]
    if layout == "expanded":
        return torch.randn(1, channels, height, width).expand(shape)
    x = torch.randn(shape)
    return x.contiguous(memory_format=torch.channels_last) if layout == "channels-last" else x


def weight_of(outputs: int, inputs: int) -> Tensor:
    return torch.randn(outputs, inputs, 3, 3) / (9 * inputs) ** 0.5


def bound(inputs: int) -> float:
    """The rounding of sums over so many channels, at random, and that of both transforms."""
    return 3e-7 * inputs**0.5


def exact(x: Tensor, weight: Tensor, bias: Tensor | None, other: Tensor | None) -> Tensor:
    y = F.conv2d(x.double(), weight.double(), None if bias is None else bias.double(), padding=1)
    return y if other is None else y + other.double()


def distance(got: Tensor, want: Tensor) -> float:
    """The largest difference, relative to the largest value."""
    assert got.shape == want.shape
    return float((got.double() - want).abs().max() / want.abs().max()) if want.numel() else 0.0


@given(
    batch=st.sampled_from((0, 1, 2, 5)),
    # Tiles are of 4 x 4, blocks of 12 tiles.
    height=st.sampled_from((1, 3, 4, 5, 8, 13)),
    width=st.sampled_from((1, 2, 4, 7, 12, 33)),
    inputs=st.sampled_from((16, 32, 48)),
    outputs=st.sampled_from((16, 48, 64)),
    layout=st.sampled_from(LAYOUTS),
    biased=st.booleans(),
    added=st.sampled_from((None, *LAYOUTS)),
    relu=st.booleans(),
    seed=st.integers(0, 999),
)
def test_against_float64(
    batch: int, height: int, width: int, inputs: int, outputs: int, layout: str,
    biased: bool, added: str | None, relu: bool, seed: int,
) -> None:  # fmt: skip
    torch.manual_seed(seed)
    x, weight = images((batch, inputs, height, width), layout), weight_of(outputs, inputs)
    bias = torch.randn(outputs) if biased else None
    other = None if added is None else images((batch, outputs, height, width), added)
    y = winograd_conv2d(x, transform_weight(weight), bias, other, relu)
    want = exact(x, weight, bias, other)
    assert distance(y, want.relu() if relu else want) < bound(inputs)
    assert y.is_contiguous(memory_format=torch.channels_last)
    if other is not None and added != "expanded":
        other = other.contiguous(memory_format=torch.channels_last).clone()
        winograd_conv2d_(x, transform_weight(weight), bias, other, relu)
        assert torch.equal(other, y)


@pytest.mark.parametrize("channels", [128, 512])
def test_many_channels(channels: int) -> None:
    torch.manual_seed(0)
    x, weight = images((2, channels, 9, 11)), weight_of(channels, channels)
    y = winograd_conv2d(x, transform_weight(weight), None, None, False)
    assert distance(y, exact(x, weight, None, None)) < bound(channels)


def test_every_output_is_written(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(torch.utils.deterministic, "fill_uninitialized_memory", True)
    torch.use_deterministic_algorithms(True)
    try:
        y = winograd_conv2d(
            images((3, 16, 9, 7)), transform_weight(weight_of(32, 16)), None, None, True
        )
    finally:
        torch.use_deterministic_algorithms(False)
    assert y.isfinite().all()


def test_a_pixel_reaches_its_neighbours_alone() -> None:
    """An error of a tile's place or of its border would move or cut what one pixel gives."""
    weight = weight_of(16, 16)
    for row, col in ((0, 0), (3, 4), (4, 3), (8, 6), (5, 0)):
        x = torch.zeros(1, 16, 9, 7)
        x[0, 5, row, col] = 1
        y = winograd_conv2d(x, transform_weight(weight), None, None, False)
        want = exact(x, weight, None, None)
        assert (y - want).abs().max() < 1e-6
        assert (want != 0).sum() <= 9 * 16


def test_bits_depend_on_neither_batch_nor_threads() -> None:
    torch.manual_seed(0)
    x, weight = images((6, 32, 17, 9)), transform_weight(weight_of(48, 32))
    bias, other = torch.randn(48), images((6, 48, 17, 9))
    y = winograd_conv2d(x, weight, bias, other, True)
    for i in range(len(x)):
        one = winograd_conv2d(x[i : i + 1], weight, bias, other[i : i + 1], True)
        assert torch.equal(one[0], y[i])
    threads = torch.get_num_threads()
    try:
        for count in (1, 2, 3, 5):
            torch.set_num_threads(count)
            assert torch.equal(winograd_conv2d(x, weight, bias, other, True), y)
    finally:
        torch.set_num_threads(threads)


@pytest.mark.parametrize("value", [float("nan"), float("inf")])
@pytest.mark.parametrize("relu", [True, False])
def test_what_is_not_finite_shows(value: float, relu: bool) -> None:
    x = torch.randn(1, 16, 12, 12)
    x[0, 3, 5, 5] = value
    y = winograd_conv2d(x, transform_weight(weight_of(16, 16)), None, None, relu)
    assert y[0, :, 4:7, 4:7].isnan().all()  # the neighbours; ReLU does not make 0 of them
    assert y[0, :, 8:].isfinite().all()  # a tile that does not read the pixel


def test_operators_are_well_formed() -> None:
    weight, bias = transform_weight(weight_of(32, 16)), torch.randn(32)
    x, other = images((2, 16, 5, 6)), images((2, 32, 5, 6))
    for arguments in ((x, weight, bias, other, True), (x, weight, None, None, False)):
        torch.library.opcheck(winograd_conv2d, arguments)
    torch.library.opcheck(winograd_conv2d_, (x, weight, bias, other, True))


def test_errors() -> None:
    x, weight, bias = images((2, 16, 5, 6)), transform_weight(weight_of(32, 16)), torch.randn(32)
    other = images((2, 32, 5, 6))
    wrong = [
        ((x.double(), weight, bias, other), "x must be float32, got torch.float64"),
        ((x, weight, bias.half(), other), "bias must be float32, got torch.float16"),
        ((x[:, :8], weight, bias, other), r"x must be .* C a multiple of 16, got \(2, 8, 5, 6\)"),
        ((x[0], weight, bias, other), "x must be "),
        ((x, weight[:, :30], bias, other), r"weight must be \[K / 16, 36, 16, 16\] and contiguous"),
        ((x, weight.transpose(2, 3), bias, other), "weight must be .* contiguous"),
        ((x, weight, bias[:16], other), r"bias must be \[32\] and contiguous, got \(16,\)"),
        ((x, weight, bias, other[:1]), r"other must be \[2, 32, 5, 6\], got \[1, 32, 5, 6\]"),
    ]
    for arguments, message in wrong:
        for op in (winograd_conv2d, winograd_conv2d_):
            with pytest.raises(ValueError, match=message):
                op(*arguments, True)
    with pytest.raises(ValueError, match="other must be channels-last, got strides"):
        winograd_conv2d_(x, weight, bias, other.contiguous(), True)
    square = transform_weight(weight_of(16, 16))
    with pytest.raises(ValueError, match="other must not share its storage with x"):
        winograd_conv2d_(x, square, None, x, True)


def test_transformed_weight_is_the_exact_one() -> None:
    """Of whole numbers G w G^T is a multiple of the least fraction, rounded once."""
    matrix = winograd.weight_matrix()
    torch.manual_seed(0)
    weight = torch.randint(-9, 10, (16, 32, 3, 3))
    transformed = transform_weight(weight.float())  # [1, 36, 32, 16]
    for k, c, i, j in ((0, 0, 0, 0), (3, 31, 1, 4), (15, 7, 5, 5), (9, 16, 2, 5)):
        want = sum(
            (
                matrix[i][a] * int(weight[k, c, a, b]) * matrix[j][b]
                for a in range(3)
                for b in range(3)
            ),
            Fraction(0),
        )
        assert transformed[0, 6 * i + j, c, k].item() == pytest.approx(float(want), rel=2**-23)


@pytest.mark.parametrize(
    ("layer", "taken"),
    [
        (nn.Conv2d(16, 32, 3, padding=1), True),
        (nn.Conv2d(512, 512, 3, padding=1, bias=False), True),
        (nn.Conv2d(512, 528, 3, padding=1), False),  # too many weights
        (nn.Conv2d(16, 24, 3, padding=1), False),
        (nn.Conv2d(3, 16, 3, padding=1), False),
        (nn.Conv2d(16, 16, 3), False),
        (nn.Conv2d(16, 16, 3, padding="same"), False),
        (nn.Conv2d(16, 16, 3, padding=1, padding_mode="reflect"), False),
        (nn.Conv2d(16, 16, 3, 2, padding=1), False),
        (nn.Conv2d(16, 16, 3, padding=1, dilation=2), False),
        (nn.Conv2d(16, 16, (3, 1), padding=1), False),
        (nn.Conv2d(32, 32, 3, padding=1, groups=2), False),
        (nn.Conv2d(16, 16, 3, padding=1).double(), False),
        (nn.ConvTranspose2d(16, 16, 3, padding=1), False),
    ],
)
def test_which_layers_are_taken(
    layer: nn.Module, taken: bool, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(winograd, "choose_winograd", lambda device: Choice("native", ""))
    assert winograd.takes(layer) is taken
    monkeypatch.setattr(winograd, "choose_winograd", lambda device: Choice("reference", ""))
    assert not winograd.takes(layer)


def test_choice(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(backends, "WISH", None)
    simd = r2kd_ext.build_info()["simd"]
    chosen = backends.choose_winograd(torch.device("cpu"))
    assert chosen.backend == ("native" if simd == "avx2" else "reference")
    assert simd in chosen.reason
    assert backends.choose_winograd(torch.device("meta")).backend == "reference"
    for wish in ("native", "reference"):
        monkeypatch.setattr(backends, "WISH", wish)
        assert backends.choose_winograd(torch.device("cpu")).backend == wish


@pytest.mark.parametrize(
    ("height", "width", "pays"), [(4, 4, True), (16, 12, True), (7, 7, True), (2, 64, False),
                                  (5, 5, False), (1, 1, False)],
)  # fmt: skip
def test_images_that_fill_their_tiles(height: int, width: int, pays: bool) -> None:
    assert winograd.pays(torch.empty(2, 16, height, width)) is pays


@pytest.fixture
def taken(monkeypatch: pytest.MonkeyPatch) -> list[tuple[int, ...]]:
    """The shapes of what the kernel is called with, on any processor and for small images, too."""
    shapes = []

    def noted(op):  # type: ignore[no-untyped-def]
        def run(x, *rest):  # type: ignore[no-untyped-def]
            shapes.append(tuple(x.shape))
            return op(x, *rest)

        return run

    monkeypatch.setattr(winograd, "choose_winograd", lambda device: Choice("native", ""))
    monkeypatch.setattr(fusion, "_FEWEST_VALUES", 0)
    for name in ("winograd_conv2d", "winograd_conv2d_"):
        monkeypatch.setattr(fusion, name, noted(getattr(fusion, name)))
    return shapes


@pytest.mark.usefixtures("one_thread")
@pytest.mark.parametrize(
    # Blocks of two convolutions, less the first of stages 2 and 3, which has stride 2; the stem of
    # one has 3 channels, and in the other the first convolution of stage 1 has 16 to 32.
    ("name", "count"),
    [("resnet20", 3 * 3 * 2 - 2), ("wrn_16_2", 3 * 2 * 2 - 2)],
)
def test_what_is_computed_so(name: str, count: int, taken: list[tuple[int, ...]]) -> None:
    network = filled(name, "32x32_100")
    fold_batchnorm(network)
    fused = fuse_activations(network)
    with torch.no_grad():
        fused(torch.randn(2, 3, 32, 32))
    assert len(taken) == count


class Alone(nn.Module):
    """A convolution that nothing to fuse follows."""

    def __init__(self) -> None:
        super().__init__()
        self.layer = nn.Conv2d(16, 16, 3, padding=1)

    def forward(self, x: Tensor) -> Tensor:
        out: Tensor = self.layer(x)
        return out.sigmoid()


def test_a_convolution_alone(taken: list[tuple[int, ...]]) -> None:
    network = Alone().eval()
    fused = fuse_activations(network)
    for size, calls in ((8, 1), (2, 1)):  # the second is mostly the rest of a tile
        x = torch.randn(3, 16, size, size)
        with torch.no_grad():
            assert (fused(x) - network(x)).abs().max() < 1e-6
        assert len(taken) == calls


@pytest.mark.slow
@pytest.mark.parametrize("level", LEVELS[:-1])
def test_other_instruction_sets(level: str) -> None:
    tests = (
        "test_against_float64",
        "test_many_channels",
        "test_a_pixel_reaches_its_neighbours_alone",
    )
    rerun(level, __file__, tests)
