"""The sparse layers' Triton kernels, compiled ahead of time."""

from __future__ import annotations

from typing import NamedTuple

from triton.compiler import ASTSource
from triton_kernels import Usage, usage_of

from r2kd_ext.backends.triton import configs, sparse

_POINTERS = ("x", "values", "bias", "y")


class SparseKernel(NamedTuple):
    """A kernel, the type that it reads and writes, whether columns are one apart and biased."""

    name: str
    type: str
    plain: bool

    def usage(self, architecture: int) -> Usage:
        function = getattr(sparse, self.name)
        tile = configs.SPARSE
        constants: dict[str, int | None] = {
            "BIASED": not self.plain,
            "ROWS": tile.rows,
            "BLOCK": tile.block,
        }
        if self.plain:
            constants |= {"bias": None, "x_row" if "linear" in self.name else "x_col": 1}
        pointers = dict.fromkeys(_POINTERS, f"*{self.type}")
        types = {**pointers, "columns": "*i32", "row_offsets": "*i32"}
        signature = {
            name: "constexpr" if name in constants else types.get(name, "i32")
            for name in function.arg_names
        }
        places = {name: i for i, name in enumerate(function.arg_names)}
        constexprs = {(places[name],): value for name, value in constants.items()}
        return usage_of(ASTSource(function, signature, constexprs, {}), architecture, tile.warps)

    @property
    def id(self) -> str:
        return f"{self.name}-{self.type}" + ("-plain" if self.plain else "")


def all_sparse_kernels() -> list[SparseKernel]:
    """Both kernels with each type, with and without what they can do without."""
    return [
        SparseKernel(name, kind, plain)
        for name in ("csr_linear_kernel", "csr_conv2d_kernel")
        for kind in ("fp32", "bf16", "fp16")
        for plain in (False, True)
    ]


def compile_all_sparse(architecture: int) -> dict[str, Usage]:
    """What every kernel uses on one architecture."""
    return {kernel.id: kernel.usage(architecture) for kernel in all_sparse_kernels()}
