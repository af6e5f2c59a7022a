"""benchmarks/timing, a file of tests for each module, and test_command.py for its command line.

lab.py   a small op, and wrong providers of it
"""
