"""`python -m benchmarks.counting`: see cost.py."""

from benchmarks.counting.cost import main

main()
