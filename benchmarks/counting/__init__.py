"""Bytes, FLOPs and special functions per token, without a GPU: python -m benchmarks.counting.

cases.py        what is counted, at which sizes
cost.py         a line through counts at small sizes; the rows of the table
counter.py      counts launches in Triton's interpreter, and PyTorch operations
cache_model.py  the counted accesses through an LRU cache
"""
