"""Random histories: nothing false is ever seen, whatever happens in whatever order, and in the end all is right."""

from __future__ import annotations

import random
from collections.abc import Callable

import pytest

from tests.faults.histories import REACHED
from tests.faults.machine import play
from tests.faults.table import Fault

HISTORIES = 2000
PARTS = 4
"""So that they can be played side by side."""


@pytest.mark.parametrize("part", range(PARTS))
def test_random_histories(part: int, rng: random.Random, scaled: Callable[[int], int], fault: Fault) -> None:
    """Crashes, errors and zombies at every seam; disorder, duplicates, poison, losses, handlers that fail."""
    row = fault("histories · played")
    REACHED.clear()
    try:
        play(scaled(HISTORIES) // PARTS, rng.randrange(2**32))
    finally:
        row.reached(REACHED.pop("a history"))
    for what, times in REACHED.items():
        if times:  # chance decides what a part of them meets
            fault(f"random histories · {what}").reached(times)
