"""`python -m timeviper_fast` is the command line."""

from timeviper_fast.cli import main

main()
