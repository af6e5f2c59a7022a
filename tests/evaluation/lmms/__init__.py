"""The adapter of lmms-eval, against a stand-in for the parts of it that it uses.

common.py    the stand-in, and tasks over small videos
conftest.py  the class, the embedded model, videos
"""
