"""A page as a browser makes it out, and text that tries to get out of it."""

from __future__ import annotations

import re
from html.parser import HTMLParser

EVIL = "<script>alert(1)</script>\"'><img src=x onerror=alert(1)></style></svg>&lt; \x1b[2J\u202e\x00\udcfe"


class Parsed(HTMLParser):
    """What a browser makes of it: elements, attributes, text."""

    def __init__(self, text: str) -> None:
        super().__init__(convert_charrefs=True)
        self.elements: list[tuple[str, dict[str, str | None]]] = []
        self.open: list[str] = []
        self.text = ""
        self.style = ""
        self.feed(text)
        self.close()

    def handle_starttag(self, tag: str, attrs: list[tuple[str, str | None]]) -> None:
        self.elements.append((tag, dict(attrs)))
        if tag not in ("meta", "polyline", "rect", "line"):
            self.open.append(tag)

    def handle_endtag(self, tag: str) -> None:
        assert self.open.pop() == tag

    def handle_startendtag(self, tag: str, attrs: list[tuple[str, str | None]]) -> None:
        self.elements.append((tag, dict(attrs)))

    def handle_data(self, data: str) -> None:
        if self.open[-1:] == ["style"]:
            self.style += data
        else:
            self.text += data


ELEMENTS = set(
    re.findall(
        r"\w+",
        "html head meta title style body main header h1 h2 h3 p span b small div figure figcaption i svg polyline rect "
        "line table thead tbody tr th td code footer",
    )
)
ATTRIBUTES = set(
    re.findall(
        r"[\w-]+",
        "lang charset http-equiv content name class viewbox preserveaspectratio role aria-label aria-hidden points "
        "x y width height x1 x2 y1 y2",
    )
)


def check(text: str) -> Parsed:
    """That it is whole, and holds nothing that loads or runs."""
    parsed = Parsed(text)
    assert parsed.open == [], "every element is closed"
    assert {tag for tag, _ in parsed.elements} <= ELEMENTS
    assert {name for _, attributes in parsed.elements for name in attributes} <= ATTRIBUTES
    assert not re.search(r"url\(|@import|expression|https?:", parsed.style)
    return parsed
