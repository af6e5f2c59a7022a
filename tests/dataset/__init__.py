"""Annotation files, sources of samples, mixtures, packs and the cache of features.

common.py        annotation files, short videos, and a source of numbers
"""
