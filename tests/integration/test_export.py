"""Copies on another host: what an export tells is what the store would have told, and half a file tells nothing."""

from __future__ import annotations

import json
import stat
from collections.abc import Iterator
from contextlib import ExitStack, closing
from dataclasses import replace
from pathlib import Path
from typing import Any

import pytest

from imsync.bus.entry import id_parts
from imsync.errors import UsageError
from imsync.im import export
from imsync.im.causes import Cause, Place
from imsync.im.export import ExportedCopies, export_copies
from imsync.im.flight import ExportFlight, barrier
from imsync.im.group_store import GroupStore
from imsync.im.repair import Plan, touch
from imsync.im.user_store import Profile
from imsync.im.verify import Verdict, verify
from tests.drifting import WAYS, World, make_world
from tests.servers import Server
from tests.stores import MIA, NOAH, nick

EXPECTED = {"group": GroupStore.expected}


@pytest.fixture
def world(tmp_path: Path, server: Server) -> Iterator[World]:
    with ExitStack() as stack:
        yield make_world(tmp_path, server.url, stack)


def exported(world: World, path: Path) -> Path:
    settled_below = barrier(world.stream, "group")
    export_copies(world.groups, path, barrier=settled_below, sources={source for source, _ in world.groups.tallies()})
    return path


def against(world: World, path: Path, *, live: bool = True, **options: Any) -> Verdict:
    """What verify finds where only the user store is."""
    with closing(ExportedCopies(path, EXPECTED)) as copies:
        flight = ExportFlight(copies.barrier, world.flight_to("group") if live else None)
        return verify(world.users, [copies], lambda group: flight, **options)


def test_a_file_holds_what_the_store_does(world: World, tmp_path: Path) -> None:
    world.rename(MIA, "Mia 2")
    world.group_sql("INSERT INTO im_group_member VALUES (1, 8, 'x', '\x1b[2J', '', 0)")
    world.group_sql("INSERT INTO im_group_member VALUES (99, 8, 'x', 'y', '', 0)")
    path = exported(world, tmp_path / "group.ndjson")
    assert stat.S_IMODE(path.stat().st_mode) == 0o600
    assert path.read_bytes().isascii()
    assert [each.name for each in tmp_path.iterdir() if "group.ndjson" in each.name] == ["group.ndjson"]
    header = json.loads(path.read_text().splitlines()[0])
    assert (header["format"], header["projection"], header["sources"]) == (1, "group", [world.users.source])
    with closing(ExportedCopies(path, EXPECTED)) as copies:
        assert copies.states(-1, 100) == world.groups.states(-1, 100)
        assert copies.states(1, 1) == world.groups.states(1, 1)
        for key in (1, 2, 3, 98, 99, 100):
            assert copies.state(key) == world.groups.state(key)
            assert copies.contents(key) == world.groups.contents(key)


@pytest.mark.parametrize("row", ["im_group_member SET user_nick_name", "user_profile_replica SET nick_name"])
def test_bytes_that_somebody_wrote_into_a_text_are_told_as_text_and_differ(
    world: World, tmp_path: Path, row: str
) -> None:
    world.rename(MIA, "Mia 2")
    world.group_sql(f"UPDATE {row} = x'00ff' WHERE user_id = 1")
    assert world.found() == {Cause.EDITED: 1}
    assert against(world, exported(world, tmp_path / "file")).causes == {Cause.EDITED: 1}


def test_keys_are_found_in_a_large_file(tmp_path: Path, server: Server) -> None:
    people = [Profile(n * n, f"u{n}", "n" * (n % 200), "", "") for n in range(1, 2500)]
    with ExitStack() as stack:
        world = make_world(tmp_path, server.url, stack, people)
        path = exported(world, tmp_path / "file")
        copies = stack.enter_context(closing(ExportedCopies(path, EXPECTED)))
        for n in (1, 2, 3, 1000, 1777, 2498, 2499):
            found = copies.state(n * n)
            assert found is not None
            assert found.content == ("n" * (n % 200), "")
            assert copies.state(n * n + 1) is None
            assert [each.key for each in copies.states(n * n, 2)] == [m * m for m in (n + 1, n + 2) if m < 2500]
        assert against(world, path).drift == 0


@pytest.mark.parametrize("cause", Cause)
def test_each_cause_is_named_from_afar(world: World, tmp_path: Path, cause: Cause) -> None:
    WAYS[cause](world)
    path = exported(world, tmp_path / "file")
    assert against(world, path).causes == {cause: 1}


@pytest.mark.parametrize("cause", sorted({*Cause} - {Cause.LOST_BY_SERVER, Cause.TRIMMED, Cause.UNKNOWN}))
def test_most_causes_are_named_without_redis(world: World, tmp_path: Path, cause: Cause) -> None:
    WAYS[cause](world)
    path = exported(world, tmp_path / "file")
    assert against(world, path, live=False).causes == {cause: 1}


def test_what_came_after_the_export_or_was_pending_then_is_in_flight(world: World, tmp_path: Path) -> None:
    world.edit(nick(NOAH.id, "Noah 2"))
    world.relay()
    assert len(world.stream.read_new("group", "somebody", 10)) == 1
    path = exported(world, tmp_path / "file")
    world.rename(MIA, "Mia 2")  # and somebody's pending entry is taken over
    for live in (True, False):
        verdict = against(world, path, live=live)
        assert (verdict.drift, verdict.ways) == (0, {Place.AFTER_EXPORT: 2})
    world.edit(nick(NOAH.id, "Noah 3"))
    assert against(world, path, live=False).ways == {Place.AFTER_EXPORT: 1, Place.OUTBOX: 1}
    path = exported(world, path)
    assert against(world, path).ways == {Place.OUTBOX: 1}


def test_what_was_settled_before_the_export_and_is_not_in_it_is_drift(world: World, tmp_path: Path) -> None:
    world.edit(nick(MIA.id, "Mia 2"))
    world.relay()
    world.acknowledge_unseen()
    path = exported(world, tmp_path / "file")
    for live in (True, False):
        assert against(world, path, live=live).causes == {Cause.UNKNOWN: 1}


def test_what_was_trimmed_before_the_group_ever_had_it_is_drift(world: World, tmp_path: Path) -> None:
    world.edit(nick(MIA.id, "Mia 2"))
    world.relay()
    world.stream.trim("9999999999999-0", exact=True)
    path = exported(world, tmp_path / "file")
    assert against(world, path).causes == {Cause.TRIMMED: 1}
    assert against(world, path, live=False).ways == {Place.AFTER_EXPORT: 1}, "as far as anybody can tell"


def test_the_barrier(world: World) -> None:
    assert barrier(world.stream, "nobody") == "0-0"
    world.edit(nick(MIA.id, "Mia 2"), nick(NOAH.id, "Noah 2"))
    world.relay()
    first, second = [entry.id for entry in world.stream.range()]
    assert id_parts(barrier(world.stream, "group")) <= id_parts(first)
    world.stream.read_new("group", "somebody", 10)
    assert barrier(world.stream, "group") == first
    world.stream.acknowledge("group", [first])
    assert barrier(world.stream, "group") == second
    world.stream.acknowledge("group", [second])
    assert id_parts(barrier(world.stream, "group")) == (id_parts(second)[0], id_parts(second)[1] + 1)
    world.bus.client.flushall()
    assert barrier(world.stream, "group") == "0-0"


def test_a_repair_from_afar(world: World, tmp_path: Path) -> None:
    """The file has the versions; another export shows what came of it."""
    WAYS[Cause.AHEAD](world)
    path = exported(world, tmp_path / "file")
    with Plan(["group"]) as plan:
        against(world, path, on_drift=plan.add)
        assert touch(world.users, plan).users == 1
    world.relay()
    assert against(world, path).ways == {Place.UNDELIVERED: 1}
    world.consume()
    assert against(world, exported(world, path)).drift == 0


# ── files that are refused ───────────────────────────────────────────────────────────────────────────────


def test_a_file_that_was_cut_anywhere_is_refused(world: World, tmp_path: Path) -> None:
    whole = exported(world, tmp_path / "file").read_bytes()
    cut = tmp_path / "cut"
    for size in range(len(whole)):
        cut.write_bytes(whole[:size])
        with pytest.raises(UsageError, match="not whole"):
            ExportedCopies(cut, EXPECTED)


def test_a_file_to_which_something_was_added_is_refused(world: World, tmp_path: Path) -> None:
    path = exported(world, tmp_path / "file")
    whole = path.read_bytes()
    path.write_bytes(whole + b"\n")
    with pytest.raises(UsageError, match="not whole"):
        ExportedCopies(path, EXPECTED)
    path.write_bytes(whole + whole)
    with pytest.raises(UsageError, match="not whole"):
        against(world, path)


@pytest.mark.parametrize("missing", [2, 3])
def test_a_file_that_lacks_a_line_is_refused(world: World, tmp_path: Path, missing: int) -> None:
    path = exported(world, tmp_path / "file")
    lines = path.read_bytes().splitlines(keepends=True)
    path.write_bytes(b"".join(lines[:missing] + lines[missing + 1 :]))
    with pytest.raises(UsageError, match="not whole"):
        against(world, path)


@pytest.mark.parametrize(
    ("changes", "message"),
    [
        ({"format": 2}, "format that this imsync does not know"),
        ({"imsync": "?"}, "no export of copies"),
        ({"projection": "\x1b]search"}, "not known here"),
        ({"barrier": "x"}, "not whole"),
        ({"barrier": None}, "not whole"),
        ({"sources": None}, "not whole"),
    ],
)
def test_a_header_of_something_else_is_refused(
    world: World, tmp_path: Path, changes: dict[str, object], message: str
) -> None:
    path = exported(world, tmp_path / "file")
    header, *rest = path.read_text().splitlines(keepends=True)
    path.write_text(json.dumps(json.loads(header) | changes) + "\n" + "".join(rest))
    with pytest.raises(UsageError, match=message) as refusal:
        ExportedCopies(path, EXPECTED)
    assert "\x1b" not in refusal.value.message


@pytest.mark.parametrize("line", ["[]", "7", '{"key": "x"}', '{"key": 2}', '{"key": 2, "version": "1"}', "{", "\x00"])
def test_a_line_of_something_else_is_refused(world: World, tmp_path: Path, line: str) -> None:
    path = exported(world, tmp_path / "file")
    lines = path.read_text().splitlines()
    path.write_text("\n".join([*lines[:2], line, *lines[3:]]) + "\n")
    with pytest.raises(UsageError, match="not whole"):
        against(world, path)
    with pytest.raises(UsageError, match="not whole"), closing(ExportedCopies(path, EXPECTED)) as copies:
        copies.state(2)


def test_a_file_that_cannot_be_read_or_written(world: World, tmp_path: Path) -> None:
    with pytest.raises(UsageError, match="cannot read"):
        ExportedCopies(tmp_path / "nothing", EXPECTED)
    with pytest.raises(UsageError, match="cannot read"):
        ExportedCopies(tmp_path, EXPECTED)
    with pytest.raises(UsageError, match="cannot write"):
        exported(world, tmp_path / "no folder" / "file")


def test_an_export_that_fails_leaves_the_former_file(
    world: World, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    path = exported(world, tmp_path / "file")
    before = path.read_bytes()
    monkeypatch.setattr(export, "_described", lambda projection, state: replace(state, rows=1 / 0))
    with pytest.raises(ZeroDivisionError):
        exported(world, path)
    assert path.read_bytes() == before
    assert sorted(each.name for each in tmp_path.iterdir() if each.name.startswith((".", "file"))) == ["file"]
