"""What this installation is and what it would run."""

from __future__ import annotations

from collections.abc import Callable
from functools import partial
from importlib.metadata import PackageNotFoundError, version
from typing import Any

import torch

from . import _core
from .backends import Choice, choose, choose_ranks, choose_sparse, choose_winograd

_CHOICES: dict[str, Callable[[torch.device], Choice]] = {
    "correlation": partial(choose, None),
    "spearman": partial(choose_ranks, None),
    "soft_rank": partial(choose_ranks, None),
    "csr_linear": choose_sparse,
    "csr_conv2d": choose_sparse,
    "winograd_conv2d": choose_winograd,
}


def version_of(package: str) -> str | None:
    """The version of an installed package, or None."""
    try:
        return version(package)
    except PackageNotFoundError:
        return None


def build_info() -> dict[str, Any]:
    """Facts about the installation and the machine, and which backend each op would use and why.

    Keys: "version", "commit" (None if unknown), "compiler", "torch", "simd" (instruction set that
    the CPU kernels use), "threads" (torch.get_num_threads()), "parallel_runtime" ("GOMP", or "none"
    where the CPU kernels run on one thread), "cuda" (dict: "compiled", "runtime", "architectures",
    "devices", "problem"), "triton" (version or None), "gpu" (name or None), "ops" (op -> device
    type -> {"backend", "reason"}).
    """
    core = _core.build_info()
    runtime = core["cuda_runtime_version"]
    gpu = torch.cuda.get_device_name() if torch.cuda.is_available() else None
    devices = ["cpu"] + (["cuda"] if gpu is not None else [])
    return {
        "version": core["version"],
        "commit": core["commit"] or None,
        "compiler": core["compiler"],
        "torch": torch.__version__,
        "simd": core["simd"],
        "threads": torch.get_num_threads(),
        "parallel_runtime": core["parallel_runtime"],
        "cuda": {
            "compiled": core["cuda_compiled"],
            "runtime": f"{runtime // 1000}.{runtime % 1000 // 10}" if runtime else None,
            "architectures": core["cuda_architectures"].split(),
            "devices": core["cuda_devices"],
            "problem": core["cuda_problem"] or None,
        },
        "triton": version_of("triton"),
        "gpu": gpu,
        "ops": {
            op: {device: chosen(torch.device(device))._asdict() for device in devices}
            for op, chosen in _CHOICES.items()
        },
    }


def describe() -> str:
    """`build_info()` as lines to read."""
    info = build_info()
    cuda = info["cuda"]
    if cuda["compiled"]:
        compiled = f"compiled for sm {', '.join(cuda['architectures'])}, runtime {cuda['runtime']}"
        found = cuda["problem"] or f"{cuda['devices']} device(s)"
        cuda_line = f"{compiled}; {found}"
    else:
        cuda_line = "not compiled"
    threads = f"{info['threads']}"
    if info["parallel_runtime"] == "none":
        threads += " (the CPU kernels use 1: no OpenMP runtime of torch's was found)"
    rows = [
        ("r2kd_ext", info["version"]),
        ("commit", info["commit"] or "unknown"),
        ("compiler", info["compiler"]),
        ("torch", info["torch"]),
        ("SIMD", info["simd"]),
        ("threads", threads),
        ("CUDA", cuda_line),
        ("Triton", info["triton"] or "not installed"),
        ("GPU", info["gpu"] or "none"),
    ]
    for op, choices in info["ops"].items():
        for device, choice in choices.items():
            rows.append((f"{op} on {device}", f"{choice['backend']} ({choice['reason']})"))
    return "\n".join(f"{name:<24} {value}" for name, value in rows)
