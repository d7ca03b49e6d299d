"""Numbers in sentences."""

from __future__ import annotations


def counted(number: int, one: str, many: str = "") -> str:
    """So many of something, for people.

    Args:
        many: the plural, where it is not made with an s.
    """
    return f"{number:,} {one if number == 1 else many or f'{one}s'}"


def times(number: int) -> str:
    """How often, for people."""
    return "once" if number == 1 else f"{number:,} times"
