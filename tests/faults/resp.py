"""Cuts what clients and servers say to each other (RESP2 and RESP3) into whole messages.

https://redis.io/docs/latest/develop/reference/protocol-spec/
"""

from __future__ import annotations

_BULKS = b"$=!"
_ARRAYS = b"*~>"
_PAIRS = b"%|"


def message_end(buffer: bytes | bytearray, start: int = 0) -> int | None:
    """Where the message that begins at `start` ends; None when it is not complete yet."""
    missing, at = 1, start
    while missing:
        line_end = buffer.find(b"\r\n", at)
        if line_end < 0:
            return None
        kind = buffer[at]
        if kind in _BULKS:
            length = int(buffer[at + 1 : line_end])
            at = line_end + 2 + (length + 2 if length >= 0 else 0)
            if at > len(buffer):
                return None
        else:  # an aggregate, or a line; what a client typed without framing is a line too
            if kind in _ARRAYS:
                missing += max(0, int(buffer[at + 1 : line_end]))
            elif kind in _PAIRS:
                # attributes come before the value that they are about
                missing += 2 * int(buffer[at + 1 : line_end]) + (kind == ord("|"))
            at = line_end + 2
        missing -= 1
    return at


class Framer:
    """Whole messages out of a stream of bytes, however it is cut into chunks."""

    def __init__(self) -> None:
        self._buffer = bytearray()

    def feed(self, chunk: bytes) -> list[bytes]:
        """The messages that this chunk completes."""
        self._buffer += chunk
        messages: list[bytes] = []
        at = 0
        while at < len(self._buffer) and (end := message_end(self._buffer, at)) is not None:
            messages.append(bytes(self._buffer[at:end]))
            at = end
        del self._buffer[:at]
        return messages


def arguments(request: bytes) -> list[bytes]:
    """A request's words: the command's name first, in capitals."""
    if not request.startswith(b"*"):
        words = request.split()
    else:
        words, at = [], request.find(b"\r\n") + 2
        while at < len(request):
            line_end = request.find(b"\r\n", at)
            length = int(request[at + 1 : line_end])
            words.append(request[line_end + 2 : line_end + 2 + length])
            at = line_end + 2 + length + 2
    return [words[0].upper(), *words[1:]] if words else []


def is_push(reply: bytes) -> bool:
    """Whether a server said this unasked (RESP3)."""
    return reply.startswith(b">")
