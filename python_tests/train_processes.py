"""Trains in two processes, with DDP and with FSDP; run by test_train_processes.py as a program.

Importing what the trainer needs takes seconds, so it is done once, and every process is a fork of
this one, which itself computes nothing (threads do not survive a fork).

Accelerate shards on GPUs alone. What it does there, `fully_shard` by its own code, also runs on the
CPU over gloo, once it is told that it is to shard.
"""

from __future__ import annotations

import json
import os
import signal
import socket
import sys
from collections.abc import Callable
from pathlib import Path
from typing import Any

import torch
import torch._dynamo  # as DDP and FSDP do
import torch.utils.tensorboard
from accelerate import Accelerator
from accelerate.utils import DistributedType, FullyShardedDataParallelPlugin

from r2kd_ext.cli import main
from r2kd_ext.train import engine
from r2kd_ext.train import run as runs
from r2kd_ext.train.configure import load_config
from r2kd_ext.train.engine import Engine

PROCESSES = 2


def free_port() -> int:
    with socket.socket() as listener:
        listener.bind(("127.0.0.1", 0))
        port: int = listener.getsockname()[1]
        return port


def sharding(**settings: Any) -> Accelerator:
    """An Accelerator that shards."""
    accelerator = Accelerator(**settings)
    accelerator.state.distributed_type = DistributedType.FSDP
    accelerator.state.fsdp_plugin = FullyShardedDataParallelPlugin(fsdp_version=2)
    return accelerator


def shard() -> None:
    runs.Accelerator = sharding
    os.environ["ACCELERATE_USE_FSDP"] = "true"


def replicate() -> None:
    pass


def stop_in_step(number: int) -> Callable[[int], None]:
    """SIGTERM reaches the second process alone, in its step `number`."""

    def prepare(rank: int) -> None:
        real, count = Engine._train_step, [0]

        def patched(self: Engine, *arguments: Any) -> Any:
            count[0] += 1
            if rank == 1 and count[0] == number:
                signal.raise_signal(signal.SIGTERM)
            return real(self, *arguments)

        Engine._train_step = patched  # type: ignore[assignment,method-assign]

    return prepare


def nothing(rank: int) -> None:
    pass


def train(
    words: list[str], kind: Callable[[], None], prepare: Callable[[int], None] = nothing
) -> list[int]:
    """The exit codes of both processes."""
    port = str(free_port())
    children = []
    for rank in range(PROCESSES):
        child = os.fork()
        if child == 0:
            code = 99
            try:
                sys.stdout = open(os.devnull, "w")  # noqa: SIM115
                os.environ |= {
                    "RANK": str(rank), "LOCAL_RANK": str(rank), "WORLD_SIZE": str(PROCESSES),
                    "MASTER_ADDR": "127.0.0.1", "MASTER_PORT": port,
                }  # fmt: skip
                kind()
                prepare(rank)
                code = main(["train", *words])
            finally:
                os._exit(code)
        children.append(child)
    return [os.waitstatus_to_exitcode(os.waitpid(child, 0)[1]) for child in children]


def run(config: str, folder: Path) -> dict[str, list[int]]:
    """Every run by its name, with the exit codes of its processes."""
    torch.set_num_threads(1)
    loaded = engine.load(load_config(config).data, seed=0)
    engine.load = lambda config, *, seed: loaded
    codes = {}
    for name, kind in (("ddp", replicate), ("fsdp", shard)):
        place = {part: str(folder / f"{name}-{part}") for part in ("whole", "stopped")}
        codes[f"{name}-whole"] = train([config, "--run.output", place["whole"]], kind)
        words = [config, "--run.output", place["stopped"]]
        codes[f"{name}-stopped"] = train(words, kind, stop_in_step(5))
        codes[f"{name}-resumed"] = train(["--resume", place["stopped"]], kind)
    plain = ["--teacher.name", "train_networks:plain", "--student.name", "train_networks:plain"]
    codes["fsdp-plain"] = train([config, *plain, "--run.output", str(folder / "fsdp-plain")], shard)
    return codes


if __name__ == "__main__":
    print(json.dumps(run(sys.argv[1], Path(sys.argv[2]))))
