"""Disks of a test's own: small ones, and read-only ones. They take a mount, so a namespace where we are not root."""

from __future__ import annotations

import functools
import inspect
import os
import subprocess
import sys
import tempfile
from collections.abc import Callable
from pathlib import Path
from types import TracebackType
from typing import Any

import pytest

from tests.conftest import CHECKOUT


class Disk:
    """A file system in memory of so many bytes, at `folder`. It is gone with its content when the block ends."""

    def __init__(self, kib: int) -> None:
        self.folder = Path(tempfile.mkdtemp(prefix="im-", dir="/tmp"))
        self._kib = kib

    def __enter__(self) -> Disk:
        try:
            subprocess.run(
                ["mount", "-t", "tmpfs", "-o", f"size={self._kib}k,mode=0700", "imsync-test", self.folder],
                check=True,
                capture_output=True,
                timeout=20,
            )
        except BaseException:
            self.folder.rmdir()
            raise
        return self

    def __exit__(self, kind: type[BaseException] | None, _: BaseException | None, __: TracebackType | None) -> None:
        # lazily: what a failed test left open must not keep it
        subprocess.run(["umount", "--lazy", self.folder], check=kind is None, timeout=20)
        self.folder.rmdir()

    def fill(self) -> Path:
        """Takes all the space that is left; the file that has it."""
        path = self.folder / "filler"
        free = os.statvfs(self.folder)
        with path.open("wb") as file:
            os.posix_fallocate(file.fileno(), 0, free.f_bavail * free.f_frsize)
        assert os.statvfs(self.folder).f_bavail == 0
        return path

    def remount(self, option: str) -> bool:
        """Makes it `ro` or `rw`; False when somebody has a file open for writing, which forbids `ro`."""
        mount = subprocess.run(["mount", "-o", f"remount,{option}", self.folder], capture_output=True, timeout=20)
        return mount.returncode == 0


def with_disks(test: Callable[..., None]) -> Callable[..., None]:
    """A test that makes disks. Where only root of a namespace may, it runs in one; its first argument is `request`."""

    @functools.wraps(test)
    def run(request: pytest.FixtureRequest, **fixtures: Any) -> None:
        if _may_mount():
            test(request, **fixtures)
        else:
            _run_in_a_namespace(request.node.nodeid)

    assert next(iter(inspect.signature(test).parameters)) == "request"
    return run


def _may_mount() -> bool:
    try:
        with Disk(64):
            return True
    except (OSError, subprocess.CalledProcessError):
        return False


def _run_in_a_namespace(test: str) -> None:
    unshare = ["unshare", "--map-root-user", "--mount"]
    try:
        subprocess.run([*unshare, "true"], check=True, capture_output=True, timeout=20)
    except (OSError, subprocess.CalledProcessError):
        if os.environ.get("CI"):
            pytest.fail("neither mount nor unshare works here", pytrace=False)
        pytest.skip("neither mount nor unshare works here")
    run = subprocess.run(
        [*unshare, sys.executable, "-m", "pytest", "-q", "-p", "no:xdist", "-p", "no:cacheprovider", test],
        cwd=CHECKOUT,
        env=os.environ | {"CI": "true"},  # it must not skip there
        capture_output=True,
        text=True,
        timeout=110,
    )
    assert run.returncode == 0, run.stdout + run.stderr
