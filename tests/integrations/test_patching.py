"""Which functions are replaced, by which op, and which calls reach the original function."""

from __future__ import annotations

import inspect
import re
import subprocess
import sys
from importlib import import_module
from pathlib import Path

import pytest
import torch
import transformers

import tvkernels
from tests.contract import on_device
from tests.integrations.models import build, tokens
from tvkernels import patch_transformers, unpatch_transformers
from tvkernels.integrations import patching

ROOT = Path(__file__).parents[2]
SIX = ["bamba", "falcon_h1", "granitemoehybrid", "mamba2", "nemotron_h", "zamba2"]
PROVIDED = {"causal_conv1d_fn", "causal_conv1d_update"}
MAMBA_2 = {"mamba2_chunk_scan", "mamba2_selective_state_update", patching.FUSED} | PROVIDED


def modeling(model):
    return import_module(f"transformers.models.{model}.modeling_{model}")


@pytest.fixture
def mamba2():
    module = modeling("mamba2")
    yield module
    unpatch_transformers()
    assert not patching.replacement(module.mamba2_chunk_scan)


def test_every_model_that_asks_for_the_convolution_is_found():
    found = patching.served_models()
    assert set(SIX) <= set(found)
    assert len(found) >= 20
    for model in found:
        module = modeling(model)
        assert not patching.replacement(module.causal_conv1d_fn)


def test_the_table_has_each_name_of_each_model():
    with patch_transformers() as patch:
        rows = {model: {} for model in patching.served_models()}
        for row in patch.rows:
            rows[row.model][row.name] = row.now
    for model, names in rows.items():
        assert names["causal_conv1d_fn"] == "tvkernels.causal_conv1d_fn"
        assert names["causal_conv1d_update"] == "tvkernels.causal_conv1d_update"
        norms = {name for name in names if name.endswith("RMSNormGated.forward")}
        assert len(norms) == (model in SIX)
        assert {names[norm] for norm in norms} <= {"tvkernels.rmsnorm_fn"}
        assert (set(names) - norms == MAMBA_2) == (model in SIX)
    assert not [now for names in rows.values() for now in names.values() if "as before" in now]
    assert rows["bamba"]["mamba2_chunk_scan"] == "tvkernels.mamba_chunk_scan_combined"
    assert rows["jamba"]["mamba_selective_state_update"] == "tvkernels.selective_state_update"
    lines = str(patch).splitlines()
    assert lines[0].split() == ["model", "name", "now"]
    assert len(lines) == 1 + len(patch.rows)


def test_the_documentation_says_what_runs_here_in_which_version():
    page = (ROOT / "docs" / "patching.md").read_text(encoding="utf-8")
    here = ".".join(transformers.__version__.split(".")[:2])
    rows = re.findall(r"^\| ([\w, ]+) \| ([\w, ]+) \| ([\d., ]+) \|$", page, re.M)
    listed = {
        model: set(functions.split(", "))
        for models, functions, versions in rows
        if here in versions.split(", ")
        for model in models.split(", ")
    }
    words = {
        "causal_conv1d_fn": "convolution",
        "mamba2_chunk_scan": "scan",
        "forward": "gated norm",
    }
    words |= {f"mamba{n}_selective_state_update": "state update" for n in ("", "2")}
    assert listed == {
        model: {words[name] for _, name, _ in patching.places(modeling(model)) if name in words}
        for model in patching.served_models()
    }


def test_patching_twice_is_patching_once(mamba2):
    before = mamba2.mamba2_chunk_scan
    first = patch_transformers("mamba2")
    ours = mamba2.mamba2_chunk_scan
    second = patch_transformers(["mamba2"])
    assert mamba2.mamba2_chunk_scan is ours is not before
    assert second.rows == first.rows
    with patch_transformers("mamba2"):
        pass
    # the block replaced nothing, so it undid nothing
    assert mamba2.mamba2_chunk_scan is ours
    unpatch_transformers()
    assert mamba2.mamba2_chunk_scan is before
    unpatch_transformers()


def test_a_block_ends_what_it_began_also_after_an_error(mamba2):
    patch_transformers("bamba")

    def fail_inside():
        with patch_transformers():
            assert patching.replacement(mamba2.causal_conv1d_fn)
            raise KeyError

    with pytest.raises(KeyError):
        fail_inside()
    assert not patching.replacement(mamba2.causal_conv1d_fn)
    assert patching.replacement(modeling("bamba").causal_conv1d_fn)


def test_what_another_has_replaced_since_stays(mamba2):
    before, another = mamba2.causal_conv1d_fn, object()
    patch_transformers("mamba2")
    mamba2.causal_conv1d_fn = another
    unpatch_transformers()
    stayed, mamba2.causal_conv1d_fn = mamba2.causal_conv1d_fn, before
    assert stayed is another


def test_a_function_with_an_argument_that_we_do_not_know_stays(mamba2, monkeypatch):
    def later(hidden_states, weight, bias=None, dilation=1, activation=None):
        """A signature that a later version might have."""

    monkeypatch.setattr(mamba2, "causal_conv1d_fn", later)
    with patch_transformers("mamba2") as patch:
        assert mamba2.causal_conv1d_fn is later
    word = next(row.now for row in patch.rows if row.name == "causal_conv1d_fn")
    assert word == "as before: its arguments are x, weight, bias, dilation, activation"
    monkeypatch.undo()


def test_a_norm_with_an_argument_that_we_do_not_know_stays(mamba2, monkeypatch):
    def later(self, hidden_states, gate=None, residual=None):
        """A signature that a later version might have."""

    monkeypatch.setattr(mamba2.MambaRMSNormGated, "forward", later)
    with patch_transformers("mamba2") as patch:
        assert mamba2.MambaRMSNormGated.forward is later
    words = {row.name: row.now for row in patch.rows}
    assert words["MambaRMSNormGated.forward"].startswith("as before: its arguments are self, x,")
    monkeypatch.undo()


def test_unknown_models():
    with pytest.raises(ValueError, match=r"models must be a name, several names or None, got 3"):
        tvkernels.patch_transformers(3)
    with pytest.raises(ValueError, match=r"models must be among .*bamba, .*got 'bert'"):
        patch_transformers(["mamba2", "bert"])
    assert not patching._replaced


@pytest.mark.parametrize("model", patching.served_models())
@pytest.mark.usefixtures("backend")
def test_the_convolution_of_each_model(model):
    """As the models call it: a slice whose channels lie side by side, then one token in place."""
    module = modeling(model)
    wide, weight, bias, state = on_device(
        (torch.randn(2, 11, 40), torch.randn(24, 4), torch.randn(24), torch.randn(2, 24, 4))
    )
    x = wide[..., 5:29].transpose(1, 2)
    states = [state.clone(), state.clone()]
    whole = module.causal_conv1d_fn(x, weight, bias, activation="silu")
    step = module.causal_conv1d_update(x[..., :1], states[0], weight, None, "silu")
    with patch_transformers(model):
        torch.testing.assert_close(
            module.causal_conv1d_fn(x, weight, bias, activation="silu"), whole
        )
        ours = module.causal_conv1d_update(x[..., :1], states[1], weight, None, "silu")
    torch.testing.assert_close(ours, step)
    assert torch.equal(*states)


# calls that reach the original function


@pytest.fixture
def refusing(mamba2, monkeypatch):
    """mamba2, patched; its original functions raise LookupError when they are called."""

    def asked(name):
        before = getattr(mamba2, name)

        def instead(hidden_states, *args, **kwargs):
            raise LookupError(name)

        # with kernels the function is a module
        instead.__signature__ = inspect.signature(getattr(before, "forward", before))
        return instead

    for name in ("causal_conv1d_fn", "mamba2_chunk_scan", "causal_conv1d_update"):
        monkeypatch.setattr(mamba2, name, asked(name))
    patch_transformers("mamba2")
    yield mamba2
    unpatch_transformers()
    monkeypatch.undo()


@pytest.mark.parametrize(
    ("dtype", "activation"), [(torch.float64, "silu"), (torch.float32, "gelu")]
)
def test_what_is_not_served_exactly(refusing, dtype, activation):
    x, weight = torch.randn(1, 6, 5, dtype=dtype), torch.randn(6, 4, dtype=dtype)
    with pytest.raises(LookupError, match="causal_conv1d_fn"):
        refusing.causal_conv1d_fn(x, weight, activation=activation)
    # more positional arguments than we know
    with pytest.raises(LookupError, match="causal_conv1d_fn"):
        refusing.causal_conv1d_fn(x.float(), weight.float(), None, "silu", *range(9))
    # the original would mix packed sequences in silence, so the call is refused
    with pytest.raises(ValueError, match="causal_conv1d_fn: seq_idx must be None here"):
        refusing.causal_conv1d_fn(x, weight, activation=activation, seq_idx=torch.zeros(1, 5).int())


@pytest.mark.parametrize("activation", [None, "silu", "swish"])
def test_activations_that_are_served(refusing, activation):
    x, weight = torch.randn(1, 6, 5), torch.randn(6, 4)
    out = refusing.causal_conv1d_fn(x, weight, activation=activation)
    assert torch.equal(out, tvkernels.causal_conv1d_fn(x, weight, activation=activation))


def test_a_step_that_needs_gradients(refusing):
    x, state, weight = torch.randn(1, 6, 1), torch.zeros(1, 6, 4), torch.randn(6, 4)
    refusing.causal_conv1d_update(x, state, weight)
    weight.requires_grad_()
    with pytest.raises(LookupError, match="causal_conv1d_update"):
        refusing.causal_conv1d_update(x, state, weight)
    with torch.no_grad():
        refusing.causal_conv1d_update(x, state, weight)


def test_export(refusing, monkeypatch):
    monkeypatch.setattr(torch.compiler, "is_exporting", lambda: True)
    with pytest.raises(LookupError, match="causal_conv1d_fn"):
        refusing.causal_conv1d_fn(torch.randn(1, 6, 5), torch.randn(6, 4))
    norm = build("mamba2").backbone.layers[0].mixer.norm
    assert norm(torch.randn(1, 5, 64)).shape == (1, 5, 64)


@pytest.mark.parametrize("given", [{}, {"seq_idx": None}])
def test_offsets_alone_do_not_keep_sequences_apart(refusing, given):
    offsets = torch.tensor([0, 2, 5])
    for name in ("causal_conv1d_fn", "mamba2_chunk_scan"):
        with pytest.raises(ValueError, match="cu_seqlens must come with seq_idx"):
            getattr(refusing, name)(torch.randn(1, 6, 5), cu_seqlens=offsets, **given)


def test_a_state_update_knows_no_packed_sequences(mamba2):
    patch_transformers("mamba2")
    with pytest.raises(ValueError, match="selective_state_update: seq_idx must be None here"):
        mamba2.mamba2_selective_state_update(
            torch.zeros(1, 2, 4, 8), torch.randn(1, 2, 4), seq_idx=torch.zeros(1, 1).int()
        )


def test_both_names_of_the_first_argument_and_arguments_of_the_original(mamba2):
    x, weight = torch.randn(1, 6, 5), torch.randn(6, 4)
    before = torch.randn(1, 6, 3)
    patch_transformers("mamba2")
    expected = tvkernels.causal_conv1d_fn(x, weight, initial_states=before)
    for first in ({"x": x}, {"hidden_states": x}):
        out = mamba2.causal_conv1d_fn(**first, weight=weight, initial_states=before, more=3)
        assert torch.equal(out, expected)


def test_a_patched_model_compiles_without_a_break(mamba2):
    model, ids = build("mamba2"), tokens(1, 19)
    with torch.no_grad(), patch_transformers("mamba2"):
        mixer = model.backbone.layers[0].mixer
        x = model.backbone.embeddings(ids)
        compiled = torch.compile(mixer, fullgraph=True, backend="aot_eager")
        torch.testing.assert_close(compiled(x), mixer(x))


def test_without_transformers():
    code = (
        "import sys; sys.modules['transformers'] = None\n"
        "import tvkernels\n"
        "try: tvkernels.patch_transformers()\n"
        "except ModuleNotFoundError as error: print(error)"
    )
    command = [sys.executable, "-c", code]
    done = subprocess.run(command, cwd=ROOT, capture_output=True, text=True, timeout=120)
    assert "transformers is not installed (pip install transformers)" in done.stdout, done.stderr
