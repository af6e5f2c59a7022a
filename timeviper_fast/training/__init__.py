"""Training on packed samples; no sample sees another.

config.py     a run in frozen dataclasses, read from TOML
trainer.py    a whole run: its phases, each continued from its last snapshot
phase.py      the optimizer steps of one phase
start.py      the model that a phase begins with, and its compression stages
kinds.py      sources of samples from the tables of a run
stream.py     the packs of each step, divided among the processes
packed.py     samples to one packed sequence and its loss, with gradients
loss.py       the next-token loss of packed samples
selection.py  the selection loss: attention stages should keep the needed frames
optimizer.py  which parameters learn, how fast, and the schedule
evaluate.py   loss and accuracy on samples that are not learnt
figures.py    sums of loss and accuracy over packs, and their means
metrics.py    metrics.jsonl and TensorBoard
snapshot.py   a run's state on disk
parallel.py   several processes, the weights divided among them
"""
