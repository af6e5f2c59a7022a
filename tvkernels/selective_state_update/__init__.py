"""One decode step of the selective state space, in place on the state.

    op.py           the public op: documentation, checks
    reference.py    plain PyTorch
    kernel.py       the step on Triton

The state is read and written once; everything else is small beside it.
"""

from tvkernels.selective_state_update.op import selective_state_update

__all__ = ["selective_state_update"]
