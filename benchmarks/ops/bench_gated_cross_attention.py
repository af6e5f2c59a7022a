"""TransV's transfer: the question's tokens read the dropped vision tokens."""

from __future__ import annotations

from benchmarks.shapes.calls import transfer
from benchmarks.timing.bench import Bench, Form
from benchmarks.timing.peers import sdpa_transfer

FORMS = {"torch SDPA": Form(sdpa_transfer)}
BENCHES = (Bench("transfer into the text", transfer, small=4, forms=FORMS),)
