"""docs/json.md tells the truth: what the commands print has the keys and types of its tables, and no others.

The tables are the one source; this file holds no key of its own.
"""

from __future__ import annotations

import contextlib
import importlib
import io
import json
import logging
import os
import pkgutil
import re
import sqlite3
import threading
import time
from collections.abc import Collection, Iterator, Mapping
from dataclasses import dataclass, field
from itertools import takewhile
from pathlib import Path
from typing import Any

import pytest

import imsync
from imsync.bench.figures import compared
from imsync.bench.results import Doubt, Machine, Result, Tick
from imsync.bus import Bus, ConsumerOptions, RetryPolicy
from imsync.bus.vitals import Vitals
from imsync.cli import main
from imsync.embedded import EmbeddedServer
from imsync.errors import ImsyncError
from imsync.im.relay import Relay
from imsync.im.user_store import ProfileEdit
from imsync.im.workspace import Workspace
from tests.letters import Breaking

ROOT = Path(__file__).resolve().parents[2]
PAGE = ROOT / "docs" / "json.md"

TYPES = {"integer", "number", "text", "boolean", "object", "array", "null"}
SELDOM_NULL = {
    ("imsync status", "groups[].lag"),
    ("imsync status", "groups[].lag_seconds"),
    ("imsync status", "groups[].accounting.undelivered"),
    ("imsync status", "groups[].accounting.unexplained"),
    ("imsync group list", "lag"),
    ("imsync group list", "lag_seconds"),
    ("imsync group drop", "undelivered"),
    ("imsync rebuild group", "imsync rebuild friend", "undelivered"),
    ("imsync dead show", "predicted"),
    ("imsync status", "rates.groups[].events_per_second"),
    ("imsync status", "rates.edits_per_second"),
    ("imsync demo", "staleness.p50_ms"),
    ("imsync demo", "staleness.p99_ms"),
}
"""Documented as possibly null, and never so here: a lag is unknown where the server cannot tell it and there are more
than 10,000 entries, a rate where nobody who lives tells, and a demo without edits has no staleness."""


@dataclass(frozen=True)
class Key:
    """A row of a table: the types that the value may have, and whether it may be absent."""

    types: frozenset[str]
    optional: bool


@dataclass
class Printed:
    """What the commands printed: for each command its objects; and the exit codes."""

    objects: dict[str, list[Any]] = field(default_factory=dict)
    exit_codes: dict[str, set[int]] = field(default_factory=dict)


# ── the page ─────────────────────────────────────────────────────────────────────────────────────────────


def sections() -> dict[str, list[str]]:
    """The lines under each heading."""
    found: dict[str, list[str]] = {}
    title = ""
    for line in PAGE.read_text(encoding="utf-8").splitlines():
        if line.startswith("## "):
            title = line.removeprefix("## ")
            found[title] = []
        elif title:
            found[title].append(line)
    return found


def table(lines: list[str], title: str) -> list[list[str]]:
    """The cells of the table whose first column has this title."""
    start = next(i for i, line in enumerate(lines) if line.startswith(f"| {title} |"))
    rows = takewhile(lambda line: line.startswith("|"), lines[start + 2 :])
    return [[cell.strip() for cell in row.removeprefix("|").removesuffix("|").split("|")] for row in rows]


def keys_of(lines: list[str]) -> dict[str, Key]:
    """The documented keys by their paths."""
    keys = {}
    for path, types, _meaning in table(lines, "key"):
        words = set(re.findall(r"\w+", types)) - {"or"}
        assert words <= TYPES | {"optional"}, f"{path}: {types}"
        keys[path.strip("`")] = Key(frozenset(words - {"optional"}), "optional" in words)
    return keys


def documented() -> dict[tuple[str, ...], dict[str, Key]]:
    """The documented keys by the commands that print them."""
    return {
        commands: keys_of(lines)
        for title, lines in sections().items()
        if (commands := tuple(re.findall(r"`(imsync [^`]+)`", title)))
    }


# ── what is printed ──────────────────────────────────────────────────────────────────────────────────────


def type_of(value: Any) -> str:
    """The JSON type of a parsed value."""
    names = {bool: "boolean", int: "integer", float: "number", str: "text", dict: "object", list: "array"}
    return names[type(value)] if value is not None else "null"


def paths(value: Any, keys: Mapping[str, Key], prefix: str = "") -> Iterator[tuple[str, str]]:
    """Every path in an object with the type of its value. Where `a.*` is documented, keys are not told apart."""
    for name, member in value.items():
        wildcard = f"{prefix}*"
        path = wildcard if wildcard in keys else prefix + name
        yield path, type_of(member)
        if isinstance(member, dict):
            yield from paths(member, keys, f"{path}.")
        elif isinstance(member, list):
            for element in member:
                if isinstance(element, dict):
                    yield from paths(element, keys, f"{path}[].")
                else:
                    yield f"{path}[]", type_of(element)


def missing(value: Any, keys: Mapping[str, Key]) -> Iterator[str]:
    """The keys that must be there and are not, in an object and in those that it holds."""
    for path, key in keys.items():
        parent, _, name = path.rpartition(".")
        if not key.optional and name != "*" and not name.endswith("[]"):
            yield from (path for holder in holders(value, parent) if name not in holder)


def holders(value: Any, path: str) -> list[dict[str, Any]]:
    """The objects at a path."""
    found = [value]
    for step in filter(None, path.split(".")):
        name = step.removesuffix("[]")
        if name == "*":
            found = [member for each in found for member in each.values()]
        else:
            found = [each[name] for each in found if each.get(name) is not None]
        if step.endswith("[]"):
            found = [element for each in found for element in each]
    return found


@pytest.fixture(scope="module")
def printed(tmp_path_factory: pytest.TempPathFactory) -> Iterator[Printed]:
    """Every command on a small store, in every state that changes what it prints."""
    folder = tmp_path_factory.mktemp("json")
    logger = logging.getLogger("imsync")
    before = (logger.handlers, logger.level, logger.propagate)
    with pytest.MonkeyPatch.context() as patch:
        for name in [name for name in os.environ if name.startswith("IMSYNC_")]:
            patch.delenv(name)
        for name in ("HOME", "XDG_CONFIG_HOME"):
            patch.setenv(name, str(folder))
        patch.setenv("IMSYNC_DATA_DIR", str(folder / "data"))
        patch.chdir(folder)
        try:
            yield everything(folder, patch)
        finally:
            EmbeddedServer(folder / "data").stop()
            logger.handlers, logger.level, logger.propagate = before


def everything(folder: Path, patch: pytest.MonkeyPatch) -> Printed:
    """Runs the commands."""
    result = Printed()

    names = {name for names in DOCUMENTED for name in names}

    def run(words: str, *more: str, stdin: str = "", codes: Collection[int] = (0, 2, 3)) -> Any:
        command = f"imsync {words}"
        command = command if command in names else command.partition(" --")[0]
        argv = [*words.split(), *more, "--json"]
        out = io.StringIO()
        patch.setattr("sys.stdin", io.TextIOWrapper(io.BytesIO(stdin.encode())))
        with contextlib.redirect_stdout(out), pytest.raises(SystemExit) as exit_:
            main(argv)
        objects = [json.loads(line) for line in out.getvalue().splitlines()]
        assert isinstance(exit_.value.code, int)
        result.exit_codes.setdefault(command, set()).add(exit_.value.code)
        assert exit_.value.code in codes or (objects[-1].keys() > {"error"}), objects
        assert out.getvalue().isascii()
        result.objects.setdefault(command, []).extend(objects)
        return objects[-1] if objects else None

    user = run("init", "--users", "50", "--groups", "5")["example_user"]
    run("status")  # nothing is in the stream
    with Bus.embedded(folder / "data") as bus:  # older than retention keeps
        bus.client.xadd(bus.stream("user-update").key, {"event": "not JSON"}, id="1-1")
    run("publish user-update", "--user", str(user), "--nick-name", "小明")
    run("tail", "--until-end")  # before there is what nobody has documented
    run("publish user-update", "--count", "40", "--invalid", "0.1")
    run("publish user-update", "--stdin", stdin=f'{{"id": {user}, "headImage": ""}}\nnot JSON\n')
    run("status")
    with Bus.embedded(folder / "data") as bus:
        bus.stream("user-update").read_new("group", "ghost", 5)  # delivered to somebody who is not alive
    run("replay pending", "--dry-run", "--min-idle", "0s")
    run("consume group", "--max-events", "10")
    with Bus.embedded(folder / "data") as bus:
        bus.stream("user-update").read_new("group", "ghost", 25)
        keys = bus.keys("user-update")
        alive, vitals = keys.alive("group", "ghost"), keys.vitals("group", "ghost")
        bus.client.set(alive, '{"host": "web", "pid": 1, "since": 1}')
        bus.client.set(vitals, Vitals(1, 1, 1, 1, 1, "failed", 1).encoded())
        run("status")
        bus.client.delete(alive, vitals)
    run("status")
    run("verify")  # the ghost holds what it waits for
    run("replay pending", "--min-idle", "0s")
    run("consume group", "--until-empty")
    run("consume friend", "--until-empty")
    with Bus.embedded(folder / "data") as bus:
        die(bus, folder, user)
        dead = [entry.id for entry in bus.dead_letters("user-update", "group").range()]
    run("dead list")
    run("tail", "--dead", "group", "--from", "start", "--count", "1")
    run("doctor")
    for letter in dead:
        run("dead show", letter)
    run("dead purge", "--all", "--dry-run")
    run("replay dead", "--dry-run")
    run("replay dead", "--yes", codes=(1,))
    run("dead purge", "--all", "--yes")
    run("replay from", "start", "--dry-run")
    run("replay from", "1h", "--user", str(user), "--yes")
    run("replay from", "now", "--yes")
    run("replay from", "start", "--seek", "--yes")
    run("consume group", "--until-empty")
    run("consume friend", "--until-empty")
    run("verify")
    with contextlib.closing(sqlite3.connect(folder / "data" / "group.db")) as store, store:
        store.execute("UPDATE im_group_member SET user_nick_name = 'by hand'")
        (other,) = store.execute("SELECT min(user_id) FROM user_profile_replica WHERE user_id <> ?", (user,)).fetchone()
        store.execute("UPDATE user_profile_replica SET version = 9223372036854775807 WHERE user_id = ?", (other,))
    run("verify")
    with Bus.embedded(folder / "data") as bus:
        run("publish user-update", "--user", str(user), "--nick-name", "held")
        bus.stream("user-update").read_new("group", "ghost", 1)
        bus.client.xadd(bus.keys("user-update").dead("group"), {"reason": "x", "raw.event": f'{{"subject":"{user}"}}'})
        bus.client.xadd(bus.keys("user-update").dead("group"), {"raw.event": f'{{"subject":"{user}","sequence":"1"}}'})
        run("trace", str(user))
        run("dead purge", "--all", "--yes")
    run("replay pending", "--min-idle", "0s")
    (folder / "data" / "friend.db").rename(folder / "elsewhere.db")
    run("trace", str(user), codes=(5,))
    (folder / "elsewhere.db").rename(folder / "data" / "friend.db")
    run("verify", "--repair", "--dry-run")
    run("verify", "--repair", "--yes", "--wait", "--timeout", "0s")
    run("verify --export", str(folder / "copies"), "--group", "group")
    run("verify", "--against", str(folder / "copies"))
    patch.setenv("IMSYNC_URL", "unix:///nobody/listens/here")
    run("publish user-update", "--user", str(user), "--nick-name", "waits")
    run("trace", str(user), codes=(4,))
    patch.delenv("IMSYNC_URL")
    with contextlib.closing(sqlite3.connect(folder / "data" / "group.db")) as store, store:  # as in very many groups
        store.execute("INSERT INTO fan_out VALUES (?, 0, 0, 0, 0, 0)", (user,))
    run("trace", str(user))
    run("status")
    with copying(folder / "data" / "group.db"):
        run("status --watch", "--interval", "200ms", "--count", "3")
    run("relay", "--until-empty")
    run("group create", "search")
    run("group create", "search")
    with Bus.embedded(folder / "data") as bus:  # to whom nobody here can apply them
        bus.stream("user-update").read_new("search", "ghost", 5)
    run("status")
    run("group list")
    run("consumer list")
    run("consumer prune", "--dry-run")
    run("consumer prune", "--yes")
    run("rebuild group", "--dry-run")
    run("rebuild group", "--yes")
    run("rebuild friend", "--yes")
    for group in ("search", "group", "friend"):
        run("group drop", group, "--yes")
    run("status")  # no group is there
    monitored(folder, run, patch)
    run("config show")
    run("config acl")
    run("config init", "imsync.toml")
    run("config show")
    run("server status")
    run("server start")
    run("server stop")
    run("server status")
    (folder / "data" / "friend.db").chmod(0o644)
    run("doctor")
    patch.setattr("imsync.cli.story.Story", Told)
    run("demo")
    run("bench", "--seconds", "1", "--users", "10", "--events", "100", "--rate", "50", "--svg", "bench.svg")
    patch.setattr("imsync.bench.measuring.Bench", Interrupted)
    run("bench")
    return result


def die(bus: Bus, folder: Path, user: int) -> None:
    """An event that the group service can decode and fails on, and a broken one about the same user."""
    with contextlib.closing(Workspace(folder / "data").user_store()) as users:
        users.edit(ProfileEdit(user_id=user, nick_name="dies"))
        Relay(users, bus.publisher("user-update")).drain()
    with contextlib.closing(Workspace(folder / "data").projection("group")) as store:
        options = ConsumerOptions(until_empty=True, retry=RetryPolicy(max_attempts=1))
        bus.consumer("user-update", group="group", events=store.events, handler=Breaking(store), options=options).run()
    broken = f'{{"type":"im.user.updated.v1","subject":"{user}","sequence":"1"}}'
    bus.client.xadd(bus.keys("user-update").dead("group"), {"reason": "invalid", "raw.event": broken})


@contextlib.contextmanager
def copying(path: Path) -> Iterator[None]:
    """Adds to what a store knows of its staleness all the time, as a consumer does."""
    add = "INSERT INTO staleness VALUES (?, 30, 1) ON CONFLICT (hour, bucket) DO UPDATE SET n = n + 1"
    ended = threading.Event()

    def work() -> None:
        with contextlib.closing(sqlite3.connect(path)) as store:
            while not ended.wait(0.02):
                with store:
                    store.execute(add, (int(time.time() // 3600),))

    worker = threading.Thread(target=work)
    worker.start()
    try:
        yield
    finally:
        ended.set()
        worker.join()


def monitored(folder: Path, run: Any, patch: pytest.MonkeyPatch) -> None:
    """What is told of a system of which not everything can be seen."""
    watch = ("--interval", "100ms", "--count", "2")
    run("check")
    run("check", "--max-lag", "0", "--max-dead", "0")
    run("check", "--max-pending-age", "60")
    run("report", "--html", "page.html", "--for", "500ms")
    run("report", "--html", "page.html", "--for", "0s")
    run("status --watch", *watch, "--record", "samples")
    url = EmbeddedServer(folder / "data").url
    with pytest.MonkeyPatch.context() as elsewhere:  # with a URL, the stores may be on other hosts
        elsewhere.setenv("IMSYNC_URL", url)
        elsewhere.setenv("IMSYNC_DATA_DIR", str(folder / "nothing"))
        run("status")
        run("check")
        run("report", "--html", "page.html", "--samples", "samples", "--no-verify")
        elsewhere.setenv("IMSYNC_URL", "unix:///nobody/listens/here")
        run("status --watch", *watch)
        run("check")
        (folder / "samples").write_text('{"time": "2026-01-02T03:04:05Z"}')
        run("report", "--html", "page.html", "--samples", "samples")
    kept = (folder / "data" / "user.db").read_bytes()
    (folder / "data" / "user.db").write_bytes(b"no database" * 1000)
    run("status")
    run("check", "--max-outbox-age", "60")
    (folder / "data" / "user.db").write_bytes(kept)


class Told:
    """A story whose end is known: the true one takes half a minute, and has a test of its own."""

    def __init__(self, *arguments: object) -> None:
        pass

    def __enter__(self) -> Told:
        return self

    def __exit__(self, *exception: object) -> None:
        pass

    def tell(self) -> object:
        from imsync.cli.story import Ending
        from imsync.im.setup import Made
        from imsync.im.verify import Verdict
        from imsync.store.settlement import Percentiles

        return Ending(
            made=Made(1, 1, 1, 1),
            events=2,
            applied=1,
            superseded=1,
            held_by_victim=1,
            taken_over=1,
            staleness=Percentiles(1.0, 2.0),
            events_per_second=1.0,
            unexplained=0,
            verdict=Verdict(),
            seconds=1.0,
        )


class Interrupted:
    """A benchmark that was interrupted before much was measured."""

    left_behind = None

    def __init__(self, *arguments: object, **more: object) -> None:
        self.machine = Machine("Redis", "redis://host", False, "/tmp", "", 1, 0.0, "3", "3")
        self.prefix = "imsync-bench-1"

    def __enter__(self) -> Interrupted:
        return self

    def __exit__(self, *exception: object) -> None:
        pass

    def measure(self, on_step: object) -> None:
        raise KeyboardInterrupt

    def result(self, *, interrupted: bool) -> Result:
        figures = {"publish_per_second": compared([1.0], [2.0])}
        doubts = [Doubt("interrupted", "it was")]
        ticks = [Tick(0.0, None, None)]
        return Result(self.machine, 1, 1, 1, 0, 7, 0, figures, timeline=ticks, doubts=doubts, interrupted=interrupted)


# ── the comparison ───────────────────────────────────────────────────────────────────────────────────────

DOCUMENTED = documented()


def test_every_command_is_documented() -> None:
    from imsync.cli.reference import commands

    leaves = {name for name, command in commands() if not hasattr(command, "commands")}
    assert leaves == {name.partition(" --")[0] for names in DOCUMENTED for name in names}


@pytest.mark.parametrize("commands", DOCUMENTED, ids=" and ".join)
def test_a_command_prints_the_documented_keys(commands: tuple[str, ...], printed: Printed) -> None:
    keys = DOCUMENTED[commands]
    seen: dict[str, set[str]] = {}
    for command in commands:
        assert printed.objects[command], "it printed nothing"
        for each in printed.objects[command]:
            assert list(missing(each, keys)) == []
            for path, kind in paths(each, keys):
                seen.setdefault(path, set()).add(kind)
    assert seen.keys() - keys.keys() == set(), "printed and not documented"
    assert keys.keys() - seen.keys() == set(), "documented and never printed"
    for path, kinds in seen.items():
        unusual = {"null"} if (*commands, path) in SELDOM_NULL else set()
        assert kinds | unusual == keys[path].types, path


def test_the_results_of_checks_go_with_their_exit_codes(printed: Printed) -> None:
    assert printed.exit_codes["imsync verify"] == {0, 3}
    assert printed.exit_codes["imsync status"] == {0, 3, 5}
    assert printed.exit_codes["imsync check"] == {0, 3, 4, 5}
    assert printed.exit_codes["imsync publish user-update"] == {0, 2}
    assert printed.exit_codes["imsync trace"] == {0, 3, 4, 5}
    assert printed.exit_codes["imsync replay dead"] == {0, 1}
    assert printed.exit_codes["imsync doctor"] == {0, 3}
    checks = ("verify", "status", "check", "doctor", "publish user-update", "trace", "replay dead")
    others = {f"imsync {name}" for name in checks}
    assert all(codes == {0} for command, codes in printed.exit_codes.items() if command not in others)


@pytest.mark.parametrize(
    ("argv", "kind"),
    [
        (["nonsense"], "usage"),
        (["status"], "store_unusable"),
        (["dead", "list", "--url", "unix:///nobody/listens/here"], "redis_unreachable"),
        (["config", "show", "--config", "missing.toml"], "config"),
    ],
)
def test_an_error_has_the_documented_keys(
    argv: list[str], kind: str, tmp_path: Path, monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str]
) -> None:
    monkeypatch.setenv("IMSYNC_DATA_DIR", str(tmp_path))
    with pytest.raises(SystemExit) as exit_:
        main([*argv, "--json"])
    error = json.loads(capsys.readouterr().out)
    keys = keys_of(sections()["Errors"])
    assert dict(paths(error, keys)) == {path: next(iter(key.types)) for path, key in keys.items()}
    assert error["error"]["kind"] == kind
    assert exit_.value.code == documented_errors()[kind]


def documented_errors() -> dict[str, int]:
    return {kind.strip("`"): int(code) for kind, code, _meaning in table(sections()["Errors"], "kind")}


def test_every_kind_of_error_is_documented_with_its_exit_code() -> None:
    for module in pkgutil.walk_packages(imsync.__path__, "imsync."):
        if not module.name.endswith("__main__"):
            importlib.import_module(module.name)
    kinds = {each.kind: each.exit_code for each in every(ImsyncError)}
    assert documented_errors() == kinds | {"internal": 1}
    codes = {int(row[0]) for row in table(sections()["Exit codes"], "exit code")}
    assert codes == {0, 3, 130} | set(documented_errors().values())


def every(kind: type[ImsyncError]) -> Iterator[type[ImsyncError]]:
    yield kind
    for below in kind.__subclasses__():
        yield from every(below)


def test_the_comparison_itself_finds_what_is_wrong() -> None:
    keys = keys_of(["| key | type | m |", "|---|---|---|", "| `a` | array | |", "| `a[].b` | integer or null | |"])
    found = set(paths({"a": [{"b": 1}, {"b": None}], "c": 1.5, "d": ["x", None]}, keys))
    assert found == {
        ("a", "array"), ("a[].b", "integer"), ("a[].b", "null"), ("c", "number"),
        ("d", "array"), ("d[]", "text"), ("d[]", "null"),
    }  # fmt: skip
    assert list(missing({"a": [{"b": 1}, {}]}, keys)) == ["a[].b"]
    assert list(missing({}, keys)) == ["a"]
