"""Tests of timeviper_fast/synthetic: the world, its questions, and the encoder's pretraining.

common.py  a reader of signs that shares no code with the model, and distances between frames
"""
