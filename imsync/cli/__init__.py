"""The command line. One file per verb; `main` is where errors become messages and exit codes."""

from __future__ import annotations

import gc
import json
import os
import sys
from collections.abc import Sequence
from pathlib import Path
from typing import NoReturn

COLLECT_AFTER = 10_000
"""How many objects more than before set off a look for garbage among the young ones."""


def main(argv: Sequence[str] | None = None, *, default_config: Path | None = None) -> NoReturn:
    """Runs a command and exits.

    Args:
        argv: the arguments after the program's name; those of the process when None.
        default_config: the configuration file of last resort, for a checkout.
    """
    args = list(sys.argv[1:] if argv is None else argv)
    _replace_closed_streams()
    # loading makes very many objects and hardly any garbage; to look for some takes a fifth of the time
    gc.set_threshold(COLLECT_AFTER)
    try:
        code = _run(args, default_config)
        sys.stdout.flush()
    except OSError as error:
        if not isinstance(error, BrokenPipeError):  # whose reader has gone on purpose
            _tell(f"standard input or output: {error.strerror}")
        # nothing that is still buffered may be written at exit
        os.dup2(os.open(os.devnull, os.O_WRONLY), sys.stdout.fileno())
        code = 1
    except KeyboardInterrupt:
        code = 130
    sys.exit(code)


def _replace_closed_streams() -> None:
    """Python gives None for a stream that the caller has closed (`>&-`)."""
    for name, mode in (("stdin", "r"), ("stdout", "w"), ("stderr", "w")):
        if getattr(sys, name) is None:
            setattr(sys, name, open(os.devnull, mode))  # noqa: SIM115 - for the life of the process


def _run(args: list[str], default_config: Path | None) -> int:
    from typer.exceptions import TyperException

    from imsync.cli.app import build
    from imsync.cli.logs import configure, early_format
    from imsync.errors import ImsyncError

    configure(early_format(args, os.environ))
    try:
        result = build(args)(args, prog_name="imsync", standalone_mode=False, obj=default_config)
        return result if isinstance(result, int) else 0
    except TyperException as error:
        if type(error).__name__ == "NoArgsIsHelpError":
            print(error.format_message(), file=sys.stderr)
            return 2
        context = getattr(error, "ctx", None)
        hint = f"see `{context.command_path} --help`" if context is not None else "see `imsync --help`"
        return _report(args, "usage", error.format_message(), hint, 2)
    except ImsyncError as error:
        return _report(args, error.kind, error.message, error.hint, error.exit_code)
    except KeyboardInterrupt:
        raise
    except Exception as error:
        if _is_about_a_stream(error):
            raise
        if os.environ.get("IMSYNC_DEBUG"):
            _show_traceback()
        return _report(
            args, "internal", f"unexpected {type(error).__name__}: {error}",
            "this is a defect: IMSYNC_DEBUG=1 shows where it happened", 1,
        )  # fmt: skip


def _show_traceback() -> None:
    import traceback

    from imsync.cli.logs import safe_lines

    print(safe_lines(traceback.format_exc()), file=sys.stderr)


def _is_about_a_stream(error: Exception) -> bool:
    """Whether standard input or output failed: unlike that of a file, the error names none."""
    return isinstance(error, OSError) and error.filename is None


def _report(args: list[str], kind: str, message: str, hint: str, code: int) -> int:
    """Prints an error, for people on stderr, or for programs on stdout."""
    message, hint = " ".join(message.split()), " ".join(hint.split())
    if "--json" in args:
        print(json.dumps({"error": {"kind": kind, "message": message, "hint": hint}}))
    else:
        _tell(message + (f" ({hint})" if hint else ""), kind=kind)
    return code


def _tell(message: str, **fields: object) -> None:
    import logging

    from imsync.cli.logs import tell

    tell(message, logging.ERROR, **fields)
