"""Every Triton kernel with every line of its table, compiled ahead of time, without a GPU."""

from __future__ import annotations

import re
import subprocess
import tempfile
from pathlib import Path
from typing import Any, NamedTuple

import torch
import triton
from triton.backends.compiler import GPUTarget
from triton.compiler import ASTSource

from r2kd_ext.backends.triton import backward, configs, forward

SHARED_MEMORY = {80: 163 * 1024, 90: 227 * 1024, 100: 227 * 1024}  # bytes a block may have
_TYPES = {
    torch.float32: "fp32", torch.float64: "fp64", torch.bfloat16: "bf16", torch.float16: "fp16",
}  # fmt: skip


class Usage(NamedTuple):
    """What a block or a thread of a compiled kernel takes."""

    registers: int
    spilled: int  # bytes of stack and of local memory per thread
    shared: int  # bytes per block


def usage_of(source: ASTSource, architecture: int, warps: int) -> Usage:
    """Compile for one architecture and ask what the machine code takes."""
    target = GPUTarget("cuda", architecture, 32)
    compiled = triton.compile(source, target, {"num_warps": warps})
    tool = Path(triton.__file__).parent / "backends" / "nvidia" / "bin" / "cuobjdump"
    with tempfile.NamedTemporaryFile(suffix=".cubin") as file:
        file.write(compiled.asm["cubin"])
        file.flush()
        command = [str(tool), "--dump-resource-usage", file.name]
        text = subprocess.run(command, capture_output=True, text=True, check=True).stdout
    numbers = {name: int(n) for name, n in re.findall(r"(REG|STACK|LOCAL):(\d+)", text)}
    return Usage(numbers["REG"], numbers["STACK"] + numbers["LOCAL"], compiled.metadata.shared)


class Kernel(NamedTuple):
    """A kernel, its compile-time arguments and its warps, for `cols` classes of `dtype`."""

    name: str
    cols: int
    dtype: torch.dtype
    flags: dict[str, Any]
    warps: int
    contiguous: bool = True

    def source(self) -> ASTSource:
        function = getattr(forward, self.name, None) or getattr(backward, self.name)
        double = self.flags["DOUBLE"]
        accumulator = "fp64" if double else "fp32"
        types = {
            "student": f"*{_TYPES[self.dtype]}", "teacher": f"*{_TYPES[self.dtype]}",
            "grad_student": f"*{_TYPES[self.dtype]}", "mask": "*u8", "totals": "*fp64",
            "sample_weight": "*fp64",
        }  # fmt: skip
        sizes = ("rows", "cols", "tiles", "parts", "row_parts", "col_parts")
        strides = ("student_row", "student_col", "teacher_row", "teacher_col", "mask_stride")
        numbers = (
            "scale", "scale_rest", "inter_weight", "col_weight", "eps", "class_mean",
            "inverse_temperature",
        )  # fmt: skip
        constants = dict(self.flags)
        if self.contiguous:
            constants |= dict.fromkeys(("student_col", "teacher_col"), 1)
        if not self.flags["MASKED"]:
            constants["mask"] = None
        if not self.flags["WEIGHTED"]:
            constants["sample_weight"] = None
        if not (self.flags["MASKED"] or self.flags["WEIGHTED"]):
            constants["totals"] = None
        signature = {}
        for name in function.arg_names:
            if name in constants:
                signature[name] = "constexpr"
            elif name in sizes or name in strides:
                signature[name] = "i32"
            elif name in numbers:
                signature[name] = "i64" if double else "fp32"
            else:
                signature[name] = types.get(name, f"*{accumulator}")
        places = {name: i for i, name in enumerate(function.arg_names)}
        constexprs = {(places[n],): v for n, v in constants.items() if n in places}
        aligned = {  # what Triton finds out about pointers and about sizes divisible by 16
            (places[name],): [["tt.divisibility", 16]]
            for name, type_name in signature.items()
            if type_name.startswith("*")
            or (name in ("cols", "student_row", "teacher_row") and self.cols % 16 == 0)
        }
        return ASTSource(function, signature, constexprs, aligned)

    def usage(self, architecture: int) -> Usage:
        return usage_of(self.source(), architecture, self.warps)

    @property
    def id(self) -> str:
        kind = str(self.dtype).removeprefix("torch.")
        shape = "x".join(str(self.flags[k]) for k in ("PARTS", "ROWS", "BLOCK") if k in self.flags)
        centered = "-cosine" if self.flags.get("CENTERED") is False else ""
        more = "" if self.contiguous else "-strided"
        more += "".join(f"-no-{k.lower()}" for k in ("MASKED", "WEIGHTED") if not self.flags[k])
        return f"{self.name}-{kind}-{shape}{centered}{more}"


_ALL = {"MASKED": True, "WEIGHTED": True}


def _without(kernels: list[Kernel], *flags: str) -> list[Kernel]:
    return [k._replace(flags={**k.flags, **dict.fromkeys(flags, False)}) for k in kernels]


def _kernels_for(cols: int, dtype: torch.dtype, centered: bool, contiguous: bool) -> list[Kernel]:
    double = dtype is torch.float64
    table = configs.table(cols, double)
    tile, block = {"ROWS": table.rows.rows, "BLOCK": table.rows.block}, table.rows.block
    terms = {"CENTERED": centered, "INTER": True}
    warps = table.rows.warps
    found: list[tuple[str, dict[str, Any], int]] = []
    if table.long:
        found += [
            ("long_rows_kernel", {**terms, "BLOCK": block}, warps),
            ("long_gradient_kernel", {**terms, "INTRA": True, "BLOCK": block}, warps),
        ]
    else:
        found += [
            ("rows_kernel", {**terms, "COLUMNS": table.fused, **tile}, warps),
            ("gradient_kernel", {**terms, "INTRA": True, **tile}, warps),
        ]
    if not table.fused:
        columns = {"ROWS": table.columns.rows, "BLOCK": table.columns.block}
        found.append(("columns_kernel", {"CENTERED": centered, **columns}, table.columns.warps))
    return [
        Kernel(name, cols, dtype, {**_ALL, "DOUBLE": double, **flags}, warps, contiguous)
        for name, flags, warps in found
    ]


def _last_kernels(rows: int, cols: int, dtype: torch.dtype) -> list[Kernel]:
    double = dtype is torch.float64
    table = configs.table(cols, double)
    parts, _ = configs.parts(rows, (table.rows if table.fused else table.columns).rows)
    finish = configs.finish(parts, cols, double)
    shared = {**_ALL, "DOUBLE": double, "INTER": True}
    tile = {"PARTS": finish.rows, "BLOCK": finish.block, "SUM_BLOCK": configs.SUM_BLOCK}
    last = {"INTRA": True, "BLOCK": configs.SUM_BLOCK}
    flags = {"CENTERED": True, "LOSS": cols <= finish.block, **tile}
    return [
        Kernel("finish_kernel", cols, dtype, {**shared, **flags}, finish.warps),
        Kernel("loss_kernel", cols, dtype, {**shared, **last}, 4),
    ]


def all_kernels() -> list[Kernel]:
    """Each line of the table at its largest tile, and the first at its smallest number of classes.

    All with the terms, the mask, the weights and the centring, which only add to what a kernel
    holds; a few without the centring, or where None takes the place of a pointer.
    """
    single, double = torch.float32, torch.float64
    block = {**_ALL, "DOUBLE": False, "BLOCK": configs.WEIGHED_ROWS}
    weigh = Kernel("weigh_kernel", 100, single, block, 16)
    found = [
        *(k for cols in (5, 64, 1000, 2000, 4096, 262_144)
          for k in _kernels_for(cols, single, True, True)),
        *(k for cols in (5, 256, 1000, 2048, 262_144)
          for k in _kernels_for(cols, double, True, True)),
        *(k for cols in (1000, 32_000) for k in _kernels_for(cols, torch.bfloat16, True, True)),
        *_kernels_for(1000, torch.float16, False, True),
        *_without(_kernels_for(100, single, True, True), *_ALL),
        *_without(_kernels_for(32_000, single, True, True), *_ALL),
        *_without(_last_kernels(64, 100, single), *_ALL),
        *_without(_kernels_for(1000, single, True, True), "WEIGHTED"),
        weigh, *_without([weigh], "WEIGHTED"), *_without([weigh], "MASKED"),
        *(k for cols in (1000, 4096, 262_144) for k in _kernels_for(cols, single, True, False)),
        *_kernels_for(2048, double, True, False),
        *_last_kernels(64, 100, single), *_last_kernels(10**6, 1000, single),
        *_last_kernels(64, 100, double), *_last_kernels(10**6, 1000, double),
    ]  # fmt: skip
    return list({kernel.id: kernel for kernel in found}.values())


def compile_all(architecture: int) -> dict[str, Usage]:
    """What every kernel uses on one architecture."""
    return {kernel.id: kernel.usage(architecture) for kernel in all_kernels()}
