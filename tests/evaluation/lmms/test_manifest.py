"""The entry point gives a manifest of the right name, whose class is the adapter."""

from __future__ import annotations

import importlib
import subprocess
import sys
from importlib.metadata import EntryPoint
from pathlib import Path

from tests.evaluation.lmms.common import Lmms, ModelManifest

if sys.version_info >= (3, 11):
    import tomllib
else:
    import tomli as tomllib

ROOT = Path(__file__).parents[3]


def test_the_entry_point_gives_the_manifest_and_the_manifest_the_class(adapter_class):
    project = tomllib.loads((ROOT / "pyproject.toml").read_text(encoding="utf-8"))["project"]
    [(name, value)] = project["entry-points"]["lmms_eval.models"].items()
    found = EntryPoint(name, value, "lmms_eval.models").load()()
    assert isinstance(found, ModelManifest)
    assert (found.model_id, found.aliases, found.chat_class_path) == ("timeviper_fast", (), None)
    module, _, class_name = found.simple_class_path.rpartition(".")
    assert getattr(importlib.import_module(module), class_name) is adapter_class
    assert issubclass(adapter_class, Lmms)
    assert adapter_class.is_simple


def test_the_entry_point_imports_no_model():
    """lmms-eval loads every entry point whenever it starts, and one that fails takes all along."""
    code = (
        "import sys\nfrom timeviper_fast.evaluation.lmms.manifest import manifest\n"
        "assert not {'lmms_eval', 'transformers', 'av'} & set(sys.modules)"
    )
    subprocess.run([sys.executable, "-c", code], cwd=ROOT, check=True, timeout=120)
