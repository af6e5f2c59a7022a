"""A `Patch`, a `Provision` and the functions they put in place are pickled and copied."""

from __future__ import annotations

import copy
import pickle
from importlib import import_module

import pytest

from tests.integrations.models import build
from tests.integrations.test_fallbacks import gated
from tests.integrations.test_overlap import KINDS, every_kind
from tvkernels import patch_transformers, provide
from tvkernels.integrations import patching
from tvkernels.integrations.stand_ins import SERVED

modeling = import_module("transformers.models.mamba2.modeling_mamba2")


@every_kind
def test_a_copy_holds_nothing_and_can_be_entered(kind):
    begin, there = KINDS[kind]
    with begin() as held:
        for same in (copy.deepcopy(held), pickle.loads(pickle.dumps(held))):
            same.__exit__(None, None, None)
            assert there()
    with same:
        assert there()


@pytest.mark.parametrize(
    ("path", "name"),
    [
        (f"{package}.{module}".rstrip("."), name)
        for package, modules in SERVED.items()
        for module, functions in modules.items()
        for name in functions
    ],
)
def test_what_stands_in_is_pickled_by_its_own_name(path, name):
    """Also read where nothing is provided, as in a worker that is spawned."""
    with provide("mamba_ssm", "causal_conv1d"):
        function = getattr(import_module(path), name)
        data = pickle.dumps(function)
    assert pickle.loads(data) is function
    assert copy.deepcopy(function) is function


def can_be_pickled(model) -> bool:
    """With older releases of transformers and kernels a model holds modules of local classes."""
    try:
        pickle.loads(pickle.dumps(model))
    except AttributeError:
        return False
    return True


def test_a_patch_and_patched_functions_are_copied_and_pickled():
    model = build("mamba2", num_hidden_layers=1)
    unpatched = can_be_pickled(model)
    with patch_transformers("mamba2") as patch:
        gated(model, 1, 1, 64)
        for same in (pickle.loads(pickle.dumps(patch)), copy.deepcopy(patch)):
            assert (same, same.fallbacks, str(same)) == (patch, patch.fallbacks, str(patch))
            same.__exit__(None, None, None)
            assert modeling.mamba2_chunk_scan is pickle.loads(
                pickle.dumps(modeling.mamba2_chunk_scan)
            )
            assert patching.replacement(modeling.mamba2_chunk_scan)
        assert can_be_pickled(model) == unpatched
    assert not patching.replacement(modeling.mamba2_chunk_scan)
    with same:
        assert patching.replacement(modeling.mamba2_chunk_scan)
    assert not patching._replaced
