"""The mixer's whole decode step, as the model runs it: convolution, scan and gate."""

from __future__ import annotations

from benchmarks.shapes.calls import mixer_step
from benchmarks.timing.bench import DECODE, Bench, Form
from benchmarks.timing.peers import mixer_step_of_two, with_A

STATES = ("conv_state", "ssm_state")
TWO_OPS = {"our two ops": Form(mixer_step_of_two, before=with_A)}
BENCHES = (Bench("decode step of the mixer", mixer_step, DECODE, 2, changes=STATES, forms=TWO_OPS),)
