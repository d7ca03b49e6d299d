"""The command line in this process: a command takes a hundredth of the time that a process of its own needs.

For what is printed and what is changed. How a process starts, ends and is killed is for `driver.Imsync`.
"""

from __future__ import annotations

import contextlib
import io
import logging
import os
from unittest import mock

from imsync.cli import main
from tests.acceptance.driver import Done, Imsync


class InProcess(Imsync):
    """As the other driver, and with its checks of every output. What is started is a process all the same."""

    def run(self, *args: object, stdin: str | bytes | None = None, **more: str) -> Done:
        words = tuple(map(str, args))
        code, out, err = self.written(*words, stdin=stdin.encode() if isinstance(stdin, str) else stdin or b"", **more)
        return self.checked(words, code, out.decode(), err.decode())

    def written(self, *words: str, stdin: bytes = b"", **more: str) -> tuple[int, bytes, bytes]:
        """A command's exit code, and the bytes that it writes to stdout and stderr."""
        out, err = (io.TextIOWrapper(io.BytesIO(), "utf-8", newline="\n", write_through=True) for _ in range(2))
        logger = logging.getLogger("imsync")
        before = (logger.handlers, logger.level, logger.propagate)
        logger.handlers = []
        code: object = None
        try:
            with (
                mock.patch.dict(os.environ, self.environ | more, clear=True),
                mock.patch("sys.stdin", io.TextIOWrapper(io.BytesIO(stdin))),
                contextlib.chdir(self.folder),
                contextlib.redirect_stdout(out),
                contextlib.redirect_stderr(err),
            ):
                try:
                    main(words)
                except SystemExit as end:
                    code = end.code
        finally:
            logger.handlers, logger.level, logger.propagate = before
        assert isinstance(code, int)
        return code, out.buffer.getvalue(), err.buffer.getvalue()  # type: ignore[attr-defined]

    @classmethod
    def of(cls, driver: Imsync) -> InProcess:
        """The same folder and settings. The other one ends what it has started."""
        made = cls(driver.folder)
        made.data, made.environ, made.secrets = driver.data, driver.environ, driver.secrets
        made._processes = driver._processes
        return made
