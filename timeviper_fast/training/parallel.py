"""The processes of a run, and the model's weights sharded over them (FSDP2).

`torchrun` starts the processes and sets their number. Each decoder layer is a parameter group that
is gathered while the layer runs. The root group is gathered while the whole model runs: embeddings,
projector, vision encoder, transfer weights, and the layers whose projections an attention stage
reads before they run.
"""

from __future__ import annotations

import os
from dataclasses import dataclass
from typing import Any, cast

import torch
import torch.distributed as dist
from torch import Tensor, nn
from torch.distributed.checkpoint.state_dict import StateDictOptions, get_model_state_dict
from torch.distributed.fsdp import fully_shard
from torch.distributed.tensor import DTensor

from timeviper_fast.model.model import TimeViperNetwork

__all__ = ["World", "divide", "flatten_gates", "whole", "whole_weights"]


@dataclass(frozen=True)
class World:
    """The processes of a run.

    Attributes:
        rank: number of this process, from 0.
        size: how many processes there are.
        device: device of this process.
    """

    rank: int
    size: int
    device: torch.device

    @classmethod
    def join(cls) -> World:
        """The processes that `torchrun` started; without torchrun, this process alone."""
        size = int(os.environ.get("WORLD_SIZE", "1"))
        local = int(os.environ.get("LOCAL_RANK", "0"))
        cuda = torch.cuda.is_available()
        device = torch.device("cuda", local) if cuda else torch.device("cpu")
        if cuda:
            torch.cuda.set_device(device)
        if size > 1 and not dist.is_initialized():
            dist.init_process_group("nccl" if cuda else "gloo")
        return cls(dist.get_rank() if size > 1 else 0, size, device)

    def leave(self) -> None:
        """Destroy the process group."""
        if self.size > 1:
            dist.destroy_process_group()

    @property
    def first(self) -> bool:
        """Whether this is rank 0, which writes the shared files."""
        return self.rank == 0

    def total(self, values: Tensor) -> Tensor:
        """The sum over all processes, in place."""
        if self.size > 1:
            dist.all_reduce(values)
        return values

    def wait(self) -> None:
        """Wait until all processes arrive (a barrier)."""
        if self.size > 1:
            dist.barrier()

    def share(self, value: Any) -> Any:
        """Broadcast the first process's value to all."""
        if self.size == 1:
            return value
        box = [value]
        dist.broadcast_object_list(box, src=0)
        return box[0]


def flatten_gates(model: TimeViperNetwork) -> None:
    """Give every transfer gate the shape (1,): FSDP2 takes no scalars. Files keep a scalar."""
    for stage in model.backbone.transv:
        gate = getattr(stage, "alpha", None)
        if isinstance(gate, nn.Parameter):
            flat = gate.detach().reshape(1)
            stage.alpha = nn.Parameter(flat, requires_grad=gate.requires_grad)


def divide(wrapper: nn.Module, model: TimeViperNetwork) -> None:
    """Shard the weights of `model`, which is inside `wrapper`, over all processes.

    Args:
        wrapper: its `forward` computes the loss; all processes must call it equally often.
        model: with flat gates (`flatten_gates`).
    """
    read_by_stages = {stage.layer for stage in model.backbone.stages if stage.select == "attention"}
    for number, layer in enumerate(model.backbone.layers):
        if number not in read_by_stages:
            fully_shard(layer)
    fully_shard(wrapper)


def whole(value: Tensor) -> Tensor:
    """A tensor with the same value on every rank; a sharded one is gathered or reduced."""
    return value.full_tensor() if isinstance(value, DTensor) else value


def whole_weights(wrapper: nn.Module) -> dict[str, Tensor]:
    """All weights of the wrapped model on the CPU; {} in all processes except the first.

    Gates are scalars again.
    """
    options = StateDictOptions(full_state_dict=True, cpu_offload=True)
    state = cast(dict[str, Tensor], get_model_state_dict(wrapper, options=options))
    prefix = "model."
    return {
        name.removeprefix(prefix): value.reshape(()) if name.endswith(".alpha") else value
        for name, value in state.items()
    }
