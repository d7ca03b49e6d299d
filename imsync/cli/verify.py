"""`imsync verify`: the proof that the copies are right."""

from __future__ import annotations

import typer

from imsync.cli.run import Run, command


def register(app: typer.Typer) -> None:
    """Adds the command."""
    command(app, "verify")(verify)


def verify(run: Run) -> None:
    """Compare every user with every copy. Changes nothing; exits with 3 when it finds drift.

    May run while traffic flows: what an event on its way explains is in flight, not drift.
    """
    from imsync.im.events import DESTINATION
    from imsync.im.flight import GroupFlight
    from imsync.im.verify import verify as compare

    users = run.workspace.user_store()
    projections = run.workspace.projections()
    with run.out.progress("verifying", users.count_users()) as advance:
        verdict = compare(
            users,
            projections,
            lambda group: GroupFlight(run.bus.stream(DESTINATION), group),
            on_page=advance,
        )
    users.close()
    for projection in projections:
        projection.close()
    data = {
        "users": verdict.users,
        "rows": verdict.rows,
        "drift": verdict.drift,
        "in_flight": verdict.in_flight,
        "causes": {str(cause): n for cause, n in verdict.causes.items()},
        "repaired": 0,
        "examples": [
            {
                "user": each.user_id,
                "projection": each.projection,
                "cause": str(each.cause),
                "source_version": each.source_version,
                "copy_version": each.copy_version,
            }
            for each in verdict.examples
        ],
    }
    if run.as_json:
        run.out.row(data)
    else:
        if verdict.examples:
            run.out.table(
                ("#user", "projection", "cause", "#source version", "#copy version"),
                [(e.user_id, e.projection, e.cause, e.source_version, e.copy_version) for e in verdict.examples],
            )
        flight = f", {verdict.in_flight:,} in flight" if verdict.in_flight else ""
        found = "no drift" if not verdict.drift else f"{verdict.drift:,} drifted"
        print(f"{verdict.users:,} users, {verdict.rows:,} rows: {found}{flight}")
    if verdict.drift:
        raise typer.Exit(3)
