"""Formulas of timeviper_fast/analysis against dense matrices, and laws of blocked models.

blocks.py  a small random model with vision in its prompt, and layers of a blocked view alone
dense.py   the whole matrices of attention and Mamba-2 in float64
"""
