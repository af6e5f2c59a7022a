"""Reading, writing and converting checkpoints.

common.py         names that a part expects
parts.py          small checkpoints of every origin, and a module with the model's three parts
test_stages.py    upstream's specifier: its words for stages, transfer and projector
test_exports.py   what the modules of the folder import of each other
"""
