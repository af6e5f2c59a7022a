"""Compare Nemotron-Nano-12B-v2-VL here and in transformers, on the released files.

    python examples/compare_nemotron_vl.py DIRECTORY

DIRECTORY holds the files as they lie on the hub. Both models see the same frames, without pruning:
the embeddings, the logits of the prompt and the greedy tokens are compared. Transformers has no
class for this model; its class for Nemotron-3-Nano-Omni (transformers 5.19 and later) reads the
weights with a config that is made here, and takes the frames as images. The models are loaded one
after the other: in float32 each needs 53 GB, in bfloat16 26 GB.

The program ends with 1 if anything differs. In 16 bits a token may differ by rounding alone.
"""

from __future__ import annotations

import argparse
import gc
import json
import sys
from pathlib import Path
from typing import Any, NamedTuple

import numpy as np
import torch

from timeviper_fast import TimeViper
from timeviper_fast.demo import DemoVideo
from timeviper_fast.inference.generate import decode, prefill
from timeviper_fast.inference.labelled import Labeller
from timeviper_fast.inference.request import Opening, Question, question_prompt
from timeviper_fast.video import open_video
from timeviper_fast.video.preprocess import resize_normalize

# relative to the largest value
TOLERANCE = {"float32": 2e-4, "bfloat16": 5e-2, "float16": 1e-2}


class Run(NamedTuple):
    """What one of the two models computes.

    Attributes:
        embeddings: (seqlen, d_model), what enters the language model.
        logits: (seqlen, vocab), of the whole prompt.
        tokens: of the answer.
    """

    embeddings: torch.Tensor
    logits: torch.Tensor
    tokens: list[int]


class Asked(NamedTuple):
    """What both models are given: prompt ids with one image id per vision token, and pixels."""

    ids: torch.Tensor
    image: int
    pixels: torch.Tensor
    new_tokens: int


def main() -> int:
    given = arguments()
    directory, dtype = Path(given.directory), getattr(torch, given.dtype)
    ours, config, asked = here(directory, dtype, given)
    gc.collect()
    theirs = in_transformers(directory, dtype, given.device, config, asked)
    tolerance = TOLERANCE[given.dtype] if given.tolerance is None else given.tolerance
    return report(ours, theirs, tolerance)


def arguments() -> argparse.Namespace:
    parser = argparse.ArgumentParser(description=__doc__.splitlines()[0])
    parser.add_argument("directory", help="the released files")
    parser.add_argument("--video", help="a video file; default: frames of the synthetic world")
    parser.add_argument("--frames", type=int, default=8)
    parser.add_argument("--question", default="What happens in this video?")
    parser.add_argument("--max-new-tokens", type=int, default=16)
    parser.add_argument("--dtype", choices=[*TOLERANCE], default="float32")
    parser.add_argument("--device", default="cuda" if torch.cuda.is_available() else "cpu")
    parser.add_argument("--tolerance", type=float, help="of embeddings and logits")
    return parser.parse_args()


def frames_of(video: str | None, count: int) -> tuple[torch.Tensor, list[float]]:
    """(frames, height, width, 3) uint8, and the second of each."""
    if video is None:
        frames = DemoVideo(seconds=max(count, 32)).frames()[:count]
        return torch.from_numpy(frames), [float(i) for i in range(count)]
    with open_video(video) as source:
        sampled = source.sample(f"uniform:{count}")
        pictures = [sampled[i] for i in range(len(sampled))]
        return torch.from_numpy(np.stack(pictures)), list(sampled.seconds)


@torch.no_grad()
def here(
    directory: Path, dtype: torch.dtype, given: argparse.Namespace
) -> tuple[Run, dict[str, Any], Asked]:
    """This project's run, transformers' config, and what was asked."""
    model = TimeViper.from_pretrained(directory, device=given.device, dtype=dtype, stages="none")
    if model.config.vision.clip_frames > 1:
        sys.exit(f"{directory}: a model whose encoder takes frames one by one is compared")
    rgb, seconds = frames_of(given.video, given.frames)
    vision = model.config.vision
    look = (vision.image_size, vision.image_mean, vision.image_std, vision.resize)
    pixels = resize_normalize(rgb, *look).to(given.device, dtype)
    question = Question(given.question, max_new_tokens=given.max_new_tokens)
    prompt = question_prompt(
        model.config, model.tokenizer, Opening(), question, len(rgb), seconds[-1], False
    )
    labels = Labeller(model.config, model.tokenizer)
    prompt = prompt.labelled(labels.openings(torch.tensor(seconds, dtype=torch.float64)))

    def row(ids: list[int]) -> torch.Tensor:
        return torch.tensor([ids], device=given.device)

    between = [row(ids) for ids in prompt.between]
    visual = model.encode(pixels)
    embeddings, segment = model.embed(row(prompt.before), visual, row(prompt.after), between)
    hidden, _ = model.backbone(embeddings, (segment,))
    read = prefill(model.backbone, embeddings, segment, max_new_tokens=given.max_new_tokens)
    tokens = torch.cat([*decode(model.backbone, read, max_new_tokens=given.max_new_tokens)])
    run = Run(embeddings[0].cpu(), model.backbone.logits(hidden)[0].cpu(), tokens.tolist())
    image = model.tokenizer.convert_tokens_to_ids("<image>")
    run_of_frame = [image] * visual.shape[1]
    texts = [*prompt.between, prompt.after]
    ids = [*prompt.before, *(i for text in texts for i in [*run_of_frame, *text])]
    asked = Asked(torch.tensor([ids]), image, pixels.cpu(), given.max_new_tokens)
    return run, transformers_config(directory, model, image), asked


def transformers_config(directory: Path, model: TimeViper, image: int) -> dict[str, Any]:
    """The keys of transformers' omni config for a 12B: a dense LLM, an encoder without tubelets.

    The class asks for tubelets of two frames at least; nothing here passes through their weights.
    """
    told = json.loads((directory / "config.json").read_text(encoding="utf-8"))
    # transformers does not read time_step_limit, and refuses some of its spellings
    left_out = ("architectures", "auto_map", "time_step_limit")
    llm = {key: value for key, value in told["llm_config"].items() if key not in left_out}
    vision = model.config.vision
    return {
        "text_config": llm | {"vocab_size": model.config.backbone.vocab_size},
        "vision_config": {
            "model_type": "radio",
            "hidden_size": vision.hidden_size,
            "num_hidden_layers": vision.num_hidden_layers,
            "num_attention_heads": vision.num_attention_heads,
            "mlp_ratio": vision.intermediate_size / vision.hidden_size,
            "patch_size": vision.patch_size,
            "image_size": vision.image_size,
            "max_img_size": vision.position_side * vision.patch_size,
            "num_cls_tokens": vision.register_tokens,
            "num_registers": 0,
            "summary_idxs": summary_indices(directory),
            "video_temporal_patch_size": 2,
        },
        "vision_hidden_size": vision.hidden_size,
        "projector_hidden_size": model.config.projector.inner_size,
        "video_temporal_patch_size": 2,
        "image_token_id": image,
    }


def summary_indices(directory: Path) -> list[int]:
    """The stored indices of the encoder's summary, which nothing here reads: transformers loads
    only as many as its config has."""
    from safetensors import safe_open

    name = "vision_model.radio_model.summary_idxs"
    for path in sorted(directory.glob("*.safetensors")):
        with safe_open(path, "pt") as file:
            if name in file.keys():  # noqa: SIM118, a file is no mapping
                return file.get_tensor(name).tolist()
    return [0, 1]


@torch.no_grad()
def in_transformers(
    directory: Path, dtype: torch.dtype, device: str, config: dict[str, Any], asked: Asked
) -> Run:
    """Transformers' run, with the clamp of time steps off that the checkpoint does not ask for."""
    from transformers import NemotronH_Omni_Reasoning_V3, NemotronH_Omni_Reasoning_V3_Config

    made = NemotronH_Omni_Reasoning_V3_Config(**config)
    model = NemotronH_Omni_Reasoning_V3.from_pretrained(directory, config=made, dtype=dtype)
    model = model.to(device).eval()
    for module in model.modules():
        if hasattr(module, "time_step_limit"):
            module.time_step_limit = (0.0, float("inf"))
    seen: list[torch.Tensor] = []

    def note(module: torch.nn.Module, args: Any, given: dict[str, Any]) -> None:
        seen.append(given["inputs_embeds"][0].cpu())

    hook = model.language_model.register_forward_pre_hook(note, with_kwargs=True)
    inputs = {"input_ids": asked.ids.to(device), **patches(asked.pixels, made, device)}
    logits = model(**inputs, use_cache=False).logits[0].float().cpu()
    hook.remove()
    ends = {"eos_token_id": None, "pad_token_id": 0}
    tokens = model.generate(**inputs, max_new_tokens=asked.new_tokens, do_sample=False, **ends)
    return Run(seen[0], logits, tokens[0, asked.ids.shape[1] :].tolist())


def patches(pixels: torch.Tensor, config: Any, device: str) -> dict[str, torch.Tensor]:
    """Every frame as an image: its patches (n, 3 * side * side), channel by channel, and grid."""
    side = config.vision_config.patch_size
    frames, channels, height, width = pixels.shape
    rows, columns = height // side, width // side
    cut = pixels.reshape(frames, channels, rows, side, columns, side)
    flat = cut.permute(0, 2, 4, 1, 3, 5).reshape(-1, channels * side * side)
    grid = torch.tensor([[rows, columns]] * frames)
    return {"pixel_values": flat.to(device), "image_grid_hw": grid.to(device)}


def report(ours: Run, theirs: Run, tolerance: float) -> int:
    """Print the table; 1 if anything differs, else 0."""
    rows = []
    for name in ("embeddings", "logits"):
        one, other = getattr(ours, name).double(), getattr(theirs, name).double()
        same = one.shape == other.shape
        error = float((one - other).abs().max() / other.abs().max()) if same else float("inf")
        rows.append((name, f"{tuple(one.shape)}", f"{error:.1e}", error <= tolerance))
    equal = sum(a == b for a, b in zip(ours.tokens, theirs.tokens))
    count = len(theirs.tokens)
    same = ours.tokens == theirs.tokens
    rows.append(("greedy tokens", f"{count}", f"{count - equal} differ", same))
    print("| | size | difference | |\n|---|---|---|---|")
    for *cells, holds in rows:
        print("|", " | ".join(cells), "|", "equal" if holds else "DIFFERS", "|")
    print(f"embeddings and logits relative to the largest value, at most {tolerance:g}")
    return 0 if all(holds for *_, holds in rows) else 1


if __name__ == "__main__":
    sys.exit(main())
