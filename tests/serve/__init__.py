"""The server: requests, videos, turns, streams, and what it refuses.

common.py    a server in a thread, small videos and requests
conftest.py  a model and a folder of videos
"""
