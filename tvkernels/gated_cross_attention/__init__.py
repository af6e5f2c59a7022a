"""Transfer of dropped tokens into the text: `gated_cross_attention`.

    op.py               the public op: documentation, checks, autograd
    reference.py        the same in plain PyTorch
    kernel.py           launches, how keys are split
    split_kernel.py     attention over one split of the keys, then the sum of the splits
    gate_kernel.py      products with the output projection, the gate, the text
    backward_kernel.py  gradients of q, and of k and v
    device.py           device functions that these share

The forward stores what was read and two numbers for each row; the backward recomputes the weights.
"""

from tvkernels.gated_cross_attention.op import gated_cross_attention

__all__ = ["gated_cross_attention"]
