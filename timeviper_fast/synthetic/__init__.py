"""A seeded world of pictures and questions, to train and test a tiny TimeViper.

dice.py       random numbers as functions of a seed and a place
glyphs.py     the letters and digits
shapes.py     how much of each pixel a shape or a glyph covers
levels.py     LEVELS: how hard the world is
needle.py     Needle: a sign, link card or shape that a frame shows
pen.py        draws shapes, cards and glyphs on one picture
cards.py      plain shapes, the needles' cards, and cards that look like them
artefacts.py  softening, and the quantisation of DCT coefficients that codecs do
world.py      World: the frames of a seed, plain or with needles
wordings.py   the sentences that ask each task, and those that are held out
questions.py  scenes of needles, and questions with their answers
lessons.py    frames with labels for the vision encoder
vision.py     pretraining of the vision encoder
pool.py       frames that are encoded once
source.py     SyntheticSource: videos and questions as training samples
kinds.py      the world as a kind of source in a training run
tiny.py       train_tiny: trains a small model of the world from random weights
"""
