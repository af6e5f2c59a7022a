"""A model of lmms-eval: its requests, asked with one session for each video.

manifest.py   what the entry point gives to lmms-eval
query.py      Query: one request as plain data, with its options and its video
told.py       the answers on disk, which the next run reads
asker.py      Asker: the questions of one video, answered with one model
workers.py    several devices: a process with a model for each
adapter.py    TimeViperLmms, the class that lmms-eval loads; only this file imports lmms-eval
"""
