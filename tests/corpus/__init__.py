"""Rows, attempts and records of many videos; runs that are killed and go on.

common.py  small videos and their questions
"""
