"""Where there is no Triton there is nothing to count."""

from __future__ import annotations

from importlib import util

NEED_TRITON = ["counting", "timing/test_precompile.py"]
collect_ignore = [] if util.find_spec("triton") else NEED_TRITON
