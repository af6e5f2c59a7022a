"""Counts in Prometheus' text form."""

from __future__ import annotations

import re
from collections import Counter

from tests.serve.common import job
from timeviper_fast.serve.metrics import metrics_text
from timeviper_fast.serve.worker import Places, Worker


def test_every_count_has_help_type_and_value(model, media):
    workers, places = [Worker(model, 10**9), Worker(model, 10**9)], Places(4)
    places.take()
    for worker in workers:
        worker.submit(job(media, "a.mp4"))
        worker.counts["answers"] = 3
    text = metrics_text(workers, places, Counter({200: 5, 404: 1}))
    found = dict(re.findall(r"^timeviper_(\S+) (\d+)$", text, re.M))
    assert {name: found[name] for name in ("requests_now", "waiting", "answers_total")} == {
        "requests_now": "1",
        "waiting": "2",
        "answers_total": "6",
    }
    assert (found['requests_total{code="200"}'], found['requests_total{code="404"}']) == ("5", "1")
    helps, kinds = (re.findall(rf"^# {word} (\S+) ", text, re.M) for word in ("HELP", "TYPE"))
    assert helps == kinds
    assert {f"timeviper_{name.partition('{')[0]}" for name in found} == set(helps)
    assert text.endswith("\n")


def test_before_the_first_response_none_is_counted(model):
    assert "requests_total" not in metrics_text([Worker(model, 1)], Places(1), Counter())
