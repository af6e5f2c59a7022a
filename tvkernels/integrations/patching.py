"""Models of transformers on our ops: we replace the functions that their modeling modules call.

A modeling module looks up its functions by name at each call, and a norm's forward on its class. So
the replacements also reach models that are already built. A replacement serves the calls that it
can serve exactly and passes the others to the original function. It receives the states themselves,
not the cache that holds them, so the cache's name (`cache`, `cache_params`, `past_key_values`) does
not matter here.
"""

from __future__ import annotations

import inspect
from collections.abc import Callable, Iterable, Sequence
from dataclasses import dataclass, field
from importlib import import_module, util
from pathlib import Path
from types import ModuleType, TracebackType
from typing import Any

from tvkernels.causal_conv1d import causal_conv1d_fn, causal_conv1d_update
from tvkernels.core.checks import fail
from tvkernels.core.holds import LOCK, Holds, called, entered, left
from tvkernels.integrations.serving import Fallback, Fallbacks, serving, words_of
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
# found in every modeling module that uses the convolution of causal-conv1d
_MARK = 'use_kernel_func_from_hub_with_fallback("causal_conv1d_fn"'


class _Place:
    """A name of a module or class, with its function before and while it is replaced."""

    def __init__(self, model: str, label: str, name: str, before: Callable[..., Any]) -> None:
        self.model, self.label, self.before = model, label, before
        self.now, self.word = _replacing(before, name, self._note)
        self.holds: Holds = ()

    def _note(self, kind: str, reason: str) -> None:
        """Count a call that the op refuses on each `Patch` that holds this place."""
        with LOCK:
            for patch in {id(hold.owner): hold.owner for hold in self.holds}.values():
                patch._fallbacks.note(self.model, self.label, kind, reason)


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

    A name is restored when the last `Patch` that holds it is left, so blocks may overlap, in
    threads too. A copy, also one by pickle, has the rows and counts and holds nothing; a `with`
    block patches again with it.

    Attributes:
        rows: one `Replacement` per name of each model, including names replaced by earlier calls.
    """

    rows: tuple[Replacement, ...]
    _fallbacks: Fallbacks = field(default_factory=Fallbacks, repr=False, compare=False)

    @property
    def fallbacks(self) -> tuple[Fallback, ...]:
        """The calls that no op served and the functions of before did, by name and reason."""
        return self._fallbacks.rows()

    def __str__(self) -> str:
        lines = _table(("model", "name", "now"), *((r.model, r.name, r.now) for r in self.rows))
        calls = [(r.model, r.name, str(r.calls), r.reason) for r in self.fallbacks]
        if calls:
            lines += ["", "calls that went to the functions of before"]
            lines += _table(("model", "name", "calls", "reason"), *calls)
        return "\n".join(lines)

    def __enter__(self) -> Patch:
        return _hold(entered, dict.fromkeys(row.model for row in self.rows), self)

    def __exit__(
        self,
        kind: type[BaseException] | None,
        error: BaseException | None,
        trace: TracebackType | None,
    ) -> None:
        with LOCK:
            for key, place in list(_replaced.items()):
                place.holds = left(place.holds, self)
                if not place.holds:
                    _restore(key)


def patch_transformers(models: str | Sequence[str] | None = None) -> Patch:
    """Run models of the installed transformers on these ops, including models already built.

    Replaces the scan, the state update, the convolution and the gated norm of the Mamba-2 models
    bamba, falcon_h1, granitemoehybrid, mamba2, nemotron_h and zamba2; the convolution of every
    other model that uses causal-conv1d; and the state update of the Mamba-1 models. A second call
    changes nothing.

    Calls that an op cannot serve exactly go to the original function, and `Patch.fallbacks` counts
    and names them: float64, an activation other than silu, a decoding step that needs gradients,
    torch.export, torch.jit.trace, torch.func, forward-mode AD, and whatever else the op refuses.
    Packed sequences (seq_idx) stay separate. The fused function of a training step is replaced by
    one that returns None, so the layer runs its steps one by one, each on its op. The fused
    function ignores the padding mask and assumes that the norm has the scan's groups.

    Args:
        models: folder of a model in transformers, such as "bamba"; one, several, or None for all
            models of the installed version. Imports their modeling modules: about 3 s for all.

    Returns:
        A `Patch`. Its rows name what serves each function now; printing it shows them as a table.
        Used as a context manager, it undoes the call on exit; a name that another `Patch` holds
        stays replaced until that one is left too. The models of the whole process are patched, in
        every thread; a forked worker is as patched as its parent, a spawned one is not.

    Raises:
        ValueError: a name in `models` is not a model with such functions. While a model runs: the
            input has packed sequences that cannot be kept separate.
        ModuleNotFoundError: transformers is not installed.

    Numerics: those of the ops, which round to the dtype of their input once, at the end.
    Source: transformers 5.17 to 5.24.
    """
    known = served_models()
    if not (models is None or isinstance(models, Iterable)):
        fail(_OP, "models", "be a name, several names or None", repr(models))
    wanted = known if models is None else [models] if isinstance(models, str) else list(models)
    for model in wanted:
        if model not in known:
            fail(_OP, "models", f"be among {', '.join(known)}", repr(model))
    return _hold(called, wanted)


def unpatch_transformers() -> None:
    """Undo every `patch_transformers`. A name that other code has replaced since is left alone."""
    with LOCK:
        for key in list(_replaced):
            _restore(key)


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
    with LOCK:
        return next((place for place in _replaced.values() if place.now is function), None)


def _hold(
    change: Callable[[Holds, Any], Holds], models: Iterable[str], patch: Patch | None = None
) -> Patch:
    """Replace what is not replaced yet, and let `patch`, None for a new one, hold each name."""
    modules = {m: import_module(f"transformers.models.{m}.modeling_{m}") for m in models}
    rows: list[Replacement] = []
    held: list[_Place] = []
    with LOCK:
        for model, module in modules.items():
            for owner, name, label in places(module):
                before = getattr(owner, name)
                place = _replaced.get((owner, name))
                if place is None or place.now is not before:
                    place = _Place(model, label, name, before)
                    if owner is module and place.now not in (before, decline):
                        # pickle finds it by name; with the package kernels `before` has none
                        place.now.__module__, place.now.__qualname__ = module.__name__, name
                if place.now is not place.before:
                    setattr(owner, name, place.now)
                    _replaced[owner, name] = place
                    held.append(place)
                rows.append(Replacement(model, label, place.word))
        patch = patch or Patch(tuple(rows))
        for place in held:
            place.holds = change(place.holds, patch)
    return patch


def _restore(key: tuple[Any, str]) -> None:
    owner, name = key
    place = _replaced.pop(key)
    place.holds = ()
    if getattr(owner, name) is place.now:
        setattr(owner, name, place.before)


def places(module: ModuleType) -> list[tuple[Any, str, str]]:
    """(owner, name, name in the table) of every function to replace in one modeling module."""
    names = [name for name in (*SERVED, FUSED) if hasattr(module, name)]
    found: list[tuple[Any, str, str]] = [(module, name, name) for name in names]
    if hasattr(module, FUSED):
        norms = [c for name, c in vars(module).items() if name.endswith("RMSNormGated")]
        found += [(norm, "forward", f"{norm.__name__}.forward") for norm in norms]
    return found


def _replacing(
    before: Callable[..., Any], name: str, note: Callable[[str, str], None]
) -> tuple[Callable[..., Any], str]:
    """What replaces `before`, and a word for it: `before` itself if it has unknown arguments."""
    if name == FUSED:
        return decline, "declined: the layer calls the functions above one by one"
    words = words_of(before)
    if name == "forward":
        ours: Callable[..., Any] = rmsnorm_fn
        known = words == ["self", "x", "gate"]
        now = serving(ours, before, note, ["self", "x", "z"], _of_norm)
    else:
        ours = SERVED[name]
        known = set(words) <= inspect.signature(ours).parameters.keys()
        now = serving(ours, before, note, words)
    if not known:
        return before, f"as before: its arguments are {', '.join(words)}"
    return now, f"tvkernels.{ours.__name__}"


def decline(*_: Any, **__: Any) -> None:
    """Decline the fused step by returning None."""


def _of_norm(norm: Any, x: Any) -> dict[str, Any]:
    """What a gated norm adds to its call. It states group_size, or n_groups, or has one group."""
    groups = getattr(norm, "n_groups", 1)
    return {
        "weight": norm.weight,
        "bias": None,
        "eps": norm.variance_epsilon,
        "group_size": getattr(norm, "group_size", x.shape[-1] // groups if x.ndim else None),
        "norm_before_gate": getattr(norm, "norm_before_gate", False),
    }


def _table(*cells: tuple[str, ...]) -> list[str]:
    """Lines with columns of one width each, the last one free."""
    widths = [max(len(row[i]) for row in cells) for i in range(len(cells[0]) - 1)]
    return ["  ".join([*(f"{cell:{w}}" for cell, w in zip(row, widths)), row[-1]]) for row in cells]
