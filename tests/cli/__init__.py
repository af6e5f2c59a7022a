"""The command line, a file of tests for each module of timeviper_fast/cli.

common.py     the check that an error is one line, and an edited model
conftest.py   a directory with a model and a video, and a way to run a command
"""
