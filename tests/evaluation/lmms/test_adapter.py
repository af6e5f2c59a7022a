"""The adapter as lmms-eval uses it: order, one session per video, resumption, refusals."""

from __future__ import annotations

import json
from dataclasses import replace

import pytest
import torch

from tests.evaluation.lmms.common import Instance, Task, videos
from timeviper_fast.evaluation.lmms.told import ToldFile
from timeviper_fast.timeviper import TimeViper


@pytest.fixture
def opened(monkeypatch):
    """The videos that models opened."""
    names, own = [], TimeViper.open

    def counting(model, video, **options):
        names.append(video)
        return own(model, video, **options)

    monkeypatch.setattr(TimeViper, "open", counting)
    return names


@pytest.fixture
def made(adapter_class):
    """Makes adapters of the embedded model, and ends them."""
    adapters = []

    def make(**options):
        adapters.append(adapter_class(device="cpu", **options))
        return adapters[-1]

    yield make
    for adapter in adapters:
        adapter.clean()


def texts(results):
    return [result.text for result in results]


def lines(folder):
    return [json.loads(line) for line in (folder / "answers.jsonl").read_text().splitlines()]


def test_interleaved_requests_open_each_video_once(made, model, paths, opened):
    task = Task(paths)
    adapter = task.give(made(sample="uniform:4", batch_size="2"))
    requests = task.requests()
    assert [request.args[3] for request in requests] == list(range(6))
    found = adapter.generate_until(requests)
    assert opened == [str(path) for path in paths]
    options = {"policy": "uniform:4", "max_new_tokens": 3}
    wanted = [model.ask(doc["video"], doc["question"], **options) for doc in task.docs]
    assert texts(found) == [answer.text for answer in wanted]
    assert len(set(texts(found))) > 2
    assert [one.token_counts.output_tokens for one in found] == [
        len(answer.token_ids) for answer in wanted
    ]
    assert (adapter.rank, adapter.world_size, adapter.device) == (0, 1, torch.device("cpu"))


def test_answers_end_where_the_task_says(made, paths):
    task = Task(paths[:1], questions=1)
    adapter = task.give(made())
    [whole] = texts(adapter.generate_until(task.requests()))
    assert len(set(whole)) > 1
    [part] = texts(adapter.generate_until(task.requests(until=["none of it", whole[1:]])))
    assert part == whole[:1]


def test_a_stopped_run_goes_on_where_it_was(made, paths, tmp_path, opened, monkeypatch, capsys):
    task = Task(paths)
    wanted = texts(task.give(made()).generate_until(task.requests()))
    del opened[:]
    own = ToldFile.add

    def stop(file, line):
        own(file, line)
        if len(file.rows) == 3:
            raise KeyboardInterrupt

    with monkeypatch.context() as patch:
        patch.setattr(ToldFile, "add", stop)
        stopped = task.give(made(resume=str(tmp_path)))
        with pytest.raises(KeyboardInterrupt):
            stopped.generate_until(task.requests())
    # the end of a process closes its file
    stopped.clean()
    assert len(lines(tmp_path)) == 3
    assert opened == [str(path) for path in paths[:2]]
    capsys.readouterr()
    going_on = task.give(made(resume=str(tmp_path)))
    assert texts(going_on.generate_until(task.requests())) == wanted
    going_on.clean()
    assert "3 of 6 requests were answered before" in capsys.readouterr().err
    # of the second video the other question
    assert opened == [str(paths[i]) for i in (0, 1, 2, 1)]
    assert len({(line["task"], line["doc_id"], line["asked"]) for line in lines(tmp_path)}) == 6
    # other options are other requests, and another model is refused
    del opened[:]
    task.give(made(resume=str(tmp_path))).generate_until(task.requests(max_new_tokens=2))
    assert len(opened) == 3
    with pytest.raises(ValueError, match="resume must hold rows of the same sample"):
        made(resume=str(tmp_path), sample="uniform:2")


def test_a_broken_video_is_empty_text_and_is_asked_again(made, tmp_path, capsys):
    paths = videos(tmp_path / "videos")
    whole = paths[1].read_bytes()
    paths[1].write_bytes(b"no array")
    task = Task(paths)
    adapter = task.give(made(resume=str(tmp_path / "run")))
    found = adapter.generate_until(task.requests())
    assert [bool(text) for text in texts(found)] == [True, False, True] * 2
    said = capsys.readouterr().err
    assert "timeviper_fast: 2 of 6 requests failed; the next run asks again. The first: " in said
    assert [line["doc_id"] for line in lines(tmp_path / "run") if line["error"]] == [1, 4]
    paths[1].write_bytes(whole)
    assert all(texts(adapter.generate_until(task.requests())))
    assert [line["doc_id"] for line in lines(tmp_path / "run")][6:] == [1, 4]


def test_a_task_that_ends_the_program_for_a_missing_file_costs_its_rows(made, paths, capsys):
    task = Task(paths[:2], questions=1)

    def leave(doc):
        if doc["video"] == str(paths[0]):
            raise SystemExit("the video does not exist")
        return [doc["video"]]

    adapter = task.give(made())
    requests = [
        replace(request, arguments=(*request.args[:2], leave, *request.args[3:]))
        for request in task.requests()
    ]
    assert [bool(text) for text in texts(adapter.generate_until(requests))] == [False, True]
    assert "doc_to_visual: SystemExit: the video does not exist" in capsys.readouterr().err


def test_a_document_with_several_visuals_costs_its_rows(made, paths, capsys):
    task = Task(paths[:2], questions=1)
    adapter = task.give(made())

    def visuals(doc):
        return [doc["video"]] * (2 if doc["video"] == str(paths[0]) else 1)

    requests = [
        replace(request, arguments=(*request.args[:2], visuals, *request.args[3:]))
        for request in task.requests()
    ]
    assert [bool(text) for text in texts(adapter.generate_until(requests))] == [False, True]
    assert "doc_to_visual must give one video's path or one image" in capsys.readouterr().err


def test_equal_requests_share_an_answer_unless_it_is_drawn(made, paths, tmp_path):
    """lmms-eval repeats requests for several draws, and pads the requests of a process."""
    task = Task(paths[:1], questions=1)
    adapter = task.give(made(resume=str(tmp_path)))
    assert len(set(texts(adapter.generate_until(task.requests() * 3)))) == 1
    assert len(lines(tmp_path)) == 1
    adapter.generate_until(task.requests(temperature=0.5) * 3)
    assert len(lines(tmp_path)) == 4


def test_rounds_go_on_until_the_task_ends_them(made, model, paths):
    """Each round has its own video and text, which may hold the answers before it."""
    task = Task(paths[:2], questions=1)
    seen = []

    def doc_to_text(doc, previous_output, round_idx, previous_round_info):
        seen.append((round_idx, len(previous_output), previous_round_info))
        if round_idx == 2 or doc is task.docs[1]:
            return None, None, True, previous_output, None
        return [str(paths[2])], f"And {previous_output[0]}?", False, previous_output, "kept"

    adapter = task.give(made())
    found = adapter.generate_until_multi_round(
        [
            Instance("", (*request.args[:3], doc_to_text, *request.args[3:]))
            for request in task.requests()
        ]
    )
    one = [model.ask(doc["video"], doc["question"], max_new_tokens=3).text for doc in task.docs]
    two = model.ask(paths[2], f"And {one[0]}?", max_new_tokens=3).text
    assert found == [[one[0], two], [one[1]]]
    assert seen == [(1, 1, None), (1, 1, None), (2, 2, "kept")]


def test_the_likeliest_choice_has_the_smallest_value(made, model, paths):
    """lmms-eval takes the smallest; for output type loglikelihood it wants the logarithm."""
    task = Task(paths[:1], questions=1)
    adapter = task.give(made())
    [request] = task.requests()
    # the token that is likeliest without the model's repetition penalty is its first in any case
    said = model.ask(paths[0], request.args[0], max_new_tokens=1).text
    arguments = (request.args[0], *request.args[2:])
    choices = [
        Instance("loglikelihood", (arguments[0], choice, *arguments[1:]))
        for choice in (said, "\x07")
    ]
    (likely, yes), (unlikely, no) = texts(adapter.loglikelihood(choices))
    assert 0 < likely < unlikely
    assert (yes, no) == (True, False)
    target = Instance("loglikelihood", (arguments[0], lambda doc: said, *arguments[1:]))
    assert texts(adapter.loglikelihood([target])) == [(-likely, True)]
    gone = replace(target, arguments=(*target.args[:2], lambda doc: ["gone.mp4"], *target.args[3:]))
    with pytest.raises(RuntimeError, match=r"1 likelihoods are missing: gone.mp4: no such file"):
        adapter.loglikelihood([target, gone])
    with pytest.raises(ValueError, match="metric_list must be without acc_mutual_info"):
        adapter.loglikelihood([Instance("loglikelihood", ("", "A"))])


@pytest.mark.long
def test_two_devices_give_the_answers_of_one(adapter_class, made, paths, tmp_path):
    task = Task(paths)
    wanted = texts(task.give(made()).generate_until(task.requests()))
    # quotation marks stay in place in the value that lmms-eval hands over
    two = task.give(adapter_class(devices='"cpu,cpu"', resume=str(tmp_path)))
    assert texts(two.generate_until(task.requests())) == wanted
    two.clean()
    assert len(lines(tmp_path)) == 6


@pytest.mark.parametrize(
    ("options", "said"),
    [
        (
            {"colour": 3},
            "timeviper_fast: model_args must be of pretrained, sample, .*, got 'colour'",
        ),
        ({"batch_size": "auto"}, "batch_size must be a positive integer, got 'auto'"),
        ({"batch_size": 0}, "batch_size must be a positive integer, got 0"),
        ({"sample": "every:3"}, "policy"),
        ({"devices": "cpu,cpu"}, "device must be left out beside devices, got 'cpu'"),
        ({"device": None, "devices": "cpu,"}, "devices must be devices with commas between"),
        ({"resume": __file__}, "resume must be a directory or the name of a new one"),
    ],
)
def test_wrong_arguments_are_named_before_a_model_is_loaded(adapter_class, options, said):
    with pytest.raises(ValueError, match=said):
        adapter_class(pretrained="no-model", **{"device": "cpu", **options})


def test_several_processes_are_told_once(made, adapter_class, monkeypatch, tmp_path, capsys):
    monkeypatch.setenv("WORLD_SIZE", "2")
    for rank in ("0", "1"):
        monkeypatch.setenv("RANK", rank)
        adapter = made(resume=str(tmp_path))
        assert (adapter.rank, adapter.world_size) == (int(rank), 2)
        assert (tmp_path / f"answers-{rank}-of-2.jsonl").exists()
    assert capsys.readouterr().err.count("2 processes share the documents one by one") == 1
    with pytest.raises(ValueError, match="devices must be left out where several processes run"):
        adapter_class(devices="cpu,cpu")
