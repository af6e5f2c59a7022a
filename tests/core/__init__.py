"""tvkernels/core, a file of tests for each module, and Triton's interpreter.

conftest.py          tensors on a CPU and on a GPU that is not there
test_backend.py      the backend of a tensor; what `explain` and errors say of it
test_use_backend.py  the backend that `use_backend` forces: blocks, threads, tasks, compiled code
test_interpreter.py  tests/interpreter.py: arithmetic, rounding, masked lanes, fences
"""
