"""timeviper_fast/model, a file of tests for each module, and what concerns several of them:

common.py            runs of vision tokens, and a random model with three stages
encoders.py          shapes, weights and pixels of the recorded clip encoders
test_interleaved.py  text between frames: recorded stages, batches, packed samples
test_no_waiting.py   no value is read from the device, none is sent there
test_on_triton.py    the tiny model on every kernel
"""
