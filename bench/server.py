"""A Redis of the benchmark's own."""

from __future__ import annotations

import os
import shutil
import subprocess
import time
from pathlib import Path
from typing import Any, cast

from imsync.bus import Endpoint

START_SECONDS = 10.0
DATABASES = 64


class Server:
    """redis-server when there is one, else the embedded one: append-only file on, fsync every second.

    The append-only file is never rewritten: that would fall on whoever is being measured at the moment.

    Args:
        folder: its socket and its files go there.

    Raises:
        SystemExit: it does not start.
    """

    def __init__(self, folder: Path) -> None:
        from imsync.embedded import find_server_binary

        binary = shutil.which("redis-server") or str(find_server_binary())
        folder.mkdir(exist_ok=True)
        self.socket = folder / "bench.sock"
        self.process = subprocess.Popen(
            [binary, "--port", "0", "--unixsocket", str(self.socket), "--dir", str(folder), "--save", "",
             "--appendonly", "yes", "--appendfsync", "everysec", "--auto-aof-rewrite-percentage", "0",
             "--databases", str(DATABASES)],
            stdout=subprocess.DEVNULL,
        )  # fmt: skip
        self.url = f"unix://{self.socket}"
        deadline = time.monotonic() + START_SECONDS
        while not self.socket.exists():
            if self.process.poll() is not None:
                raise SystemExit(f"{binary} ended while starting, with exit code {self.process.returncode}")
            if time.monotonic() > deadline:
                self.process.kill()
                self.process.wait()
                raise SystemExit(f"{binary} does not listen on {self.socket} after {START_SECONDS:g} s")
            time.sleep(0.01)
        info = connect(self.url).info("server")
        self.version = f"{info.get('server_name', 'redis')} {info.get('valkey_version', info['redis_version'])}"

    def database(self, number: int) -> str:
        """The URL of one of its databases, each as empty as a server of its own."""
        return f"{self.url}?db={number}"

    def cpu_seconds(self) -> float:
        """What it has used so far, user and system, all threads."""
        fields = Path(f"/proc/{self.process.pid}/stat").read_text(encoding="ascii").rpartition(")")[2].split()
        return (int(fields[11]) + int(fields[12])) / os.sysconf("SC_CLK_TCK")

    def stop(self) -> None:
        """Ends it."""
        self.process.terminate()
        self.process.wait()


def connect(url: str) -> Any:
    """A redis-py client."""
    return cast(Any, Endpoint(url).connect())
