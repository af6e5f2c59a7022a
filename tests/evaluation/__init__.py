"""Tests of needles in a haystack.

common.py  a random model, and a haystack of random features
"""
