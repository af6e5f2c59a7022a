"""timeviper_fast/dataset, a file of tests for each module."""
