"""Token merging: `tome_merge`."""

from tvkernels.tome.op import ToMeResult, tome_merge

__all__ = ["ToMeResult", "tome_merge"]
