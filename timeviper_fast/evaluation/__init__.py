"""How well a model does: needles in a haystack, and published question sets.

score.py      counts with intervals
alike.py      whether the frames of a haystack differ
trial.py      Trial: one video and its questions; Haystack: where they come from
synthetic.py  haystacks of the seeded world
film.py       haystacks of films, needles of images
forms.py      the needle tests of V-NIAH and VideoChat-Flash
controls.py   control experiments: the same questions with one thing changed
evidence_score.py  whether evidence lies where the truth is
rows.py       the answers on disk
needle.py     run_needles: plan -> videos -> questions -> rows
held_out.py   wordings, frames and lengths that training has not seen
figures.py    scores, heat maps, JSON
curves.py     curves of the run that trains the tiny model
sets/         published question sets: read, asked, scored
lmms/         the model of lmms-eval
"""
