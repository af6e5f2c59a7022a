"""Nemotron-H's MLP, and its mixture of experts: a router, the experts that it chooses for each
token, and an MLP that all tokens share.

The choice is computed in float32 whatever the model's dtype, and under autocast: a router that
rounds chooses other experts. Three routes give the same sums within rounding:

- a grouped matrix product over all experts where PyTorch has a kernel for it;
- in a decode step on another GPU, the chosen experts' weights gathered for each token, without a
  host sync, so that the step can be a CUDA graph;
- else one matrix product for each expert that a token chose.

Source: DeepSeek-V3's router (arXiv 2412.19437), with ungated experts.
"""

from __future__ import annotations

from collections.abc import Callable

import torch
from torch import Tensor, nn

from timeviper_fast.config import BackboneConfig
from tvkernels import relu2

__all__ = ["Experts", "MixtureOfExperts", "Mlp", "Router"]


class Mlp(nn.Module):
    """down(relu(up(x))^2), `size` channels inside."""

    def __init__(self, config: BackboneConfig, size: int | None = None) -> None:
        super().__init__()
        width, bias = size or config.intermediate_size, config.mlp_bias
        self.up_proj = nn.Linear(config.hidden_size, width, bias=bias)
        self.down_proj = nn.Linear(width, config.hidden_size, bias=bias)

    def forward(self, x: Tensor, packing: object = None, state: None = None) -> Tensor:
        return self.down_proj(relu2(self.up_proj(x)))


class Router(nn.Module):
    """The experts of each token, and their weights.

    A token's score for an expert is sigmoid(x W^T). Score plus correction bias decides which are
    chosen; the weights are made of the scores alone. With groups, only the experts of the best
    groups can be chosen; a group is as good as the sum of its two best.

    The correction bias is a buffer: it has no gradient, and stays float32 when the model is cast.
    """

    def __init__(self, config: BackboneConfig) -> None:
        super().__init__()
        self.config = config
        self.weight = nn.Parameter(torch.empty(config.num_experts, config.hidden_size))
        bias = torch.zeros(config.num_experts, dtype=torch.float32)
        self.e_score_correction_bias: Tensor
        self.register_buffer("e_score_correction_bias", bias)

    def _apply(self, fn: Callable[[Tensor], Tensor], recurse: bool = True) -> Router:
        bias = self.e_score_correction_bias
        super()._apply(fn, recurse)
        cast = self.e_score_correction_bias
        if cast.dtype != torch.float32:
            self.e_score_correction_bias = bias.to(cast.device)
        return self

    def forward(self, x: Tensor) -> tuple[Tensor, Tensor]:
        """Experts of tokens (n, d_model): numbers (n, k) int64, ascending, and float32 weights
        (n, k); float64 ones of a float64 model."""
        wide = torch.promote_types(x.dtype, torch.float32)
        with torch.autocast(x.device.type, enabled=False):
            scores = torch.sigmoid(x.to(wide) @ self.weight.to(wide).T)
        choice = self._in_best_groups(scores.detach() + self.e_score_correction_bias)
        chosen = choice.topk(self.config.experts_per_token, dim=-1, sorted=False).indices
        # in a fixed order, so that their sum is always the same
        chosen = chosen.sort(dim=-1).values
        weights = scores.gather(1, chosen)
        if self.config.normalize_expert_weights:
            weights = weights / (weights.sum(dim=-1, keepdim=True) + 1e-20)
        return chosen, weights * self.config.expert_scale

    def _in_best_groups(self, choice: Tensor) -> Tensor:
        """`choice` (n, num_experts), -inf for the experts of the other groups."""
        groups, best = self.config.expert_groups, self.config.best_expert_groups
        if groups == best:
            return choice
        grouped = choice.unflatten(1, (groups, -1))
        strength = grouped.topk(2, dim=-1).values.sum(dim=-1)
        stays = torch.zeros_like(strength, dtype=torch.bool)
        stays.scatter_(1, strength.topk(best, dim=-1).indices, True)
        return grouped.masked_fill(~stays[..., None], -torch.inf).flatten(1)


class Experts(nn.Module):
    """The routed experts, down(relu(up(x))^2) each, their weights stacked.

    Attributes:
        up_proj: (num_experts, expert_size, width).
        down_proj: (num_experts, width, expert_size).
    """

    def __init__(self, config: BackboneConfig) -> None:
        super().__init__()
        width = config.expert_latent_size or config.hidden_size
        shape = (config.num_experts, config.expert_size, width)
        self.up_proj = nn.Parameter(torch.empty(shape))
        self.down_proj = nn.Parameter(torch.empty(shape).transpose(1, 2).contiguous())

    def forward(self, x: Tensor, chosen: Tensor, weights: Tensor, step: bool = False) -> Tensor:
        """Weighted sum over the chosen experts, added up in the dtype of `weights`.

        Args:
            x: (n, width).
            chosen, weights: (n, k), of the router.
            step: whether this is a decode step: few tokens, and no host sync.

        Returns:
            (n, width) of the dtype of x.
        """
        if x.is_cuda and step and not _has_kernel(x, self.up_proj):
            each = self.gathered(x, chosen)
        else:
            numbers, order = chosen.flatten().sort(stable=True)
            all_experts = torch.arange(len(self.up_proj), device=x.device)
            ends = torch.searchsorted(numbers, all_experts, right=True)
            run = self.grouped if _has_kernel(x, self.up_proj) else self.looped
            each = run(x[order // chosen.shape[1]], ends)[order.argsort()]
            each = each.unflatten(0, chosen.shape)
        total = torch.zeros(x.shape, dtype=weights.dtype, device=x.device)
        for i in range(chosen.shape[1]):
            total = total + each[:, i] * weights[:, i, None]
        return total.to(x.dtype)

    def grouped(self, rows: Tensor, ends: Tensor) -> Tensor:
        """Rows (m, width) ordered by expert through their experts, in two grouped products.

        `ends` (num_experts,) is the number of rows of each expert and of those before it.
        """
        product, ends = torch.nn.functional.grouped_mm, ends.int()
        hidden = relu2(product(rows, self.up_proj.transpose(1, 2), offs=ends))
        return product(hidden, self.down_proj.transpose(1, 2), offs=ends)

    def looped(self, rows: Tensor, ends: Tensor) -> Tensor:
        """As `grouped`, expert by expert; on a GPU it is a host sync."""
        parts, start = [], 0
        # unbound once: the gradients of the slices are stacked, not added up in full size
        maps = zip(ends.tolist(), self.up_proj.unbind(), self.down_proj.unbind())
        for end, up, down in maps:
            if end > start:
                parts.append(relu2(rows[start:end] @ up.T) @ down.T)
                start = end
        return torch.cat(parts)

    def gathered(self, x: Tensor, chosen: Tensor) -> Tensor:
        """(n, k, width): each token of x (n, width) through each of its experts."""
        hidden = relu2(self.up_proj[chosen] @ x[:, None, :, None])
        return (self.down_proj[chosen] @ hidden)[..., 0]


def _has_kernel(x: Tensor, weight: Tensor) -> bool:
    """Whether PyTorch computes grouped products of `x` with stacks of the shape of `weight`
    (num_experts, expert_size, width) in one kernel; elsewhere it loops on the host or refuses."""
    # under autocast x and the weights may differ in dtype
    if not x.is_cuda or not x.dtype == weight.dtype == torch.bfloat16:
        return False
    # rows must begin at multiples of 16 bytes
    if torch.version.hip is not None or any(size % 8 for size in weight.shape[1:]):
        return False
    return torch.cuda.get_device_capability(x.device)[0] in (9, 10)


class MixtureOfExperts(nn.Module):
    """experts(x) + shared(x); with a latent size, the routed experts work between two projections.

    y = fc2(sum_k w_k down_k relu(up_k u)^2) + down_s relu(up_s x)^2 with u = fc1(x).
    """

    def __init__(self, config: BackboneConfig) -> None:
        super().__init__()
        width, latent = config.hidden_size, config.expert_latent_size
        self.gate = Router(config)
        self.experts = Experts(config)
        self.shared_experts = Mlp(config, config.shared_expert_size)
        if latent:
            self.fc1_latent_proj = nn.Linear(width, latent, bias=False)
            self.fc2_latent_proj = nn.Linear(latent, width, bias=False)
        self.latent = latent > 0

    def forward(self, x: Tensor, packing: object, state: None) -> Tensor:
        """(batch, n, d_model) -> the same shape; every token for itself."""
        rows = x.flatten(0, 1)
        chosen, weights = self.gate(rows)
        given = self.fc1_latent_proj(rows) if self.latent else rows
        routed = self.experts(given, chosen, weights, step=x.shape[1] == 1)
        if self.latent:
            routed = self.fc2_latent_proj(routed)
        return routed.view(x.shape) + self.shared_experts(x)
