"""Optimizer steps on the loss of two samples that are packed one behind the other.

The model is tiny, its weights and the frames are random. `timeviper-fast train` does this with
data, schedules and snapshots.
"""

from __future__ import annotations

import argparse

import torch

from timeviper_fast.dataset.sample import Sample
from timeviper_fast.training.loss import packed_forward
from timeviper_fast.training.optimizer import PARTS, freeze_all_but, parameter_groups
from timeviper_fast.training.packed import embed_packed
from timeviper_fast.training.start import initial_model

parser = argparse.ArgumentParser(description=__doc__)
parser.add_argument("--steps", type=int, default=4)
arguments = parser.parse_args()

torch.manual_seed(0)
model = initial_model("preset:tiny-trained").train()
size = model.config.vision.image_size
samples = [
    Sample(
        ({"role": "user", "content": question}, {"role": "assistant", "content": answer}),
        pixels=torch.randn(frames, 3, size, size),
    )
    for frames, question, answer in (
        (3, "What moves?", "A yellow square."),
        (2, "Does it come back?", "Yes."),
    )
]

freeze_all_but(model, ("projector", "llm", "transv"))
groups = parameter_groups(model, dict.fromkeys(PARTS, 1e-3), weight_decay=0.01)
optimizer = torch.optim.AdamW(groups)
for step in range(arguments.steps):
    packed = packed_forward(model.backbone, *embed_packed(model, samples))
    optimizer.zero_grad()
    packed.loss.backward()
    optimizer.step()
    right = (packed.logits.argmax(-1) == packed.targets).float().mean()
    print(f"step {step}: loss {packed.loss.item():.3f}, {right:.0%} of the tokens right")
