"""`imsync report`: one page that shows how it went."""

from __future__ import annotations

import threading
import time
from pathlib import Path
from typing import TYPE_CHECKING, Annotated, Any

import typer

from imsync.cli.files import write_whole
from imsync.cli.looking import look, look_again
from imsync.cli.run import Run, command

if TYPE_CHECKING:
    from collections.abc import Mapping, Sequence

    from imsync.cli.page import Drift
    from imsync.cli.samples import Point
    from imsync.cli.watch import Sample
    from imsync.im.overview import Overview

DEFAULT_MS = 10_000
"""For how long samples are taken when none were recorded, in milliseconds."""


def register(app: typer.Typer) -> None:
    """Adds the command."""
    command(app, "report")(report)


def report(
    run: Run,
    html: Annotated[Path, typer.Option(help="The file to write.", dir_okay=False)],
    samples: Annotated[
        Path | None,
        typer.Option(help="Samples that imsync status --watch --record has written.", show_default=False),
    ] = None,
    for_: Annotated[
        str | None,
        typer.Option("--for", help="Take samples for so long first (10s, 5m). 10s without --samples.",
                     show_default=False),
    ] = None,
    no_verify: Annotated[bool, typer.Option("--no-verify", help="Do not compare the copies.")] = False,
) -> None:  # fmt: skip
    """Write a page with throughput, lag, staleness, outcomes and drift, and what needs somebody.

    One HTML file that loads nothing from anywhere: to mail, to print, to keep.
    """
    from imsync.cli.durations import milliseconds
    from imsync.cli.samples import point_of, read
    from imsync.errors import UsageError

    if html.exists() and not html.is_file():
        raise UsageError(f"{html} is not a file", "give a file to write")
    wanted_ms = milliseconds(for_) if for_ is not None else 0 if samples else DEFAULT_MS
    recorded = read(samples) if samples else None
    if recorded and recorded.skipped:
        run.out.note(f"{recorded.skipped:,} lines of {samples} are no samples and were passed over")
    taken = _take(run, wanted_ms / 1000, must=recorded is None)
    described = [each.described() for each in taken]
    # one look is the state of now; drawn it is only what was asked for
    drawn = described if wanted_ms else []
    points = [*(recorded.points if recorded else ()), *(point for each in drawn if (point := point_of(each)))]
    points.sort(key=lambda point: point.at)
    seen = [each for each in described if each["groups"]] or described
    state = seen[-1] if seen else recorded.last if recorded else {}
    text, drift = _page(run, state, points, taken[-1].overview if taken else None, no_verify)
    write_whole(html, text)
    _tell(run, html, state, points, drift, len(text.encode()))


def _take(run: Run, for_seconds: float, *, must: bool) -> Sequence[Sample]:
    """Samples of now: so many seconds of them, or one.

    Args:
        must: whether there is nothing else to show. Otherwise trouble is told, and there are none.
    """
    from imsync.cli.watch import samples
    from imsync.errors import ImsyncError

    interval = min(60.0, max(0.5, for_seconds / 60))
    count = 1 + int(for_seconds / interval)
    taken: list[Sample] = []
    try:
        first = look(run)
        if first.redis and must:
            raise first.redis
        with run.out.progress("sampling", count) as advance:
            for sample in samples(lambda: look_again(run), interval, threading.Event(), count):
                taken.append(sample)
                advance(1)
    except ImsyncError as error:
        if must:
            raise
        run.out.note(f"the state is the last recorded one: {error.message}")
        return []
    if taken[-1].overview.redis and not must:
        run.out.note(f"the state is the last recorded one: {taken[-1].overview.redis.message}")
        return []
    return taken


def _page(
    run: Run, state: Mapping[str, Any], points: Sequence[Point], overview: Overview | None, no_verify: bool
) -> tuple[str, Drift]:
    """The page, and what `verify` found."""
    from imsync import __version__
    from imsync.cli.page import Drift, Report, page
    from imsync.store.settlement import upper_edge_ms

    drift = Drift("left out with --no-verify") if no_verify else _verify(run)
    histograms = {group.view.group: group.histogram for group in overview.groups if group.staleness} if overview else {}
    where = str(run.bus.endpoint) if overview else "from recorded samples"
    text = page(Report(where, __version__, time.time(), state, points, histograms, upper_edge_ms, drift))
    return text, drift


def _verify(run: Run) -> Drift:
    """What a comparison of every copy with its source finds; or why there is none."""
    from contextlib import ExitStack

    from imsync.cli.page import Drift
    from imsync.errors import ImsyncError
    from imsync.im.events import DESTINATION
    from imsync.im.flight import GroupFlight
    from imsync.im.verify import verify

    missing = [path.name for path in run.workspace.files if not path.exists()]
    if missing:
        return Drift(f"{', '.join(missing)} not here")
    try:
        with ExitStack() as closing:
            users = run.workspace.user_store()
            closing.callback(users.close)
            projections = run.workspace.projections()
            for projection in projections:
                closing.callback(projection.close)
            with run.out.progress("verifying", users.count_users()) as advance:
                verdict = verify(
                    users,
                    projections,
                    lambda group: GroupFlight(run.bus.stream(DESTINATION), group),
                    on_page=advance,
                )
    except ImsyncError as error:
        return Drift(error.message)
    return Drift(
        users=verdict.users,
        rows=verdict.rows,
        drift=verdict.drift,
        in_flight=verdict.in_flight,
        causes={str(cause): n for cause, n in verdict.causes.items()},
        examples=[
            (each.user_id, each.projection, str(each.cause), each.source_version, each.copy_version)
            for each in verdict.examples
        ],
    )


def _tell(run: Run, path: Path, state: Mapping[str, Any], points: Sequence[Point], drift: Drift, size: int) -> None:
    from imsync.bus.clock import timestamp

    problems = len(state.get("problems") or ())
    looked = not drift.not_looked
    ends = [timestamp(int(points[i].at * 1000)) for i in (0, -1)] if points else [None, None]
    words = f"{len(points):,} samples, {problems:,} {'problem' if problems == 1 else 'problems'}, "
    words += f"{drift.drift:,} drifted" if looked else f"drift not looked at: {drift.not_looked}"
    run.out.result(
        {
            "file": str(path),
            "bytes": size,
            "samples": len(points),
            "first": ends[0],
            "last": ends[1],
            "problems": problems,
            "drift": drift.drift if looked else None,
            "in_flight": drift.in_flight if looked else None,
            "healthy": state.get("healthy") is True and not drift.drift,
        },
        f"wrote {path}: {words}",
    )
