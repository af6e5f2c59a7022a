"""What the kernels cost: timed on a GPU, counted without one, compiled for six targets, on the CPU.

timing/          python -m benchmarks.timing          each op beside its peers, on a GPU
counting/        python -m benchmarks.counting        bytes and FLOPs per token
machine_code/    python -m benchmarks.machine_code    registers, spills, matrix instructions
cpu/             python -m benchmarks.cpu             the references against transformers
ops.py           what is timed of each op
shapes.py        the calls of the 9B model, and the least that each must move
table.py         rows as a Markdown table
results/         what was measured
"""

from pathlib import Path

ROOT = Path(__file__).parents[1]
RESULTS = ROOT / "benchmarks/results"
