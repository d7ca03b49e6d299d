"""What an attacker can write, and where."""

from __future__ import annotations

from tests.acceptance.driver import Imsync

BOLD = "[bold red]x[/]"
LETTER = ("reason", "message", "where", "consumer", "deliveries", "source_id", "published_at", "dead_at", "raw.event")
"""The fields of a dead letter."""
# ESC and OSC 52 (which writes the clipboard), a C1 control, bidi overrides, line ends, rich's markup and links
HOSTILE = f"\x1b[2J\x1b]52;c;QUFB\x07 \x9b31m \u202e\u2066 \r\nimsync: fine\u2028{BOLD} [link=f:///]y[/link] \x00"


def plant(im: Imsync) -> None:
    """Puts what an attacker can put: into a profile, an entry, dead letters, the names of consumers and groups."""
    name = HOSTILE.replace("\x00", "")[:64]
    im.ok("publish", "user-update", "--user", im.users()[0], "--nick-name", name)
    with im.client() as client:
        client.xadd(im.stream, {"event": HOSTILE.encode() + b"\xff"})
        client.xadd(im.stream, {HOSTILE: HOSTILE})
        client.xgroup_create(im.stream, HOSTILE.encode() + b"\xfe", "0")
        client.xreadgroup("group", HOSTILE.encode() + b"\xff", {im.stream: ">"}, count=1)
        client.xreadgroup("friend", HOSTILE, {im.stream: ">"}, count=2)
        for fields in (
            dict.fromkeys(LETTER, HOSTILE),
            {b"reason": b"\xff\x1b[2J", b"raw.\xff\x1b": b"\xfe"},
            {b"\xff": b"\xfe"},
        ):
            client.xadd(im.keys.dead("group"), fields)
