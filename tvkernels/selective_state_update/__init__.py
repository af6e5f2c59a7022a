"""One decode step of the selective state space, in place on the state."""

from tvkernels.selective_state_update.op import selective_state_update

__all__ = ["selective_state_update"]
