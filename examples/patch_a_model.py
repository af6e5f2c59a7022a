"""A Mamba-2 model of transformers on these ops, by one line.

The model is tiny and its weights are random. Its logits must not change.
"""

from __future__ import annotations

import torch
from transformers import Mamba2Config, Mamba2ForCausalLM

import tvkernels

torch.manual_seed(0)
config = Mamba2Config(
    vocab_size=100,
    hidden_size=64,
    num_hidden_layers=2,
    num_heads=8,
    head_dim=16,
    n_groups=2,
    state_size=16,
    chunk_size=32,
)
model = Mamba2ForCausalLM(config).eval()
tokens = torch.randint(100, (2, 50))

with torch.no_grad():
    before = model(tokens).logits
    with tvkernels.patch_transformers("mamba2") as patch:
        print(patch)
        after = model(tokens).logits

error = (after - before).abs().max()
print(f"the logits differ by at most {error:.1e}")
assert error < 1e-3
