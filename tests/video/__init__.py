"""Reading videos, images and arrays; choosing and preparing frames. A file of tests for each module.

common.py        pictures that carry their frame's number in black and white blocks
corpus.py        makers of small video files with every kind of flaw
test_corpus.py   tables of such files by name: frames and seconds exact, or one sentence
conftest.py      prints how many files the corpus checked
"""
