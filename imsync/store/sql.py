"""SQL lives in files beside the code that uses it, one named statement after another:

-- name: edit
-- what it is for
UPDATE …;
"""

from __future__ import annotations

import re
from collections.abc import Mapping
from importlib.resources import files

_NAME = re.compile(r"^-- name: (\w+)$", re.MULTILINE)


def load(package: str, file_name: str) -> Mapping[str, str]:
    """The named statements of a file, without their comments (which would only slow down the statement cache)."""
    text = files(package).joinpath(file_name).read_text(encoding="utf-8")
    _, *named = _NAME.split(text)
    return {
        name: "\n".join(line for line in body.splitlines() if line and not line.lstrip().startswith("--"))
        for name, body in zip(named[::2], named[1::2], strict=True)
    }
