"""A stand-in for what lmms-eval 0.7.3 shows to an adapter, and tasks over small videos."""

from __future__ import annotations

import abc
import importlib
import sys
from dataclasses import dataclass, field
from types import ModuleType
from typing import Any

import numpy as np

from timeviper_fast.demo import DemoVideo

MODULES = ("", ".api", ".api.model", ".api.instance", ".models", ".models.registry_v2")
ADAPTER = "timeviper_fast.evaluation.lmms.adapter"


class Lmms(abc.ABC):
    """The base class, without what no adapter here uses."""

    is_simple = True

    def __init__(self):
        self._rank, self._world_size, self.task_dict = 0, 1, {}

    @abc.abstractmethod
    def loglikelihood(self, requests): ...

    @abc.abstractmethod
    def generate_until(self, requests): ...

    @abc.abstractmethod
    def generate_until_multi_round(self, requests): ...

    @property
    def rank(self):
        return self._rank

    @property
    def world_size(self):
        return self._world_size

    def clean(self):
        self.cleaned = True


@dataclass
class TokenCounts:
    input_tokens: int | None = None
    output_tokens: int | None = None


@dataclass
class GenerationResult:
    text: str
    token_counts: TokenCounts | None = None


@dataclass
class Instance:
    request_type: str
    arguments: tuple
    idx: int = 0
    metadata: dict[str, Any] = field(default_factory=dict)

    @property
    def args(self):
        return self.arguments


@dataclass(frozen=True)
class ModelManifest:
    model_id: str
    simple_class_path: str | None = None
    chat_class_path: str | None = None
    aliases: tuple[str, ...] = ()


def install(monkeypatch):
    """Put the stand-in where lmms-eval would be, and import the adapter anew; returns its class."""
    names = {"lmms": Lmms, "Instance": Instance, "GenerationResult": GenerationResult}
    names |= {"TokenCounts": TokenCounts, "ModelManifest": ModelManifest}
    for part in MODULES:
        module = ModuleType(f"lmms_eval{part}")
        vars(module).update(names)
        monkeypatch.setitem(sys.modules, module.__name__, module)
    monkeypatch.delitem(sys.modules, ADAPTER, raising=False)
    return importlib.import_module(ADAPTER).TimeViperLmms


def videos(folder, count=3):
    """Videos of the synthetic world, whose questions the embedded model answers."""
    folder.mkdir(parents=True, exist_ok=True)
    paths = [folder / f"{number}.npy" for number in range(count)]
    for number, path in enumerate(paths):
        np.save(path, DemoVideo(number, 32).frames())
    return paths


class Task:
    """Documents that ask about videos in turn: 0 1 2 0 1 2 ..."""

    def __init__(self, paths, questions=2, name="task"):
        self.name = name
        asked = [DemoVideo(int(path.stem), 32).questions for path in paths]
        self.docs = [
            {
                "video": str(path),
                "question": asked[i][number].text,
                "answer": asked[i][number].answer,
            }
            for number in range(questions)
            for i, path in enumerate(paths)
        ]

    def give(self, adapter):
        """Let the adapter find the documents."""
        adapter.task_dict[self.name] = {"test": self.docs}
        return adapter

    def requests(self, **gen_kwargs):
        given = {"max_new_tokens": 3, **gen_kwargs}
        return [
            Instance("generate_until", (doc["question"], given, visuals, i, self.name, "test"))
            for i, doc in enumerate(self.docs)
        ]


def visuals(doc):
    return [doc["video"]]
