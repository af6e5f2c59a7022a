"""Random weights as the family initialises them, for tests, demos and training from scratch."""

from __future__ import annotations

import math

import torch
from torch import nn

from timeviper_fast.config import BackboneConfig
from timeviper_fast.model.experts import Experts, Router
from timeviper_fast.model.nemotron_h import Conv1d, Mamba2
from timeviper_fast.model.stack import LayerStack
from timeviper_fast.model.vision.internvideo2 import InternVideo2

__all__ = ["init_weights"]


@torch.no_grad()
def init_weights(model: nn.Module, *, seed: int, for_training: bool = False) -> None:
    """Fill every parameter of `model` in place from one seeded generator on the CPU.

    Linear, expert and convolution weights are normal with std 1 / sqrt(fan_in), embeddings with
    std 1, biases 0, norms and layer scales 1, InternVideo2's positions its tables; A is uniform in
    [1, 16], dt log-uniform in [time_step_min, time_step_max], D is 1, and a TransV gate starts
    closed (alpha 0).

    Args:
        model: or a part of one.
        seed: of the generator.
        for_training: keep the residual stream small, so that every layer's norm lets gradients
            through: embeddings have std 1 / sqrt(channels), and the projections that write to the
            LLM's residual stream are divided by the square root of the number of its layers.
    """
    generator = torch.Generator().manual_seed(seed)

    def normal(weight: torch.Tensor, fan_in: int) -> None:
        weight.copy_(torch.randn(weight.shape, generator=generator) / math.sqrt(fan_in))

    for module in model.modules():
        if isinstance(module, (nn.Linear, nn.Conv2d, nn.Conv3d, Conv1d)):
            normal(module.weight, module.weight[0].numel())
            if module.bias is not None:
                module.bias.zero_()
        elif isinstance(module, nn.Embedding):
            normal(module.weight, module.weight.shape[1] if for_training else 1)
        elif isinstance(module, Router):
            normal(module.weight, module.weight.shape[1])
            module.e_score_correction_bias.zero_()
        elif isinstance(module, Experts):
            for weight in (module.up_proj, module.down_proj):
                normal(weight, weight.shape[2])
        elif isinstance(module, Mamba2):
            _init_mamba(module, module.config, generator)
    for name, parameter in model.named_parameters():
        if name.endswith("pos_embed"):
            normal(parameter, parameter.shape[-1])
    for module in model.modules():
        if isinstance(module, InternVideo2):
            module.reset_positions()
        elif isinstance(module, LayerStack) and for_training:
            _calm(module)


def _calm(stack: LayerStack) -> None:
    for name, parameter in stack.layers.named_parameters():
        if name.endswith(("out_proj.weight", "o_proj.weight", "down_proj.weight", "down_proj")):
            parameter.div_(math.sqrt(len(stack.layers)))


def _init_mamba(mixer: Mamba2, config: BackboneConfig, generator: torch.Generator) -> None:
    heads = config.mamba_num_heads
    low, high = math.log(config.time_step_min), math.log(config.time_step_max)
    dt = torch.exp(low + (high - low) * torch.rand(heads, generator=generator))
    dt = dt.clamp_min(config.time_step_floor)
    mixer.dt_bias.copy_(dt + torch.log(-torch.expm1(-dt)))  # the inverse of softplus
    mixer.A_log.copy_(torch.log(1 + 15 * torch.rand(heads, generator=generator)))
    mixer.D.fill_(1.0)
