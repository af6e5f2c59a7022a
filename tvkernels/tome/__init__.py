"""Token merging (ToMe): similar tokens are merged into their mean, down to a fixed count.

    op.py            the public op: documentation, checks, autograd
    reference.py     the same in plain PyTorch
    kernel.py        launches, the means of the slots, the backward
    match_kernel.py  the matching: all rounds, one group of tokens per program
    round_kernel.py  the first rounds of a few large groups, one launch per phase
    device.py        device functions of the matching: the phases of a round

The rounds run on the narrow metric; the wide tokens are read once more, for the means. In a round
each even-numbered token of a group finds the most similar odd-numbered one, and the best pairs
merge. In the kernels a row is a token of the metric, a slot a token of the result.
"""

from tvkernels.tome.op import ToMeResult, tome_merge

__all__ = ["ToMeResult", "tome_merge"]
