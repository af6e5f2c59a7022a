"""What opening a video, a question, eight questions and a decode step cost: seconds, bytes, FLOPs.

    python -m tests.inference.session_cost 9b --frames 256 2000 10000 --device cuda

Random weights and random vision tokens, so that every size of model and video can be measured.
"""

from __future__ import annotations

import argparse
import time
from collections.abc import Callable
from dataclasses import replace
from typing import Any

import torch

from tests.inference.one_go import read
from timeviper_fast.config import TimeViperConfig
from timeviper_fast.inference.generate import decode
from timeviper_fast.inference.work import open_work, question_work
from timeviper_fast.model.initialize import init_weights
from timeviper_fast.model.nemotron_h import HybridBackbone
from timeviper_fast.presets import preset

BEFORE, TEXT, ANSWER, CHUNK = 20, 60, 16, 8192
_9B = preset("nemotron-nano-9b-v2")
_WIDTHS = {
    "hidden_size": 128, "intermediate_size": 448, "num_attention_heads": 4, "head_dim": 32,
    "num_key_value_heads": 1, "mamba_num_heads": 8, "mamba_head_dim": 32, "n_groups": 2,
    "ssm_state_size": 32, "vocab_size": 320,
}  # fmt: skip
# the 9B model's layers and stages at width 128, the model in the package, and the 9B model
MODELS = {
    "small": replace(_9B, backbone=replace(_9B.backbone, **_WIDTHS)),
    "tiny": preset("tiny-trained"),
    "9b": _9B,
}


@torch.no_grad()
def measure(
    config: TimeViperConfig, frames: int, repeats: int, device: str = "cpu"
) -> dict[str, Any]:
    """One length of video; asking one by one is opening anew for each question, as `ask` does."""
    dtype = torch.float32 if device == "cpu" else torch.bfloat16
    with torch.device(device):
        backbone = HybridBackbone(config.backbone, config.stages).to(dtype).eval()
        init_weights(backbone, seed=0)
    like = backbone.embeddings.weight
    sizes = (BEFORE, config.visual_tokens(frames), *[TEXT] * 8)
    front, vision, *texts = (like.new_empty(1, n, like.shape[1]).normal_() for n in sizes)
    opened = {"chunk": CHUNK, "pushes": 256 * config.tokens_per_frame}
    opening, video = best(lambda: read(backbone, front, vision, **opened), repeats)
    new = {"max_new_tokens": ANSWER}
    question, alone = best(lambda: video.read(texts[:1], **new), repeats)
    eight, together = best(lambda: video.read(texts, **new), repeats)
    step, of_eight = (
        best(lambda one=one: list(decode(backbone, one, **new)), 1)[0] / (ANSWER - 1)
        for one in (alone, together)
    )
    first = open_work(config, BEFORE, frames).total
    flops = sum(work.total for work in question_work(config, BEFORE, frames, TEXT))
    row = {
        "frames": frames,
        "open_s": opening,
        "question_s": question,
        "second_over_first": question / (opening + question),
        "second_over_first_flops": flops / (first + flops),
        "eight_s": eight,
        "one_by_one_over_eight": 8 * (opening + question) / (opening + eight),
        "step_ms": 1e3 * step,
        "step_of_eight_ms": 1e3 * of_eight,
        "session_mb": video.nbytes_on(like.device) / 1e6,
    }
    if like.is_cuda:
        row["peak_gb"] = torch.cuda.max_memory_allocated() / 1e9
    return {name: float(f"{value:.4g}") for name, value in row.items()}


def best(call: Callable[[], Any], repeats: int) -> tuple[float, Any]:
    """The least seconds of some runs, and the last result."""
    least = float("inf")
    for _ in range(repeats):
        begin, result = time.perf_counter(), call()
        if torch.cuda.is_available():
            torch.cuda.synchronize()
        least = min(least, time.perf_counter() - begin)
    return least, result


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__.splitlines()[0])
    parser.add_argument("model", choices=MODELS)
    parser.add_argument("--frames", type=int, nargs="+", default=[500, 2000])
    parser.add_argument("--device", default="cpu")
    parser.add_argument("--repeats", type=int, default=3)
    given = parser.parse_args()
    for frames in given.frames:
        print(measure(MODELS[given.model], frames, given.repeats, given.device), flush=True)


if __name__ == "__main__":
    main()
