"""`imsync replay pending`: takes over pending entries and applies them."""

from __future__ import annotations

from typing import TYPE_CHECKING, Annotated

import typer

from imsync.cli.run import Run
from imsync.cli.selection import Group, check_ids, services

if TYPE_CHECKING:
    from collections.abc import Sequence

    from imsync.bus.replay import Planned, Selection
    from imsync.im.prediction import Prediction

NOTHING = {False: "nothing is pending", True: "nothing to replay"}

_YES = {True: "yes", False: "no"}


def pending(
    run: Run,
    group: Group = None,
    min_idle: Annotated[
        str, typer.Option(help="Only entries that were not delivered for so long: 500ms, 30s, 5m.")
    ] = "60s",
    consumer: Annotated[str | None, typer.Option(help="Only entries of this consumer.", show_default=False)] = None,
    id: Annotated[
        list[str] | None,
        typer.Option(help="Only this entry; may be given several times.", show_default=False),
    ] = None,
    limit: Annotated[int | None, typer.Option(min=1, help="At most so many.", show_default=False)] = None,
    dry_run: Annotated[bool, typer.Option("--dry-run", help="Print the plan and change nothing.")] = False,
) -> None:
    """Take over entries that were delivered and never acknowledged, and apply them.

    Takes them from the living too: what they do with them afterwards is a repeat and changes nothing.
    """
    from imsync.bus.replay import Selection
    from imsync.cli.applying import OUTCOMES, apply_pending
    from imsync.cli.durations import milliseconds

    wanted = services(group)
    selection = Selection(milliseconds(min_idle), consumer, check_ids(id), limit)
    run.expect_stores()
    plans = {service: _plan(run, service, selection) for service in wanted}
    entries = [
        _described(service, each, prediction)
        for service, planned in plans.items()
        for each, prediction in zip(planned, _predict(run, service, planned), strict=True)
    ]
    if not run.as_json:
        _print(run, entries)
    totals = dict.fromkeys(("planned", *OUTCOMES), 0)
    for service, planned in plans.items():
        totals["planned"] += len(planned)
        if planned and not dry_run:
            for name, value in apply_pending(run, service, planned, selection.min_idle_ms).items():
                totals[name] += value
    left_alone = not entries and _tell_what_is_left_alone(run, wanted, min_idle)
    if run.as_json:
        run.out.row({**totals, "dry_run": dry_run, "entries": entries})
    else:
        done = ", ".join(f"{value:,} {name.replace('_', ' ')}" for name, value in totals.items() if value)
        print((done or NOTHING[left_alone]) + (" (dry run: nothing was changed)" if dry_run and entries else ""))
    if totals["failed"]:
        raise typer.Exit(1)


def _print(run: Run, entries: Sequence[dict[str, object]]) -> None:
    from imsync.cli.render import seconds

    if not entries:
        return
    rows = [
        (e["group"], e["id"], e["owner"], _YES[bool(e["owner_alive"])], seconds(float(str(e["idle_seconds"]))),
         e["deliveries"], e["predicted_reason"] or e["predicted"])
        for e in entries
    ]  # fmt: skip
    titles = ("group", "entry", "owner", "alive", "#idle", "#deliveries", "predicted")
    run.out.plan(titles, rows, flexible="owner")


def _tell_what_is_left_alone(run: Run, services: list[str], min_idle: str) -> bool:
    """Notes that entries are pending which the selection leaves out. Whether there are any."""
    from imsync.errors import GroupMissing
    from imsync.im.events import DESTINATION

    any_left = False
    for service in services:
        try:
            count = run.bus.stream(DESTINATION).pending_summary(service).count
        except GroupMissing:
            continue
        if count:
            any_left = True
            run.out.note(
                f"{count:,} entries of group {service} are pending, and none of them is selected; "
                f"--min-idle {min_idle} leaves alone what was delivered since (--min-idle 0s takes all)"
            )
    return any_left


def _plan(run: Run, service: str, selection: Selection) -> list[Planned]:
    from imsync.bus.replay import plan
    from imsync.im.events import DESTINATION

    stream = run.bus.stream(DESTINATION)
    return plan(run.bus.client, stream, run.bus.keys(DESTINATION), service, selection)


def _predict(run: Run, service: str, planned: Sequence[Planned]) -> list[Prediction]:
    """What would become of the entries, batch by batch as they will be applied."""
    from imsync.im.events import DESTINATION
    from imsync.im.prediction import Predicted, Prediction, Predictor

    if not planned:
        return []
    store = run.workspace.projection(service)
    stream, batch = run.bus.stream(DESTINATION), run.consumer_options().batch
    predictor = Predictor(store)
    found: list[Prediction] = []
    for start in range(0, len(planned), batch):
        page = stream.fetch([each.entry.id for each in planned[start : start + batch]])
        held = iter(predictor.predict([entry for entry in page if entry.fields]))
        # without the events themselves, of which there may be many
        found += [next(held).outline() if entry.fields else Prediction(Predicted.LOST) for entry in page]
    store.close()
    return found


def _described(service: str, planned: Planned, prediction: Prediction) -> dict[str, object]:
    return {
        "group": service,
        "id": planned.entry.id,
        "owner": planned.entry.consumer,
        "owner_alive": planned.owner_alive,
        "idle_seconds": planned.entry.idle_ms / 1000,
        "deliveries": planned.entry.deliveries,
        "predicted": str(prediction.outcome),
        "predicted_reason": prediction.reason or None,
    }
