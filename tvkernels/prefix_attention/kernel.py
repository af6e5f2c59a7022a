"""Triton kernels of prefix attention: the launchers, and the order of the launches.

    out = softmax(scale * q [prefix key, tail key]^T) [prefix value, tail value]

Few rows read very many keys, so the keys are split over programs (attend_kernel.py). One launch
reads the prefix: the rows of all batch rows that share it lie in one tile, so that each key and
value is read from memory once. One launch reads the tails, to the lengths that lie on the device.
The third adds up the splits in their order.

The number of keys in a split depends on n and on the query heads of a key head alone, the choice of
a configuration on the head dimension alone. So the order of the sums depends neither on the batch
nor on the capacity. The grid depends on shapes alone: a CUDA graph may capture the launches.

8 rows of a decode step on 80,000 keys of 8 heads make 632 programs of 40 rows each; they write and
read 26 MB of float32 beside 328 MB of keys and values.
"""

import torch
import triton

from tvkernels.core.tl import accumulator, owned
from tvkernels.prefix_attention.attend_kernel import attend_kernel, join_kernel

__all__ = ["attend"]

# Keys of a split for each tile of rows that one batch row fills: with more rows, splits are longer,
# so that what they write stays small beside the keys. Constants, so that every GPU rounds alike.
KEYS = 1024
ROWS = 64


def splits(rows, keys):
    """Splits of so many keys, and the keys in each; `rows` are those of one batch row and key
    head."""
    each = KEYS * triton.cdiv(rows, ROWS)
    return triton.cdiv(keys, each), each


def attend(q, key, value, lengths, prefix_key, prefix_value, scale):
    """out, contiguous."""
    batch, n, nheads, headdim = q.shape
    out = q.new_empty(q.shape)
    if not out.numel():
        return out
    nkvheads, capacity = key.shape[2], key.shape[1]
    group, D = nheads // nkvheads, max(16, triton.next_power_of_2(headdim))
    prefix_splits = 0 if prefix_key is None else splits(n * group, prefix_key.shape[1])[0]
    tail_splits, each = splits(n * group, capacity)
    rows, every = batch * n * nheads, prefix_splits + tail_splits
    wide = torch.promote_types(q.dtype, torch.float32)
    part = q.new_empty(every, rows, headdim, dtype=wide)
    top, total = (q.new_empty(every, rows, dtype=wide) for _ in range(2))
    form = {"SCALE": scale, "GROUP": group, "HEADDIM": headdim, "D": D, "ACC": accumulator(q.dtype)}
    lengths = lengths.contiguous()

    def launch(k, v, ends, first, count):
        # batch rows that read the same keys
        sharing = batch // k.shape[0]

        def grid(meta):
            tile = owned(meta["OWN"], D, q.element_size())
            return (k.shape[0] * triton.cdiv(sharing * n * group, tile), nkvheads, count)

        attend_kernel[grid](
            q, k, v, ends, part, top, total, n, sharing, k.shape[1], each, first, rows,
            *q.stride(), *k.stride(), *v.stride(), **form,
        )  # fmt: skip

    if prefix_splits:
        launch(prefix_key, prefix_value, None, 0, prefix_splits)
    launch(key, value, lengths, prefix_splits, tail_splits)
    join_kernel[(rows,)](
        part, top, total, lengths, out, rows, prefix_splits, every, each, capacity, n * nheads,
        HEADDIM=headdim, D=D, ACC=form["ACC"],
    )  # fmt: skip
    return out
