"""Comparisons with other projects' code.

README.md             what the peers' own tests exercise, and which test of ours does the same
test_listed.py        the tests that README.md names exist
test_nemotron_h.py    our backbone against transformers' Nemotron-H
own_tests.py          the peers' own test files on our stand-ins; a program, not a test
upstream_timeviper.py upstream's code on our stand-ins; a program, not a test
"""
