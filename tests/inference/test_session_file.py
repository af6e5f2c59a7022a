"""A session from a file is the session that was saved, and no other model takes it."""

from __future__ import annotations

import copy
import hashlib
import json
import os
import pickle
import subprocess
import sys
from dataclasses import replace
from pathlib import Path

import pytest
import torch

from tests.inference.one_go import SCHEDULES, TINY, digest
from tests.random_model import tiny_model
from timeviper_fast import TimeViper
from timeviper_fast.config import CompressionStage, ProjectorConfig
from timeviper_fast.inference.memory import session_bytes
from timeviper_fast.inference.tensor_file import read_header, write_tensors
from timeviper_fast.model.initialize import init_weights
from timeviper_fast.presets import preset
from timeviper_fast.text.byte_tokenizer import byte_tokenizer

ROOT = Path(__file__).parents[2]
OPTIONS = {"policy": "fps:1", "chunk": 64, "frame_batch": 5}
QWEN2 = replace(TINY, family="qwen2", pattern="*-" * 4, rope_theta=1e4, attention_bias=True)
CLIPS = ProjectorConfig("tome_mlp", 4, 2)
LAYERS = replace(TINY, pattern="M*M-M*M-M*M")
VARIANTS = {name: {"backbone": LAYERS, "stages": stages} for name, stages in SCHEDULES.items()} | {
    "qwen2": {
        "backbone": QWEN2,
        "template": "qwen2",
        "stages": (
            CompressionStage(2, "uniform", 0.5),
            CompressionStage(4, "attention", 0.25, score="normed"),
        ),
    },
    "clips": {"backbone": LAYERS, "projector": CLIPS, "stages": SCHEDULES["shipped"]},
}


def variant(name: str) -> TimeViper:
    torch.manual_seed(0)
    model = TimeViper(replace(preset("tiny"), **VARIANTS[name]), byte_tokenizer())
    init_weights(model.backbone, seed=0)
    for module in model.backbone.transv:
        if module.stage.transfer:
            torch.nn.init.constant_(module.alpha, 0.7)
    return model.eval()


@torch.no_grad()
def read(session, words: str):
    """Logits and kept tokens of a question given as plain text, which may be one token."""
    text = session._embedded(session.tokenizer(words)["input_ids"])
    return session._ended.read([text], max_new_tokens=2)


@pytest.fixture(scope="module")
def saved(model, video, tmp_path_factory):
    path = tmp_path_factory.mktemp("saved") / "a.session"
    session = model.open(video, **OPTIONS)
    session.save(path)
    return session, path


@pytest.mark.parametrize("name", VARIANTS)
def test_a_loaded_session_answers_to_the_bit(name, video, tmp_path):
    model = variant(name)
    session = model.open(video, lead="Look:", **OPTIONS)
    session.save(tmp_path / "a")
    loaded = model.load_session(tmp_path / "a")
    for words in ("?", "What moves where?"):
        one, two = read(session, words), read(loaded, words)
        assert torch.equal(one.logits, two.logits)
        assert torch.equal(one.kept, two.kept)
        assert one.stages == two.stages
    ask = ["What moves?", "Why, and where does it go?"]
    one, two = (each.ask(ask, max_new_tokens=4) for each in (session, loaded))
    assert [replace(a, stops=()) for a in one] == [replace(a, stops=()) for a in two]


def test_the_files_bytes_are_those_of_the_arithmetic(model, saved):
    session, path = saved
    entries = read_header(path).entries
    want = session_bytes(model.config, len(session.before), 12, "float32")
    got = dict.fromkeys(want, 0)
    for name, entry in entries.items():
        if name.endswith((".ssm", ".conv")):
            # the position of the ring, an int32 per layer, is not part of a file
            got["states"] += entry.nbytes + 4 * name.endswith(".ssm")
        elif name.startswith("layers."):
            got["kv"] += entry.nbytes
        elif not name.endswith("kept"):
            got["dropped_kv" if name.startswith("stages.") else name] += entry.nbytes
    assert got == want


def test_everything_known_of_the_video_is_in_the_file(model, saved):
    session, path = saved
    loaded = model.load_session(path)
    a, b = vars(loaded.footage), vars(session.footage)
    assert torch.equal(a["seconds"], b["seconds"])
    assert {**a, "seconds": None} == {**b, "seconds": None}
    assert loaded.footage.size == os.path.getsize(session.footage.name)
    assert loaded.opening == session.opening
    assert (loaded.before, loaded._stages) == (session.before, session._stages)
    texts = read_header(path).texts
    assert json.loads(texts["versions"])["torch"] == torch.__version__
    assert texts["format"] == "timeviper_fast.session"
    assert json.loads(texts["policy"]) == "fps:1"


def test_names_and_policies_of_any_kind(model, video, tmp_path):
    class Last:
        def choose(self, seconds, fps, duration):
            return torch.arange(len(seconds))[-3:]

    session = model.open(video, policy=Last(), start="0:01", chunk=None)
    session.footage = replace(session.footage, name="\udcff.mp4", notes=("mended",))
    session.save(tmp_path / "a")
    loaded = model.load_session(tmp_path / "a")
    assert (loaded.footage.name, loaded.footage.notes) == ("\udcff.mp4", ("mended",))
    assert torch.equal(read(loaded, "Why?").logits, read(session, "Why?").logits)


ASK = """
import sys
import torch
from tests.inference.one_go import digest
from timeviper_fast.demo import tiny_model
session = tiny_model().load_session(sys.argv[1])
print("mapped", flush=True)
sys.stdin.read()
with torch.no_grad():
    text = session._embedded(list(b"What moves?"))
    logits = session._ended.read([text], max_new_tokens=2).logits
print(digest(session._ended), *logits[0].tolist())
"""


def test_another_process_reads_the_same_file_at_a_time(model, saved):
    """The same bits are in it. Answers agree up to rounding: threads are a process's own."""
    session, path = saved
    command = [sys.executable, "-c", ASK, str(path)]
    pipes = {"stdin": subprocess.PIPE, "stdout": subprocess.PIPE, "cwd": ROOT, "text": True}
    reader = subprocess.Popen(command, **pipes)
    here = model.load_session(path)
    assert reader.stdout.readline() == "mapped\n"
    want = read(here, "What moves?").logits
    held, *logits = reader.communicate()[0].split()
    assert held == digest(here._ended)
    there = torch.tensor([float(x) for x in logits])
    torch.testing.assert_close(there, want[0], rtol=1e-5, atol=1e-5)
    assert torch.equal(want, read(session, "What moves?").logits)


def anonymous() -> int:
    """Bytes of this process that lie in no file."""
    with open("/proc/self/status") as status:
        return next(int(line.split()[1]) << 10 for line in status if line.startswith("RssAnon"))


@pytest.mark.skipif(not os.path.exists("/proc/self/status"), reason="reads Linux's /proc")
def test_a_mapped_session_takes_no_memory_and_is_never_written(model, saved, tmp_path):
    """Pages that are written to would be copied, and count as memory of the process."""
    session, path = saved
    big = copy.copy(session)
    # 36 MB that questions read, in place of the video's keys and values
    ended = big._ended
    large = torch.zeros(1, 70_000, *ended.dropped[0][0].shape[2:]).normal_()
    big._ended = replace(ended, dropped={0: (large, large)})
    texts = dict(read_header(path).texts)
    with pytest.MonkeyPatch.context() as patch:
        patch.setattr("timeviper_fast.inference.session_file._wrong_entry", lambda *_: None)
        big.save(tmp_path / "a")
        assert read_header(tmp_path / "a").texts["before"] == texts["before"]
        digest = hashlib.sha256((tmp_path / "a").read_bytes()).hexdigest()
        before = anonymous()
        loaded = model.load_session(tmp_path / "a")
    key, value = loaded._ended.dropped[0]
    total = key.sum() + value.sum()
    assert torch.isfinite(total)
    assert anonymous() - before < (key.nbytes + value.nbytes) // 4
    chat = loaded.chat()
    for _ in range(2):
        chat.ask("Why?", max_new_tokens=2)
    assert torch.equal(key, large)
    assert hashlib.sha256((tmp_path / "a").read_bytes()).hexdigest() == digest


def test_a_question_writes_no_tensor_of_the_file(model, saved):
    """PyTorch counts the writes to each tensor."""
    _, path = saved
    loaded = model.load_session(path)
    states = [vars(state).values() for state in loaded._ended.cache.layers if state is not None]
    held = [x for values in states for x in values if isinstance(x, torch.Tensor)]
    held += [part.hidden for part in loaded._ended.rows]
    held += [x for pair in loaded._ended.dropped.values() for x in pair]
    versions = [x._version for x in held]
    loaded.ask(["Why?", "What moves?"], max_new_tokens=3)
    loaded.chat().ask("Why?", max_new_tokens=2)
    assert [x._version for x in held] == versions


def test_existing_files_are_kept_unless_told(model, saved, tmp_path):
    session, _ = saved
    path = tmp_path / "a"
    path.write_text("mine")
    with pytest.raises(ValueError, match="overwrite=True replaces it"):
        session.save(path)
    assert path.read_text() == "mine"
    session.save(path, overwrite=True)
    session.save(path, overwrite=True)
    model.load_session(path)
    assert os.listdir(tmp_path) == ["a"]


def rewritten(path: Path, target: Path, texts=(), drop=(), add=()) -> Path:
    """A copy of a file with other texts or tensors."""
    from safetensors import safe_open

    with safe_open(path, framework="pt") as file:
        tensors = {name: [file.get_tensor(name)] for name in [*file.keys()] if name not in drop}
        told = file.metadata() | dict(texts)
    write_tensors(target, tensors | {name: [x] for name, x in dict(add).items()}, told)
    return target


def test_files_of_other_kinds_are_refused_with_both_values(model, saved, tmp_path):
    _, path = saved
    cases = {
        r"be a session file \(timeviper_fast.session\) that is whole, got the format other": {
            "texts": {"format": "other"}
        },
        "have format_version 1, got 2": {"texts": {"format_version": "2"}},
        "dtype must be float32, got bfloat16": {"texts": {"dtype": "bfloat16"}},
        "tokenizer's vocabulary must be [0-9a-f]{16}, got ffff$": {"texts": {"tokenizer": "ffff"}},
        "weights must be [0-9a-f]{16}, got ffff$": {"texts": {"fingerprint": "ffff"}},
        r"hold F32 \[1, \d+, 128\] as rows, got no tensor": {"drop": ["rows"]},
        r"hold no tensor as more, got F32 \[2\]": {"add": {"more": torch.zeros(2)}},
        r"hold F32 \[.*\] as layers.0.ssm, got F32 \[1, 2\]": {
            "add": {"layers.0.ssm": torch.zeros(1, 2)}
        },
        "describe itself in its header, got a damaged one": {"texts": {"tokens": "{}"}},
        "describe itself in its header, got a damaged one .*mapping": {"texts": {"opening": "3"}},
    }
    for number, (words, change) in enumerate(cases.items()):
        other = rewritten(path, tmp_path / f"{number}.session", **change)
        with pytest.raises(
            ValueError, match=rf"load_session: path .*{number}.session must .*{words}"
        ):
            model.load_session(other)


def test_truncated_and_absent_files(model, saved, tmp_path):
    _, path = saved
    whole, other = path.read_bytes(), tmp_path / "other"
    for length in (0, 5, 200, len(whole) // 2, len(whole) - 1):
        other.write_bytes(whole[:length])
        with pytest.raises(ValueError, match="got one that is damaged, truncated or of another"):
            model.load_session(other)
    with pytest.raises(FileNotFoundError, match="absent"):
        model.load_session(tmp_path / "absent")


def test_another_model_is_told_by_what_differs(model, saved):
    _, path = saved
    trained = copy.deepcopy(model)
    with torch.no_grad():
        trained.projector.layers[0].weight[0, 0] += 1e-3
    with pytest.raises(ValueError, match="saved by this model: weights must be"):
        trained.load_session(path)
    other = copy.deepcopy(model)
    other.set_stages(())
    with pytest.raises(ValueError, match=r"config.stages must be \[\], got \[\{"):
        other.load_session(path)
    half = copy.deepcopy(model).bfloat16()
    with pytest.raises(ValueError, match="dtype must be bfloat16, got float32"):
        half.load_session(path)
    words = copy.copy(model)
    words.tokenizer = byte_tokenizer(("</s>", "<SPECIAL_11>", "<SPECIAL_10>", "<SPECIAL_12>"))
    with pytest.raises(ValueError, match="the tokenizer's vocabulary must be"):
        words.load_session(path)
    words.tokenizer = None
    with pytest.raises(ValueError, match="model must have a tokenizer"):
        words.load_session(path)


def test_a_model_is_the_same_however_it_was_loaded(model, saved, tmp_path):
    session, path = saved
    model.save_pretrained(tmp_path / "model")
    again = TimeViper.from_pretrained(tmp_path / "model", device="cpu")
    copied = pickle.loads(pickle.dumps(tiny_model()))
    for other in (again, copied):
        loaded = other.load_session(path)
        assert torch.equal(read(loaded, "Why?").logits, read(session, "Why?").logits)


def test_stages_of_a_session_are_its_own(model, video, tmp_path):
    session = model.open(video, stages="none", **OPTIONS)
    session.save(tmp_path / "a")
    loaded = model.load_session(tmp_path / "a")
    one, two = (each.ask("Why?", max_new_tokens=3) for each in (session, loaded))
    assert replace(one, stops=()) == replace(two, stops=())
    assert two.stages == ()


@pytest.mark.parametrize(
    "options", [{}, {"bounded": "window:6s"}, {"even": True, "stages": "uniform:2:0.3"}]
)
def test_what_a_stream_has_seen_is_saved(model, options, tmp_path):
    """Exact or not; the stream goes on without the file."""
    stream = model.stream(chunk=64, frame_batch=4, **options)
    pictures = torch.randint(0, 255, (12, 48, 48, 3), dtype=torch.uint8)
    stream.push(pictures)
    now = stream.now()
    now.save(tmp_path / "a")
    stream.push(pictures)
    loaded = model.load_session(tmp_path / "a")
    one, two = (each.ask("Why?", max_new_tokens=3) for each in (now, loaded))
    assert replace(one, stops=()) == replace(two, stops=())
    assert two.exact == now.exact == (not options)
    assert torch.equal(read(loaded, "Why?").logits, read(now, "Why?").logits)
