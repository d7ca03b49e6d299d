"""A terminal for commands that look at the width of theirs."""

from __future__ import annotations

import fcntl
import os
import pty
import struct
import subprocess
import termios
from collections.abc import Mapping, Sequence
from pathlib import Path


def on_a_terminal(command: Sequence[str], environ: Mapping[str, str], folder: Path, *, columns: int) -> str:
    """Runs a command whose stdout is a terminal; what it prints, without carriage returns."""
    controller, terminal = pty.openpty()
    fcntl.ioctl(terminal, termios.TIOCSWINSZ, struct.pack("HHHH", 50, columns, 0, 0))
    process = subprocess.Popen(
        command, stdin=subprocess.DEVNULL, stdout=terminal, stderr=subprocess.DEVNULL, cwd=folder, env=dict(environ)
    )
    os.close(terminal)
    shown = b""
    while True:
        try:
            chunk = os.read(controller, 65536)
        except OSError:  # nobody has it open any more
            break
        if not chunk:
            break
        shown += chunk
    os.close(controller)
    process.wait(60)
    return shown.decode().replace("\r\n", "\n")
