"""What the layers look at, and what happens when vision is cut off from the text.

groups.py     which group each token of a layer's input belongs to, its frame and its second
attention.py  group masses and chosen rows of an attention layer
mamba.py      the same of a Mamba-2 layer, signed and absolute
heads.py      sparsity, locality and reach of heads; sinks; scores between groups
rows.py       sums and maps of chosen rows, one block of rows at a time
view.py       the figures of one layer and of all layers
look.py       a prompt, or a question about a video that was read, through the model
labels.py     which rows of a pass are vision, which are blocked, and what a cache keeps of it
blocked_layers.py  attention, Mamba-2 and TransV whose blocked rows do not see vision
blocking.py   a view of a model in which text does not see vision from a layer on
curves.py     accuracy and likelihood of answers by first blocked layer, or by dropped tokens
figures.py    numbers of figures, their JSON files, and pictures beside them
plots.py      the pictures
ask.py        a question about a video file, or of a session
"""
