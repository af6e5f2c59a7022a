"""Who holds a change that several may hold at once, each until it leaves, in any order.

A change is made by a call: `with change(): ...`, or `change()` alone. The first `with` that enters
the object of a call takes over the call's hold; every other `with` adds one. So a change ends when
its last holder leaves, not when the first does.
"""

from __future__ import annotations

from typing import Any, NamedTuple, TypeAlias

__all__ = ["Hold", "Holds", "called", "entered", "left"]


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
