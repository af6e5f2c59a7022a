"""Tests of timeviper_fast/training: losses, optimizer, whole runs, several processes.

common.py       a tiny model, samples that fit it, and a run on a source of pictures
conftest.py     the tiny model as a preset
run_divided.py  a process of a run that is divided among several
"""
