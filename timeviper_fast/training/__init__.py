"""Training on packed samples.

    loss.py  the next-token loss of samples packed one behind the other

No sample sees another.
"""
