"""The figures, in the order of the table: one module each."""

from __future__ import annotations

from importlib import import_module
from typing import cast

from bench.figure import Figure

NAMES = (
    "publish", "dict_store", "store", "latency", "publish_one", "edits", "memory", "scale", "backlog", "pair",
    "big_user", "verify",
)  # fmt: skip
"""Their modules."""


def figures() -> dict[str, Figure]:
    """All of them, by name."""
    found = [cast(Figure, import_module(f"bench.figures.{name}").FIGURE) for name in NAMES]
    return {figure.name: figure for figure in found}
