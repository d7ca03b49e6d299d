"""The locks beside the user store name who holds them."""

from __future__ import annotations

import fcntl
import json
import os
import signal
import socket
from pathlib import Path

import pytest

from imsync.im.relay_lock import Holder, holder, is_stopped, locked
from tests.servers import Spawn, eventually

HOLDS = """
import sys
from imsync.im.relay_lock import locked
with locked(sys.argv[1]) as lock:
    print(bool(lock), flush=True)
    sys.stdin.read()
"""


def test_who_holds_a_lock_is_named_and_whether_it_is_stopped(tmp_path: Path, spawn: Spawn) -> None:
    path = tmp_path / "lock"
    assert holder(path) is None, "nor is the file made"
    assert not path.exists()
    process = spawn("-c", HOLDS, path)
    assert process.stdout is not None
    assert process.stdout.readline() == "True\n"
    assert holder(path) == Holder(process.pid, socket.gethostname(), here=True)
    assert str(holder(path)) == f"pid {process.pid}"
    with locked(path) as lock:
        assert not lock, "a look takes nothing away"
    process.send_signal(signal.SIGSTOP)
    eventually(lambda: (held := holder(path)) and held.stopped)
    process.send_signal(signal.SIGCONT)
    eventually(lambda: (held := holder(path)) and not held.stopped)
    process.kill()
    process.wait()
    assert holder(path) is None, "the name is still in the file, and says nothing"
    assert path.read_bytes()


def test_who_takes_a_lock_again_leaves_its_name_as_it_is(tmp_path: Path) -> None:
    path = tmp_path / "lock"
    with locked(path):
        name = path.read_bytes()
    os.utime(path, ns=(0, 0))
    with locked(path):
        assert path.stat().st_mtime_ns == 0
    path.write_bytes(name[:-1] + b"7, and more}")
    with locked(path):
        assert path.read_bytes() == name


def test_a_shared_lock_names_nobody(tmp_path: Path) -> None:
    path = tmp_path / "lock"
    with locked(path, fcntl.LOCK_SH) as lock:
        assert lock
        assert path.read_bytes() == b""
        assert holder(path) is None


@pytest.mark.parametrize(
    "content",
    [b"", b"null", b"[1]", b"{", b"\xff", b"{" * 2000, b'{"pid": "1", "host": "h"}', b'{"pid": -1, "host": "h"}'],
)
def test_a_name_that_nobody_can_read_is_unknown(tmp_path: Path, content: bytes) -> None:
    path = tmp_path / "lock"
    with locked(path):
        path.write_bytes(content)
        assert holder(path) == Holder()
        assert str(holder(path)) == "an unknown process"
        path.write_text(json.dumps({"host": "web-1", "pid": 5}))
        assert str(holder(path)) == "pid 5 on web-1"


def test_a_process_that_is_gone_is_not_stopped() -> None:
    assert not is_stopped(os.getpid())
    assert not is_stopped(2**22 + 1)
