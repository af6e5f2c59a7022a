"""Models of transformers on our ops: we replace the functions that their modeling modules call.

A modeling module looks up its functions by name at each call, and a norm's forward on its class. So
the replacements also reach models that are already built. A replacement serves the calls that it
can serve exactly and passes the others to the original function. It receives the states themselves,
not the cache that holds them, so the cache's name (`cache`, `cache_params`, `past_key_values`) does
not matter here.
"""

from __future__ import annotations

import inspect
from collections.abc import Callable, Iterable, Mapping, Sequence
from dataclasses import dataclass
from importlib import import_module, util
from pathlib import Path
from types import ModuleType, TracebackType
from typing import Any, NamedTuple

import torch
from torch import Tensor

from tvkernels.causal_conv1d import causal_conv1d_fn, causal_conv1d_update
from tvkernels.core.checks import FLOAT_DTYPES, fail
from tvkernels.rmsnorm import rmsnorm_fn
from tvkernels.selective_state_update import selective_state_update
from tvkernels.ssd import mamba_chunk_scan_combined

__all__ = ["Patch", "Replacement", "patch_transformers", "unpatch_transformers"]

_OP = "patch_transformers"

# function of a modeling module -> op that serves it. The state update of the Mamba-1 models is the
# same op without a head dimension. Their scan is a different operation and is not replaced.
SERVED: dict[str, Callable[..., Any]] = {
    "causal_conv1d_fn": causal_conv1d_fn,
    "causal_conv1d_update": causal_conv1d_update,
    "mamba2_chunk_scan": mamba_chunk_scan_combined,
    "mamba2_selective_state_update": selective_state_update,
    "mamba_selective_state_update": selective_state_update,
}
# a training step calls this first; if it returns None, the step calls the functions above
FUSED = "mamba2_split_conv1d_scan_combined"
# these write their state in place and have no backward
_UPDATES = (causal_conv1d_update, selective_state_update)
_DTYPES = [dtype for dtype in FLOAT_DTYPES if dtype != torch.float64]
# found in every modeling module that uses the convolution of causal-conv1d
_MARK = 'use_kernel_func_from_hub_with_fallback("causal_conv1d_fn"'


class _Place(NamedTuple):
    """A name of a module or class, with its function before and after `patch_transformers`."""

    before: Callable[..., Any]
    now: Callable[..., Any]
    word: str


# keys: (module or class, name)
_replaced: dict[tuple[Any, str], _Place] = {}


@dataclass(frozen=True)
class Replacement:
    """One row of `patch_transformers()`: what serves a name of a modeling module now.

    Attributes:
        model: the model's folder in transformers.
        name: the function, or the class and its method.
        now: the op of tvkernels, or why the name was not replaced.
    """

    model: str
    name: str
    now: str


@dataclass(frozen=True)
class Patch:
    """The result of `patch_transformers`. `print` shows a table; leaving a `with` block undoes it.

    Attributes:
        rows: one `Replacement` per name of each model, including names replaced by earlier calls.
    """

    rows: tuple[Replacement, ...]
    _new: tuple[tuple[Any, str], ...]

    def __str__(self) -> str:
        cells = [("model", "name", "now"), *((r.model, r.name, r.now) for r in self.rows)]
        widths = [max(len(row[i]) for row in cells) for i in range(2)]
        return "\n".join(f"{m:{widths[0]}}  {n:{widths[1]}}  {now}" for m, n, now in cells)

    def __enter__(self) -> Patch:
        return self

    def __exit__(
        self,
        kind: type[BaseException] | None,
        error: BaseException | None,
        trace: TracebackType | None,
    ) -> None:
        _restore(self._new)


def patch_transformers(models: str | Sequence[str] | None = None) -> Patch:
    """Run models of the installed transformers on these ops, including models already built.

    Replaces the scan, the state update, the convolution and the gated norm of the Mamba-2 models
    bamba, falcon_h1, granitemoehybrid, mamba2, nemotron_h and zamba2; the convolution of every
    other model that uses causal-conv1d; and the state update of the Mamba-1 models. A second call
    changes nothing.

    Calls that an op cannot serve exactly go to the original function: float64, an activation other
    than silu, a decoding step that needs gradients, torch.export. Packed sequences (seq_idx) stay
    separate. The fused function of a training step is replaced by one that returns None, so the
    layer runs its steps one by one, each on its op. The fused function ignores the padding mask and
    assumes that the norm has the scan's groups.

    Args:
        models: folder of a model in transformers, such as "bamba"; one, several, or None for all
            models of the installed version. Imports their modeling modules: about 3 s for all.

    Returns:
        A `Patch`. Its rows name what serves each function now; printing it shows them as a table.
        Used as a context manager, it undoes this call's replacements on exit.

    Raises:
        ValueError: a name in `models` is not a model with such functions. While a model runs: the
            input has packed sequences that cannot be kept separate.
        ModuleNotFoundError: transformers is not installed.

    Numerics: those of the ops, which round to the dtype of their input once, at the end.
    Source: transformers 5.17 to 5.24.
    """
    known = served_models()
    wanted = known if models is None else [models] if isinstance(models, str) else list(models)
    for model in wanted:
        if model not in known:
            fail(_OP, "models", f"be among {', '.join(known)}", repr(model))
    rows: list[Replacement] = []
    new: list[tuple[Any, str]] = []
    for model in wanted:
        module = import_module(f"transformers.models.{model}.modeling_{model}")
        for owner, name, label in places(module):
            before = getattr(owner, name)
            place = replacement(before) or _place(before, name)
            if before is not place.now:
                setattr(owner, name, place.now)
                _replaced[owner, name] = place
                new.append((owner, name))
            rows.append(Replacement(model, label, place.word))
    return Patch(tuple(rows), tuple(new))


def unpatch_transformers() -> None:
    """Undo every `patch_transformers`. A name that other code has replaced since is left alone."""
    _restore(tuple(_replaced))


def served_models() -> list[str]:
    """Folders of the models in the installed transformers that `patch_transformers` can patch.

    Raises:
        ModuleNotFoundError: transformers is not installed.
    """
    spec = util.find_spec("transformers")
    if spec is None or spec.origin is None:
        raise ModuleNotFoundError(
            f"{_OP}: transformers is not installed (pip install transformers)"
        )
    files = sorted((Path(spec.origin).parent / "models").glob("*/modeling_*.py"))
    return [
        path.parent.name
        for path in files
        if path.stem == f"modeling_{path.parent.name}" and _MARK in path.read_text(encoding="utf-8")
    ]


def replacement(function: Callable[..., Any]) -> _Place | None:
    """The place where `function` was installed, if it is one of the replacements."""
    return next((place for place in _replaced.values() if place.now is function), None)


def _restore(replaced: Iterable[tuple[Any, str]]) -> None:
    for owner, name in replaced:
        place = _replaced.pop((owner, name), None)
        if place is not None and getattr(owner, name) is place.now:
            setattr(owner, name, place.before)


def places(module: ModuleType) -> list[tuple[Any, str, str]]:
    """(owner, name, name in the table) of every function to replace in one modeling module."""
    names = [name for name in (*SERVED, FUSED) if hasattr(module, name)]
    found: list[tuple[Any, str, str]] = [(module, name, name) for name in names]
    if hasattr(module, FUSED):
        norms = [c for name, c in vars(module).items() if name.endswith("RMSNormGated")]
        found += [(norm, "forward", f"{norm.__name__}.forward") for norm in norms]
    return found


def _place(before: Callable[..., Any], name: str) -> _Place:
    """The replacement of `before`, or `before` itself if it has arguments that we do not know."""
    if name == FUSED:
        return _Place(before, decline, "declined: the layer calls the functions above one by one")
    words = words_of(before)
    if name == "forward":
        ours: Callable[..., Any] = rmsnorm_fn
        known = words == ["self", "x", "gate"]
        now = _norm(before)
    else:
        ours = SERVED[name]
        known = set(words) <= inspect.signature(ours).parameters.keys()
        now = serving(ours, before, words)
    if not known:
        return _Place(before, before, f"as before: its arguments are {', '.join(words)}")
    return _Place(before, now, f"tvkernels.{ours.__name__}")


def words_of(function: Callable[..., Any]) -> list[str]:
    """The names of its positional arguments, with `hidden_states` renamed to `x` as in our ops.

    With Hugging Face's kernels installed, `function` is a module.
    """
    parameters = inspect.signature(getattr(function, "forward", function)).parameters.values()
    words = [p.name for p in parameters if p.kind is not p.VAR_KEYWORD]
    return ["x" if word == "hidden_states" else word for word in words]


def decline(*_: Any, **__: Any) -> None:
    """Decline the fused step by returning None."""


def serving(
    ours: Callable[..., Any], before: Callable[..., Any], words: list[str]
) -> Callable[..., Any]:
    """`ours` with the calling convention of `before`, whose positional arguments are `words`."""
    parameters = frozenset(inspect.signature(ours).parameters)
    update = ours in _UPDATES

    def stand_in(*args: Any, **kwargs: Any) -> Any:
        given = {**dict(zip(words, args)), **kwargs}
        if "hidden_states" in given:
            given["x"] = given.pop("hidden_states")
        served = len(args) <= len(words) and _serves(given)
        served = served and not (update and _needs_gradients(given))
        if given.get("seq_idx") is not None or given.get("cu_seqlens") is not None:
            _check_packed(ours.__name__, given, served and "seq_idx" in parameters)
        if not served:
            return before(*args, **kwargs)
        return ours(**{name: value for name, value in given.items() if name in parameters})

    return stand_in


def _norm(before: Callable[..., Any]) -> Callable[..., Any]:
    """The forward of a gated norm. A class states group_size, or n_groups, or has one group."""

    def forward(self: Any, hidden_states: Tensor, gate: Tensor | None = None) -> Any:
        if not _serves({"x": hidden_states}):
            return before(self, hidden_states, gate)
        size = getattr(self, "group_size", hidden_states.shape[-1] // getattr(self, "n_groups", 1))
        first = getattr(self, "norm_before_gate", False)
        eps = self.variance_epsilon
        return rmsnorm_fn(hidden_states, self.weight, None, gate, eps, size, first)

    return forward


def _serves(given: Mapping[str, Any]) -> bool:
    """Whether the ops compute the same as the original function, at no lower precision."""
    silu = given.get("activation") in (None, "silu", "swish")
    return given["x"].dtype in _DTYPES and silu and not torch.compiler.is_exporting()


def _needs_gradients(given: Mapping[str, Any]) -> bool:
    return torch.is_grad_enabled() and any(
        isinstance(value, Tensor) and value.requires_grad for value in given.values()
    )


def _check_packed(op: str, given: Mapping[str, Any], served: bool) -> None:
    """Refuse packed sequences unless the op gets the seq_idx that separates them."""
    if not served:
        fail(op, "seq_idx", "be None here (packed sequences would not be kept apart)", "a tensor")
    if given.get("seq_idx") is None:
        fail(
            op, "cu_seqlens", "come with seq_idx, which keeps packed sequences apart", "no seq_idx"
        )
