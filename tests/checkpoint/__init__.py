"""Reading, writing and converting checkpoints.

common.py   names that a part expects
parts.py    small checkpoints of every origin, and a module with the model's three parts
"""
