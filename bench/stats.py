"""Medians with their spread."""

from __future__ import annotations

import statistics
from collections.abc import Iterable, Sequence
from dataclasses import dataclass


@dataclass(frozen=True, slots=True)
class Spread:
    """Some measured values of one thing."""

    values: tuple[float, ...]

    @classmethod
    def of(cls, values: Iterable[float]) -> Spread:
        """Of at least one value."""
        found = cls(tuple(values))
        if not found.values:
            raise ValueError("nothing was measured")
        return found

    @property
    def median(self) -> float:
        """The middle."""
        return statistics.median(self.values)

    @property
    def low(self) -> float:
        """The smallest."""
        return min(self.values)

    @property
    def high(self) -> float:
        """The largest."""
        return max(self.values)

    @property
    def noise(self) -> float:
        """Half the range, as a share of the median."""
        return (self.high - self.low) / 2 / self.median if self.median else 0.0

    def times(self, factor: float) -> Spread:
        """All of them, in another unit."""
        return Spread.of(value * factor for value in self.values)

    def against(self, other: Spread) -> Spread:
        """The ratios to another thing that was measured in the same rounds, and perhaps in more after them."""
        return Spread.of(mine / theirs for mine, theirs in zip(self.values, other.values, strict=False))


def percentile(values: Sequence[float], share: float) -> float:
    """The smallest value that at least this share of all does not exceed."""
    ordered = sorted(values)
    return ordered[max(0, -int(-share * len(ordered) // 1) - 1)]
