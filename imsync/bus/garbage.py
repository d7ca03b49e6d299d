"""Garbage collection, kept out of a consumer's loop."""

from __future__ import annotations

import gc

COLLECT_AFTER = 200_000
"""How many objects more than before set off a collection: what a few full batches hold."""


def collect_rarely() -> None:
    """For a process that only consumes, before it begins. The library itself does not call it: others may live there.

    A batch makes tens of thousands of objects, none in a cycle, and looking for cycles among them takes a tenth of a
    consumer's time. What is loaded by now stays, and is not looked at again. https://docs.python.org/3/library/gc.html
    """
    gc.freeze()
    gc.set_threshold(COLLECT_AFTER)
