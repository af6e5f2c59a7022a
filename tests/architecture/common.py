"""The product as text and syntax, so that a rule holds for code that no test happens to run.

Each test of this folder collects what breaks its rule, as "file:line what", and wants the list empty.
"""

from __future__ import annotations

import ast
import re
from collections.abc import Iterator
from pathlib import Path
from typing import NamedTuple

import timeviper_fast
import tvkernels
import tvkernels.reference

ROOT = Path(__file__).parents[2]
PACKAGES = (tvkernels, timeviper_fast)
FUNCTIONS = (ast.FunctionDef, ast.AsyncFunctionDef)
# Names, order and defaults of mamba-ssm 2.3.2 and causal-conv1d 1.7: what is written for them runs.
# state_dtype is mamba-ssm's after 2.3.2, initial_conv_states ours.
DROP_INS = {
    "causal_conv1d_fn": "x, weight, bias=None, seq_idx=None, initial_states=None, "
    "return_final_states=False, final_states_out=None, activation=None",
    "causal_conv1d_update": "x, conv_state, weight, bias=None, activation=None, "
    "cache_seqlens=None, conv_state_indices=None",
    "causal_conv1d_varlen_states": "x, cu_seqlens, state_len",
    "layernorm_fn": "x, weight, bias, z=None, eps=1e-06, group_size=None, "
    "norm_before_gate=True, is_rms_norm=False",
    "mamba_chunk_scan_combined": "x, dt, A, B, C, chunk_size, D=None, z=None, dt_bias=None, "
    "initial_states=None, seq_idx=None, cu_seqlens=None, dt_softplus=False, "
    "dt_limit=(0.0, inf), return_final_states=False, return_varlen_states=False, "
    "state_dtype=None",
    "mamba_split_conv1d_scan_combined": "zxbcdt, conv1d_weight, conv1d_bias, dt_bias, A, D, "
    "chunk_size, initial_states=None, seq_idx=None, dt_limit=(0.0, inf), "
    "return_final_states=False, activation='silu', rmsnorm_weight=None, rmsnorm_eps=1e-06, "
    "outproj_weight=None, outproj_bias=None, headdim=None, ngroups=1, norm_before_gate=True, "
    "state_dtype=None, initial_conv_states=None",
    "rmsnorm_fn": "x, weight, bias, z=None, eps=1e-06, group_size=None, norm_before_gate=True",
    "selective_state_update": "state, x, dt, A, B, C, D=None, z=None, dt_bias=None, "
    "dt_softplus=False, state_batch_indices=None",
}


class Import(NamedTuple):
    line: int
    module: str
    names: tuple[str, ...]
    on_use: bool
    """inside a function, or for type checkers only"""


class File(NamedTuple):
    """One product file; `path` is relative to the repository, as tvkernels/tome/op.py."""

    path: str
    text: str
    tree: ast.Module

    @property
    def package(self) -> str:
        return self.path.split("/")[0]

    @property
    def stem(self) -> str:
        return Path(self.path).stem

    def imports(self) -> Iterator[Import]:
        def walk(node: ast.AST, on_use: bool) -> Iterator[Import]:
            for child in ast.iter_child_nodes(node):
                if isinstance(child, ast.Import):
                    for alias in child.names:
                        yield Import(child.lineno, alias.name, (), on_use)
                elif isinstance(child, ast.ImportFrom):
                    names = tuple(alias.name for alias in child.names)
                    yield Import(
                        child.lineno, "." * child.level + (child.module or ""), names, on_use
                    )
                else:
                    late = isinstance(child, FUNCTIONS) or (
                        isinstance(child, ast.If) and ast.unparse(child.test) == "TYPE_CHECKING"
                    )
                    yield from walk(child, on_use or late)

        yield from walk(self.tree, on_use=False)

    def modules_of(self, package: str) -> Iterator[tuple[int, str]]:
        """(line, module) for each module of `package`; from folder import module is one too."""
        for line, module, names, _ in self.imports():
            if f"{module}.".startswith(f"{package}."):
                for name in names or ("",):
                    yield line, f"{module}.{name}" if is_module(module, name) else module


def is_module(folder: str, name: str) -> bool:
    """Whether `from folder import name` gives a module, and not what `__init__` exports so."""
    home = ROOT / folder.replace(".", "/")
    if not name or not ((home / name).is_dir() or (home / f"{name}.py").exists()):
        return False
    return f'"{name}"' not in (home / "__init__.py").read_text(encoding="utf-8")


def read(path: Path) -> File:
    text = path.read_text(encoding="utf-8")
    return File(path.relative_to(ROOT).as_posix(), text, ast.parse(text))


PRODUCT = [read(p) for package in PACKAGES for p in sorted((ROOT / package.__name__).rglob("*.py"))]
TVKERNELS = [file for file in PRODUCT if file.package == "tvkernels"]
# kernels too many for one file have more files, each named by what it computes; device functions
# that several of them call stand in device.py
KERNEL_FILE = re.compile(r"(\w+_)?kernel\.py|(\w+_)?device\.py")
