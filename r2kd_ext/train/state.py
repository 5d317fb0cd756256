"""What a checkpoint holds of a run, as tensors and JSON values: captured and put back.

The state dicts of torch.distributed.checkpoint are whole and by parameter name, whether the network
is plain, replicated (DDP) or sharded (FSDP). Capturing and restoring are collective: every process
takes part.
"""

from __future__ import annotations

from typing import Any

import torch
from accelerate import Accelerator
from accelerate.utils import gather_object
from torch import Tensor, nn
from torch.distributed.checkpoint.state_dict import (
    StateDictOptions,
    get_model_state_dict,
    get_optimizer_state_dict,
    set_model_state_dict,
    set_optimizer_state_dict,
)
from torch.optim.lr_scheduler import LRScheduler
from torch.optim.swa_utils import AveragedModel

from .checkpoint import Checkpoint
from .randomness import global_state, set_global_state

_WHOLE = StateDictOptions(full_state_dict=True, cpu_offload=True)


def network_state(network: nn.Module) -> dict[str, Tensor]:
    """Parameters and buffers by name, whole, on the CPU; only the first process has them."""
    return dict(get_model_state_dict(network, options=_WHOLE))  # type: ignore[arg-type]


class RunState:
    """The parts of a run that change while it trains.

    Args:
        accelerator: that `network` and `optimizer` were prepared by.
        network, optimizer, scheduler: as they train.
        ema: the average of the weights, if there is one.
    """

    def __init__(
        self,
        accelerator: Accelerator,
        network: nn.Module,
        optimizer: torch.optim.Optimizer,
        scheduler: LRScheduler,
        ema: AveragedModel | None,
    ) -> None:
        self._accelerator, self._network, self._optimizer = accelerator, network, optimizer
        self._scheduler, self._ema = scheduler, ema

    def capture(self) -> Checkpoint:
        """The state now."""
        tensors = {f"network/{key}": x for key, x in network_state(self._network).items()}
        optimizer: dict[str, Any] = dict(
            get_optimizer_state_dict(self._network, self._optimizer, options=_WHOLE)
        )
        numbers: dict[str, dict[str, Any]] = {}
        for parameter, slots in optimizer.get("state", {}).items():
            for slot, value in slots.items():
                if isinstance(value, Tensor):
                    tensors[f"optimizer/{parameter}/{slot}"] = value
                else:
                    numbers.setdefault(parameter, {})[slot] = value
        if self._ema is not None:
            tensors |= {f"ema/{key}": x for key, x in self._ema.state_dict().items()}
        states = [global_state()]
        if self._accelerator.num_processes > 1:
            states = gather_object(states)
        for rank, state in enumerate(states):
            tensors |= {f"generators/{rank}/{name}": x for name, x in state.items()}
        scaler = self._accelerator.scaler
        values = {
            "optimizer": {"state": numbers, "param_groups": optimizer.get("param_groups", [])},
            "scheduler": self._scheduler.state_dict(),
            "scaler": None if scaler is None else scaler.state_dict(),
            "processes": len(states),
        }
        return Checkpoint(tensors, values)

    def restore(self, checkpoint: Checkpoint) -> None:
        """Go back to a state that `capture` gave.

        Raises ValueError where it is of another number of processes, and what torch raises where it
        does not fit the network.
        """
        values, parts = checkpoint.values, _by_part(checkpoint.tensors)
        world = self._accelerator.num_processes
        if values["processes"] != world:
            raise ValueError(
                f"the checkpoint is of {values['processes']} processes, now there are {world}"
            )
        network: dict[str, Any] = dict(parts["network"])
        set_model_state_dict(self._network, network, options=_WHOLE)
        state: dict[str, dict[str, Any]] = {
            parameter: dict(slots) for parameter, slots in values["optimizer"]["state"].items()
        }
        for key, tensor in parts.get("optimizer", {}).items():
            parameter, slot = key.rsplit("/", 1)
            state.setdefault(parameter, {})[slot] = tensor
        content = {"state": state, "param_groups": values["optimizer"]["param_groups"]}
        set_optimizer_state_dict(self._network, self._optimizer, content, options=_WHOLE)
        self._same_layout()
        self._scheduler.load_state_dict(values["scheduler"])
        if self._ema is not None:
            self._ema.load_state_dict(parts["ema"])
        if self._accelerator.scaler is not None and values["scaler"] is not None:
            self._accelerator.scaler.load_state_dict(values["scaler"])
        prefix = f"{self._accelerator.process_index}/"
        set_global_state(
            {
                key.removeprefix(prefix): x
                for key, x in parts["generators"].items()
                if key.startswith(prefix)
            }
        )

    def _same_layout(self) -> None:
        """Lay the optimiser's tensors out as their parameters are, as they were when it made them:
        sums over another layout may take another path and round differently."""
        for parameter, slots in self._optimizer.state.items():
            for slot, value in slots.items():
                if (
                    type(value) is Tensor
                    and value.shape == parameter.shape
                    and value.stride() != parameter.stride()
                ):
                    slots[slot] = torch.empty_like(parameter, dtype=value.dtype).copy_(value)


def _by_part(tensors: dict[str, Tensor]) -> dict[str, dict[str, Tensor]]:
    parts: dict[str, dict[str, Tensor]] = {}
    for key, tensor in tensors.items():
        part, name = key.split("/", 1)
        parts.setdefault(part, {})[name] = tensor
    return parts
