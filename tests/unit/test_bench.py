"""The benchmark's server: one that does not start ends the benchmark, with a reason."""

from __future__ import annotations

from pathlib import Path

import pytest

import bench.consume
from bench.consume import Server


@pytest.mark.parametrize(
    ("script", "message"),
    [("exit 3", "ended while starting, with exit code 3"), ("exec sleep 600", "does not listen on .* after 0.3 s")],
)
@pytest.mark.timeout(10)
def test_a_server_that_does_not_start(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch, script: str, message: str
) -> None:
    binary = tmp_path / "redis-server"
    binary.write_text(f"#!/bin/sh\n{script}\n")
    binary.chmod(0o755)
    monkeypatch.setenv("PATH", str(tmp_path), prepend=":")
    monkeypatch.setattr(bench.consume, "START_SECONDS", 0.3)
    with pytest.raises(SystemExit, match=message):
        Server(tmp_path)
