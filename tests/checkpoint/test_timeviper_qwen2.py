"""TimeViper with Qwen2.5: an LLM directory and a VLM state dict become one model, TransV included.

No recorded tensors exist for it. The oracle is a restatement of the rules on transformers' layers.
"""

from __future__ import annotations

import math
from pathlib import Path

import torch
import torch.nn.functional as F
from torch import Tensor, nn

from tests.checkpoint.parts import siglip_tower, timm_state
from tests.checkpoint.test_qwen2 import SHAPE, qwen2
from tests.tiny import SIGLIP
from timeviper_fast import TimeViper
from timeviper_fast.checkpoint.upstream import load_upstream, upstream_config
from timeviper_fast.config import CompressionStage, TimeViperConfig
from timeviper_fast.inference.generate import decode, prefill

WIDTH, HEADS, KV, SIZE = 32, 4, 2, 8
STAGES, BEFORE, VISION, AFTER = "uni_1_0.5-attn_2_0.2", 5, 40, 7


def transfer_weights(seed: int) -> dict[str, Tensor]:
    """One merge module of upstream's Qwen2: q, k and v have a bias, o has none."""
    made = torch.Generator().manual_seed(seed)
    shapes = {"q": (WIDTH, WIDTH), "k": (KV * SIZE, WIDTH), "v": (KV * SIZE, WIDTH)}
    state = {f"{n}_proj.weight": 0.3 * torch.randn(s, generator=made) for n, s in shapes.items()}
    state |= {f"{n}_proj.bias": 0.3 * torch.randn(s[0], generator=made) for n, s in shapes.items()}
    return state | {"o_proj.weight": 0.3 * torch.randn(WIDTH, WIDTH, generator=made)}


MERGE = [transfer_weights(seed) for seed in (1, 2)]
ALPHA = torch.tensor([0.7, -0.4])


def heads(x: Tensor) -> Tensor:
    """(n, heads * 8) -> (4, n, 8), keys and values repeated for their groups."""
    split = x.unflatten(-1, (-1, SIZE)).transpose(0, 1)
    return split.repeat_interleave(HEADS // len(split), 0)


def transferred(text: Tensor, dropped: Tensor, stage: int) -> Tensor:
    m = MERGE[stage]
    q, k, v = (
        heads(F.linear(x, m[f"{n}_proj.weight"], m[f"{n}_proj.bias"]))
        for n, x in (("q", text), ("k", dropped), ("v", dropped))
    )
    mixed = (q @ k.transpose(1, 2) / math.sqrt(SIZE)).softmax(-1) @ v
    out = F.linear(mixed.transpose(0, 1).flatten(1), m["o_proj.weight"])
    return text + torch.tanh(ALPHA[stage]) * out


def scores(layer: nn.Module, x: Tensor) -> Tensor:
    """Of the last token, on the residual stream as it is, without rotary positions."""
    attention = layer.self_attn
    q, k = heads(attention.q_proj(x[-1:])), heads(attention.k_proj(x))
    return (q @ k.transpose(1, 2) / math.sqrt(SIZE)).softmax(-1).mean(0)[0]


@torch.no_grad()
def restated(theirs: nn.Module, x: Tensor) -> Tensor:
    """Logits of the last position of (n, 32) embeddings."""
    present = VISION
    for number, layer in enumerate(theirs.model.layers):
        if number in (1, 2):
            vision = x[BEFORE : BEFORE + present]
            keep = int(VISION * (0.5 if number == 1 else 0.2))
            if number == 1:
                kept = torch.tensor([int(i * (present - 1) / (keep - 1)) for i in range(keep)])
            else:
                seen = scores(layer, x)[BEFORE : BEFORE + present]
                kept = seen.topk(keep).indices.sort().values
            dropped = vision[[i for i in range(present) if i not in kept.tolist()]]
            text = transferred(x[BEFORE + present :], dropped, number - 1)
            x, present = torch.cat([x[:BEFORE], vision[kept], text]), keep
        positions = torch.arange(len(x))[None]
        turn = theirs.model.rotary_emb(x[None], positions)
        out = layer(x[None], attention_mask=None, position_ids=positions, position_embeddings=turn)
        x = (out[0] if isinstance(out, tuple) else out)[0]
    return theirs.lm_head(theirs.model.norm(x[-1:]))[0]


def parts(path: Path, theirs: nn.Module) -> tuple[Path, Path]:
    """The LLM's directory and upstream's flat state dict of the whole model."""
    theirs.save_pretrained(path / "llm")
    made = torch.Generator().manual_seed(9)
    vision = SIGLIP.hidden_size
    state = {f"vision_backbone.featurizer.{k}": v for k, v in timm_state(siglip_tower()).items()}
    for name, shape in {"0": (WIDTH, vision), "2": (WIDTH, WIDTH)}.items():
        state[f"projector.projector.{name}.weight"] = torch.randn(shape, generator=made)
        state[f"projector.projector.{name}.bias"] = torch.randn(WIDTH, generator=made)
    state |= {f"llm_backbone.llm.{k}": v for k, v in theirs.state_dict().items()}
    for i, module in enumerate(MERGE):
        prefix = f"llm_backbone.llm.model.merge_modules.{i}."
        state |= {prefix + name: value for name, value in module.items()}
    state["llm_backbone.llm.model.alpha"] = ALPHA
    torch.save(state, path / "vlm.bin")
    return path / "llm", path / "vlm.bin"


def converted(path: Path, theirs: nn.Module) -> tuple[TimeViperConfig, TimeViper]:
    from dataclasses import replace

    llm, vlm = parts(path, theirs)
    config = replace(upstream_config(llm, arch="tome_mlp-4", pdrop=STAGES), vision=SIGLIP)
    return config, load_upstream(TimeViper, config, llm_dir=llm, vlm_file=vlm).eval()


@torch.no_grad()
def test_it_converts_and_answers_by_the_rules(tmp_path: Path) -> None:
    theirs = qwen2(rope_theta=1e6, num_hidden_layers=4)
    config, model = converted(tmp_path, theirs)
    assert (config.template, config.backbone.family) == ("qwen2", "qwen2")
    # upstream counts Qwen2's blocks, each of which is two layers here
    assert config.stages == (
        CompressionStage(2, "uniform", 0.5), CompressionStage(4, "attention", 0.2),
    )  # fmt: skip
    made = torch.Generator().manual_seed(4)
    before = torch.randint(0, SHAPE["vocab_size"], (1, BEFORE), generator=made)
    after = torch.randint(0, SHAPE["vocab_size"], (1, AFTER), generator=made)
    visual = torch.randn(10, 4, WIDTH, generator=made)
    embeddings, segment = model.embed(before, visual, after)
    read = prefill(model.backbone, embeddings, segment, max_new_tokens=3)
    want = restated(theirs, embeddings[0])
    torch.testing.assert_close(read.logits[0], want, rtol=0, atol=1e-4)
    assert [(s.before, s.after) for s in read.stages] == [(40, 20), (20, 8)]
    # in chunks, and from our own format, the answer is the same
    tokens = [int(t) for t in decode(model.backbone, read, max_new_tokens=3)]
    model.save_pretrained(tmp_path / "ours")
    again = TimeViper.from_pretrained(tmp_path / "ours", device="cpu")
    answer = again.generate(before, visual, after, max_new_tokens=3, chunk=16)
    assert answer.token_ids[0].tolist() == tokens
