"""Modules that stand in for mamba_ssm and causal_conv1d, for code that imports those packages."""

from __future__ import annotations

import sys
from collections.abc import Callable, Iterator, Mapping
from dataclasses import dataclass
from importlib import metadata, util
from importlib.machinery import ModuleSpec
from os import PathLike
from pathlib import Path
from types import ModuleType, TracebackType
from typing import Any, NoReturn

from tvkernels.causal_conv1d import (
    causal_conv1d_fn,
    causal_conv1d_update,
    causal_conv1d_varlen_states,
)
from tvkernels.core.checks import expect_flags, fail
from tvkernels.core.holds import LOCK, Holds, called, entered, left
from tvkernels.integrations import references
from tvkernels.rmsnorm import layernorm_fn, rmsnorm_fn
from tvkernels.selective_state_update import selective_state_update
from tvkernels.split_conv1d_scan import mamba_split_conv1d_scan_combined
from tvkernels.ssd import mamba_chunk_scan_combined

__all__ = ["Provision", "provide"]

_OP = "provide"
# versions of the packages that we stand in for, for code that asks for a version
VERSIONS = {"causal_conv1d": "1.7.0", "mamba_ssm": "2.3.2"}
_MARK = "__tvkernels_stand_in__"


_CONV: dict[str, Callable[..., Any]] = {
    "causal_conv1d_fn": causal_conv1d_fn,
    "causal_conv1d_update": causal_conv1d_update,
}

# package -> module -> function; the package's top module has the name ""
SERVED: dict[str, dict[str, dict[str, Callable[..., Any]]]] = {
    "causal_conv1d": {
        "": _CONV,
        "causal_conv1d_interface": _CONV
        | {
            "causal_conv1d_ref": references.causal_conv1d_ref,
            "causal_conv1d_update_ref": references.causal_conv1d_update_ref,
        },
        "causal_conv1d_varlen": {
            "causal_conv1d_varlen_states": causal_conv1d_varlen_states,
            "causal_conv1d_varlen_states_ref": references.causal_conv1d_varlen_states_ref,
        },
    },
    "mamba_ssm": {
        "": {},
        "ops": {},
        "ops.selective_scan_interface": {},
        "ops.triton": {},
        "ops.triton.layer_norm": {},
        "ops.triton.layernorm_gated": {
            "layernorm_fn": layernorm_fn,
            "rmsnorm_fn": rmsnorm_fn,
            "rms_norm_ref": references.rms_norm_ref,
        },
        "ops.triton.selective_state_update": {
            "selective_state_update": selective_state_update,
            "selective_state_update_ref": references.selective_state_update_ref,
        },
        "ops.triton.ssd_combined": {
            "mamba_chunk_scan_combined": mamba_chunk_scan_combined,
            "mamba_split_conv1d_scan_combined": mamba_split_conv1d_scan_combined,
            "mamba_chunk_scan": references.mamba_chunk_scan,
            "mamba_split_conv1d_scan_ref": references.mamba_split_conv1d_scan_ref,
            "ssd_chunk_scan_combined_ref": references.ssd_chunk_scan_combined_ref,
        },
    },
}

# names that the packages export and we do not serve: using one is an ImportError that says so
_MISSING = {
    "mamba_ssm": "Mamba Mamba2 Mamba3 MambaLMHeadModel mamba_inner_fn selective_scan_fn",
    "mamba_ssm.ops.selective_scan_interface": "mamba_inner_fn mamba_inner_ref selective_scan_fn "
    "selective_scan_ref",
    "mamba_ssm.ops.triton.layer_norm": "RMSNorm layer_norm_fn layer_norm_linear_fn layer_norm_ref "
    "rms_norm_fn rms_norm_ref",
    "mamba_ssm.ops.triton.layernorm_gated": "LayerNorm RMSNorm",
    "mamba_ssm.ops.triton.ssd_combined": "mamba_conv1d_scan_ref ssd_selective_scan",
}


class _Installed:
    """A package that is provided: who holds it, and the modules that it hides."""

    def __init__(self, hidden: Mapping[str, ModuleType]) -> None:
        self.hidden = hidden
        self.holds: Holds = ()


_installed: dict[str, _Installed] = {}


@dataclass(frozen=True)
class Provision:
    """The modules that `provide` installed. `remove()`, or leaving a `with` block, removes them.

    A package is removed when the last `Provision` that asked for it is left, so blocks may overlap,
    in threads too. A copy, also by pickle, holds nothing; a `with` block provides again with it.

    Attributes:
        packages: the packages that this call added to those already provided.
    """

    packages: tuple[str, ...]
    _asked: tuple[str, ...]

    def remove(self) -> None:
        """Remove the stand-ins and restore what they hid. Functions imported before still work."""
        with LOCK:
            for package, installed in list(_installed.items()):
                before, installed.holds = installed.holds, left(installed.holds, self)
                if before and not installed.holds:
                    _remove(package)

    def __enter__(self) -> Provision:
        _hold(entered, self)
        return self

    def __exit__(
        self,
        kind: type[BaseException] | None,
        error: BaseException | None,
        trace: TracebackType | None,
    ) -> None:
        self.remove()


def provide(*packages: str, force: bool = False) -> Provision:
    """Install stand-ins for mamba_ssm and causal_conv1d: code that imports them gets these ops.

    A stand-in has the functions and references of the package that tvkernels serves, in modules of
    the same names; importing any other name of the package is an ImportError that names it. The
    stand-ins also have a version in `importlib.metadata`, because transformers 4 looks there for
    the packages. Call this before importing the code that uses them.

    Args:
        packages: "mamba_ssm", "causal_conv1d", or both.
        force: hide an installed package of that name in this process.

    Returns:
        A `Provision`: `remove()`, or leaving a `with` block, undoes this call.

    Raises:
        ValueError: an unknown package, an installed one without `force`, or a `force` that is no
            bool.

    Numerics: those of the ops.
    Source: mamba-ssm 2.3.2, causal-conv1d 1.7.
    """
    expect_flags(_OP, force=force)
    if not packages:
        fail(_OP, "packages", f"be some of {', '.join(sorted(SERVED))}", "none")
    for package in packages:
        if not isinstance(package, str) or package not in SERVED:
            fail(_OP, "packages", f"be some of {', '.join(sorted(SERVED))}", repr(package))
        if not (force or is_stand_in(package)) and is_importable(package):
            rule = "name no package that is installed (it would be hidden)"
            fail(_OP, "packages", rule, repr(package), "pass force=True to hide it")
    with LOCK:
        asked = tuple(dict.fromkeys(packages))
        new = tuple(package for package in asked if not is_stand_in(package))
        provision = Provision(new, asked)
        _hold(called, provision)
    return provision


def _hold(change: Callable[[Holds, Any], Holds], provision: Provision) -> None:
    """Install the packages that are not there, and let `provision` hold those it asked for."""
    with LOCK:
        for package in provision._asked:
            if not is_stand_in(package):
                hidden = {name: sys.modules.pop(name) for name in _modules_of(package)}
                _installed[package] = _Installed(hidden)
                _install(package)
            installed = _installed[package]
            installed.holds = change(installed.holds, provision)
        if _FINDER not in sys.meta_path:
            sys.meta_path.insert(0, _FINDER)


def _remove(package: str) -> None:
    hidden = _installed.pop(package).hidden
    if is_stand_in(package):
        for name in _modules_of(package):
            del sys.modules[name]
        sys.modules.update(hidden)
    if not _installed and _FINDER in sys.meta_path:
        sys.meta_path.remove(_FINDER)


def is_stand_in(package: str) -> bool:
    """Whether importing `package` returns a stand-in."""
    return hasattr(sys.modules.get(package), _MARK)


def is_importable(package: str) -> bool:
    """Whether a real package of this name is imported or can be."""
    if package in sys.modules:
        return sys.modules[package] is not None and not is_stand_in(package)
    return util.find_spec(package) is not None


def _belongs(module: str, package: str) -> bool:
    return module == package or module.startswith(f"{package}.")


def _modules_of(package: str) -> list[str]:
    return [name for name in sys.modules if _belongs(name, package)]


def _sentence(package: str, name: str) -> str:
    own = name.rpartition(".")[2]
    return (
        f"{name}: tvkernels stands in for {package} here and has no {own}; install {package} for it"
    )


class _Record(metadata.Distribution):
    """The metadata of a stand-in, in the form of an installed package's."""

    def __init__(self, package: str) -> None:
        heads = {"Metadata-Version": "2.1", "Name": package, "Version": VERSIONS[package]}
        lines = "".join(f"{key}: {value}\n" for key, value in heads.items())
        self._files = {"METADATA": lines, "top_level.txt": package}

    def read_text(self, filename: str | PathLike[str]) -> str | None:
        return self._files.get(str(filename))

    def locate_file(self, path: str | PathLike[str]) -> Path:
        return Path(path)


_EVERY = metadata.DistributionFinder.Context()


class _Finder(metadata.DistributionFinder):
    """Finds the metadata of the stand-ins, and refuses modules that they lack."""

    def find_distributions(
        self, context: metadata.DistributionFinder.Context = _EVERY
    ) -> Iterator[_Record]:
        name = context.name and context.name.replace("-", "_").lower()
        return (_Record(p) for p in SERVED if is_stand_in(p) and name in (None, p))

    def find_spec(self, name: str, *_: Any) -> None:
        package = name.partition(".")[0]
        if "." in name and is_stand_in(package):
            raise ModuleNotFoundError(_sentence(package, name), name=name)


_FINDER = _Finder()


def _install(package: str) -> None:
    for path, functions in SERVED[package].items():
        name = f"{package}.{path}".rstrip(".")
        sys.modules[name] = module = _module(name, package)
        vars(module).update(functions)
        above, _, own = name.rpartition(".")
        if above:
            setattr(sys.modules[above], own, module)


def _module(name: str, package: str) -> ModuleType:
    module = ModuleType(name, f"Stands in for {name} of {package}: the ops of tvkernels.")
    missing = frozenset(_MISSING.get(name, "").split())

    def absent(attribute: str) -> NoReturn:
        if attribute in missing:
            raise ImportError(_sentence(package, f"{name}.{attribute}"), name=name)
        raise AttributeError(f"module {name!r} has no attribute {attribute!r}")

    spec = ModuleSpec(name, None, is_package=True)
    names = {"__spec__": spec, "__path__": [], "__version__": VERSIONS[package], _MARK: True}
    vars(module).update(names, __getattr__=absent)
    return module
