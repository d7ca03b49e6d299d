"""What a figure is: what it measures, what its goal is, and what came of it."""

from __future__ import annotations

from collections.abc import Callable, Sequence
from dataclasses import dataclass, field
from typing import TYPE_CHECKING

from bench.stats import Spread

if TYPE_CHECKING:
    from bench.run import Bench

AT_LEAST, AT_MOST = "≥", "≤"
NOISE_AT_LEAST = 0.05
"""`--check` takes no machine for quieter than this."""


@dataclass(frozen=True, slots=True)
class Goal:
    """A bound.

    Args:
        sign: `AT_LEAST` or `AT_MOST`.
        worst: the worst value is judged, and not the median.
    """

    sign: str
    bound: float
    worst: bool = False

    def judged(self, spread: Spread) -> float:
        """The value that decides."""
        if not self.worst:
            return spread.median
        return spread.low if self.sign == AT_LEAST else spread.high

    def met(self, spread: Spread, margin: float = 0.0) -> bool:
        """Whether it is reached, or missed by no more than a share of the bound."""
        value = self.judged(spread)
        if self.sign == AT_LEAST:
            return value >= self.bound * (1 - margin)
        return value <= self.bound * (1 + margin)

    def met_but_for_noise(self, spread: Spread) -> bool:
        """Whether it is reached, given how much the rounds differ."""
        return self.met(spread, max(NOISE_AT_LEAST, spread.noise))


@dataclass(frozen=True, slots=True)
class Row:
    """A line of the table. `unit` is empty for a ratio."""

    label: str
    goal: Goal
    spread: Spread
    unit: str = ""


@dataclass(frozen=True, slots=True)
class Side:
    """One of those that were compared, in a figure's own table.

    Args:
        label: who or what.
        spread: its values, in the figure's unit.
        ratio: to the expert loop, round by round; None where there is none.
        more: further columns, by title.
    """

    label: str
    spread: Spread
    ratio: Spread | None = None
    more: dict[str, str] = field(default_factory=dict)


@dataclass(frozen=True, slots=True)
class Result:
    """What came of a figure.

    Args:
        unit: of its sides, such as `events/s`.
        notes: sentences on the sizes, and on what was verified.
    """

    rows: Sequence[Row]
    sides: Sequence[Side]
    unit: str
    notes: Sequence[str] = ()


@dataclass(frozen=True, slots=True)
class Figure:
    """Something to measure.

    Args:
        name: what it is called on the command line.
        title: what it is called in the results.
        checked: whether `--check` measures it.
    """

    name: str
    title: str
    measure: Callable[[Bench], Result]
    checked: bool = False
