"""Where there is no Triton there is nothing to count."""

from __future__ import annotations

from importlib import util

collect_ignore = [] if util.find_spec("triton") else ["counting"]
