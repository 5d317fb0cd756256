"""Frozen layers with a sparse weight."""

from __future__ import annotations

from collections.abc import Sequence
from typing import Any, TypeVar

import torch
from torch import Tensor, nn
from torch.nn import functional as F

from . import ops_sparse
from .backends.reference_sparse import dense_weight
from .csr import DTYPES, Csr, check_csr, csr_from_dense
from .semi_structured import check_2_4, compress, obstacle

FORMATS = ("csr", "2:4", "dense")
_CSR = ("values", "columns", "row_offsets")
_Layer = TypeVar("_Layer", bound="_SparseLayer")


def check_format(format: Any, formats: Sequence[str] = FORMATS) -> None:
    """Raise ValueError unless format is one of `formats`."""
    if format not in formats:
        raise ValueError(f"format must be one of {', '.join(map(repr, formats))}, got {format!r}")


def _state_of(tensor: Tensor) -> tuple[int, ...]:
    """Differs after any change of the tensor: in place, moved or replaced."""
    return tensor.data_ptr(), 0 if tensor.is_inference() else tensor._version, *tensor.shape


class _SparseLayer(nn.Module):
    """A frozen weight, seen as a matrix [rows, cols], in one of FORMATS, and a bias [rows].

    "csr" has values [nnz] (a parameter that takes no gradient), columns [nnz] and row_offsets
    [rows + 1] (buffers, int32); "2:4" and "dense" have weight, zeros included.
    """

    weight: nn.Parameter
    values: nn.Parameter
    columns: Tensor
    row_offsets: Tensor
    bias: nn.Parameter | None

    def __init__(
        self,
        shape: tuple[int, ...],
        bias: bool,
        format: str,
        device: torch.device | str | None,
        dtype: torch.dtype | None,
    ) -> None:
        super().__init__()
        check_format(format)
        self.format = format
        self._shape = shape  # of the dense weight
        self._checked: tuple[Any, ...] | None = None
        self._compressed: tuple[tuple[Any, ...], Tensor] | None = None
        zeros = torch.zeros(shape[0], device=device, dtype=dtype)
        if format == "csr":
            offsets = torch.zeros(shape[0] + 1, device=device, dtype=torch.int32)
            self._set_csr(Csr(zeros[:0].clone(), offsets[:0].clone(), offsets))
        else:
            self._set_weight(zeros.new_zeros(shape))
        self.register_parameter("bias", nn.Parameter(zeros, requires_grad=False) if bias else None)

    def _check_dtype(self, dtype: torch.dtype) -> None:
        if self.format == "csr" and dtype not in DTYPES:
            accepted = ", ".join(str(x).removeprefix("torch.") for x in DTYPES)
            raise TypeError(
                f"{type(self).__name__} with format 'csr' takes weights of {accepted}, got {dtype}"
            )

    def _set_csr(self, csr: Csr) -> None:
        self._check_dtype(csr.values.dtype)
        self.values = nn.Parameter(csr.values, requires_grad=False)
        self.register_buffer("columns", csr.columns)
        self.register_buffer("row_offsets", csr.row_offsets)

    def _set_weight(self, weight: Tensor) -> None:
        if self.format == "csr":
            self._set_csr(csr_from_dense(weight.flatten(1)))
        else:
            if self.format == "2:4" and not weight.is_meta:
                check_2_4(weight.flatten(1), "weight")
            self.weight = nn.Parameter(weight.clone(), requires_grad=False)

    @classmethod
    def _from_dense(
        cls: type[_Layer], layer: Any, format: str, *args: Any, **options: Any
    ) -> _Layer:
        weight = layer.weight
        if isinstance(weight, nn.UninitializedParameter):
            raise ValueError(
                "layer must be initialised, but its weight has no shape yet: "
                "run the lazy layer on one batch first"
            )
        kind: Any = cls
        made: _Layer = kind(
            *args, bias=layer.bias is not None, format=format,
            device=weight.device, dtype=weight.dtype, **options,
        )  # fmt: skip
        made._set_weight(weight.detach())
        if layer.bias is not None:
            made.bias = nn.Parameter(layer.bias.detach().clone(), requires_grad=False)
        return made.train(layer.training)

    @property
    def _matrix(self) -> tuple[int, int]:
        rows, *inputs = self._shape
        return rows, int(torch.Size(inputs).numel())

    def dense_weight(self) -> Tensor:
        """The weight with its zeros, in the shape of the dense layer's; a new tensor for "csr"."""
        if self.format != "csr":
            return self.weight.detach()
        self._check_indices()
        csr = (self.values.detach(), self.columns, self.row_offsets)
        return dense_weight(*csr, self._matrix[1]).view(self._shape)

    @property
    def kernel(self) -> str:
        """What computes the layer on its device, and if that is the dense kernel, why."""
        if self.format == "csr":
            return "csr"
        if self.format == "dense":
            return "dense"
        problem = self._obstacle()
        return "semi-structured" if problem is None else f"dense ({problem})"

    def _obstacle(self) -> str | None:
        return obstacle(self.weight)

    # --- before a kernel reads anything --------------------------------------------------------

    def _check_call(self, x: Tensor) -> None:
        if not isinstance(x, Tensor):
            raise TypeError(f"x must be a Tensor, got {type(x).__name__}")
        if torch.is_grad_enabled():
            asking = [
                name
                for name, parameter in self._parameters.items()
                if parameter is not None and parameter.requires_grad
            ]
            if asking:
                raise RuntimeError(
                    f"{type(self).__name__} is forward only and gives no gradient of its "
                    f"{' and '.join(asking)}: call requires_grad_(False) on it"
                )
            if x.requires_grad:
                raise RuntimeError(
                    f"{type(self).__name__} is forward only and gives no gradient of its input: "
                    "call it under torch.no_grad(), or detach the input"
                )
        weight = self.values if self.format == "csr" else self.weight
        if x.device != weight.device:
            raise ValueError(
                f"x must be on the device of the weight, {weight.device}, got {x.device}"
            )

    def _check_dtypes(self, x: Tensor, weight: Tensor) -> None:
        if x.dtype != weight.dtype:
            raise TypeError(f"x must have the dtype of the weight, {weight.dtype}, got {x.dtype}")
        self._check_dtype(weight.dtype)

    def _check_indices(self) -> None:
        """Check the entries unless they are those that were checked last."""
        if torch.compiler.is_compiling():
            return
        csr = Csr(self.values, self.columns, self.row_offsets)
        state = tuple(map(_state_of, csr))
        if state == self._checked:
            return
        check_csr(csr, *self._matrix)
        for name, tensor in csr._asdict().items():
            if not tensor.is_contiguous() or tensor.device != self.values.device:
                raise ValueError(f"{name} must be contiguous and on the device of values")
        self._checked = state

    def _operands(self, x: Tensor, weight: Tensor) -> tuple[Tensor, Tensor, Tensor | None]:
        """x, weight and bias in the dtype to compute in: autocast's, or their own."""
        bias: Tensor | None = self.bias
        if torch.is_autocast_enabled(x.device.type):
            dtype = torch.get_autocast_dtype(x.device.type)
            if x.is_floating_point() and x.dtype != torch.float64:
                x, weight = x.to(dtype), weight.to(dtype)
                bias = None if bias is None else bias.to(dtype)
        self._check_dtypes(x, weight)
        return x, weight, bias

    def _semi_structured_weight(self) -> Tensor:
        state = (*_state_of(self.weight), self.weight.dtype, self.weight.device)
        if self._compressed is None or self._compressed[0] != state:
            check_2_4(self.weight, "weight")
            self._compressed = state, compress(self.weight)
        return self._compressed[1]

    # --- state dict ----------------------------------------------------------------------------

    def _load_from_state_dict(
        self,
        state_dict: dict[str, Any],
        prefix: str,
        local_metadata: dict[str, Any],
        strict: bool,
        missing_keys: list[str],
        unexpected_keys: list[str],
        error_msgs: list[str],
    ) -> None:
        """Check what comes before anything of this layer is replaced.

        The number of nonzero entries may differ from the present one.
        """
        try:
            self._check_state(state_dict, prefix)
        except (TypeError, ValueError) as error:
            error_msgs.append(str(error))
            return
        csr = [state_dict.get(prefix + name) for name in _CSR]
        if self.format == "csr" and all(isinstance(x, Tensor) for x in csr):
            count = len(state_dict[prefix + "values"])
            self.values = nn.Parameter(self.values.new_empty(count), requires_grad=False)
            self.columns = self.columns.new_empty(count)
        super()._load_from_state_dict(
            state_dict, prefix, local_metadata, strict, missing_keys, unexpected_keys, error_msgs
        )

    def _check_state(self, state_dict: dict[str, Any], prefix: str) -> None:
        rows, cols = self._matrix
        if self.format == "csr":
            given = {name: state_dict.get(prefix + name) for name in _CSR}
            present = {name: x for name, x in given.items() if isinstance(x, Tensor)}
            if len(present) == len(_CSR):
                check_csr(Csr(**present), rows, cols, prefix)
            elif present:
                missing = ", ".join(prefix + name for name in _CSR if name not in present)
                raise ValueError(
                    f"{prefix}{', '.join(present)} must come together with {missing}: "
                    "entries of two weights do not mix"
                )
        elif self.format == "2:4":
            weight = state_dict.get(prefix + "weight")
            if isinstance(weight, Tensor) and tuple(weight.shape) == self._shape:
                check_2_4(weight.flatten(1), prefix + "weight")

    def __getstate__(self) -> dict[str, Any]:
        """Copies and pickles check and compress their own weights."""
        return {**self.__dict__, "_checked": None, "_compressed": None}

    def _weight_repr(self) -> str:
        if self.format != "csr":
            return f"format={self.format!r}, kernel={self.kernel!r}"
        rows, cols = self._matrix
        size = rows * cols
        share = f", sparsity={1 - self.values.numel() / size:.4f}" if size else ""
        return f"format='csr'{share}"


class SparseLinear(_SparseLayer):
    """`torch.nn.Linear` with a frozen, sparse weight: y = x W^T + bias.

    `SparseLinear.from_dense(layer, format)` takes over the weight of a layer, of which exactly the
    zeros are left out:

    - "csr": the nonzero entries alone, with kernels of this package. float32, bfloat16, float16;
      sums in float32. An entry that is left out adds nothing, also where x is infinite or NaN.
    - "2:4": at most 2 of 4 neighbours along the inputs are not zero; torch's semi-structured
      kernels on NVIDIA GPUs from Ampere on (bfloat16 and float16, sizes divisible by 64), and the
      dense layer with the same zeros elsewhere. `kernel` says which and why.
    - "dense": the dense layer.

    Forward only: a call that would have to give a gradient, of the weight, the bias or x, raises
    RuntimeError. Under autocast x and the weight are cast as those of `torch.nn.Linear`.

    The state dict has "values", "columns" and "row_offsets" for "csr", else "weight", and "bias".
    Loading checks the indices first: out of range, not ascending, of wrong length or dtype are
    errors that name the key, and the layer stays as it was. So does the next call after any other
    change of them.

    Args (an all-zero weight to load a state dict into):
        in_features, out_features, bias, device, dtype: those of `torch.nn.Linear`.
        format: "csr", "2:4" or "dense".

    Shapes: x (..., in_features) -> (..., out_features).

    Raises:
        TypeError: the dtype is none that the format takes, or not that of the weight.
        ValueError: unknown format, wrong shape or device.
        RuntimeError: a gradient is asked for.
    """

    def __init__(
        self,
        in_features: int,
        out_features: int,
        bias: bool = True,
        *,
        format: str = "csr",
        device: torch.device | str | None = None,
        dtype: torch.dtype | None = None,
    ) -> None:
        super().__init__((out_features, in_features), bias, format, device, dtype)
        self.in_features, self.out_features = in_features, out_features

    @classmethod
    def from_dense(cls, layer: nn.Linear, format: str = "csr") -> SparseLinear:
        """The layer with its weight in `format`, its bias copied, on the same device.

        Raises TypeError if `layer` is no `torch.nn.Linear` or its dtype is none that the format
        takes, ValueError for an unknown format, an uninitialised layer, and a weight that is
        not 2:4 for "2:4".
        """
        check_format(format)
        if not isinstance(layer, nn.Linear):
            raise TypeError(f"layer must be a torch.nn.Linear, got {type(layer).__name__}")
        return cls._from_dense(layer, format, layer.in_features, layer.out_features)

    def forward(self, x: Tensor) -> Tensor:
        """x (..., in_features) -> (..., out_features), in the dtype of x."""
        self._check_call(x)
        if x.dim() == 0 or x.shape[-1] != self.in_features:
            raise ValueError(f"x must have shape (..., {self.in_features}), got {tuple(x.shape)}")
        if self.format == "csr":
            self._check_indices()
            x, values, bias = self._operands(x, self.values)
            flat = x.reshape(-1, self.in_features)
            y = ops_sparse.csr_linear(flat, values, self.columns, self.row_offsets, bias)
            return y.view(*x.shape[:-1], self.out_features)
        x, weight, bias = self._operands(x, self.weight)
        if self.format == "2:4" and weight is self.weight and self._obstacle() is None:
            weight = self._semi_structured_weight()
        return F.linear(x, weight, bias)

    def extra_repr(self) -> str:
        return (
            f"in_features={self.in_features}, out_features={self.out_features}, "
            f"bias={self.bias is not None}, {self._weight_repr()}"
        )


def _pair(value: int | tuple[int, int]) -> tuple[int, int]:
    return (value, value) if isinstance(value, int) else (value[0], value[1])


class SparseConv2d(_SparseLayer):
    """`torch.nn.Conv2d` with a frozen, sparse weight, and all of its options.

    Formats, gradients, autocast and the state dict are those of `SparseLinear`; the 4 neighbours
    of "2:4" are along the flattened inputs (channels of a group, then kernel height and width),
    and that format runs the dense convolution on every device. The "csr" kernel of the CPU makes no
    unfolded copy of x. y is channels-last where x is.

    Padding with other than zeros, and by different numbers of zeros on two sides
    (padding="same"), makes a padded copy of x first.

    Args (an all-zero weight to load a state dict into):
        in_channels, out_channels, kernel_size, stride, padding, dilation, groups, bias,
        padding_mode, device, dtype: those of `torch.nn.Conv2d`.
        format: "csr", "2:4" or "dense".

    Shapes: x (B, C, H, W) or (C, H, W), any strides.

    Raises: what `SparseLinear` raises.
    """

    def __init__(
        self,
        in_channels: int,
        out_channels: int,
        kernel_size: int | tuple[int, int],
        stride: int | tuple[int, int] = 1,
        padding: int | tuple[int, int] | str = 0,
        dilation: int | tuple[int, int] = 1,
        groups: int = 1,
        bias: bool = True,
        padding_mode: str = "zeros",
        *,
        format: str = "csr",
        device: torch.device | str | None = None,
        dtype: torch.dtype | None = None,
    ) -> None:
        # Its checks are the checks wanted here; on the meta device it has no weight.
        conv = nn.Conv2d(
            in_channels, out_channels, kernel_size, stride, padding, dilation, groups,
            bias, padding_mode, device="meta",  # type: ignore[arg-type]
        )  # fmt: skip
        super().__init__(tuple(conv.weight.shape), bias, format, device, dtype)
        self.in_channels, self.out_channels, self.groups = in_channels, out_channels, groups
        self.kernel_size, self.stride = _pair(kernel_size), _pair(stride)
        self.dilation, self.padding, self.padding_mode = _pair(dilation), conv.padding, padding_mode
        left, right, top, bottom = conv._reversed_padding_repeated_twice
        symmetric = left == right and top == bottom
        self._padding = (top, left)  # by the kernel
        self._padding_before: list[int] | None = None  # by a copy
        if padding_mode != "zeros" or not symmetric:
            self._padding, self._padding_before = (0, 0), [left, right, top, bottom]

    @classmethod
    def from_dense(cls, layer: nn.Conv2d, format: str = "csr") -> SparseConv2d:
        """The layer with its weight in `format`, its bias copied, on the same device.

        Raises TypeError if `layer` is no `torch.nn.Conv2d` or its dtype is none that the format
        takes, ValueError for an unknown format, an uninitialised layer, and a weight that is
        not 2:4 for "2:4".
        """
        check_format(format)
        if not isinstance(layer, nn.Conv2d):
            raise TypeError(f"layer must be a torch.nn.Conv2d, got {type(layer).__name__}")
        return cls._from_dense(
            layer, format, layer.in_channels, layer.out_channels, layer.kernel_size,
            stride=layer.stride, padding=layer.padding, dilation=layer.dilation,
            groups=layer.groups, padding_mode=layer.padding_mode,
        )  # fmt: skip

    def _obstacle(self) -> str | None:
        return "no semi-structured kernel for convolutions"

    def forward(self, x: Tensor) -> Tensor:
        """x (B, in_channels, H, W) -> (B, out_channels, H', W'), or both without B."""
        self._check_call(x)
        if x.dim() not in (3, 4) or x.shape[-3] != self.in_channels:
            raise ValueError(
                f"x must have shape (B, {self.in_channels}, H, W) or ({self.in_channels}, H, W), "
                f"got {tuple(x.shape)}"
            )
        if x.dim() == 3:
            return self._convolve(x[None])[0]
        return self._convolve(x)

    def _convolve(self, x: Tensor) -> Tensor:
        if self._padding_before is not None:
            mode = "constant" if self.padding_mode == "zeros" else self.padding_mode
            x = F.pad(x, self._padding_before, mode=mode)
        for i, size in enumerate(x.shape[2:]):
            reach = self.dilation[i] * (self.kernel_size[i] - 1) + 1
            if size + 2 * self._padding[i] < reach:
                raise ValueError(
                    f"x must be at least as {('high', 'wide')[i]} with its padding as the kernel "
                    f"reaches, {reach}, got {size + 2 * self._padding[i]}"
                )
        if self.format == "csr":
            self._check_indices()
            x, values, bias = self._operands(x, self.values)
            return ops_sparse.csr_conv2d(
                x, values, self.columns, self.row_offsets, bias, self.kernel_size, self.stride,
                self._padding, self.dilation, self.groups,
            )  # fmt: skip
        x, weight, bias = self._operands(x, self.weight)
        return F.conv2d(x, weight, bias, self.stride, self._padding, self.dilation, self.groups)

    def extra_repr(self) -> str:
        return (
            f"{self.in_channels}, {self.out_channels}, kernel_size={self.kernel_size}, "
            f"stride={self.stride}, padding={self.padding!r}, dilation={self.dilation}, "
            f"groups={self.groups}, bias={self.bias is not None}, "
            f"padding_mode={self.padding_mode!r}, {self._weight_repr()}"
        )
