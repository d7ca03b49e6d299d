"""A projection that is not the one that its group has fed: how it is refused, and how `imsync rebuild` mends it."""

from __future__ import annotations

import json
import sqlite3
from collections.abc import Iterator, Sequence
from contextlib import ExitStack, closing
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import imsync.im.rebuild
from imsync.bus.binding import Binding
from imsync.bus.consumer import Consumer
from imsync.im.events import DESTINATION
from imsync.im.flight import GroupFlight
from imsync.im.verify import verify
from imsync.im.workspace import PROJECTIONS, Workspace
from tests.faults.checker import Violation
from tests.faults.evidence import TABLES, load_copies, rows
from tests.faults.nursery import Worker
from tests.faults.rig import World
from tests.faults.steps import At
from tests.faults.workers import CommandJob, Context

PAGE_USERS = 50
"""How many users a transaction of a rebuild writes here, so that there are several."""

UNFINISHED_STEPS = (
    At("after_begin"),
    At("before_rebind"),
    At("after_rebind"),
    At("before_drain"),
    At("before_apply"),
    At("before_commit", inside="apply"),
    At("after_commit"),
    At("after_drain"),
    At("before_commit", inside="cover"),
    At("after_cover"),
    At("before_page"),
    At("before_commit", nth=2, inside="page"),
    At("after_page", nth=2),
    At("before_note"),
    At("before_commit", inside="note"),
)
"""Where a rebuild may be cut short, and the store is not whole."""

WHOLE_STEPS = (At("after_note"), At("before_rebind", nth=2), At("after_rebind", nth=2))
"""Where it is whole."""

COVERED = ("acknowledged_before_commit", "entry_lost_silently")
"""What an event looks like that a projection has never settled because a snapshot covers it."""


@dataclass(frozen=True)
class RebuildJob(CommandJob):
    """`imsync rebuild`, with steps."""

    def run(self, context: Context) -> dict[str, Any]:
        imsync.im.rebuild.PAGE = PAGE_USERS
        around = context.failpoints.around
        around(Consumer, "run", "before_drain", "", "after_drain")
        around(Binding, "rebind", "before_rebind", "", "after_rebind")
        for projection in PROJECTIONS.values():
            around(projection, "apply", "before_apply", "apply", "after_commit")
            around(projection, "write_snapshot", "before_page", "page", "after_page")
            around(projection, "note_snapshot", "before_note", "note", "after_note")
            around(projection, "begin_filling", "before_begin", "begin", "after_begin")
            around(projection, "cover", "before_cover", "cover", "after_cover")
        return super().run(context)


def quick(world: World) -> list[str]:
    """Arguments of commands whose consumers notice soon that others are dead."""
    path = world.stores.parent / "quick.toml"
    hours = world.relay_options.get("history_hours", 24.0)
    path.write_text(f"[consumer]\nheartbeat_ms = 100\nblock_ms = 50\n[retention]\nmin_hours = {hours}\n")
    return ["--json", "--config", str(path)]


def start_rebuild(world: World, *arguments: str, at: Sequence[At] = ()) -> Worker:
    """Starts `imsync rebuild group`, or what the arguments say."""
    words = ["rebuild", *(arguments or ["group"]), "--yes", *quick(world)]
    return world.nursery.start(
        RebuildJob([*words, "--data-dir", str(world.stores), "--url", world.url], steps=tuple(at))
    )


def rebuilt(world: World, *arguments: str) -> dict[str, Any]:
    """Runs `imsync rebuild group`, or what the arguments say, which must succeed; what it prints."""
    done = start_rebuild(world, *arguments).finish(30)
    assert done["code"] == 0, done
    world.rebuilt.add(arguments[0] if arguments else "group")
    result: dict[str, Any] = json.loads(done["out"])
    return result


def refused(world: World, service: str = "group", **job: Any) -> str:
    """Starts a consumer that must be refused by name at once; what it says."""
    worker = world.consumer(service, **job)
    assert worker.wait() == 1, worker.log
    assert worker.error is not None
    assert worker.error[0] == "StoreMismatch", worker.log
    return worker.error[1]


def is_refused(world: World, service: str = "group") -> bool:
    """Whether the command that consumes refuses the store by name. If it does not, it has consumed."""
    done = world.command("consume", service, "--until-empty", *quick(world))
    if done["code"] == 0:
        return False
    error = json.loads(done["out"])["error"]
    assert done["code"] == 5, done
    assert error["kind"] == "store_mismatch", done
    assert f"imsync rebuild {service}" in error["hint"], done
    return True


def run_until_rest(world: World, edits: int) -> None:
    """Edits of a process of their own, published and applied; then nobody is at work, and no file open."""
    world.producer(count=edits).finish()
    world.settle()
    assert not world.found, world.found


def store_id(path: Path) -> str:
    """The identity of a store."""
    return str(rows(path, "SELECT value FROM meta WHERE key = 'store_id'")[0][0])


def content(path: Path, service: str) -> list[tuple[Any, ...]]:
    """What consumers write into a projection, row by row."""
    table = TABLES[service][0]
    return [
        row
        for name in (table, "user_profile_replica", "settled", "tally", "meta")
        for row in rows(path, f"SELECT '{name}', * FROM {name} ORDER BY 2, 3")
    ]


def overrides(world: World, service: str) -> dict[tuple[int, int], str]:
    """Who is where, and what others call them."""
    return {(each.user, each.place): each.remark for each in load_copies(world.stores / f"{service}.db", service)}


def failures(world: World, service: str = "group") -> dict[bytes, bytes]:
    """The failures of the handler that are on record."""
    return dict(world.client.hgetall(f"imsync:{{user-update}}:failures:{service}"))


def covered(world: World, service: str = "group") -> int:
    """How many events a snapshot covers that a projection has never settled."""
    tallies = rows(world.stores / f"{service}.db", "SELECT n FROM tally WHERE outcome = 'covered'")
    return sum(n for (n,) in tallies)


def judged(world: World, *, without: Sequence[str] = ()) -> list[Violation]:
    """All violations. An event may be without an outcome where a snapshot covers it, and is counted there.

    Args:
        without: rules that this fault breaks by its nature.
    """
    found = world.check(without=without)
    for service in world.rebuilt:
        without_outcome = [each for each in found if each.where == service and each.name in COVERED]
        if len(without_outcome) <= covered(world, service):
            also = (*COVERED, "accepted_edit_without_outcome")
            found = [each for each in found if each.where != service or each.name not in also]
    found += drift(world)
    status = json.loads(world.command("status", "--json")["out"])
    for group in status["groups"]:
        if group["group"] in world.services and group["accounting"]["unexplained"]:
            found.append(Violation("accounting_open", f"status of {group['group']}", str(group["accounting"])))
    return found


def drift(world: World) -> Iterator[Violation]:
    """What `verify` finds in the services of this world, when nothing is on its way."""
    workspace = Workspace(world.stores)
    with ExitStack() as closing_all:
        users = closing_all.enter_context(closing(workspace.user_store()))
        projections = [closing_all.enter_context(closing(workspace.projection(name))) for name in world.services]
        verdict = verify(users, projections, lambda group: GroupFlight(world.bus.stream(DESTINATION), group))
        if verdict.drift or verdict.in_flight:
            yield Violation("copies_differ", "verify", f"{verdict.causes}, {verdict.in_flight} in flight")


def make_another(path: Path) -> None:
    """Makes it the store of another system: it has an identity of its own."""
    with closing(sqlite3.connect(path)) as connection, connection:
        connection.execute("UPDATE meta SET value = 'another-system' WHERE key = 'store_id'")
