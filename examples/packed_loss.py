"""The training loss of two samples that are packed one behind the other, and some steps on it.

The model is tiny, its weights and the frames are random.
"""

from __future__ import annotations

import argparse

import torch

from timeviper_fast.demo import tiny_model
from timeviper_fast.text.prompt import training_prompt
from timeviper_fast.training.loss import packed_loss, training_segment

parser = argparse.ArgumentParser(description=__doc__)
parser.add_argument("--steps", type=int, default=4)
arguments = parser.parse_args()

torch.manual_seed(0)
model = tiny_model().train()
size = model.config.vision.image_size
samples = [
    (torch.randn(3, 3, size, size), "What moves?", "A yellow square."),
    (torch.randn(2, 3, size, size), "Does it come back?", "Yes."),
]


def packed() -> tuple:
    """Embeddings, segments and labels of all samples, one behind the other."""
    embeddings, segments, labels = [], [], []
    for pixels, question, answer in samples:
        turns = [
            {"role": "user", "content": question},
            {"role": "assistant", "content": answer},
        ]
        prompt = training_prompt(model.tokenizer, turns, template=model.config.template)
        before, after = torch.tensor([prompt.before]), torch.tensor([prompt.after])
        embedded, segment = model.embed(before, model.encode(pixels), after)
        own = torch.tensor(prompt.labels(segment.span.length))
        embeddings.append(embedded)
        segments.append(training_segment(own, segment.span))
        labels.append(own)
    return torch.cat(embeddings, dim=1), tuple(segments), torch.cat(labels)


optimizer = torch.optim.AdamW(model.backbone.parameters(), lr=1e-3)
for step in range(arguments.steps):
    loss = packed_loss(model.backbone, *packed())
    optimizer.zero_grad()
    loss.backward()
    optimizer.step()
    print(f"step {step}: loss {loss.item():.3f}")
