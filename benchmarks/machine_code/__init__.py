"""The machine code of every kernel, without a GPU: python -m benchmarks.machine_code.

cases.py        calls of the public ops on meta tensors: the 9B model's layers and others
launches.py     every kernel launch of these calls, as Triton would specialise it
builds.py       compiles each for every target, in a process of its own
targets.py      the GPUs that are compiled for, and their limits
disassembly.py  registers, spills, loops and matrix instructions of a build
gate.py         the rules that a build must keep
table.py        the table of all builds, and the page results/compiled.md
"""
