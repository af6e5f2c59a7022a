"""Every op beside its peers on a GPU: python -m benchmarks.timing.

bench.py        what a benchmark is: shapes, cases, providers
measure.py      one case: who is right, how long each takes, ratios and rows of figures
clock.py        samples on the device: CUDA graphs, a flushed cache, medians
correctness.py  a provider's results against the reference in float64, on a sample
peers.py        mamba-ssm, causal-conv1d, torch.compile, other formulations in PyTorch
machine.py      the GPU, its versions and its clock
store.py        the JSON and the table of each GPU in results/
"""
