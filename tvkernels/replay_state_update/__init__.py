"""Decode steps of Mamba-2's state space that write the state once per several tokens.

    op.py           the public ops: documentation, checks
    reference.py    plain PyTorch
    kernel.py       the steps on Triton

A step reads the state, replays the pending tokens on it in registers and goes on from there. The
state itself is written when no more tokens fit beside it; until then the pending tokens alone are.
"""

from tvkernels.replay_state_update.op import replay_flush, replay_state_update

__all__ = ["replay_flush", "replay_state_update"]
