"""What a measurement was made with."""

from __future__ import annotations

import os
import platform
import subprocess
import time
from pathlib import Path

import torch

from ..info import build_info


def machine() -> dict[str, str]:
    """The columns that say where a row of CPU times comes from."""
    info = build_info()
    return {
        "device": _processor(),
        "threads": str(torch.get_num_threads()),
        "simd": info["simd"],
        "torch": torch.__version__,
        "driver": "",
        "commit": info["commit"] or "unknown",
    }


def gpu() -> dict[str, str]:
    """The columns that say where a row of GPU times comes from: of the current CUDA device.

    "simd" is its compute capability, "driver" the driver with the CUDA runtime and Triton.
    """
    info = build_info()
    query = ["nvidia-smi", "--query-gpu=driver_version", "--format=csv,noheader", "--id=0"]
    try:
        driver = subprocess.run(query, capture_output=True, text=True, check=True).stdout.strip()
    except (OSError, subprocess.CalledProcessError):
        driver = "unknown"
    major, minor = torch.cuda.get_device_capability()
    return {
        "device": torch.cuda.get_device_name(),
        "threads": "",
        "simd": f"sm_{major}{minor}",
        "torch": torch.__version__,
        "driver": f"{driver}, CUDA {info['cuda']['runtime']}, Triton {info['triton']}",
        "commit": info["commit"] or "unknown",
    }


class OtherWork:
    """How busy other processes keep this machine from when this is made on; on Linux."""

    def __init__(self) -> None:
        self._start = time.monotonic()
        self._before = _others_seconds()

    def share(self) -> float:
        """Seconds of processors that other processes took for each second; 0 where not known.

        What the host of a virtual machine gave to others (steal) is in it.
        """
        now = _others_seconds()
        if now is None or self._before is None:
            return 0.0
        return max(0.0, now - self._before) / max(time.monotonic() - self._start, 1e-9)


def _others_seconds() -> float | None:
    """Seconds that processors were busy with other processes since the machine started."""
    statistics = Path("/proc/stat")
    if not statistics.exists():
        return None
    fields = statistics.read_text().split("\n", 1)[0].split()[1:9]
    user, nice, system, _, _, interrupts, soft_interrupts, steal = map(int, fields)
    busy = user + nice + system + interrupts + soft_interrupts + steal
    own = os.times()
    return busy / os.sysconf("SC_CLK_TCK") - (
        own.user + own.system + own.children_user + own.children_system
    )


def _processor() -> str:
    cpuinfo = Path("/proc/cpuinfo")
    if cpuinfo.exists():
        facts: dict[str, str] = {}
        for line in cpuinfo.read_text().split("\n\n")[0].splitlines():
            name, _, value = line.partition(":")
            facts[name.strip()] = value.strip()
        family = f"family {facts.get('cpu family')} model {facts.get('model')}"
        return f"{facts.get('model name', platform.machine())} ({family})"
    return platform.processor() or platform.machine()
