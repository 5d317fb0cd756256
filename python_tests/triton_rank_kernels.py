"""The Triton kernels of ranks with every line of their table, compiled ahead of time."""

from __future__ import annotations

from typing import Any, NamedTuple

from triton.compiler import ASTSource
from triton_kernels import Usage, usage_of

from r2kd_ext.backends.triton import configs, ranks

_TYPES = {
    "x": "*fp32", "places": "*i32", "y_places": "*i32", "mask": "*u8", "rho": "*fp32",
    "x_order": "*i64", "nan": "*u8", "in_order": "*fp32", "order": "*i32", "bounds": "*i32",
    "sums": "*fp64", "begins": "*i32", "counts": "*i32", "ranks": "*fp32", "a": "*fp64",
    "b": "*fp64", "grad_rho": "*fp32", "grad_a": "*fp64", "grad_ranks": "*fp32",
    "means": "*fp64", "grad_x": "*fp32",
    **dict.fromkeys(("square", "norms", "eps", "strength", "half_strength", "offset"), "i64"),
}  # fmt: skip


class RankKernel(NamedTuple):
    """A kernel, its compile-time arguments, its warps, and types that are not float32."""

    name: str
    flags: dict[str, Any]
    warps: int
    types: dict[str, str]

    def usage(self, architecture: int) -> Usage:
        function = getattr(ranks, self.name)
        constants = dict(self.flags)
        if constants.get("MASKED") is False:
            constants["mask"] = None
        if "GRADIENT" in constants:
            unused = ("rho",) if constants["GRADIENT"] else ("grad_rho", "grad_a")
            constants |= dict.fromkeys(unused)
        types = {**_TYPES, **self.types}
        signature = {
            name: "constexpr" if name in constants else types.get(name, "i32")
            for name in function.arg_names
        }
        places = {name: i for i, name in enumerate(function.arg_names)}
        constexprs = {(places[name],): value for name, value in constants.items()}
        return usage_of(ASTSource(function, signature, constexprs, {}), architecture, self.warps)

    @property
    def id(self) -> str:
        parts = [f"{k}={v}" for k, v in self.flags.items()] + list(self.types.values())
        return "-".join([self.name, *parts])


def all_rank_kernels() -> list[RankKernel]:
    """Every kernel with its shortest and its longest row, and each type that it takes."""
    found: list[RankKernel] = []

    def add(name: str, tile: configs.Config, *types: dict[str, str], **flags: bool) -> None:
        for given in types or ({},):
            found.append(RankKernel(name, {**flags, "BLOCK": tile.block}, tile.warps, given))

    halves = ({"x": "*bf16"}, {"x": "*fp16"})
    for cols in (5, 1000, 4096):
        tile = configs.sort(cols)
        for types in ({}, *halves) if cols == 5 else ({},):  # sorts take most of the time
            add("places_kernel", tile, types)
            add("hard_kernel", tile, types, MASKED=True)
            add("sort_kernel", tile, types)
    add("hard_kernel", configs.sort(1000), MASKED=False)
    double = {"in_order": "*fp64"}
    for cols in (5, 10_000):
        tile = configs.pass_over(cols)
        for masked in (False, True):
            orders = {"x_order": "*i64", "y_places": "*i64"}
            add("long_hard_kernel", tile, orders, orders | {"rho": "*fp64"}, MASKED=masked)
            kinds: list[dict[str, str]] = [
                {},
                {"grad_ranks": "*fp64", "grad_x": "*fp64"},
                {"grad_x": "*bf16"},
            ]
            add("soft_gradient_kernel", tile, *kinds, MASKED=masked)
            for gradient in (False, True):
                add("moments_kernel", tile, MASKED=masked, GRADIENT=gradient)
        add("ranks_kernel", tile, {}, {"ranks": "*fp64"}, double | {"ranks": "*fp64"})
        add("pool_means_kernel", tile, {}, {"grad_ranks": "*fp64"}, {"grad_ranks": "*bf16"})
    lanes = {"ROWS": configs.POOLED_ROWS}
    found += [
        RankKernel("pools_kernel", lanes, 1, types)
        for types in ({}, double, {"in_order": "*bf16"}, {"in_order": "*fp16"})
    ]
    return found


def compile_all_ranks(architecture: int) -> dict[str, Usage]:
    """What every kernel uses on one architecture."""
    return {kernel.id: kernel.usage(architecture) for kernel in all_rank_kernels()}
