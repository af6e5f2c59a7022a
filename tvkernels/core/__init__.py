"""What the ops share: backend choice, argument checks, launches of kernels.

    backend.py  which backend runs an op, and the error when none can
    checks.py   argument checks in one wording
    holds.py    who holds a change that several may hold at once
    plain.py    what references share
    library.py  launches of kernels as operators that PyTorch can trace
    table.py    which kernels there are, and which of them each public op launches
    tl.py       device functions that kernels share, and the dtypes of dots and sums
    tune.py     which launch configuration a kernel runs with

Only `tl.py` and `tune.py` import Triton. The table names the ops; no file here computes one.
"""
