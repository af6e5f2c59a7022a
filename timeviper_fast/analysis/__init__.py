"""What the layers look at, and what happens when vision is cut off from the text.

labels.py    which rows of a pass are vision, which ones are blocked, and what a cache keeps of it
blocked_layers.py  attention, Mamba-2 and TransV whose blocked rows do not see vision
blocking.py  a view of a model in which text does not see vision from a layer on
curves.py    accuracy and likelihood of answers by the first blocked layer, or by dropped tokens
"""
