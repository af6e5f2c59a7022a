"""Write a model in our own format: completely, or not at all.

`config.json` (with format and version), sharded safetensors under the module's own names, tokenizer
files. `load.py` reads them.
"""

from __future__ import annotations

import json
import os
import re
import shutil
import tempfile
import uuid
from pathlib import Path
from typing import Any

from torch import nn

from timeviper_fast.checkpoint.config_file import FORMAT, FORMAT_VERSION, config_to_dict
from timeviper_fast.checkpoint.files import TOKENIZER_FILES, PathLike, as_path, read_json
from timeviper_fast.checkpoint.weights import Progress, tied_names
from timeviper_fast.config import TimeViperConfig
from timeviper_fast.embedded.models import embedded_directory
from timeviper_fast.errors import CheckpointError

__all__ = ["free_target", "save_pretrained"]

# Files that we may replace. Anything else in the directory belongs to the user.
_OURS = re.compile(
    r"config\.json|model(-\d{5}-of-\d{5})?\.safetensors|model\.safetensors\.index\.json|"
    + "|".join(map(re.escape, TOKENIZER_FILES))
)


def save_pretrained(
    module: nn.Module,
    config: TimeViperConfig,
    tokenizer: Any,
    directory: PathLike,
    *,
    overwrite: bool = False,
    max_shard_size: int | str = "5GB",
    progress: Progress | None = None,
) -> Path:
    """Write weights (sharded safetensors), config.json and tokenizer files, all or nothing.

    Args:
        tokenizer: something with `save_pretrained`, a directory whose tokenizer files are copied,
            or None.
        directory: new or empty, unless `overwrite` replaces a checkpoint of this format: its
            config, weights and tokenizer; other files stay.
        max_shard_size: bytes, or a string as "5GB".
        progress: called with (tensors written, all tensors) at first and after each shard.

    Raises:
        CheckpointError: the directory holds something else or cannot be written, or the module is
            on the meta device.
    """
    target = free_target(directory, overwrite)
    if any(t.is_meta for t in module.state_dict().values()):
        raise CheckpointError("save_pretrained", "module", "hold weights", "one on the meta device")
    target.parent.mkdir(parents=True, exist_ok=True)
    # keep an existing directory: it may be a mount, or the current directory of a process
    home = target if target.exists() else target.parent
    work = home / f".{target.name}.{uuid.uuid4().hex}"
    try:
        work.mkdir()
        _write_weights(module, work, max_shard_size, progress)
        about = {"format": FORMAT, "format_version": FORMAT_VERSION}
        text = json.dumps(about | config_to_dict(config), indent=2, allow_nan=False)
        (work / "config.json").write_text(text + "\n", encoding="utf-8")
        _write_tokenizer(tokenizer, work)
        if home == target:
            _replace_contents(target, work)
        else:
            work.rename(target)
    finally:
        shutil.rmtree(work, ignore_errors=True)
    return target


def _replace_contents(target: Path, work: Path) -> None:
    """Move the files of `work`, a folder in `target`, to `target`; restore the old on an error."""
    old = work.with_name(work.name + ".old")
    come = [(path, target / path.name) for path in work.iterdir()]
    new = {path.name for path, _ in come}
    gone = [
        (path, old / path.name)
        for path in target.iterdir()
        if path.name in new or _OURS.fullmatch(path.name)
    ]
    moved: list[tuple[Path, Path]] = []
    old.mkdir()
    try:
        for source, goal in gone + come:
            moved.append((source, goal))
            source.rename(goal)
    except BaseException:
        for source, goal in reversed(moved):
            # the last rename may have failed
            if os.path.lexists(goal):
                goal.rename(source)
        raise
    finally:
        shutil.rmtree(old, ignore_errors=True)


def free_target(directory: PathLike, overwrite: bool = False) -> Path:
    """Check that `save_pretrained` may and can write a directory; return its real path.

    Raises:
        CheckpointError: it holds something that must not be replaced, or cannot be written.
    """
    if not isinstance(overwrite, bool):
        raise CheckpointError("save_pretrained", "overwrite", "be True or False", repr(overwrite))
    if not str(directory):
        raise CheckpointError("save_pretrained", "directory", "be named", "''")
    if embedded_directory(directory) is not None:
        # a model saved under this name could not be loaded by it
        rule = "be another than the id of the embedded model"
        raise CheckpointError("save_pretrained", "directory", rule, directory)
    target = as_path("save_pretrained", "directory", directory).resolve()
    if target.exists() and not (target.is_dir() and _may_replace(target, overwrite)):
        rule = "be new or empty" if not overwrite else "be new, empty or a checkpoint to overwrite"
        raise CheckpointError("save_pretrained", "directory", rule, target)
    above = next(path for path in (target, *target.parents) if path.exists())
    try:
        # try to write: some file systems refuse writers whose permission bits look fine
        tempfile.TemporaryDirectory(prefix=".", dir=above).cleanup()
    except OSError as error:
        rule = f"be one that can be written ({above}: {error.strerror})"
        raise CheckpointError("save_pretrained", "directory", rule, target) from error
    return target


def _may_replace(directory: Path, overwrite: bool) -> bool:
    if not any(directory.iterdir()):
        return True
    config = directory / "config.json"
    return overwrite and config.is_file() and read_json(config).get("format") == FORMAT


def _write_weights(
    module: nn.Module, directory: Path, max_shard_size: int | str, progress: Progress | None
) -> None:
    from huggingface_hub import split_torch_state_dict_into_shards
    from safetensors.torch import save_file

    aliases = tied_names(module)
    state = {k: t.detach() for k, t in module.state_dict().items() if k not in aliases}
    split = split_torch_state_dict_into_shards(
        state, max_shard_size=max_shard_size, filename_pattern="model{suffix}.safetensors"
    )
    report = progress or (lambda done, total: None)
    written = 0
    report(written, len(state))
    for filename, names in split.filename_to_tensors.items():
        save_file({n: state[n].contiguous() for n in names}, directory / filename)
        # safetensors creates files that only their owner can read
        (directory / filename).chmod(directory.stat().st_mode & 0o666)
        written += len(names)
        report(written, len(state))
    if split.is_sharded:
        index = {"metadata": split.metadata, "weight_map": split.tensor_to_filename}
        path = directory / "model.safetensors.index.json"
        path.write_text(json.dumps(index, indent=2) + "\n", encoding="utf-8")


def _write_tokenizer(tokenizer: Any, directory: Path) -> None:
    if isinstance(tokenizer, (str, os.PathLike)):
        for name in TOKENIZER_FILES:
            if (Path(tokenizer) / name).is_file():
                shutil.copyfile(Path(tokenizer) / name, directory / name)
    elif tokenizer is not None:
        tokenizer.save_pretrained(str(directory))
