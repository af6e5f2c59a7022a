"""Errors of the library become one line in the words of the command line."""

from __future__ import annotations

import pytest
import torch

from timeviper_fast.checkpoint.config_file import config_from_dict
from timeviper_fast.checkpoint.upstream import vision_from_upstream
from timeviper_fast.cli.mistakes import one_line
from timeviper_fast.errors import ArgumentError, CheckpointError, VideoError
from tvkernels import BackendUnavailable

OWNED = ArgumentError("prefill", "max_new_tokens", "be at most 7", 8, "ask for less")


def test_the_function_that_refused_is_left_out():
    assert one_line(OWNED, {}) == "max_new_tokens must be at most 7, got 8; ask for less"
    named = one_line(OWNED, {"max_new_tokens": "--max-new-tokens"})
    assert named == "--max-new-tokens must be at most 7, got 8; ask for less"


def test_the_file_that_is_wrong_is_named():
    with pytest.raises(CheckpointError) as caught:
        config_from_dict({"backbone": {"no_such_field": 1}})
    assert one_line(caught.value, {}).startswith("config.json: backbone must have only known")


def test_what_an_op_lacks_is_kept_whole():
    """A sentence may hold a semicolon itself."""
    error = BackendUnavailable("ssd", "Triton is old; 3.6 is needed", "use another")
    assert str(error) == "ssd: Triton is old; 3.6 is needed; use another"
    assert one_line(error, {}) == (
        "Triton is old; 3.6 is needed; --backend reference (plain PyTorch) or --device cpu runs it"
    )


def test_a_remedy_names_options():
    error = ArgumentError("", "policy", "fit", "fps:9", "3 fit: policy=fps:9:max=3 or chunk=7")
    said = one_line(error, {"policy": "--sample", "chunk": "--chunk"})
    assert said == "--sample must fit, got fps:9; 3 fit: --sample fps:9:max=3 or --chunk 7"
    error = ArgumentError("", "keep", "be exact", "0.3", "allow even=True")
    assert one_line(error, {"even": "--even"}) == "keep must be exact, got 0.3; allow --even"


def test_what_is_not_built_names_the_option():
    with pytest.raises(NotImplementedError) as caught:
        vision_from_upstream("siglip-vit-so400m+dinov2-vit-l")
    said = one_line(caught.value, {"upstream.vision_backbone_id": "--vision"})
    assert said.startswith("--vision must be one of siglip-")


def test_damage_and_memory_name_their_options():
    damaged = VideoError("a.mp4: it is cut; half is gone", "on_error", "on_error='use' helps")
    said = one_line(damaged, {"salvage": "--salvage"})
    assert said == "a.mp4: it is cut; half is gone; --salvage takes what can be decoded"
    # the command demo has no such option
    assert one_line(damaged, {"question": "--question"}) == "a.mp4: it is cut; half is gone"
    assert "--frame-batch" in one_line(torch.OutOfMemoryError("20 GiB"), {})


def test_an_error_of_ours_is_no_mistake_of_the_user():
    assert one_line(RuntimeError("an invariant"), {}) is None
    assert one_line(FileNotFoundError("x.mp4: no such file"), {}) == "x.mp4: no such file"
