"""Runs of the trainer in their folders: started, gone on with, measured."""

from __future__ import annotations

import json
import os
from collections.abc import Iterator, Mapping, Sequence
from contextlib import contextmanager
from dataclasses import asdict
from pathlib import Path
from typing import Any

import torch
from accelerate import Accelerator
from accelerate.state import AcceleratorState
from accelerate.utils import DistributedType, broadcast_object_list

from .._dtypes import processor_has_bfloat16
from . import networks, trackers
from .checkpoint import Checkpoint, Checkpoints
from .config import Config
from .configure import ConfigProblem, load_config, to_yaml
from .engine import Engine
from .files import FileProblem, new_folder, write
from .screen import Screen
from .timing import Parts

CONFIG = "config.yaml"
STUDENT = "student.safetensors"
_PROFILED = 20  # steps

# What may change when a run goes on, since its numbers do not depend on it.
_FREE = ("run.output", "run.keep", "run.checkpoint_every", "run.trackers", "data.workers")


@contextmanager
def processes(config: Config) -> Iterator[Accelerator]:
    """The processes and devices of a run, as torchrun or `accelerate launch` set them up.

    Raises ConfigProblem where the precision, or what the launcher asks for, is not to be had here.
    """
    if config.run.precision == "fp16" and not torch.cuda.is_available():
        raise ConfigProblem("run.precision fp16 needs a GPU; fp32 and bf16 do not, got 'fp16'")
    names = {"fp32": "no", "bf16": "bf16", "fp16": "fp16"}
    # Told that it is on CPUs, Accelerate takes part in what torchrun set up there too.
    cpu = not torch.accelerator.is_available()
    accelerator = Accelerator(mixed_precision=names[config.run.precision], cpu=cpu)
    try:
        _check_sharding(accelerator)
        yield accelerator
    finally:
        accelerator.end_training()
        # Else a second run in this process would have to be of the same precision.
        AcceleratorState._reset_state(reset_partial_state=True)


def _check_sharding(accelerator: Accelerator) -> None:
    """Accelerate shards on several accelerators alone, and elsewhere trains on without a word."""
    if os.environ.get("ACCELERATE_USE_FSDP", "false").lower() != "true":
        return
    if accelerator.distributed_type != DistributedType.FSDP:
        raise ConfigProblem(
            "FSDP is asked for (ACCELERATE_USE_FSDP), which Accelerate has for several GPUs; here "
            f"it found {accelerator.num_processes} process(es) on {accelerator.device.type}: leave "
            "FSDP out of its configuration"
        )
    if not accelerator.is_fsdp2:
        raise ConfigProblem(
            "FSDP must be of version 2, got 1: accelerate launch --fsdp_version 2, or fsdp_version "
            "in its configuration"
        )


def _check_teacher(config: Config, screen: Screen) -> None:
    """Raise ConfigProblem where the teacher would have random weights that nobody asked for."""
    teacher = config.teacher
    if config.method.name == "ce" or teacher.checkpoint is not None or teacher.pretrained:
        return
    if teacher.brings_own_weights:
        screen.line(f"Note: the teacher is taken as {teacher.name} returns it, without checkpoint")
    elif teacher.untrained:
        screen.line("Note: the teacher is untrained, as teacher.untrained says")
    else:
        own = " (or teacher.pretrained true)" if teacher.name.startswith("timm:") else ""
        raise ConfigProblem(
            f"teacher.checkpoint must be given{own}, or {teacher.name} teaches with random "
            "weights; to do that all the same, as to try a configuration out, set "
            "teacher.untrained true"
        )


def _check_precision(config: Config, accelerator: Accelerator, screen: Screen) -> None:
    """Say it where the processor has to emulate bfloat16."""
    emulated = accelerator.device.type == "cpu" and not processor_has_bfloat16()
    if config.run.precision == "bf16" and emulated:
        screen.line(
            "Note: this processor has no instructions for bfloat16, so run.precision bf16 takes "
            "many times longer than fp32"
        )


def start(config: Config, accelerator: Accelerator, screen: Screen) -> tuple[Engine, Path]:
    """A new run, and its new folder: config.run.output, or that with -2, -3, ...

    Raises ConfigProblem where the teacher has no weights and what `Engine` raises, before a folder
    is made; FileProblem where none can be.
    """
    trackers.check(config.run.trackers)
    _check_teacher(config, screen)
    _check_precision(config, accelerator, screen)
    # Looked up here, since to decode every image first may take long.
    for network in (config.student, config.teacher)[: 1 if config.method.name == "ce" else 2]:
        networks.find(network)
    engine = Engine(config, accelerator, screen)
    made: list[Any] = [None]
    if accelerator.is_main_process:
        folder = new_folder(Path(config.run.output))
        write(folder / CONFIG, to_yaml(config))
        made = [folder]
    broadcast_object_list(made)
    return engine, made[0]


def stored_config(folder: Path, overrides: Sequence[str]) -> Config:
    """The configuration of the run in `folder`, changed by `overrides`.

    Raises FileProblem where there is no run, ConfigProblem where its file cannot be used.
    """
    if not (folder / CONFIG).exists():
        raise FileProblem(f"there is no run in {folder}: {folder / CONFIG} is missing")
    return load_config(folder / CONFIG, overrides)


def resume(folder: Path, config: Config, accelerator: Accelerator, screen: Screen) -> Engine | None:
    """The run in `folder` where its newest checkpoint left it; None where it is finished.

    Raises:
        FileProblem: the newest checkpoint is damaged.
        ConfigProblem: `config` is not the one that the run was started with.
        What `Engine` raises.
    """
    if (folder / STUDENT).exists():
        return None
    trackers.check(config.run.trackers)
    checkpoint = Checkpoints(folder / "checkpoints", config.run.keep).load_newest()
    if checkpoint is not None:
        _check_same(folder, config, checkpoint)
    engine = Engine(config, accelerator, screen)
    if checkpoint is None:
        screen.line(f"{folder} has no checkpoint yet: the run starts from its beginning")
    else:
        engine.restore(checkpoint)
        screen.line(f"Going on after step {checkpoint.values['step']}")
    return engine


def _check_same(folder: Path, config: Config, checkpoint: Checkpoint) -> None:
    before = _flat(checkpoint.values["config"])
    now = _flat(json.loads(json.dumps(asdict(config))))
    for key in sorted(before.keys() | now.keys()):
        if key not in _FREE and before.get(key) != now.get(key):
            raise ConfigProblem(
                f"{folder} was started with {key} {before.get(key)!r}, got {now.get(key)!r}: "
                "leave it as it was, or start a new run without --resume"
            )


def _flat(config: Mapping[str, Mapping[str, Any]]) -> dict[str, Any]:
    return {
        f"{section}.{key}": value
        for section, values in config.items()
        for key, value in values.items()
    }


def profile(config: Config, accelerator: Accelerator, screen: Screen) -> dict[str, float]:
    """Print the time of a training step by part; writes nothing. Medians in seconds.

    Raises what `Engine` raises, and TrainingFailed.
    """
    engine = Engine(config, accelerator, screen, Parts(accelerator.device))
    return engine.profile(_PROFILED)
