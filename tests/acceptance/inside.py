"""The command line in the process of the tests: as `driver.Imsync`, without half a second of imports per command."""

from __future__ import annotations

import contextlib
import io
import logging
import os
from unittest import mock

import pytest

from imsync.cli import main
from tests.acceptance.driver import Done, Imsync


class Inside(Imsync):
    """Commands that end by themselves are run here; those that are started are processes all the same."""

    @classmethod
    def of(cls, im: Imsync) -> Inside:
        """On the same data folder, with the same settings. The other one ends what it has started."""
        inside = cls(im.folder)
        inside.environ = im.environ
        inside._processes = im._processes
        return inside

    def run(self, *args: object, stdin: str | bytes | None = None, **more: str) -> Done:
        """As a process of its own would: its settings, its folder, its exit code."""
        words = tuple(map(str, args))
        body = stdin.encode() if isinstance(stdin, str) else stdin or b""
        out, err = io.StringIO(), io.StringIO()
        logger = logging.getLogger("imsync")
        before = (logger.handlers, logger.level, logger.propagate)
        with (
            mock.patch.dict(os.environ, self.environ | more, clear=True),
            mock.patch("sys.stdin", io.TextIOWrapper(io.BytesIO(body))),
            contextlib.chdir(self.folder),
            contextlib.redirect_stdout(out),
            contextlib.redirect_stderr(err),
            pytest.raises(SystemExit) as exit_,
        ):
            main(words)
        logger.handlers, logger.level, logger.propagate = before
        assert isinstance(exit_.value.code, int)
        return self.checked(words, exit_.value.code, out.getvalue(), err.getvalue())
