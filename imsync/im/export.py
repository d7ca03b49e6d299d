"""What `verify` reads of a projection, in a file: for a source that is on another host.

One JSON object per line: a header, the events that had no effect, the copies in the rising order of their keys, and an
end with the counts, so that a file that was cut is refused. Both sides stream; a key is found by bisection.
"""

from __future__ import annotations

import json
import operator
import os
import tempfile
from collections.abc import Callable, Collection, Iterator, Mapping, Sequence
from contextlib import contextmanager, suppress
from dataclasses import dataclass
from datetime import UTC, datetime
from pathlib import Path
from typing import IO, Any

from imsync.bus.entry import id_parts
from imsync.errors import UsageError
from imsync.store.projection import Copies, CopyState, FailureLog, SourceState
from imsync.store.settlement import Settlement

FORMAT = 1
PAGE = 1000
MOST_CONTENTS = 100
"""How many different contents of one key's rows are told."""
_TAIL_BYTES = 4096


@dataclass(frozen=True, slots=True)
class Exported:
    """What was written: how many keys, and how many rows copy them."""

    keys: int
    rows: int


def export_copies(
    projection: Copies,
    path: Path,
    *,
    barrier: str,
    sources: Collection[str] = (),
    now: Callable[[], datetime] = lambda: datetime.now(UTC),
    on_page: Callable[[int], None] = lambda n: None,
) -> Exported:
    """Writes what a projection holds into a file, which appears whole or not at all. Reads in short pages.

    Args:
        barrier: an entry id below which the group has settled everything by now; see `imsync.im.flight.barrier`.
        sources: the CloudEvents sources that the projection has heard of.
        on_page: called with the number of keys written since the last call.

    Raises:
        UsageError: the file cannot be written.
        StoreUnusable: the projection cannot be read.
    """
    header = {
        "imsync": "copies",
        "format": FORMAT,
        "projection": projection.name,
        "sources": sorted(source for source in sources if source),
        "exported_at": now().astimezone(UTC).isoformat(timespec="milliseconds"),
        "barrier": barrier,
    }
    try:
        with _replacing(path) as file:
            file.write(_line(header))
            for key, settlement in _failures(projection):
                file.write(_line({"event": key.hex(), "outcome": settlement.outcome, "entry": settlement.entry_id}))
            keys = rows = 0
            for page in _pages(projection):
                file.writelines(_line(_described(projection, state)) for state in page)
                keys, rows = keys + len(page), rows + sum(state.rows for state in page)
                on_page(len(page))
            file.write(_line({"end": True, "keys": keys, "rows": rows}))
    except OSError as error:
        raise UsageError(f"cannot write {path}: {error.strerror}", "check the folder and its disk") from error
    return Exported(keys, rows)


class ExportedCopies:
    """A projection as a file tells of it. An instance of `imsync.store.projection.Copies`.

    Args:
        path: the file.
        expected_of: by the name of a projection, what a right copy of a source holds.

    Raises:
        UsageError: it cannot be read, is not whole, of a newer format, or of a projection that nobody here knows.
    """

    def __init__(self, path: Path, expected_of: Mapping[str, Callable[[SourceState], tuple[str, ...]]]) -> None:
        self.path = path
        try:
            self._file = path.open("rb")
        except OSError as error:
            raise UsageError(
                f"cannot read {path}: {error.strerror}", "make it with `imsync verify --export`"
            ) from error
        try:
            self._open(expected_of)
        except BaseException:
            self._file.close()
            raise

    def _open(self, expected_of: Mapping[str, Callable[[SourceState], tuple[str, ...]]]) -> None:
        header = self._read_line(0)[0]
        if header.get("imsync") != "copies":
            raise self._refused("is no export of copies", "make one with `imsync verify --export`")
        if header.get("format") != FORMAT:
            raise self._refused("is of a format that this imsync does not know", "use the same imsync on both hosts")
        self.name = str(header.get("projection"))
        """The projection's name."""
        if self.name not in expected_of:
            raise self._refused(f"is of a projection {self.name[:64]!a}, which is not known here", "")
        self.expected = expected_of[self.name]
        """See `imsync.store.projection.Copies`."""
        self.exported_at = str(header.get("exported_at"))
        """When it was exported, by the clock over there."""
        try:
            self.sources = frozenset(map(str, header["sources"]))
            """The CloudEvents sources that the projection had heard of."""
            id_parts(header["barrier"])
            self.barrier = str(header["barrier"])
            """The entry id below which everything had been settled before the copies were read."""
            end = self._read_end()
            self._keys, self._rows = int(end["keys"]), int(end["rows"])
        except (KeyError, TypeError, ValueError, AttributeError):
            raise self._not_whole() from None
        self._failures: dict[bytes, Settlement] = {}
        self._first = self._read_failures()
        self._at = self._first
        self._after: int | None = None
        self._seen = (0, 0)

    # ── what verify reads ────────────────────────────────────────────────────────────────────────────

    def states(self, after: int, limit: int) -> list[CopyState]:
        """The states of at most `limit` keys above `after`, in rising order.

        Raises:
            UsageError: the file does not hold what its end says.
        """
        offset = self._at if after == self._after else self._offset_of(after + 1)
        if offset == self._first:
            self._seen, self._after = (0, 0), after
        found: list[CopyState] = []
        while offset < self._end and len(found) < limit:
            line, offset = self._read_line(offset)
            found.append(self._state(line))
            if found[-1].key <= (found[-2].key if len(found) > 1 else after):
                raise self._not_whole()
        if after == self._after:  # read in one go from the beginning so far
            keys, rows = self._seen
            self._seen = keys + len(found), rows + sum(state.rows for state in found)
            self._at, self._after = offset, found[-1].key if found else after
            if offset >= self._end and self._seen != (self._keys, self._rows):
                raise self._not_whole()
        return found

    def state(self, key: int) -> CopyState | None:
        """One key's state; None when nothing was known of it and no row copied it."""
        found = self._find(key)
        return self._state(found) if found else None

    def contents(self, key: int) -> dict[tuple[str, ...], int]:
        """What the rows that copied a key held, and how many of them held it."""
        found = self._find(key) or {}
        try:
            held = {tuple(content): int(rows) for content, rows in found.get("stale", ())}
            right = found.get("rows", 0) - found.get("stale_rows", 0)
            return {tuple(found["content"]): right} | held if right else held
        except (KeyError, TypeError, ValueError):
            raise self._not_whole() from None

    def settled(self, event_ids: Collection[bytes]) -> dict[bytes, Settlement]:
        """How those of the events were settled that had no effect. Of the others the file says nothing."""
        return {event_id: self._failures[event_id] for event_id in event_ids if event_id in self._failures}

    def close(self) -> None:
        """Closes the file."""
        self._file.close()

    # ── the file ─────────────────────────────────────────────────────────────────────────────────────

    def _read_line(self, offset: int) -> tuple[dict[str, Any], int]:
        """The object in a line, and where the next one begins."""
        try:
            self._file.seek(offset)
            raw = self._file.readline()
            line = json.loads(raw)
        except OSError as error:
            raise UsageError(f"cannot read {self.path}: {error.strerror}", "copy it again") from error
        except ValueError:
            raise self._not_whole() from None
        if not isinstance(line, dict) or not raw.endswith(b"\n"):
            raise self._not_whole()
        return line, offset + len(raw)

    def _read_end(self) -> dict[str, Any]:
        size = self._file.seek(0, os.SEEK_END)
        self._file.seek(max(0, size - _TAIL_BYTES))
        tail = self._file.read()
        begins = tail.rstrip(b"\n").rfind(b"\n") + 1
        self._end = size - len(tail) + begins
        end, after = self._read_line(self._end)
        if end.get("end") is not True or after != size:
            raise self._not_whole()
        return end

    def _read_failures(self) -> int:
        """Keeps the events that had no effect; where the copies begin."""
        offset = self._read_line(0)[1]
        while offset < self._end:
            line, after = self._read_line(offset)
            if "event" not in line:
                break
            try:
                self._failures[bytes.fromhex(line["event"])] = Settlement(str(line["outcome"]), str(line["entry"]))
            except (KeyError, TypeError, ValueError):
                raise self._not_whole() from None
            offset = after
        return offset

    def _find(self, key: int) -> dict[str, Any] | None:
        offset = self._offset_of(key)
        line = self._read_line(offset)[0] if offset < self._end else {}
        return line if line.get("key") == key else None

    def _offset_of(self, key: int) -> int:
        """Where the first line with this key or a higher one begins; by bisection."""
        low, high = self._first, self._end
        while low < high:
            middle = (low + high) // 2
            begins = middle
            if middle > low:
                self._file.seek(middle - 1)
                begins = middle - 1 + len(self._file.readline())  # a line that begins at the middle counts
            if begins >= high:
                high = middle
                continue
            line, after = self._read_line(begins)
            if self._key(line) < key:
                low = after
            else:
                high = middle
        return low

    def _key(self, line: Mapping[str, Any]) -> int:
        key = line.get("key")
        if not isinstance(key, int):
            raise self._not_whole()
        return key

    def _state(self, line: Mapping[str, Any]) -> CopyState:
        try:
            numbers = (
                self._key(line),
                line["version"],
                line["rows"],
                line.get("stale_rows", 0),
                line.get("unvisited", 0),
            )
            key, version, rows, stale_rows, unvisited = map(operator.index, numbers)
            content = tuple(map(str, line["content"]))
        except (KeyError, TypeError):
            raise self._not_whole() from None
        return CopyState(key, version, bool(line.get("deleted")), content, rows, stale_rows, unvisited)

    def _not_whole(self) -> UsageError:
        return self._refused("is not whole", "copy it again, or make it anew with `imsync verify --export`")

    def _refused(self, what: str, hint: str) -> UsageError:
        return UsageError(f"{self.path} {what}", hint)


# ── writing ──────────────────────────────────────────────────────────────────────────────────────────────


def _line(value: Mapping[str, object]) -> bytes:
    # SQLite keeps bytes in a column of texts too, where somebody wrote some by hand; as text they differ all the same
    return json.dumps(value, separators=(",", ":"), default=repr).encode() + b"\n"


def _described(projection: Copies, state: CopyState) -> dict[str, object]:
    line: dict[str, object] = {"key": state.key, "version": state.version, "content": state.content, "rows": state.rows}
    if state.deleted:
        line["deleted"] = True
    if state.stale_rows:
        wrong = [(held, rows) for held, rows in projection.contents(state.key).items() if held != state.content]
        line |= {"stale_rows": state.stale_rows, "stale": wrong[:MOST_CONTENTS]}
    if state.unvisited:
        line["unvisited"] = state.unvisited
    return line


def _failures(projection: Copies) -> Iterator[tuple[bytes, Settlement]]:
    after = b""
    while isinstance(projection, FailureLog) and (page := projection.failures(after, PAGE)):
        yield from page
        after = page[-1][0]


def _pages(projection: Copies) -> Iterator[Sequence[CopyState]]:
    after = -(2**63)
    while page := projection.states(after, PAGE):
        yield page
        after = page[-1].key


@contextmanager
def _replacing(path: Path) -> Iterator[IO[bytes]]:
    """A file of mode 0600 beside the path, that takes its place when all went well."""
    handle, name = tempfile.mkstemp(prefix=f".{path.name}.", dir=path.parent)  # of mode 0600
    try:
        with os.fdopen(handle, "wb") as file:
            yield file
            file.flush()
            os.fsync(file.fileno())
        os.replace(name, path)
    except BaseException:
        with suppress(OSError):
            os.unlink(name)
        raise
