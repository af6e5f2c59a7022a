"""Bytes, FLOPs and special functions per token of our kernels and the peers': no GPU needed.

    python -m benchmarks.counting [--only "gated norm"] [--counted 8 16 24]

A run over all cases goes to results/counted.md; with --only or --counted nothing is written.
"""

from __future__ import annotations

import argparse
import os
from collections.abc import Sequence
from importlib.metadata import version
from importlib.util import find_spec

# @triton.jit reads this when it decorates, so it is set before anything imports Triton
os.environ["TRITON_INTERPRET"] = "1"

from benchmarks import RESULTS
from benchmarks.counting.cost import lines

HEADING = """# Counted per token

`python -m benchmarks.counting`: no GPU ran; nothing here is a time. What the columns
mean, and what they do not: `benchmarks/README.md`. Per token of a prefill or of its
backward pass, or per sequence of a decode step; kB is 1000 bytes. Counted with
{}.
"""


def main(arguments: Sequence[str] | None = None) -> None:
    parser = argparse.ArgumentParser(description=__doc__.splitlines()[0])
    parser.add_argument("--only", default="", help="cases whose name contains this")
    parser.add_argument("--counted", type=int, nargs="+", help="sizes to count at")
    args = parser.parse_args(arguments)
    # the releases that counted
    names = [name for name in ("triton", "torch", "numpy", "mamba_ssm") if find_spec(name)]
    text = [HEADING.format(", ".join(f"{name} {version(name)}" for name in names))]
    print(text[0])
    for line in lines(args.only, args.counted):
        print(line, flush=True)
        text.append(line)
    if not (args.only or args.counted):
        (RESULTS / "counted.md").write_text("\n".join(text) + "\n", encoding="utf-8")


if __name__ == "__main__":
    main()
