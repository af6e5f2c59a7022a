"""The ops without a model: a prefill of the scan, then decode steps that continue it."""

from __future__ import annotations

import torch

from tvkernels import explain, mamba_chunk_scan_combined, selective_state_update

torch.manual_seed(0)
batch, seqlen, nheads, headdim, ngroups, d_state = 1, 100, 8, 32, 2, 64

x = torch.randn(batch, seqlen, nheads, headdim)
dt = torch.rand(batch, seqlen, nheads)
A, D = -torch.rand(nheads), torch.ones(nheads)
B, C = torch.randn(2, batch, seqlen, ngroups, d_state)

# the whole sequence at once
whole = mamba_chunk_scan_combined(x, dt, A, B, C, chunk_size=64, D=D)

# all but the last ten tokens at once, then token by token; the state is written in place
cut = seqlen - 10
out, state = mamba_chunk_scan_combined(
    x[:, :cut], dt[:, :cut], A, B[:, :cut], C[:, :cut], chunk_size=64, D=D, return_final_states=True
)
# a decode step takes dt, A and D per channel: expanded views, no copies
per_channel = (nheads, headdim)
steps = [
    selective_state_update(
        state,
        x[:, t],
        dt[:, t, :, None].expand(batch, *per_channel),
        A[:, None, None].expand(*per_channel, d_state),
        B[:, t],
        C[:, t],
        D=D[:, None].expand(per_channel),
    )
    for t in range(cut, seqlen)
]

error = (torch.cat([out, torch.stack(steps, dim=1)], dim=1) - whole).abs().max()
print(f"prefill and steps differ from one pass by at most {error:.1e}")
assert error < 1e-3

for row in explain():
    if row.op in ("mamba_chunk_scan_combined", "selective_state_update"):
        print(f"{row.op} on {row.device}: {row.backend} ({row.reason})")
