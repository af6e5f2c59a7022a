"""From a question to its answer, a file of tests for each module of timeviper_fast/inference.

common.py      a small random language model with two stages, and prompts for it
one_go.py      a prompt in one go through the layers, and a video that is read once
session_cost.py   what opening a video, questions and decode steps cost: seconds, bytes, FLOPs
conftest.py    the tiny model, and a short video to ask it about
opening.py     a random LLM that reads a video and a question in two passes, counted
test_day.py    hours of stream
test_hour.py   an hour of video from the file to the answer, in bounded memory
"""
