"""Reading, writing and converting checkpoints.

common.py         names that a part expects
parts.py          small checkpoints of every origin, and a module with the model's three parts
hub.py            a VideoChat-Flash directory in the layout of the Hub
test_released.py  such directories as they are published
test_timeviper_qwen2.py  TimeViper on Qwen2.5, of its parts
test_stages.py    upstream's specifier: its words for stages, transfer and projector
test_exports.py   what the modules of the folder import of each other
"""
