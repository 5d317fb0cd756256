"""The training loop: steps, epochs, checkpoints, and what stops it."""

from __future__ import annotations

import math
import signal
import time
from collections.abc import Iterator, Mapping
from dataclasses import asdict
from pathlib import Path
from typing import Any, NamedTuple, NoReturn

import torch
from accelerate import Accelerator
from accelerate.utils import DistributedType
from torch import Tensor, nn
from torch.optim.swa_utils import AveragedModel, get_ema_multi_avg_fn
from torch.utils.data import DataLoader, Dataset

from .augment import Augment, View
from .checkpoint import Checkpoint, Checkpoints
from .config import Config
from .configure import ConfigProblem
from .data import ImageData, check_classes, load
from .finite import TrainingFailed, describe, must_stop, save_batch
from .interrupt import asked, ignore_signals
from .losses import Method
from .networks import create, save_state
from .randomness import derive, seed_globally
from .sampler import BatchSampler
from .schedule import rate_factor
from .screen import Screen
from .state import RunState, network_state
from .step import Step, StepInput
from .timing import NoParts, Parts
from .trackers import Trackers, write_course
from .validation import Validation

_LOGGED_EVERY = 20  # steps
_PROFILE_WARMUP = 3  # steps
_CHUNK_ON_CPU = 32  # images of the teacher at a time


class Stopped(Exception):
    """A signal asked the run to stop, and its state is saved."""

    def __init__(self, number: int) -> None:
        super().__init__(f"stopped by {signal.Signals(number).name}")
        self.number = number


class Batch(NamedTuple):
    """Images of the training set on the device."""

    images: Tensor  # [B, 3, S, S] uint8
    labels: Tensor  # [B] int64
    indices: Tensor  # [B] int64, their places in the training set


class _Indexed(Dataset[tuple[Tensor, int, int]]):
    """The training images with their index."""

    def __init__(self, images: Dataset[tuple[Tensor, int]]) -> None:
        self._images = images

    def __getitem__(self, index: int) -> tuple[Tensor, int, int]:
        image, label = self._images[index]
        return image, label, index


class Engine:
    """One run of training, ready to start or to go on.

    Args:
        config: the run.
        accelerator: the processes and devices: what torchrun or `accelerate launch` set up.
        screen: where it is shown.
        parts: measures the steps, where given.

    Raises:
        ConfigProblem, FileProblem, ValueError: the configuration does not fit the data, the
            networks or the machine.
    """

    def __init__(
        self, config: Config, accelerator: Accelerator, screen: Screen, parts: Parts | None = None
    ) -> None:
        self.config, self.screen = config, screen
        self._accelerator, self._device = accelerator, accelerator.device
        self._rank, self._world = accelerator.process_index, accelerator.num_processes
        self._parts = NoParts(self._device) if parts is None else parts
        with accelerator.main_process_first():  # one process downloads
            data = load(config.data, seed=config.run.seed)
        self._classes = len(data.classes)
        self._augment = Augment(config.augment, config.data.image_size, data.mean, data.std)
        self._load(data)
        self._prepare(self._create(data))
        self._folder: Path | None = None
        self._checkpoints: Checkpoints | None = None
        self._trackers: Trackers | None = None
        self._step = 0  # of the run, the next one
        self._sums: dict[str, float] = {}  # of the losses in this epoch
        self._counted = 0  # steps in them
        self._rate = 0.0  # learning rate of the last step
        self._course: list[dict[str, Any]] = []
        self._seconds = 0.0  # of this epoch, in runs that were stopped
        self._started = time.perf_counter()
        self._saved: tuple[int, ...] | None = None

    def _load(self, data: ImageData) -> None:
        batch_size, workers = self.config.optimizer.batch_size, self.config.data.workers
        try:
            self._sampler = BatchSampler(
                len(data.train),  # type: ignore[arg-type]
                batch_size,
                seed=self.config.run.seed,
                rank=self._rank,
                world=self._world,
            )
        except ValueError as error:
            raise ConfigProblem(f"optimizer.{error}") from error
        self._loader: DataLoader[Any] = DataLoader(
            _Indexed(data.train),
            batch_sampler=self._sampler,
            num_workers=workers,
            worker_init_fn=ignore_signals,
            persistent_workers=workers > 0,
            pin_memory=self._device.type == "cuda",
            generator=torch.Generator(),  # else it would draw from the global one
        )
        self._validation = Validation(
            data.validation,
            len(data.validation),  # type: ignore[arg-type]
            self._classes,
            batch_size // self._world,
            workers,
            self._device,
            self._rank,
            self._world,
        )

    def _create(self, data: ImageData) -> nn.Module:
        """The student; the method gets its teacher."""
        config = self.config
        seed_globally(derive(config.run.seed, "weights"))
        student = create(config.student, self._classes)
        check_classes(data, student, "student")
        teacher = None
        if config.method.name != "ce":
            teacher = create(config.teacher, self._classes)
            check_classes(data, teacher, "teacher")
        on_cpu = self._device.type == "cpu"
        usual_chunk = _CHUNK_ON_CPU if on_cpu else 2 * config.optimizer.batch_size
        self._method = Method(
            config.method,
            teacher,
            num_classes=self._classes,
            group=torch.distributed.group.WORLD if self._world > 1 else None,
            teacher_dtype=torch.bfloat16 if config.run.teacher_dtype == "bf16" else None,
            teacher_chunk=config.run.teacher_chunk or usual_chunk,
        ).to(self._device)
        seed_globally(derive(config.run.seed, "global", self._rank))
        return student

    def _prepare(self, student: nn.Module) -> None:
        """Optimiser, schedule, average, and what Accelerate makes of them."""
        config, accelerator = self.config, self._accelerator
        sharded = accelerator.distributed_type == DistributedType.FSDP
        # Convolutions are faster in channels-last order; FSDP shards contiguous parameters alone.
        order = torch.contiguous_format if sharded else torch.channels_last
        student = student.to(self._device, memory_format=order)  # type: ignore[call-overload]
        self._student, self._ema = student, None
        if config.run.ema_decay > 0:
            if sharded:
                raise ConfigProblem("run.ema_decay must be 0 with FSDP, which splits the weights")
            average = get_ema_multi_avg_fn(config.run.ema_decay)
            self._ema = AveragedModel(student, multi_avg_fn=average, use_buffers=True)
        settings = config.optimizer
        step = Step(student, self._method, self._parts, config.run.compile)
        optimizer = torch.optim.SGD(
            step.parameters(),
            settings.learning_rate,
            momentum=settings.momentum,
            weight_decay=settings.weight_decay,
            nesterov=settings.nesterov,
        )
        # Before `prepare`, whose loss scaling puts back the optimiser's `step` as it found it.
        self._scheduler = torch.optim.lr_scheduler.LambdaLR(
            optimizer, rate_factor(settings, self._sampler.batches)
        )
        self._module, self._optimizer = accelerator.prepare(step, optimizer)
        self._state = RunState(
            accelerator, self._module, self._optimizer.optimizer, self._scheduler, self._ema
        )

    # Training

    def run(self, folder: Path) -> None:
        """Train to the end, and write everything into `folder`, which exists.

        Raises:
            Stopped: by a signal, with the state saved.
            TrainingFailed: a loss is NaN or infinite.
            FileProblem: something cannot be written.
        """
        self._folder = folder
        self._checkpoints = Checkpoints(folder / "checkpoints", self.config.run.keep)
        steps = self.config.optimizer.epochs * self._sampler.batches
        if self._rank == 0:
            names = self.config.run.trackers
            self._trackers = Trackers(folder, names, asdict(self.config), self._step)
        try:
            with self.screen.training(steps, self._step):
                while self._sampler.epoch < self.config.optimizer.epochs:
                    self._train_epoch()
                    self._end_epoch()
            self._save_student()
        finally:
            if self._trackers is not None:
                self._trackers.close()

    def _train_epoch(self) -> None:
        """The rest of an epoch's steps."""
        self._module.train()
        self._started = time.perf_counter()
        every = self.config.run.checkpoint_every
        epoch = f"{self._sampler.epoch + 1}/{self.config.optimizer.epochs}"
        for batch in self._batches():
            losses = self._train_step(batch)
            rate = self._images_per_second()
            self.screen.step(epoch, losses, rate)
            if self._step % _LOGGED_EVERY == 0:
                self._log("train", {**losses, "images_per_second": rate})
            if every and self._step % every == 0:
                self._save()
            self._stop_if_asked()

    def _batches(self) -> Iterator[Batch]:
        """The rest of this epoch's batches, on the device."""
        iterator = iter(self._loader)
        for _ in range(len(self._sampler)):
            with self._parts.part("data"):
                images, labels, indices = next(iterator)
                batch = Batch(
                    images.to(self._device, non_blocking=True),
                    labels.to(self._device, non_blocking=True),
                    indices,
                )
            yield batch

    def _train_step(self, batch: Batch) -> dict[str, float]:
        """Train on one batch; the losses, averaged over the processes."""
        parts, seed, draw = self._parts, self.config.run.seed, (self._step, self._rank)
        with parts.part("augment"):
            clean = self._augment.standard(batch.images, seed=derive(seed, "standard", *draw))
            clean = clean.contiguous(memory_format=torch.channels_last)
            view = None
            if self._method.takes_view:
                view = self._augment.view(clean, seed=derive(seed, "view", *draw))
        with parts.part("teacher"):
            targets = self._method.prepare(clean, view)
        with parts.part("loss"):
            epoch = self._sampler.epoch + 1
            total, named = self._module(None, StepInput(clean, batch.labels, view, targets, epoch))
        with parts.part("backward"):
            self._accelerator.backward(total)
            losses = self._read({"loss": total.detach(), **named})
        self._rate = float(self._optimizer.param_groups[0]["lr"])
        scaler = self._accelerator.scaler
        if must_stop(losses["loss"], None if scaler is None else scaler.get_scale()):
            self._fail(batch, clean, view, losses)
        with parts.part("optimiser"):
            self._optimizer.step()
            self._scheduler.step()
            self._optimizer.zero_grad()
            if self._ema is not None:
                self._ema.update_parameters(self._student)
        parts.end_step()
        self._step += 1
        self._sampler.advance()
        if math.isfinite(losses["loss"]):
            self._counted += 1
            for name, value in losses.items():
                self._sums[name] = self._sums.get(name, 0.0) + value
        return losses

    def _read(self, losses: Mapping[str, Tensor]) -> dict[str, float]:
        """The mean over the processes, as numbers: the step's one wait for the device."""
        values = torch.stack([value.float() for value in losses.values()])
        if self._world > 1:
            torch.distributed.all_reduce(values)
            values /= self._world
        return dict(zip(losses, values.tolist(), strict=True))

    def _fail(
        self, batch: Batch, clean: Tensor, view: View | None, losses: Mapping[str, float]
    ) -> NoReturn:
        """Save the batch that gave a loss that is not finite, and raise TrainingFailed."""
        complaint = describe(losses, self._step + 1, self._sampler.epoch + 1, self._rate)
        if self._folder is None:
            raise TrainingFailed(complaint)
        tensors = {**batch._asdict(), "clean": clean}
        if view is not None:
            tensors["view"] = view.images
        name = f"not-finite-step-{self._step + 1}-process-{self._rank}.safetensors"
        raise TrainingFailed(save_batch(self._folder / name, tensors, complaint))

    def _images_per_second(self) -> float:
        """Of this epoch."""
        return self._sampler.batch * self._sampler.batch_size / self._elapsed()

    def _elapsed(self) -> float:
        return self._seconds + time.perf_counter() - self._started

    def _log(self, group: str, values: Mapping[str, float]) -> None:
        if self._trackers is not None:
            named = {f"{group}/{name}": value for name, value in values.items()}
            self._trackers.log(named, self._step)

    def _end_epoch(self) -> None:
        """Validate, log and save; then it is the next epoch."""
        assert self._folder is not None
        rate, seconds = self._images_per_second(), self._elapsed()
        figures: dict[str, float] = {
            "learning_rate": self._rate,
            **{name: value / self._counted for name, value in self._sums.items()},
            **self._accuracies(),
            "images_per_second": rate,
            "seconds": seconds,
        }
        self._course.append({"epoch": self._sampler.epoch + 1, "step": self._step, **figures})
        self._sampler.next_epoch()
        self._sums, self._counted, self._seconds = {}, 0, 0.0
        self._started = time.perf_counter()
        self.screen.epoch(self._course[-1], self.config.optimizer.epochs)
        self._log("epoch", figures)
        if self._rank == 0:
            write_course(self._folder, self._course)
        self._save()
        self._stop_if_asked()

    def _accuracies(self) -> dict[str, float]:
        """Top-1 and top-5 on the validation images, of the student and of its average."""
        self._module.eval()
        self._hand_out_buffers(self._student)
        found = self._validation.accuracy(
            lambda images: self._module(self._evaluated(images)), self._stop_if_asked
        )
        if self._ema is not None:
            ema = self._ema.eval()
            self._hand_out_buffers(ema)
            average = self._validation.accuracy(
                lambda images: ema(self._evaluated(images)), self._stop_if_asked
            )
            found |= {f"ema_{name}": value for name, value in average.items()}
        return found

    def _hand_out_buffers(self, network: nn.Module) -> None:
        """The first process's statistics count. DDP has it so for what it wraps, FSDP does not."""
        if self._world > 1:
            for buffer in network.buffers():
                torch.distributed.broadcast(buffer, 0)

    def _evaluated(self, images: Tensor) -> Tensor:
        return self._augment.evaluation(images).contiguous(memory_format=torch.channels_last)

    def profile(self, steps: int) -> dict[str, float]:
        """Train `steps` steps after a few that do not count, write nothing, and print the table of
        the parts of a step; their medians in seconds."""
        self._module.train()
        while len(self._parts.steps) < _PROFILE_WARMUP + steps:
            for batch in self._batches():
                self._train_step(batch)
                if len(self._parts.steps) == _PROFILE_WARMUP + steps:
                    break
            self._sampler.next_epoch()
        self._parts.steps = self._parts.steps[_PROFILE_WARMUP:]
        medians = self._parts.medians()
        self.screen.parts(medians, self._sampler.batch_size, steps)
        return medians

    # Stopping and going on

    def _stop_if_asked(self) -> None:
        """Save and raise Stopped where a signal reached any of the processes."""
        number = asked() or 0
        if self._world > 1:
            numbers = torch.tensor(number, device=self._device)
            torch.distributed.all_reduce(numbers, torch.distributed.ReduceOp.MAX)
            number = int(numbers)
        if number:
            self._save()
            raise Stopped(number)

    def _save(self) -> None:
        """Write a checkpoint of this place in the run, unless it has one."""
        place = (self._step, self._sampler.epoch, self._sampler.batch)
        if self._step == 0 or self._saved == place:
            return
        state = self._state.capture()
        if self._rank == 0:
            assert self._checkpoints is not None
            values = {
                "step": self._step,
                "sampler": self._sampler.state_dict(),
                "sums": self._sums,
                "counted": self._counted,
                "rate": self._rate,
                "seconds": self._elapsed(),
                "course": self._course,
                "config": asdict(self.config),
            }
            checkpoint = Checkpoint(state.tensors, {**state.values, **values})
            self._checkpoints.save(self._step, checkpoint)
        self._saved = place

    def restore(self, checkpoint: Checkpoint) -> None:
        """Go to where the run was when it wrote `checkpoint`.

        Raises ConfigProblem where the checkpoint is of another run.
        """
        values = checkpoint.values
        try:
            self._sampler.load_state_dict(values["sampler"])
            self._state.restore(checkpoint)
        except (ValueError, RuntimeError) as error:
            raise ConfigProblem(f"the run cannot go on from its checkpoint: {error}") from error
        self._step = values["step"]
        self._sums, self._counted = values["sums"], values["counted"]
        self._rate, self._seconds = values["rate"], values["seconds"]
        self._course = values["course"]

    def _save_student(self) -> None:
        """Write the student, and its average where there is one, for evaluation and use."""
        assert self._folder is not None
        state = network_state(self._module)
        networks = {"student": {key.removeprefix("student."): x for key, x in state.items()}}
        if self._ema is not None:
            networks["student_ema"] = self._ema.module.state_dict()
        if self._rank == 0:
            for name, tensors in networks.items():
                save_state(
                    self._folder / f"{name}.safetensors",
                    tensors,
                    self.config.student.name,
                    self._classes,
                )
