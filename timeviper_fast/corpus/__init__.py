"""Many videos: each row is a video and its questions, and gives exactly one record.

rows.py      rows of a questions file
attempts.py  who works on what, and how often a process ended meanwhile
records.py   one file for each record, whole or not at all, and settings that all records share
answer.py    from a row to its record
run.py       all rows that have no record yet, and what a folder holds
library.py   a session or feature file for each video of a folder
collect.py   all records as one parquet or JSON lines file
cluster.py   the same on Ray: one actor, and one model, for each device
"""
