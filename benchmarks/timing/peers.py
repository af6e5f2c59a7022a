"""What our ops are measured against: other libraries' kernels, other formulations in PyTorch."""

from __future__ import annotations

import functools
import importlib
import importlib.util
import inspect
import sys
from collections.abc import Callable, Mapping
from types import ModuleType, SimpleNamespace
from typing import Any

import torch
import torch.nn.functional as F
from torch import Tensor
from torch.nn.attention.bias import causal_lower_right

import tvkernels
from benchmarks.timing.bench import Provider


def providers(gpu: bool) -> tuple[list[Provider], dict[str, str]]:
    """The providers present, in the order of the tables, and what there is to say of the peers.

    That is a library's version, or why it is left out. Other libraries' kernels and the compiled
    reference run on a GPU only.
    """
    present = [
        Provider("ours", lambda op: getattr(tvkernels, op)),
        Provider("reference", reference),
    ]
    if not gpu:
        return present, dict.fromkeys(("compiled", "mamba-ssm", "causal-conv1d"), "needs a GPU")
    compiled = functools.cache(functools.partial(reference, compiled=True))
    present.append(Provider("compiled", compiled))
    peers = {}
    # causal-conv1d names its functions as we do, and its offsets are unsigned
    others = {"mamba_ssm": (mamba_ssm, 2**31), "causal_conv1d": (importlib.import_module, 2**32)}
    for module, (load, reach) in others.items():
        name = module.replace("_", "-")
        peers[name] = "not installed"
        try:
            if importlib.util.find_spec(module):
                functions = load(module)
                peers[name] = str(sys.modules[module].__version__)
                present.append(Provider(name, vars(functions).get, reach))
        except Exception as error:  # another project's import may fail in any way
            peers[name] = f"does not import: {error}"
    return present, peers


def reference(op: str, compiled: bool = False) -> Callable[..., Any]:
    """A public function on plain PyTorch, on whichever device its tensors are."""
    function = getattr(tvkernels, op)
    if compiled:
        # many backward passes of one forward pass are timed, so its buffers must not be reused
        importlib.import_module("torch._functorch.config").donated_buffer = False
        function = torch.compile(function)

    def run(*args: Any, **options: Any) -> Any:
        with tvkernels.use_backend("reference"):
            return function(*args, **options)

    return run


def mamba_ssm(module: str = "mamba_ssm") -> SimpleNamespace:
    """mamba-ssm's Triton functions under our names.

    Its pure Python install imports a compiled module that none of these functions use, so an empty
    module replaces it.
    """
    if importlib.util.find_spec("selective_scan_cuda") is None:
        sys.modules["selective_scan_cuda"] = ModuleType("selective_scan_cuda")
    norm, gated, step, scan = (
        importlib.import_module(f"{module}.ops.triton.{name}")
        for name in ("layer_norm", "layernorm_gated", "selective_state_update", "ssd_combined")
    )

    def rms_norm(x: Any, weight: Any, eps: float, residual: Any) -> Any:
        return norm.rms_norm_fn(x, weight, None, residual=residual, prenorm=True, eps=eps)

    return SimpleNamespace(
        rmsnorm_fn=gated.rmsnorm_fn,
        rms_norm=rms_norm,
        selective_state_update=step.selective_state_update,
        mamba2_decode_step=functools.partial(_mixer_step, step.selective_state_update),
        mamba_chunk_scan_combined=scan.mamba_chunk_scan_combined,
    )


def _mixer_step(update: Any, *values: Any, **named: Any) -> Any:
    """mamba-ssm's Mamba2.step: two kernels, and A computed for every token.

    Its convolution is causal-conv1d's, which is not in Triton, so ours replaces it here.
    """
    bound = inspect.signature(tvkernels.mamba2_decode_step).bind(*values, **named)
    return _two_kernels(update, **with_A(bound.arguments))


def with_A(arguments: Mapping[str, Any]) -> dict[str, Any]:
    """The step's arguments with A instead of its logarithm, as a model computes it once."""
    rest = {name: x for name, x in arguments.items() if name != "A_log"}
    return rest | {"A": -torch.exp(arguments["A_log"].float())}


def _two_kernels(
    update: Any, zxbcdt: Any, conv_state: Any, ssm_state: Any, cache_seqlens: Any,
    conv1d_weight: Any, conv1d_bias: Any, dt_bias: Any, A: Any, D: Any,
) -> Any:  # fmt: skip
    heads, headdim, d_state = ssm_state.shape[1:]
    dim, channels = heads * headdim, len(conv1d_weight)
    z, xbc, dt = zxbcdt.split([dim, channels, heads], dim=-1)
    taps = (conv1d_weight, conv1d_bias)
    xbc = tvkernels.causal_conv1d_update(xbc, conv_state, *taps, "silu", cache_seqlens)
    x, B, C = xbc.split([dim, *[(channels - dim) // 2] * 2], dim=-1)

    def per_channel(t: Any) -> Any:
        return t[..., None].expand(*t.shape, headdim)

    y = update(
        ssm_state, x.unflatten(-1, (heads, -1)), per_channel(dt),
        A[:, None, None].expand(heads, headdim, d_state),
        B.unflatten(-1, (-1, d_state)), C.unflatten(-1, (-1, d_state)),
        D=per_channel(D), z=z.unflatten(-1, (heads, -1)), dt_bias=per_channel(dt_bias),
        dt_softplus=True,
    )  # fmt: skip
    return y.flatten(1)


# the mixer's step as our two update ops; the second applies the gate
mixer_step_of_two = functools.partial(_two_kernels, tvkernels.selective_state_update)


def tome_per_round(x: Tensor, num_tokens: int, num_heads: int = 16) -> tuple[Tensor, None, None]:
    """Token merging as upstream TimeViper defines it: every round rewrites the full-width tokens.

    Each round averages the heads anew, sorts the even tokens by their best match, gathers the kept
    and the merged ones, adds the merged into their partners, and joins the two parts. It returns
    neither sizes nor assignment.
    """
    size = torch.ones_like(x[..., :1])
    while (count := x.shape[1]) > num_tokens:
        merged = min(count - num_tokens, count // 2)
        metric = x.unflatten(-1, (num_heads, -1)).mean(2)
        metric = metric / metric.norm(dim=-1, keepdim=True)
        best, partner = (metric[:, 0::2] @ metric[:, 1::2].mT).max(-1)
        order = best.argsort(dim=-1, descending=True)[..., None]
        leaving, staying = order[:, :merged], order[:, merged:]
        target = partner[..., None].gather(1, leaving)
        total = _merge(x * size, leaving, staying, target)
        size = _merge(size, leaving, staying, target)
        x = total / size
    return x, None, None


def _merge(x: Tensor, leaving: Tensor, staying: Tensor, target: Tensor) -> Tensor:
    even, odd, width = x[:, 0::2], x[:, 1::2], x.shape[-1]
    kept = even.gather(1, staying.expand(-1, -1, width))
    moved = even.gather(1, leaving.expand(-1, -1, width))
    return torch.cat([kept, odd.scatter_add(1, target.expand(-1, -1, width), moved)], dim=1)


def topk_of_map(q: Tensor, k: Tensor, keep: int, span: tuple[int, int]) -> tuple[Tensor, ...]:
    """Selection as it is usually written: keys repeated per query head, topk, sort, a mask."""
    start, length = span
    keys = k.repeat_interleave(q.shape[1] // k.shape[2], dim=2)
    logits = torch.einsum("bhd,bthd->bht", q, keys).float() * q.shape[-1] ** -0.5
    scores = logits.softmax(-1).mean(1)[:, start : start + length]
    kept = scores.topk(keep).indices.sort(-1).values
    left = torch.ones_like(scores, dtype=torch.bool).scatter_(1, kept, False)
    # the dropped ones in order, without a host sync for their number
    dropped = left.int().argsort(dim=1, descending=True, stable=True)[:, : length - keep]
    return kept, dropped, scores


def topk_of_projection(
    q: Tensor, hidden: Tensor, k_weight: Tensor, keep: int, span: tuple[int, int]
) -> tuple[Tensor, ...]:
    """`topk_of_map` on keys that are projected here, of all tokens."""
    keys = (hidden @ k_weight.T).unflatten(-1, (-1, q.shape[-1]))
    return topk_of_map(q, keys, keep, span)


def topk_with_masks(
    q: Tensor, hidden: Tensor, k_weight: Tensor, keep: int, span: tuple[int, int]
) -> tuple[Tensor, ...]:
    """Selection by the steps of upstream TimeViper, without its round trip to the host.

    It projects the queries of all tokens, repeats the keys, makes the whole causal mask and uses
    its last row only. The projected queries count for the time only: the given q replaces the last.
    """
    (batch, tokens, width), (start, length) = hidden.shape, span
    features = hidden.clone()
    queries = (features @ _query_weight(q[0].numel(), width, q.dtype, q.device).T).view(
        batch, tokens, *q.shape[1:]
    )
    queries[:, -1] = q
    keys = (features @ k_weight.T).unflatten(-1, (-1, q.shape[-1]))
    keys = keys.repeat_interleave(q.shape[1] // keys.shape[2], dim=2)
    seen = torch.ones(tokens, tokens, dtype=torch.bool, device=q.device).tril_()
    mask = torch.zeros(tokens, tokens, dtype=q.dtype, device=q.device)
    mask = mask.masked_fill_(~seen, float("-inf"))
    logits = torch.einsum("bhd,bthd->bht", queries[:, -1], keys) * q.shape[-1] ** -0.5 + mask[-1]
    every = logits.softmax(-1, dtype=torch.float32).to(q.dtype).mean(1)
    scores = every[:, start : start + length]
    kept = scores.topk(keep).indices.sort(-1).values
    place = torch.arange(length, device=q.device)
    left = torch.stack([~torch.isin(place, row, assume_unique=True) for row in kept])
    dropped = left.int().argsort(dim=1, descending=True, stable=True)[:, : length - keep]
    return kept, dropped, scores


@functools.cache
def _query_weight(rows: int, columns: int, dtype: torch.dtype, device: torch.device) -> Tensor:
    return torch.randn(rows, columns, dtype=dtype, device=device) * columns**-0.5


def sdpa_transfer(
    text: Tensor, q: Tensor, k: Tensor, v: Tensor, alpha: Tensor, out_proj: Tensor
) -> Tensor:
    """Gated cross-attention on PyTorch's own attention, keys repeated per query head."""
    group = q.shape[2] // k.shape[2]
    k, v = (t.repeat_interleave(group, dim=2) for t in (k, v))
    heads = (t.transpose(1, 2) for t in (q, k, v))
    out = F.scaled_dot_product_attention(*heads).transpose(1, 2).flatten(2)
    return text + alpha.tanh() * (out @ out_proj.T)


def joined(arguments: Mapping[str, Any]) -> dict[str, Any]:
    """Each row's own copy of the prefix in front of its keys and values."""
    key, value = (
        torch.cat([shared.expand(len(own), -1, -1, -1), own], 1)
        for shared, own in zip(arguments["prefix"], (arguments["key"], arguments["value"]))
    )
    return {"q": arguments["q"], "key": key, "value": value}


def sdpa_per_row(q: Tensor, key: Tensor, value: Tensor) -> Tensor:
    """PyTorch's own attention, causal from the last key on; tails are full here."""
    bias = causal_lower_right(q.shape[1], key.shape[1]) if q.shape[1] > 1 else None
    heads = (x.transpose(1, 2) for x in (q, key, value))
    return F.scaled_dot_product_attention(*heads, bias, enable_gqa=True).transpose(1, 2)
