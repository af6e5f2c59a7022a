"""Our references on a CPU beside other people's PyTorch: python -m benchmarks.cpu CASE.

scan.py conv.py dropin.py tome.py resize.py   the cases: inputs, and both forms of the work
sessions.py                                   questions of one video against opening it for each
measure.py                                    times, memory and differences of two forms
"""
