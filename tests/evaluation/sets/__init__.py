"""Question sets: readers, rules, scores, runs.

common.py    small sets of each format, with invented rows.
"""
