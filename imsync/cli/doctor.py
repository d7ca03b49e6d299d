"""`imsync doctor`: whether everything around imsync is set up for what it promises, and what to do about the rest."""

from __future__ import annotations

from collections.abc import Callable, Generator, Iterator
from functools import partial
from typing import TYPE_CHECKING, Annotated

import typer

from imsync.cli.run import Run, command

if TYPE_CHECKING:
    from imsync.bus.facts import Facts
    from imsync.bus.finding import Finding
    from imsync.store.database import Schema

BINDING = "-binding"


def register(app: typer.Typer) -> None:
    """Adds the command."""
    command(app, "doctor")(doctor)


def doctor(
    run: Run,
    deep: Annotated[
        bool, typer.Option("--deep", help="Compare the stores' indexes with their tables too; takes longer.")
    ] = False,
) -> None:
    """Check the server, the stores and the settings, and say what to do.

    Changes nothing, and starts nothing. A check is ok, warn, bad, or unknown: it could not be looked at. Exits with 3
    when one is bad.
    """
    from imsync.bus.finding import Verdict
    from imsync.cli.names import readable

    findings = [
        {
            "check": each.check,
            "verdict": str(each.verdict),
            "evidence": readable(each.evidence),
            "remedy": readable(each.remedy) or None,
        }
        for each in _everything(run, deep=deep)
    ]
    counts = {str(verdict): sum(row["verdict"] == verdict for row in findings) for verdict in Verdict}
    if run.as_json:
        run.out.row({"findings": findings, **counts, "healthy": not counts["bad"]})
    else:
        rows: list[tuple[object, ...]] = []
        for row in findings:
            rows.append((row["verdict"], row["check"], row["evidence"]))
            if row["remedy"]:
                rows.append(("", "", f"→ {row['remedy']}"))
        run.out.table(("", "check", "found"), rows)
        print(", ".join(f"{number} {verdict}" for verdict, number in counts.items() if number))
    if counts["bad"]:
        raise typer.Exit(3)


def _everything(run: Run, *, deep: bool) -> Iterator[Finding]:
    from imsync.cli.setting_checks import check_settings

    yield from check_settings(run.settings)
    sound = yield from _stores(run, deep=deep)
    reachable = True
    if not run.settings.url:
        embedded = _embedded(run)
        yield embedded
        reachable = embedded.verdict == "ok"
    yield from _redis(run, sound) if reachable else _not_asked()


# ── the stores ───────────────────────────────────────────────────────────────────────────────────────────


def _stores(run: Run, *, deep: bool) -> Generator[Finding, None, list[str]]:
    """Looks at the files; returns the services whose store can be opened."""
    from imsync.bus.finding import bad, ok, warn
    from imsync.im.user_store import SCHEMA
    from imsync.im.workspace import PROJECTIONS
    from imsync.store.file_checks import disk_space, integrity, log_size, permissions, schema

    workspace = run.workspace
    schemas: dict[str, Schema] = {"user": SCHEMA, **{name: each.schema for name, each in PROJECTIONS.items()}}
    there = [name for name in schemas if workspace.path_of(name).exists()]
    absent = [f"{name}.db" for name in schemas if name not in there]
    where = workspace.data_dir
    if not there:
        yield bad("stores", f"there are none in {where}", "`imsync init`, or check --data-dir")
        return []
    if absent:
        services = [name for name in schemas if name not in there and name != "user"]
        rebuild = "".join(f", then imsync rebuild {name}" for name in services)
        remedy = f"fine where those services are on other machines; otherwise restore them{rebuild}"
        yield warn("stores", f"{', '.join(absent)} not in {where}", remedy)
    else:
        yield ok("stores", f"all in {where}")
    files = [where / f"{name}.db{suffix}" for name in there for suffix in ("", "-wal", "-shm")]
    yield permissions(files, where)
    yield disk_space(where)
    sound = []
    for name in there:
        path = workspace.path_of(name)
        kind = schema(path, schemas[name])
        yield kind
        if kind.verdict == "bad":
            continue
        whole = integrity(path, schemas[name], deep=deep)
        yield whole
        yield log_size(path)
        if (kind.verdict, whole.verdict) == ("ok", "ok") and name in PROJECTIONS:
            sound.append(name)
    return sound


# ── the server ───────────────────────────────────────────────────────────────────────────────────────────


def _embedded(run: Run) -> Finding:
    """The server of imsync's own. It is not started: whoever looks must not change what there is to see."""
    from imsync.bus.finding import bad, ok, warn
    from imsync.embedded import EmbeddedServer
    from imsync.errors import ImsyncError

    name = "embedded-server"
    server = EmbeddedServer(run.settings.data_dir)
    try:
        status = server.status()
    except ImsyncError as error:
        return bad(name, error.message, error.hint or "imsync server stop")
    if status.running:
        return ok(name, f"{status.version}, process {status.pid}")
    if not (run.settings.data_dir / "redis").is_dir():
        return warn(name, "has never run: no url is set", "`imsync server start`, or set url / IMSYNC_URL")
    if server.socket_path.exists():
        return warn(
            name, "was killed: its socket is there and nobody listens; its data is kept",
            "`imsync server start`, as any command does; its log is redis/server.log in the data folder",
        )  # fmt: skip
    return warn(name, "is stopped", "`imsync server start`, as any command does")


def _redis(run: Run, sound: list[str]) -> Iterator[Finding]:
    from imsync.bus.facts import gather
    from imsync.bus.finding import bad, ok
    from imsync.errors import InfrastructureError

    endpoint = run.bus.endpoint
    try:
        facts = gather(run.bus.client, str(endpoint))
    except InfrastructureError as error:
        yield bad("redis", error.message, error.hint)
        yield from _not_asked()
        return
    yield ok("redis", f"{facts.where} answers in {facts.answer_seconds * 1000:.1f} ms")
    yield from _server(run, facts)
    yield from _streams(run, facts, sound)


def _not_asked() -> Iterator[Finding]:
    from imsync.bus.finding import unknown

    yield unknown("server", "not asked: its setup, the rights, the stream, the groups", "bring Redis back first")


def _server(run: Run, facts: Facts) -> Iterator[Finding]:
    from imsync.bus.rights import check as check_rights
    from imsync.bus.server_checks import CHECKS, output_buffer
    from imsync.im.events import DESTINATION

    for check in CHECKS:
        yield check(facts)
    yield output_buffer(facts, run.settings.consumer.batch)
    keys = run.bus.keys(DESTINATION)
    yield _asked("rights", facts, lambda: check_rights(run.bus.client, keys, facts.user, facts.where))


def _streams(run: Run, facts: Facts, sound: list[str]) -> Iterator[Finding]:
    from imsync.bus import stream_checks
    from imsync.bus.inspection import view_retention
    from imsync.bus.retention import Retention
    from imsync.im.events import DESTINATION
    from imsync.im.workspace import PROJECTIONS

    bus, bounds = run.bus, run.settings.retention
    kept = Retention(bounds.hours, bounds.entries, bounds.min_hours)
    yield _asked("stream", facts, lambda: stream_checks.present(bus, DESTINATION))
    yield _asked("groups", facts, lambda: stream_checks.groups(bus, DESTINATION, PROJECTIONS))
    yield _asked("consumers", facts, lambda: stream_checks.consumers(bus, DESTINATION))
    yield _asked("retention", facts, lambda: stream_checks.retention(view_retention(bus, DESTINATION, kept)))
    for service in sound:
        yield _asked(service + BINDING, facts, partial(_binding, run, service))


def _binding(run: Run, service: str) -> Finding:
    """Whether a store is its group's."""
    from imsync.bus.finding import bad, ok
    from imsync.im.events import DESTINATION

    projection = run.workspace.projection(service)
    try:
        refused = run.bus.binding(DESTINATION, service, projection).mismatch()
    finally:
        projection.close()
    if refused:
        return bad(service + BINDING, refused.message, refused.hint)
    return ok(service + BINDING, f"the store is that of group {service}")


def _asked(name: str, facts: Facts, check: Callable[[], Finding]) -> Finding:
    """A check that needs a permission, or the server a second time."""
    from imsync.bus.finding import bad, unknown
    from imsync.errors import ImsyncError, RedisRefused

    try:
        return check()
    except RedisRefused as error:
        if error.is_about_rights:
            return unknown(name, f"{facts.asker} may not look: {error.message}", "run `imsync doctor` as the operator")
        return bad(name, error.message, error.hint or "look at the server's log")
    except ImsyncError as error:
        return bad(name, error.message, error.hint)
