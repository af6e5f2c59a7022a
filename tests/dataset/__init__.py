"""timeviper_fast/dataset, a file of tests for each module.

common.py   annotation files and short videos
"""
