"""The random histories are checked: they find every planted bug, under the name of what it breaks."""

from __future__ import annotations

import random

import pytest

from tests.faults.histories import REACHED
from tests.faults.machine import play
from tests.faults.planted import PLANTED
from tests.faults.promises import Violation
from tests.faults.table import open_row
from tests.faults.test_histories import HISTORIES


@pytest.mark.parametrize("name", PLANTED)
def test_a_planted_bug_is_found(name: str, rng: random.Random, request: pytest.FixtureRequest) -> None:
    """Within as many histories as are played without bugs."""
    bug = PLANTED[name]
    row = open_row(request.node, f"random histories · {name}", "mutant")
    REACHED.clear()
    with bug.plant(), pytest.raises(Violation) as found:
        play(HISTORIES, rng.randrange(2**32), shrink=False)
    row.reached(REACHED["a history"])
    row.found([found.value])
    row.verdict = found.value.name
    assert found.value.name in bug.found_as, found.value
