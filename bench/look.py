"""Makes a report of a short, eventful day and takes pictures of it in a browser: `python -m bench.look`.

For eyes, not for machines: nothing here passes or fails. The pictures are in build/look/.
"""

from __future__ import annotations

import os
import shutil
import subprocess
import sys
import tempfile
import time
from collections.abc import Iterator
from contextlib import contextmanager
from pathlib import Path

CHECKOUT = Path(__file__).resolve().parents[1]
OUT = CHECKOUT / "build" / "look"
BROWSERS = ("chromium", "chromium-browser", "google-chrome")
WIDTHS = {1280: 2400, 400: 4600}
"""The widths of the pictures, and their heights, in pixels."""
SCHEMES = {"light": 1, "dark": 0}
"""Blink's numbers for `prefers-color-scheme`."""
FLAGS = (
    "--headless", "--no-sandbox", "--disable-gpu", "--disable-quic", "--no-first-run",
    "--disable-background-networking", "--disable-component-update", "--disable-sync", "--hide-scrollbars",
)  # fmt: skip


def main() -> int:
    """Makes the page and the pictures; the exit code."""
    browser = next((found for name in BROWSERS if (found := shutil.which(name))), None)
    if browser is None:
        print("look: no browser found; on Debian: apt install chromium", file=sys.stderr)
        return 1
    OUT.mkdir(parents=True, exist_ok=True)
    page = OUT / "report.html"
    with tempfile.TemporaryDirectory(prefix="im-", dir="/tmp") as folder:
        environ = os.environ | {"IMSYNC_DATA_DIR": str(Path(folder) / "data"), "IMSYNC_CONSUMER_HEARTBEAT_MS": "500"}
        try:
            live_through(environ, Path(folder) / "samples", page)
        finally:
            imsync(environ, "server", "stop")
        for width, height in WIDTHS.items():
            for scheme, number in SCHEMES.items():
                picture = OUT / f"{width}-{scheme}.png"
                subprocess.run(
                    [browser, *FLAGS, f"--user-data-dir={folder}/{width}-{scheme}", f"--screenshot={picture}",
                     f"--window-size={width},{height}", f"--blink-settings=preferredColorScheme={number}",
                     page.as_uri()],
                    check=True, timeout=120, stdout=subprocess.DEVNULL, stderr=subprocess.DEVNULL,
                )  # fmt: skip
                print(f"look: {picture.relative_to(CHECKOUT)}")
    return 0


def live_through(environ: dict[str, str], samples: Path, page: Path) -> None:
    """Edits, a consumer that is killed, bad events, a server that is away for a while; and the report."""
    imsync(environ, "init", "--users", "2000", "--groups", "400")
    with (
        started(environ, "status", "--watch", "--interval", "500ms", "--record", str(samples)),
        started(environ, "consume", "friend", "--name", "friend-1"),
        started(environ, "publish", "user-update", "--count", "1000000", "--rate", "300", "--dup", "0.02"),
    ):
        with started(environ, "consume", "group", "--name", "group-1"):
            time.sleep(8)
        with started(environ, "consume", "group", "--name", "group-2"):
            time.sleep(6)
            imsync(environ, "server", "stop")
            time.sleep(4)
            imsync(environ, "server", "start")
            imsync(environ, "publish", "user-update", "--count", "20", "--invalid", "0.2")
            time.sleep(8)
            imsync(environ, "report", "--html", str(page), "--samples", str(samples))


@contextmanager
def started(environ: dict[str, str], *words: str) -> Iterator[None]:
    """A command that goes on while the block runs, and is killed then."""
    process = subprocess.Popen(
        [sys.executable, str(CHECKOUT / "cli.py"), *words],
        env=environ,
        stdin=subprocess.DEVNULL,
        stdout=subprocess.DEVNULL,
        stderr=subprocess.DEVNULL,
    )
    try:
        yield
    finally:
        process.kill()
        process.wait()


def imsync(environ: dict[str, str], *words: str) -> None:
    """A command that ends by itself."""
    print(f"look: imsync {' '.join(words[:2])}")
    subprocess.run([sys.executable, str(CHECKOUT / "cli.py"), *words], env=environ, check=True, capture_output=True)


if __name__ == "__main__":
    sys.exit(main())
