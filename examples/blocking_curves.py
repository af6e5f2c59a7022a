"""What the embedded model loses when text does not see vision, and when vision tokens are dropped.

It makes videos of the synthetic world, each with three questions, and writes JSON: accuracy and the
log-likelihood of the true answers by the first blocked layer and by the layer in front of which
tokens are dropped, and what the layers look at.
"""

from __future__ import annotations

import argparse
import json
import tempfile
from itertools import product
from pathlib import Path
from typing import Any

import torch

from timeviper_fast import TimeViper
from timeviper_fast.analysis.ask import look_at
from timeviper_fast.analysis.blocking import Blocking
from timeviper_fast.analysis.curves import (
    Example,
    Measure,
    blocking_curve,
    measure,
    redundancy_curve,
)
from timeviper_fast.analysis.groups import ANSWER, INSTRUCTION, VISION
from timeviper_fast.analysis.heads import HeadProfile
from timeviper_fast.analysis.look import Looking
from timeviper_fast.analysis.view import LayerView
from timeviper_fast.demo import DemoVideo
from timeviper_fast.evaluation.score import Score
from timeviper_fast.inference.request import Opening, Question

ROWS = (("instruction",), ("response",), ("instruction", "response"))
NAMES = dict(zip(ROWS, ("V2I", "V2R", "both")))
GRADES = (None, "edge", "edge+conv", "absent")
# shares of the vision tokens; the curve's `whole` drops none
DROPS = (0.5, 0.9)
NEW = 16
# videos that are looked at, and how many tokens count as near a row
SEEN, NEAR = 20, 16


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__.splitlines()[0])
    parser.add_argument("--videos", type=int, default=4, help="100 take some twenty minutes")
    parser.add_argument("--seconds", type=int, default=64, help="of each video")
    parser.add_argument("--seed", type=int, default=1000, help="of the first video")
    parser.add_argument("--threads", type=int, default=1)
    parser.add_argument("--layers", type=int, nargs="+", help="default: all")
    parser.add_argument("--output", type=Path, default=Path("curves.json"))
    given = parser.parse_args()
    torch.set_num_threads(given.threads)
    demos = [DemoVideo(given.seed + i, given.seconds) for i in range(given.videos)]
    model = TimeViper.from_pretrained("timeviper-fast/tiny")
    told: dict[str, Any] = {
        name: getattr(given, name) for name in ("videos", "seconds", "seed")
    } | {"pattern": model.config.backbone.pattern, "looks": looks(model, demos[:SEEN])}
    with tempfile.TemporaryDirectory() as folder:
        asked = Asked(model, demos, Path(folder), given.layers)
        told |= {"blocking": asked.blocking(), "redundancy": asked.redundancy()}
    given.output.write_text(json.dumps(told, indent=1) + "\n")
    print(f"written: {given.output}")


class Asked:
    """The questions of some videos, asked of one model in many ways.

    Args:
        model: the model.
        demos: the videos; their features are written once, because each point reads them again.
        folder: for the features.
        layers: the first blocked layers, or those in front of which tokens are dropped; None: all.
    """

    def __init__(
        self, model: TimeViper, demos: list[DemoVideo], folder: Path, layers: list[int] | None
    ) -> None:
        self.model, self.layers = model, layers
        self.examples, self.tasks = [], []
        self._marks: list[bool] = []
        for demo in demos:
            path = folder / f"{demo.seed}.features"
            model.save_features(torch.from_numpy(demo.frames()), path)
            self.examples += [Example(path, q.text, q.answer) for q in demo.questions]
            self.tasks += [question.task for question in demo.questions]

    def blocking(self) -> list[dict[str, Any]]:
        """A curve for each kind of rows and each grade."""
        whole = self._measure()
        first = self._told("whole", whole)
        curves = []
        for rows in ROWS:
            for grade in GRADES:
                blocking = Blocking(rows, 0, grade)
                points = self._blocked(blocking, whole, first)
                curves.append({**blocking.to_dict(), "whole": first, "points": points})
        return curves

    def _blocked(
        self, blocking: Blocking, whole: Measure, last: dict[str, Any]
    ) -> list[dict[str, Any]]:
        """Points from the last layer on; a layer that is not blocked has the next one's point."""
        points, name = [], f"{NAMES[blocking.rows]} {blocking.grade}"
        for layer in reversed(range(len(self.model.backbone.layers))):
            if self._matters(layer, blocking.grade) and layer in (self.layers or [layer]):
                curve = blocking_curve(
                    self.model, self.examples, blocking, layers=(layer,), whole=whole,
                    judge=self._judge, max_new_tokens=NEW,
                )  # fmt: skip
                last = self._told(f"{name} from layer {layer}", curve.points[0])
            points.append({**last, "layer": layer})
        return points[::-1]

    def _matters(self, layer: int, grade: str | None) -> bool:
        kind = self.model.config.backbone.pattern[layer]
        stages = [stage.layer for stage in self.model.config.stages]
        return kind == "*" or (kind == "M" and grade is not None) or layer in stages

    def redundancy(self) -> list[dict[str, Any]]:
        """A curve for each way to choose tokens; both are of the model without stages."""
        whole = self._measure(stages=())
        first, curves = self._told("no stage", whole), []
        for select in ("uniform", "attention"):
            points = []
            for layer, drop in product(self._standing(select), DROPS):
                curve = redundancy_curve(
                    self.model, self.examples, select, drops=(drop,), layers=(layer,), whole=whole,
                    judge=self._judge, max_new_tokens=NEW,
                )  # fmt: skip
                name = f"{select} drops {drop:.0%} before layer {layer}"
                points.append(self._told(name, curve.points[0]))
            curves.append({**curve.settings, "whole": first, "points": points})
        return curves

    def _standing(self, select: str) -> list[int] | None:
        pattern = self.model.config.backbone.pattern
        fits = [i for i, kind in enumerate(pattern) if select == "uniform" or kind == "*"]
        return [i for i in fits if i in (self.layers or fits)]

    def _measure(self, **options: Any) -> Measure:
        return measure(self.model, self.examples, judge=self._judge, max_new_tokens=NEW, **options)

    def _judge(self, answer: str, truth: str) -> float:
        self._marks.append(answer.strip() == truth)
        return self._marks[-1]

    def _told(self, name: str, found: Measure) -> dict[str, Any]:
        """A measure with its interval and each task's count, of the answers judged last."""
        score = Score(round(found.right), found.n)
        print(f"{name}: {score}; log-likelihood {found.log_likelihood:.2f}", flush=True)
        marks = self._marks[-found.n :]
        tasks = {
            task: Score(sum(mark for mark, own in zip(marks, self.tasks) if own == task),
                        self.tasks.count(task)).to_dict()
            for task in sorted(set(self.tasks))
        }  # fmt: skip
        return {**found.to_dict(), "interval": score.interval, "tasks": tasks}


def looks(model: TimeViper, demos: list[DemoVideo]) -> dict[str, list[dict[str, Any]]]:
    """What each layer looks at: of the model as it is, and without stages."""
    found = {}
    for name, stages in (("as it is", None), ("no stage", ())):
        by_layer: dict[int, list[LayerView]] = {}
        for demo in demos:
            frames = torch.from_numpy(demo.frames())
            for asked in demo.questions:
                answer = model.tokenizer(asked.answer, add_special_tokens=False)["input_ids"]
                question, opening = Question(asked.text), Opening(stages=stages)
                looking = Looking(window=NEAR, by_head=False)
                seen = look_at(model, model.tokenizer, frames, question, answer, opening, looking)
                for view in seen.view.layers:
                    by_layer.setdefault(view.layer, []).append(view)
        found[name] = [mean_of(views) for views in by_layer.values()]
        for layer in found[name]:
            shares = ", ".join(
                f"{source} {share:.3f} (even {layer['even'][source]:.3f})"
                for source, share in layer["to_vision"].items()
            )
            print(f"{name}, layer {layer['layer']} ({layer['kind']}): to vision {shares}; sink "
                  f"{max(layer['sink_ratio']):.1f}; {', '.join(layer['kinds'])}")  # fmt: skip
    return found


def mean_of(views: list[LayerView]) -> dict[str, Any]:
    """Means of one layer over questions. `even` is the share of vision in the tokens that a row
    sees; `sink_ratio` is the first token's weight over its even share."""
    first, profiles = views[0], [view.profile for view in views]
    means = {
        name: torch.stack([getattr(profile, name) for profile in profiles]).nanmean(0)
        for name in ("sparsity", "locality", "reach")
    }
    rows = torch.stack([profile.rows for profile in profiles]).sum(0)
    to_vision, even = {}, {}
    for source in (INSTRUCTION, ANSWER):
        at = first.groups.place(source), first.groups.place(VISION)
        to_vision[source] = _mean([float(view.scores[at]) for view in views])
        even[source] = _mean([share for view in views for share in even_shares(view, at)])
    return {
        "layer": first.layer,
        "kind": first.kind,
        "questions": len(views),
        "to_vision": to_vision,
        "even": even,
        "sink_ratio": torch.stack([view.sink.ratio for view in views]).mean(0).tolist(),
        "kinds": [*HeadProfile(**means, rows=rows, window=profiles[0].window).kinds],
        **{name: values.tolist() for name, values in means.items()},
    }


def even_shares(view: LayerView, at: tuple[int, int]) -> list[float]:
    """For each chosen row of the first group, the second group's share of the tokens up to it."""
    groups, (source, target) = view.groups.number, at
    shares = (groups == target).cumsum(0) / torch.arange(1, len(groups) + 1)
    return [float(shares[row]) for row in view.chosen if groups[row] == source]


def _mean(values: list[float]) -> float:
    return sum(values) / len(values)


if __name__ == "__main__":
    main()
