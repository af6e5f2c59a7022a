"""Who holds a change that several may hold at once, each until it leaves, in any order.

A change is made by a call: `with change(): ...`, or `change()` alone. The first `with` that enters
the object of a call takes over the call's hold; every other `with` adds one. So a change ends when
its last holder leaves, not when the first does.
"""

from __future__ import annotations

import os
import threading
from typing import Any, NamedTuple, TypeAlias

__all__ = ["LOCK", "Hold", "Holds", "called", "entered", "left"]

# for changes of the whole process, such as a patch; a forked worker must not find it taken by a
# thread that is not there
LOCK = threading.RLock()
if hasattr(os, "register_at_fork"):
    os.register_at_fork(
        before=LOCK.acquire, after_in_parent=LOCK.release, after_in_child=LOCK.release
    )


class Hold(NamedTuple):
    """One holder, compared by identity, and whether a `with` block has it."""

    owner: Any
    in_block: bool


Holds: TypeAlias = tuple[Hold, ...]


def called(holds: Holds, owner: Any) -> Holds:
    """The holds after `owner` was made by a call."""
    return (*holds, Hold(owner, False))


def entered(holds: Holds, owner: Any) -> Holds:
    """The holds after a `with` block has entered `owner`."""
    return (*_without(holds, owner, False), Hold(owner, True))


def left(holds: Holds, owner: Any) -> Holds:
    """The holds after `owner` was left or undone once: without its newest hold, if it has one."""
    return _without(holds, owner, True, False)


def _without(holds: Holds, owner: Any, *kinds: bool) -> Holds:
    for i in reversed(range(len(holds))):
        if holds[i].owner is owner and holds[i].in_block in kinds:
            return (*holds[:i], *holds[i + 1 :])
    return holds
