"""Training data: from annotation files to samples that fill packs of one length.

sample.py        the types that every source of samples and the trainer share
randomness.py    seeds, and permutations without a list
files.py         files written whole, and keys of media files
rows.py          LLaVA-style JSON and JSONL, row by row
media.py         when each frame of a video is shown
kinds.py         what the rows of a kind of source must have, and questions for captions
check.py         everything that is wrong with an annotation file
frames.py        which frames of a video a sample has
features.py      merged features of a frozen vision encoder, kept on disk
conversation.py  the rows of an annotation file as samples
joined.py        long samples made of the clips of several rows
mixture.py       sources mixed by weight, in an order that is a function of a seed
packing.py       packs of samples, first fit by the tokens that reach the layers
loader.py        packs decoded in worker processes
"""
