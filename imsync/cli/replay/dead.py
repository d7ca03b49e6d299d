"""`imsync replay dead`: gives dead letters to their own group's handler again."""

from __future__ import annotations

import threading
from collections import Counter
from collections.abc import Iterator
from contextlib import closing
from typing import TYPE_CHECKING, Annotated

import typer

from imsync.cli.letters import Reasons, Since, count_letters
from imsync.cli.run import Run
from imsync.cli.selection import Group, Ids, UserId

if TYPE_CHECKING:
    from imsync.bus.redrive import Redriven
    from imsync.im.letters import LetterFilter
    from imsync.im.redrive import PlannedLetter

BATCH = 100
"""The most letters per transaction."""
SHOWN = 50
"""How many letters that stay are named."""

Planned = dict[str, "list[PlannedLetter]"]
"""By service, what is planned."""
Results = dict[tuple[str, str], "Redriven"]
"""What became of the letters, by service and id."""


def dead(
    run: Run,
    group: Group = None,
    id: Ids = None,
    reason: Reasons = None,
    user: UserId = None,
    since: Since = None,
    limit: Annotated[
        int | None, typer.Option(min=1, help="At most so many of each, the oldest first.", show_default=False)
    ] = None,
    rate: Annotated[
        float | None, typer.Option(min=0.001, max=1e6, help="At most so many per second.", show_default=False)
    ] = None,
    dry_run: Annotated[bool, typer.Option("--dry-run", help="Print the plan and change nothing.")] = False,
    yes: Annotated[bool, typer.Option("--yes", help="Do not ask.")] = False,
) -> None:
    """Redrive dead letters: apply them to the store of their own group.

    A letter is deleted once its event is committed; no other group is given it. What still cannot be applied stays,
    with its reason, and the exit code is 1. Killed in between, it is a repeat the next time and changes nothing.
    """
    from imsync.cli.confirm import confirm
    from imsync.cli.letters import chosen
    from imsync.cli.selection import services

    wanted_services = services(group)
    wanted = chosen(run, id, reason, user, since)
    batch = BATCH if rate is None else max(1, min(BATCH, int(rate / 10)))
    plans: Planned = {}
    for service in wanted_services:
        if planned := _plan(run, service, wanted, batch, limit):
            plans[service] = planned
    if not run.as_json:
        _print_plan(run, plans)
    results: Results = {}
    if plans and not dry_run:
        confirm(run, f"redrive {count_letters(sum(map(len, plans.values())))}?", yes=yes)
        results = _redrive(run, plans, batch, rate)
    tally = Counter(_outcome(each) for each in results.values())
    if run.as_json:
        run.out.row(_summary(plans, results, tally, dry_run=dry_run))
    else:
        _print_end(plans, results, tally, dry_run=dry_run, any_meant=not wanted.is_everything)
    if tally["bad"] or tally["failed"]:
        raise typer.Exit(1)


def _summary(plans: Planned, results: Results, tally: Counter[str], *, dry_run: bool) -> dict[str, object]:
    return {
        "planned": sum(map(len, plans.values())),
        "applied": tally["applied"],
        "superseded": tally["superseded"],
        "duplicates": tally["duplicate"],
        "gone": tally["gone"],
        "dead": tally["bad"] + tally["failed"],
        "failed": tally["failed"],
        "dry_run": dry_run,
        "entries": [
            _described(service, each, results.get((service, each.id)))
            for service, planned in plans.items()
            for each in planned
        ],
    }


def _plan(run: Run, service: str, wanted: LetterFilter, batch: int, limit: int | None) -> list[PlannedLetter]:
    """What would be redriven to a service's store.

    Raises:
        StoreUnusable, StoreMismatch: it has letters, and its store cannot take them.
    """
    from imsync.im.events import DESTINATION
    from imsync.im.redrive import plan

    letters = run.bus.dead_letters(DESTINATION, service)
    if not letters.length():
        return []
    with closing(run.workspace.projection(service)) as store:
        planned = plan(letters, store, wanted, batch=batch, limit=limit)
        refused = run.bus.binding(DESTINATION, service, store).mismatch() if planned else None
    if refused:
        raise refused
    return planned


def _redrive(run: Run, plans: Planned, batch: int, rate: float | None) -> Results:
    """Redrives what was planned. A signal ends it after the batch at hand."""
    from imsync.cli.signals import stopping

    stop = threading.Event()
    results: Results = {}
    with (
        stopping(stop.set, deadline_seconds=run.settings.consumer.stop_deadline_seconds),
        run.out.progress("redriving", sum(map(len, plans.values()))) as advance,
    ):
        for service, planned in plans.items():
            for done in _redriven(run, service, planned, batch, stop):
                results |= {(service, each.id): each for each in done}
                advance(len(done))
                if rate is not None and len(results) < sum(map(len, plans.values())):
                    stop.wait(len(done) / rate)
                if stop.is_set():
                    run.out.note("stopped: the other letters stay as they are")
                    return results
    return results


def _redriven(
    run: Run, service: str, planned: list[PlannedLetter], batch: int, stop: threading.Event
) -> Iterator[list[Redriven]]:
    from imsync.bus.codec import Decoder
    from imsync.bus.deferred import finish
    from imsync.bus.redrive import Redrive
    from imsync.im.events import DESTINATION
    from imsync.im.redrive import batches

    with closing(run.workspace.projection(service)) as store:
        binding = run.bus.binding(DESTINATION, service, store)
        binding.check()
        letters = run.bus.dead_letters(DESTINATION, service)
        redrive = Redrive(letters, decoder=Decoder(store.events), handler=store, binding=binding)
        for ids in batches(planned, batch):
            yield redrive.run(ids)
        finish(store, stop)


def _outcome(redriven: Redriven) -> str:
    if redriven.effect:
        return str(redriven.effect)
    return "gone" if redriven.gone else "failed" if redriven.reason == "failed" else "bad"


def _described(service: str, planned: PlannedLetter, redriven: Redriven | None) -> dict[str, object]:
    return {
        "group": service,
        "id": planned.id,
        "source_id": planned.source_id,
        "reason": planned.reason,
        "consumer": planned.consumer,
        "deliveries": planned.deliveries,
        "user": planned.user,
        "version": planned.version,
        "predicted": str(planned.prediction.outcome),
        "predicted_reason": planned.prediction.reason or None,
        "result": _outcome(redriven) if redriven else None,
        "result_reason": (redriven.message or None) if redriven else None,
    }


def _print_plan(run: Run, plans: Planned) -> None:
    listed = [(service, each) for service, planned in plans.items() for each in planned]
    if not listed:
        return
    rows = [(service, e.id, e.user or "-", e.version or "-", e.reason, _foreseen(e)) for service, e in listed]
    run.out.plan(("group", "letter", "#user", "#v", "reason", "predicted"), rows, flexible="reason")
    foretold = Counter(str(each.prediction.outcome) for _, each in listed)
    print(f"{count_letters(len(listed))}; predicted: {_told(foretold)}")


def _foreseen(planned: PlannedLetter) -> str:
    from imsync.cli.letters import foreseen

    same = planned.prediction.reason == planned.reason
    return "still bad" if planned.prediction.reason and same else foreseen(planned.prediction)


def _print_end(plans: Planned, results: Results, tally: Counter[str], *, dry_run: bool, any_meant: bool) -> None:
    from imsync.cli.lines import say

    if not plans:
        print("no dead letters match" if any_meant else "no dead letters")
        return
    if dry_run:
        print("dry run: nothing was changed")
        return
    stay = [(service, each) for (service, _), each in results.items() if _outcome(each) in ("bad", "failed")]
    for service, each in stay[:SHOWN]:
        say(f"{service} {each.id} stays: {each.reason}: {each.message}")
    if len(stay) > SHOWN:
        print(f"… and {len(stay) - SHOWN:,} more stay")
    if any(_outcome(each) == "bad" for _, each in stay):
        say(
            "imsync dead show says why one stays, imsync verify whether a copy lacks it; "
            "imsync dead purge lets go of it"
        )
    print(_told(tally))


def _told(tally: Counter[str]) -> str:
    words = {"duplicate": "duplicates", "bad": "still bad"}
    return ", ".join(f"{number:,} {words.get(name, name)}" for name, number in tally.items()) or "nothing was done"
