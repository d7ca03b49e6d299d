"""Files that commands write for people."""

from __future__ import annotations

import os
from pathlib import Path


def write_whole(path: Path, text: str) -> None:
    """Writes the file whole or not at all.

    Raises:
        UsageError: it cannot be written.
    """
    from imsync.errors import UsageError

    target = Path(os.path.realpath(path))
    partial = target.with_name(f".{target.name}.{os.urandom(4).hex()}.part")
    try:
        with open(os.open(partial, os.O_WRONLY | os.O_CREAT | os.O_EXCL | os.O_CLOEXEC, 0o666), "wb") as file:
            file.write(text.encode())
            file.flush()
            os.fsync(file.fileno())
        os.replace(partial, target)
    except OSError as error:
        partial.unlink(missing_ok=True)
        raise UsageError(
            f"cannot write {path}: {error.strerror}", "give a file in a folder that you may write"
        ) from None
