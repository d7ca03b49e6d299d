"""A terminal for commands that draw on theirs, ask, or look at its width."""

from __future__ import annotations

import contextlib
import fcntl
import os
import pty
import re
import struct
import subprocess
import termios
import threading
from collections.abc import Mapping, Sequence
from pathlib import Path

CONTROL = re.compile(r"\x1b\[[0-9;?]*[a-zA-Z]")
"""What moves the cursor, and colours."""


class Terminal:
    """A command on a terminal of its own."""

    def __init__(
        self, command: Sequence[str], environ: Mapping[str, str], folder: Path, columns: int, lines: int
    ) -> None:
        self._ours, theirs = pty.openpty()
        fcntl.ioctl(theirs, termios.TIOCSWINSZ, struct.pack("HHHH", lines, columns, 0, 0))
        self.process = subprocess.Popen(
            command, stdin=theirs, stdout=theirs, stderr=theirs, cwd=folder,
            env={**environ, "TERM": "xterm-256color"}, start_new_session=True,
            preexec_fn=lambda: fcntl.ioctl(0, termios.TIOCSCTTY, 0),
        )  # fmt: skip
        os.close(theirs)
        self._written = b""
        self._reader = threading.Thread(target=self._read, daemon=True)
        self._reader.start()

    def _read(self) -> None:
        with contextlib.suppress(OSError):  # EIO: the other side is closed
            while chunk := os.read(self._ours, 65536):
                self._written += chunk

    @property
    def seen(self) -> str:
        """Everything that it was sent."""
        return self._written.decode(errors="backslashreplace")

    def plain(self) -> str:
        """Without what moves the cursor."""
        return CONTROL.sub("", self.seen).replace("\r", "")

    def left(self) -> str:
        """What can be read in the end, of a command that draws no picture: without what was written over."""
        lines = CONTROL.sub("", self.seen).replace("\r\n", "\n").split("\n")
        return "\n".join(line.rstrip("\r").rpartition("\r")[2] for line in lines)

    def press(self, keys: bytes) -> None:
        """Types something."""
        os.write(self._ours, keys)

    def end(self) -> int:
        """Waits for the end of the command; its exit code."""
        code = self.process.wait(30)
        self._reader.join(20)
        return code

    def close(self) -> None:
        """Ends the command, unless it has ended."""
        if self.process.poll() is None:
            self.process.kill()
            self.end()
        os.close(self._ours)
