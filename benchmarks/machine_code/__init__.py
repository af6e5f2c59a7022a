"""The machine code of every kernel, compiled and read without a GPU.

cases -> launches -> builds -> gate: run the public ops on meta tensors, note every launch, compile
each for every target in a process of its own, read the machine code, and say what is wrong with it.
"""
