"""What a PromQL expression asks for: the metrics, and the labels that it needs of each."""

from __future__ import annotations

import re
from collections.abc import Iterator
from dataclasses import dataclass, field

KEYWORDS = {"and", "or", "unless", "bool", "offset", "inf", "nan"}
LISTS = {"by", "without", "on", "ignoring", "group_left", "group_right"}
"""Words that labels follow, in brackets."""

_TOKEN = re.compile(
    r"\s*(?:(?P<text>\"(?:[^\"\\]|\\.)*\"|'(?:[^'\\]|\\.)*')|(?P<range>\[[^\]]*\])|(?P<number>\d[\w.]*)"
    r"|(?P<name>[A-Za-z_:][\w:]*)|(?P<other>=~|!~|!=|==|>=|<=|[-+*/%^(){},=<>@]))"
)


@dataclass
class Query:
    """An expression. `metrics`: the labels that are matched, by metric. `labels`: those grouped or joined by."""

    metrics: dict[str, set[str]] = field(default_factory=dict)
    labels: set[str] = field(default_factory=set)


def tokens(expression: str) -> Iterator[tuple[str, str]]:
    """(kind, token) pairs."""
    at = 0
    text = expression.strip()
    while at < len(text):
        found = _TOKEN.match(text, at)
        if found is None:
            raise ValueError(f"no PromQL at {text[at : at + 20]!r} of {expression!r}")
        at = found.end()
        assert found.lastgroup is not None
        yield found.lastgroup, found[found.lastgroup]


def parse(expression: str) -> Query:
    """Reads an expression.

    Raises:
        ValueError: it has something that no PromQL has, or brackets that do not match.
    """
    query = Query()
    read = [*tokens(expression), ("end", "")]
    depth: list[str] = []
    metric = ""
    in_list = False
    for (kind, token), (_, following) in zip(read, [*read[1:], ("end", "")], strict=True):
        if token in ("(", "{"):
            depth.append(token)
        elif token in (")", "}"):
            if not depth or depth.pop() + token not in ("()", "{}"):
                raise ValueError(f"brackets of {expression!r}")
            in_list = in_list and token != ")"
        elif kind != "name":
            continue
        elif in_list:
            query.labels.add(token)
        elif depth and depth[-1] == "{":
            query.metrics[metric].add(token)
        elif token in LISTS:
            in_list = True
        elif token not in KEYWORDS and following != "(" and following not in LISTS:
            metric = token
            query.metrics.setdefault(metric, set())
    if depth:
        raise ValueError(f"brackets of {expression!r}")
    return query
