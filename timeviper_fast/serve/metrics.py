"""Counts in Prometheus' text form."""

from __future__ import annotations

from collections import Counter
from collections.abc import Sequence

from timeviper_fast.serve.sessions import Sessions
from timeviper_fast.serve.worker import Places, Worker

__all__ = ["metrics_text"]


def metrics_text(workers: Sequence[Worker], places: Places, statuses: Counter[int]) -> str:
    """All counts, for `/metrics`.

    Args:
        statuses: requests by the HTTP status of their response.
    """
    counts: Counter[str] = Counter()
    for worker in workers:
        counts.update(worker.counts)
    kept = [worker.sessions for worker in workers]
    by_status = "".join(f'{{code="{code}"}} {n}\n' for code, n in sorted(statuses.items()))
    rows: tuple[tuple[str, str, str, int], ...] = (
        ("requests_now", "gauge", "Requests that wait or are answered.", places.taken),
        ("waiting", "gauge", "Questions that wait.", sum(w.waiting for w in workers)),
        ("sessions", "gauge", "Videos that are kept.", sum(map(len, kept))),
        ("session_bytes", "gauge", "Bytes of these.", sum(s.nbytes for s in kept)),
        ("session_hits_total", "counter", "Turns of a video that was kept.", _sum(kept, "hits")),
        ("session_misses_total", "counter", "Turns of one that was not.", _sum(kept, "misses")),
        ("videos_total", "counter", "Videos that were read.", counts["videos"]),
        ("answers_total", "counter", "Questions that were answered.", counts["answers"]),
        ("batches_total", "counter", "Batches of these.", counts["batches"]),
        ("tokens_total", "counter", "Tokens of all answers.", counts["tokens"]),
        ("faults_total", "counter", "Videos and questions that failed.", counts["faults"]),
        (
            "left_total",
            "counter",
            "Questions whose client left or waited too long.",
            counts["left"],
        ),
    )
    text = "".join(_metric(name, kind, told, f" {value}\n") for name, kind, told, value in rows)
    if not statuses:
        return text
    return text + _metric("requests_total", "counter", "Responses by status.", by_status)


def _sum(kept: Sequence[Sessions], name: str) -> int:
    return sum(getattr(sessions, name) for sessions in kept)


def _metric(name: str, kind: str, told: str, values: str) -> str:
    full = f"timeviper_{name}"
    lines = "".join(f"{full}{line}\n" for line in values.splitlines())
    return f"# HELP {full} {told}\n# TYPE {full} {kind}\n{lines}"
