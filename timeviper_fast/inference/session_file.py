"""Session files: what a session holds besides its model, as one safetensors file.

Tensors by name; layers are numbered as the LLM's, stages in their order:

    layers.N.conv, layers.N.ssm     of a Mamba-2 layer; conv in order, the oldest column first
    layers.N.key, layers.N.value    of an attention layer (1, n, nkvheads, headdim)
    stages.N.key, stages.N.value    of what a uniform stage dropped, if it transfers
    stages.N.kept                   int32, which of the vision tokens before the stage it kept
    rows, source                    what reached the asking stage (1, n, d_model), and the number of
                                    each row's vision token, int32; -1 for text
    last                            without an asking stage, the last row behind all layers
    seconds                         float64, of each frame

Everything else stands in the header's texts, as JSON.
"""

from __future__ import annotations

import json
import os
from collections.abc import Callable, Mapping
from dataclasses import asdict, dataclass, fields
from importlib import metadata
from pathlib import Path
from typing import TYPE_CHECKING, Any, NoReturn

import torch
from torch import Tensor

from timeviper_fast.checkpoint.config_file import config_to_dict
from timeviper_fast.checkpoint.files import FLOATS
from timeviper_fast.config import ATTENTION, MAMBA, CompressionStage
from timeviper_fast.errors import ArgumentError
from timeviper_fast.inference.ended import Ended
from timeviper_fast.inference.footage import Footage
from timeviper_fast.inference.prefix import asking_stage
from timeviper_fast.inference.request import Opening
from timeviper_fast.inference.rows import Rows
from timeviper_fast.inference.tensor_file import (
    Entry,
    Header,
    mapped,
    read_header,
    target_of,
    write_tensors,
)
from timeviper_fast.layout import Segment, VisualSpan, vision_after
from timeviper_fast.model.cache import AttentionState, HybridCache
from timeviper_fast.model.fingerprint import fingerprint, numbers_of
from timeviper_fast.model.mamba_state import MambaState
from timeviper_fast.model.model import TimeViperNetwork
from timeviper_fast.model.transv import StageRecord
from timeviper_fast.stages import parse_stages
from timeviper_fast.text.template import chat_template

if TYPE_CHECKING:
    from transformers import PreTrainedTokenizerBase

__all__ = [
    "FORMAT",
    "VERSION",
    "Contents",
    "load_contents",
    "misfit",
    "model_texts",
    "save_contents",
]

FORMAT, VERSION = "timeviper_fast.session", 1
_OWNER = "load_session"


@dataclass(frozen=True)
class Contents:
    """What a session is made of besides its model and tokenizer; see `Session`."""

    ended: Ended
    before: tuple[int, ...]
    footage: Footage
    opening: Opening
    stages: tuple[CompressionStage, ...]
    exact: bool = True


def model_texts(model: TimeViperNetwork, tokenizer: PreTrainedTokenizerBase) -> dict[str, str]:
    """What a file must agree with to belong to a model, the cheapest first.

    The tokenizer's vocabulary is hashed, special tokens included. Its rules of splitting words are
    not: other rules give other tokens of the same words, as another wording does. The fingerprint
    covers the weights as they are now.
    """
    vocabulary = tokenizer.get_vocab()
    facts = (model.config, chat_template(model.config.template))
    return {
        "dtype": str(model.dtype).removeprefix("torch."),
        "config": json.dumps(config_to_dict(model.config)),
        "tokenizer": fingerprint({}, sorted(vocabulary.items(), key=lambda item: item[1])),
        "fingerprint": fingerprint(numbers_of(model), *facts),
    }


def misfit(
    header: Header | None,
    model: TimeViperNetwork,
    tokenizer: PreTrainedTokenizerBase,
    opening: Opening,
    size: int | None,
) -> str | None:
    """How a file differs from what this model would write of a video; None if it does not.

    Args:
        header: of the file.
        opening: how the video would be read; a chunk or frame batch of None fits any.
        size: what `bytes_of` says of the video.
    """
    if header is None or header.texts.get("format") != FORMAT:
        return "a file that is damaged or of another kind"
    for name, own in {"format_version": str(VERSION), **model_texts(model, tokenizer)}.items():
        if header.texts.get(name) != own:
            return f"another {name}"
    stages = model.config.stages
    if opening.stages is not None:
        stages = parse_stages(opening.stages, model.config)
    try:
        stored = _Stored(header.texts, header)
    except (KeyError, TypeError, ValueError):
        return "a damaged file"
    if stored.stages != stages:
        return "other stages"
    if stored.video["size"] != size:
        return f"one of a video of {stored.video['size']} bytes, not {size}"
    wanted = opening.of_model(model.config, stored.video["is_image"])
    for field in fields(Opening):
        own, its = (getattr(each, field.name) for each in (wanted, stored.opening))
        free = field.name == "stages" or (own is None and field.name in ("chunk", "frame_batch"))
        if own != its and not free:
            return f"one with {field.name}={its!r}, not {own!r}"
    return None


def save_contents(
    path: str | os.PathLike[str],
    model: TimeViperNetwork,
    tokenizer: PreTrainedTokenizerBase,
    contents: Contents,
    *,
    overwrite: bool = False,
) -> None:
    """Write a file; `Session.save` says what each argument may be.

    Raises:
        ValueError: a file or directory that must not be replaced, or what a blocked view has read.
        OSError: it cannot be written, or the disk is full.
    """
    contents.ended.cache.expect_in_file()
    target = target_of("save", path, overwrite)
    write_tensors(target, _tensors(contents), {**_texts(contents), **model_texts(model, tokenizer)})


def _tensors(contents: Contents) -> dict[str, list[Tensor]]:
    ended, tensors = contents.ended, dict[str, list[Tensor]]()
    for i, state in enumerate(ended.cache.layers):
        if isinstance(state, MambaState):
            tensors |= {f"layers.{i}.conv": [state.conv], f"layers.{i}.ssm": [state.ssm]}
        elif isinstance(state, AttentionState):
            key, value = state.everything
            tensors |= {f"layers.{i}.key": [key], f"layers.{i}.value": [value]}
    for i, (key, value) in ended.dropped.items():
        tensors |= {f"stages.{i}.key": [key], f"stages.{i}.value": [value]}
    for i, record in enumerate(ended.records):
        tensors[f"stages.{i}.kept"] = [record.kept[0].int()]
    if ended.asking < len(contents.stages):
        none = torch.empty(1, 0, ended.backbone.config.hidden_size, dtype=ended.cache.dtype)
        tensors["rows"] = [part.hidden for part in ended.rows] or [none]
        tensors["source"] = [part.source.int() for part in ended.rows] or [none[0, :, 0].int()]
    elif ended.last is not None:
        tensors["last"] = [ended.last]
    tensors["seconds"] = [contents.footage.seconds]
    return tensors


def _texts(contents: Contents) -> dict[str, str]:
    """The header's texts that do not depend on the model."""
    segment, opening = contents.ended.segment, contents.opening
    video = {k: v for k, v in vars(contents.footage).items() if k != "seconds"}
    read = {field.name: getattr(opening, field.name) for field in fields(Opening)}
    # the session's stages stand apart, and a policy that is no text is told in words alone
    written = isinstance(opening.policy, str)
    read |= {"stages": None, "policy": opening.policy if written else None}
    counts = {
        "length": segment.length,
        "front": segment.span.start,
        "vision": segment.vision_tokens,
        "inside": segment.text_inside,
        "frame": segment.frame_tokens,
    }
    versions = {"torch": str(torch.__version__)}
    for package in ("timeviper-fast", "safetensors", "transformers"):
        try:
            versions[package] = metadata.version(package)
        except metadata.PackageNotFoundError:
            continue
    told = {
        "before": contents.before,
        "exact": contents.exact,
        "opening": read,
        "policy": opening.policy if written else repr(opening.policy),
        "stages": [asdict(stage) for stage in contents.stages],
        "tokens": counts,
        "versions": versions,
        "video": video,
    }
    texts = {name: json.dumps(value) for name, value in told.items()}
    return {"format": FORMAT, "format_version": str(VERSION), **texts}


def load_contents(
    path: str | os.PathLike[str], model: TimeViperNetwork, tokenizer: PreTrainedTokenizerBase
) -> Contents:
    """Read a file; `TimeViper.load_session` has the details.

    Raises:
        ValueError: another format or version, another model, tokenizer or dtype, or a file that is
            damaged or truncated.
        OSError: there is no such file.
    """
    file = Path(path).expanduser()
    header = check_file(file, read_header(file), FORMAT, VERSION, model, tokenizer)
    texts = header.texts
    try:
        stored = _Stored(texts, header)
        wrong = _wrong_entry(header.entries, stored.entries(model))
    except (KeyError, TypeError, ValueError, RecursionError) as error:
        refuse(_OWNER, file, "describe itself in its header", f"a damaged one ({error!r})")
    if wrong:
        refuse(_OWNER, file, *wrong)
    return stored.contents(file, model)


def refuse(owner: str, file: Path, rule: str, value: object) -> NoReturn:
    """Raise the ArgumentError of a file that breaks a rule."""
    raise ArgumentError(owner, "path", rule, f"{value}", part=f" {file}")


def check_file(
    file: Path,
    header: Header | None,
    format: str,
    version: int,
    model: TimeViperNetwork,
    tokenizer: PreTrainedTokenizerBase,
) -> Header:
    """The header of a file of this format, version and model.

    Raises:
        ValueError: it is of others, with both values, or it is damaged.
    """
    owner = f"load_{format.rpartition('.')[2]}"
    texts = {} if header is None else header.texts
    if header is None or texts.get("format") != format:
        what = "one that is damaged, truncated or of another kind"
        if "format" in texts:
            what = f"the format {texts['format']}"
        kind = owner.removeprefix("load_")
        refuse(owner, file, f"be a {kind} file ({format}) that is whole", what)
    if texts.get("format_version") != str(version):
        refuse(owner, file, f"have format_version {version}", texts.get("format_version"))
    _check_model(owner, file, texts, model, tokenizer)
    return header


def _check_model(
    owner: str,
    file: Path,
    texts: Mapping[str, str],
    model: TimeViperNetwork,
    tokenizer: PreTrainedTokenizerBase,
) -> None:
    """Refuse a file of another model, with both values."""
    for name, own in model_texts(model, tokenizer).items():
        its = texts.get(name, "none")
        if its == own:
            continue
        if name == "config":
            try:
                name, own, its = _difference(json.loads(own), json.loads(its))
            except ValueError:
                refuse(owner, file, "be whole: its config must be JSON", f"{its!r:.60}")
        if name in ("fingerprint", "tokenizer"):
            own, its = own[:16], its[:16]
        what = {"fingerprint": "weights", "tokenizer": "the tokenizer's vocabulary"}.get(name, name)
        refuse(owner, file, f"have been saved by this model: {what} must be {own}", its)


def _difference(own: Any, its: Any, name: str = "config") -> tuple[str, str, str]:
    """The first field in which two configs differ, and both values."""
    if isinstance(own, dict) and isinstance(its, dict):
        for key in [*own, *its]:
            if own.get(key) != its.get(key):
                return _difference(own.get(key), its.get(key), f"{name}.{key}")
    return name, repr(own), repr(its)


def _wrong_entry(found: Mapping[str, Entry], wanted: Mapping[str, Entry]) -> tuple[str, str] | None:
    """A rule that the stored tensors break, and how."""
    for name in [*wanted, *found]:
        if found.get(name) != wanted.get(name):
            words = [
                "no tensor" if x is None else f"{x.dtype} {list(x.shape)}"
                for x in (wanted.get(name), found.get(name))
            ]
            return f"hold {words[0]} as {name}", words[1]
    return None


class _Stored:
    """A file's texts, read."""

    def __init__(self, texts: Mapping[str, str], header: Header) -> None:
        told = {
            name: json.loads(texts[name])
            for name in ("before", "exact", "opening", "stages", "tokens", "video")
        }
        self.names = header.entries.keys()
        self.before = tuple(map(int, told["before"]))
        self.stages = tuple(CompressionStage(**stage) for stage in told["stages"])
        self.opening = Opening(**told["opening"])
        self.video = told["video"] | {"notes": tuple(told["video"]["notes"])}
        counts = told["tokens"]
        span = VisualSpan(counts["front"], counts["vision"] + counts["inside"])
        # files of models without content stages need not tell the tokens of a frame
        options = {"text_inside": counts["inside"], "frame_tokens": counts.get("frame", 0)}
        self.segment = Segment(counts["length"], span, **options)
        self.exact = bool(told["exact"])
        self.frames = header.entries["seconds"].shape[0]
        self.asking = asking_stage(self.stages)
        self.below = self.stages[: self.asking] if counts["vision"] else ()
        # vision tokens that enter each run of layers below the asking stage
        self.left = list(vision_after(self.segment, self.below))
        if not self.exact:
            # what a stream with a bound has left follows no rule
            kept = (header.entries[f"stages.{i}.kept"] for i in range(len(self.below)))
            self.left[1:] = [entry.shape[0] for entry in kept]

    @property
    def has_asking(self) -> bool:
        return self.asking < len(self.stages)

    def entries(self, model: TimeViperNetwork) -> dict[str, Entry]:
        """The tensors that a file of these counts holds; of the seconds, any number."""
        backbone, dtype = model.config.backbone, FLOATS[model.dtype]
        left, text = self.left, self.segment.length - self.segment.vision_tokens
        kv = (backbone.num_key_value_heads, backbone.head_dim)
        heads = (backbone.mamba_num_heads, backbone.mamba_head_dim, backbone.ssm_state_size)
        end = self.stages[self.asking].layer if self.has_asking else backbone.num_hidden_layers
        told = {"seconds": Entry("F64", (self.frames,))}
        for i, kind in enumerate(backbone.pattern[:end]):
            rows = text + left[sum(stage.layer <= i for stage in self.below)]
            if kind == MAMBA:
                conv = (1, backbone.conv_dim, backbone.conv_kernel)
                told[f"layers.{i}.conv"] = Entry(dtype, conv)
                told[f"layers.{i}.ssm"] = Entry("F32", (1, *heads))
            elif kind == ATTENTION:
                for name in ("key", "value"):
                    told[f"layers.{i}.{name}"] = Entry(dtype, (1, rows, *kv))
        for i, stage in enumerate(self.below):
            told[f"stages.{i}.kept"] = Entry("I32", (left[i + 1],))
            for name in ("key", "value") if stage.transfer else ():
                told[f"stages.{i}.{name}"] = Entry(dtype, (1, left[i] - left[i + 1], *kv))
        if self.has_asking:
            count = text + left[-1]
            told["rows"] = Entry(dtype, (1, count, backbone.hidden_size))
            told["source"] = Entry("I32", (count,))
        else:
            told["last"] = Entry(dtype, (1, 1, backbone.hidden_size))
        return told

    def _state(
        self, layer: int, get: Callable[[str], Tensor]
    ) -> AttentionState | MambaState | None:
        names = [f"layers.{layer}.{part}" for part in ("key", "value", "conv", "ssm")]
        key, value, conv, ssm = (get(name) if name in self.names else None for name in names)
        if key is not None and value is not None:
            return AttentionState.of(key, value)
        if conv is not None and ssm is not None:
            return MambaState.of(conv, ssm)
        return None

    def contents(self, file: Path, model: TimeViperNetwork) -> Contents:
        """The tensors on the model's device, layer by layer; on the CPU they stay mapped."""
        with mapped(file) as tensors:

            def get(name: str) -> Tensor:
                x: Tensor = tensors.get_tensor(name)
                # some kernels compute otherwise where memory is not aligned
                aligned = x if x.data_ptr() % 64 == 0 or not x.numel() else x.clone()
                return aligned.to(model.device)

            layers = [self._state(i, get) for i in range(len(model.backbone.layers))]
            cache = HybridCache(
                model.config.backbone,
                [None] * len(layers),
                device=model.device,
                dtype=model.dtype,
            )
            cache.layers = layers
            ended = Ended(
                model.backbone,
                self.opening.chunk,
                cache,
                rows=(Rows(get("rows"), get("source").cpu().long()),) if self.has_asking else (),
                dropped={
                    i: (get(f"stages.{i}.key"), get(f"stages.{i}.value"))
                    for i, stage in enumerate(self.below)
                    if stage.transfer
                },
                records=tuple(
                    StageRecord(stage.layer, came, left, get(f"stages.{i}.kept").long()[None], None)
                    for i, (stage, came, left) in enumerate(
                        zip(self.below, self.left, self.left[1:])
                    )
                ),
                segment=self.segment,
                last=None if self.has_asking else get("last"),
            )
            footage = Footage(seconds=get("seconds").cpu().clone(), **self.video)
        return Contents(ended, self.before, footage, self.opening, self.stages, self.exact)
