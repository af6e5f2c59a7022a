"""Needles in a haystack: a few frames among thousands, questions that only they answer.

A needle replaces a frame, so a video has exactly the stated number of frames. Answers are generated
greedily and must be right in every character (or, with options, in their letter). The questions of
one video share the computation below the asking stage.
"""

from __future__ import annotations

import time
from collections.abc import Callable, Container, Hashable, Iterator, Sequence
from dataclasses import dataclass, field
from hashlib import blake2b
from pathlib import Path
from typing import TYPE_CHECKING, Any, NamedTuple

import torch
from torch import Tensor

from timeviper_fast.errors import expect_folder, fail, is_integer, is_number
from timeviper_fast.evaluation.controls import Variant, expect_controls, variants, with_variant
from timeviper_fast.evaluation.evidence_score import Pointing, judge_evidence
from timeviper_fast.evaluation.forms import Form, form_of
from timeviper_fast.evaluation.rows import Row, RowFile, keep_settings
from timeviper_fast.evaluation.trial import Haystack, Probe, Trial, depth_of
from timeviper_fast.inference.answer import stop_ids_of
from timeviper_fast.inference.ended import Ended, Prefill
from timeviper_fast.inference.evidence import Evidence, collect_evidence
from timeviper_fast.inference.generate import decode, prefill, read_front
from timeviper_fast.inference.request import sampling_of
from timeviper_fast.inference.session import NEUTRAL
from timeviper_fast.model.model import TimeViperNetwork
from timeviper_fast.text.prompt import Prompt, build_prompt
from timeviper_fast.text.template import chat_template

if TYPE_CHECKING:
    from transformers import PreTrainedTokenizerBase

__all__ = [
    "NeedlePlan",
    "Needles",
    "expect_attention",
    "run_needles",
    "settings_of",
    "weights_digest",
]

Progress = Callable[[str, int, int], None]


@dataclass(frozen=True)
class NeedlePlan:
    """The questions of a run: lengths, depths, videos and variants.

    Attributes:
        frames: lengths of videos.
        depths: how many evenly spaced depths, 0 and 1 included.
        videos: videos of each length. A video asks every task once, at different depths, and the
            next video moves each by one depth. A cell has videos / depths answers of each task.
        seed: seed of the videos and of the needles' places.
        keeps: keep values of the asking stage; () takes the model's own.
        controls: some of `CONTROLS`, in addition to the test itself.
        max_new_tokens: most tokens of an answer.
        form: "ours", or one of `FORMS`, which inserts needles and supplies the answers.
        evidence: whether to score `Evidence` too. It costs one neutral question for each video.
    """

    frames: tuple[int, ...] = (64, 1000, 10_000)
    depths: int = 11
    videos: int = 11
    seed: int = 0
    keeps: tuple[float, ...] = ()
    controls: tuple[str, ...] = ()
    max_new_tokens: int = 16
    form: str = "ours"
    evidence: bool = False

    def __post_init__(self) -> None:
        for name in ("depths", "videos", "max_new_tokens"):
            value = getattr(self, name)
            if not (is_integer(value) and value >= 1):
                fail("needle", name, "be an integer of 1 or more", value)
        if not self.frames or not all(is_integer(n) and n >= self.depths for n in self.frames):
            rule = f"be integers of at least the number of depths ({self.depths})"
            fail("needle", "frames", rule, list(self.frames))
        form_of(self.form)
        for keep in self.keeps:
            if not (is_number(keep) and 0 < keep <= 1):
                fail("needle", "keeps", "lie in (0, 1]", keep)
        expect_controls(self.controls)

    def expect_tasks(self, tasks: int) -> None:
        """Raise an ArgumentError if a video has fewer depths than so many tasks."""
        if tasks > self.depths:
            fail("needle", "depths", f"be at least the number of tasks ({tasks})", self.depths)


def run_needles(
    model: TimeViperNetwork,
    tokenizer: PreTrainedTokenizerBase,
    haystack: Haystack,
    plan: NeedlePlan,
    out: Path,
    *,
    progress: Progress | None = None,
) -> list[Row]:
    """Ask all questions that have no row yet; return all rows of the plan.

    Args:
        model: its stages are changed during the run and restored.
        tokenizer: the model's.
        haystack: where videos come from.
        plan: lengths, depths, videos and variants.
        out: a folder, made if it does not exist. It gets `rows.jsonl` and `settings.json`; a
            continued run must have the same settings.
        progress: called with ("answers", done, all).

    Raises:
        ValueError: `out` is a file or holds rows of other settings, a video does not fit the model,
            or the model's chat template labels frames.
    """
    expect_folder("needle", "out", out)
    plan.expect_tasks(len(haystack.tasks))
    if chat_template(model.config.template).labels is not None:
        rule = "be one without labels of frames, which this test does not write"
        fail("needle", "the model's template", rule, model.config.template)
    ways = variants(model.backbone.stages, plan.keeps, plan.controls)
    if plan.evidence:
        expect_attention("needle", model)
    settings = settings_of(model, plan) | haystack.facts
    if form := form_of(plan.form):
        form.check(haystack.tasks)
    out.mkdir(parents=True, exist_ok=True)
    keep_settings(out / "settings.json", settings)
    tester = Needles(model, tokenizer, haystack, plan)
    with RowFile(out / "rows.jsonl") as rows:
        wanted = [
            (way.control, way.keep, frames, number, task)
            for frames in plan.frames
            for number in range(plan.videos)
            for way in ways
            for task in haystack.tasks
        ]
        done = len(rows.keys.intersection(wanted))
        for frames in plan.frames:
            for number in range(plan.videos):
                for row in tester.ask(frames, number, ways, rows.keys):
                    rows.add(row)
                    done += 1
                    if progress is not None:
                        progress("answers", done, len(wanted))
        chosen = set(wanted)
        return [row for row in rows if row.key in chosen]


def expect_attention(owner: str, model: TimeViperNetwork) -> None:
    """Raise an ArgumentError if a model has no evidence to score."""
    if not any(stage.select == "attention" for stage in model.backbone.stages):
        rule = "be left out for a model without a stage that selects by attention"
        fail(owner, "evidence", rule, True)


def settings_of(model: TimeViperNetwork, plan: NeedlePlan) -> dict[str, Any]:
    """The settings of a run that do not depend on its haystack, as in `settings.json`."""
    settings = {
        "model": weights_digest(model),
        "depths": plan.depths,
        "seed": plan.seed,
        "max_new_tokens": plan.max_new_tokens,
    }
    if form := form_of(plan.form):
        settings["form"] = form.name
    return settings | ({"evidence": True} if plan.evidence else {})


class _Ask(NamedTuple):
    """Questions about the same visual tokens; None is a prompt without vision."""

    visual: Tensor | None
    probes: Sequence[Probe]


class _Said(NamedTuple):
    """An answer, and whether it is right."""

    text: str
    right: bool


@dataclass
class Needles:
    """Asks the questions of one video after the other.

    Attributes:
        model, tokenizer, haystack, plan: see `run_needles`.
    """

    model: TimeViperNetwork
    tokenizer: PreTrainedTokenizerBase
    haystack: Haystack
    plan: NeedlePlan
    stop_ids: set[int] = field(init=False)
    form: Form | None = field(init=False)

    def __post_init__(self) -> None:
        self.stop_ids = stop_ids_of(self.tokenizer, self.model.config)
        self.form = form_of(self.plan.form)

    def ask(
        self,
        frames: int,
        number: int,
        ways: Sequence[Variant],
        known: Container[Hashable],
    ) -> Iterator[Row]:
        """The rows of one video that are not `known` yet."""
        trial: Trial | None = None
        for way in ways:
            missing = [
                task
                for task in self.haystack.tasks
                if (way.control, way.keep, frames, number, task) not in known
            ]
            if missing:
                trial = trial or self._trial(frames, number)
                probes = [probe for probe in trial.probes if probe.task in missing]
                with with_variant(self.model, way):
                    for group in self._groups(trial, probes, way.control):
                        yield from self._answers(group, number, way, frames)

    def _trial(self, frames: int, number: int) -> Trial:
        tasks, depths = len(self.haystack.tasks), self.plan.depths
        apart = depths // tasks
        places = [(number + i * apart) % depths for i in range(tasks)]
        spots = [depth_of(place, depths) for place in places]
        return self.haystack.trial(frames, self.plan.seed, number, spots)

    def _groups(self, trial: Trial, probes: Sequence[Probe], control: str) -> Iterator[_Ask]:
        """The questions, grouped by the visual tokens that they are asked about."""
        if control == "no-video":
            yield _Ask(None, probes)
            return
        for visual, asked in self._videos(trial, probes, control == "blind"):
            if control != "needle-only":
                yield _Ask(visual, asked)
                continue
            for probe in asked:
                # a question about an absent thing needs no frame
                yield _Ask(visual[list(probe.needed)] if probe.needed else None, [probe])

    def _videos(
        self, trial: Trial, probes: Sequence[Probe], blind: bool
    ) -> Iterator[tuple[Tensor, Sequence[Probe]]]:
        """One video for all questions, or in other forms one for each."""
        if self.form is None:
            yield self.haystack.visual(trial, blind=blind), probes
            return
        for probe in probes:
            visual, moved = self.form.video(self.haystack, trial, probe, blind)
            yield visual, [moved]

    def _answers(self, group: _Ask, number: int, way: Variant, frames: int) -> Iterator[Row]:
        prompts = [self._prompt(probe, group.visual is not None) for probe in group.probes]
        longest = max(len(self._tokens(probe.truth)) for probe in group.probes)
        longest = max(longest, self.plan.max_new_tokens)
        started = time.perf_counter()
        video = None
        if group.visual is not None:
            video = self._read_video(prompts[0], group.visual)
        spent = time.perf_counter() - started
        shown = video is not None and way.control not in ("blind", "needle-only")
        control = self._control(video, group) if video and shown and self.plan.evidence else None
        for probe, prompt in zip(group.probes, prompts):
            started = time.perf_counter()
            if video:
                text = self.model.backbone.embeddings(self._ids(prompt.after))
                read = video.read([text], max_new_tokens=longest)
            else:
                read = self._read_text(prompt, longest)
            said = self._said(read, probe)
            seconds = time.perf_counter() - started
            kept = found = None
            if shown and group.visual is not None:
                left = set((read.kept[0] // group.visual.shape[1]).tolist())
                kept = len(left.intersection(probe.needed))
                found = _found(read, group.visual.shape[1])
            yield Row(
                control=way.control,
                keep=way.keep,
                frames=frames,
                video=number,
                task=probe.task,
                hops=probe.hops,
                depth=probe.depth,
                question=probe.question,
                truth=probe.truth,
                answer=said.text,
                right=said.right,
                needed=probe.needed,
                kept=kept,
                seconds=round(seconds, 4),
                video_seconds=round(spent, 4),
                found=found,
                evidence=_judged(read, group, probe, control),
            )

    def _prompt(self, probe: Probe, vision: bool) -> Prompt:
        return build_prompt(
            self.tokenizer,
            probe.prompt,
            template=self.model.config.template,
            vision=vision,
            answer_prefix=probe.answer_prefix,
        )

    def _ids(self, ids: list[int]) -> Tensor:
        return torch.tensor([ids], dtype=torch.long, device=self.model.device)

    def _read_video(self, prompt: Prompt, visual: Tensor) -> Ended:
        """The video up to the stage that the questions can change."""
        embeddings, segment = self.model.embed(self._ids(prompt.before), visual, self._ids([]))
        return read_front(self.model.backbone, embeddings, segment, chunk=8192)

    def _control(self, video: Ended, group: _Ask) -> Evidence | None:
        """The evidence of a neutral question about the video."""
        prompt = build_prompt(self.tokenizer, NEUTRAL, template=self.model.config.template)
        text = self.model.backbone.embeddings(self._ids(prompt.after))
        return _evidence(video.read([text], max_new_tokens=1), group)

    def _read_text(self, prompt: Prompt, longest: int) -> Prefill:
        ids = self._ids(prompt.before + prompt.after)
        embeddings, segment = self.model.embed(ids, None, ids[:, :0])
        backbone = self.model.backbone
        return prefill(backbone, embeddings, segment, max_new_tokens=longest)

    def _said(self, read: Prefill, probe: Probe) -> _Said:
        """The answer and its judgement; in other forms that of as many tokens as the truth has."""
        if self.form is None:
            text = self._say(read)
            return _Said(text, probe.judge(text))
        truth = self._tokens(probe.truth)
        ids = self._generate(read, len(truth), set())
        return _Said(self._text(ids), ids == truth)

    def _say(self, read: Prefill) -> str:
        return self._text(self._generate(read, self.plan.max_new_tokens, self.stop_ids))

    def _generate(self, read: Prefill, most: int, stop_ids: set[int]) -> list[int]:
        said = decode(
            self.model.backbone,
            read,
            max_new_tokens=most,
            stop_ids=stop_ids,
            sampling=sampling_of(self.model.config),
        )
        return [int(token) for token in said]

    def _text(self, ids: list[int]) -> str:
        return str(self.tokenizer.decode(ids, skip_special_tokens=True)).strip()

    def _tokens(self, text: str) -> list[int]:
        return list(self.tokenizer.encode(text, add_special_tokens=False))


def _found(read: Prefill, tokens: int) -> int | None:
    """The frame of the vision token with the largest score in the first stage that has scores."""
    kept = torch.arange(read.segment.vision_present, device=read.logits.device)
    for record in read.records:
        if record.scores is not None:
            return int(kept[record.scores[0].argmax()]) // tokens
        kept = kept[record.kept[0]]
    return None


def _evidence(read: Prefill, group: _Ask) -> Evidence | None:
    """The evidence by frame; a frame lasts one second, as all frames are equally far apart."""
    assert group.visual is not None
    frames, tokens = group.visual.shape[:2]
    return collect_evidence(read.records, [float(i) for i in range(frames)], [tokens] * frames)


def _judged(
    read: Prefill, group: _Ask, probe: Probe, control: Evidence | None
) -> dict[str, Pointing] | None:
    """Whether the evidence lies on the needed frames; None without a control or such a frame."""
    own = _evidence(read, group) if control is not None and probe.needed else None
    if own is None or control is None:
        return None
    return judge_evidence(own, control, frozenset(probe.needed))


def weights_digest(model: TimeViperNetwork) -> str:
    """A hash of the first 64 values of each parameter, to tell one set of weights from another."""
    digest = blake2b(digest_size=8)
    for name, parameter in model.named_parameters():
        digest.update(name.encode())
        some = parameter.detach().flatten()[:64].double().cpu()
        digest.update(some.numpy().tobytes())
    return digest.hexdigest()
