"""`imsync init`: the stores, the groups of the stream, and demo data."""

from __future__ import annotations

from typing import Annotated

import typer

from imsync.cli.run import Run, command


def register(app: typer.Typer) -> None:
    """Adds the command."""
    command(app, "init")(init)


def init(
    run: Run,
    users: Annotated[int, typer.Option(min=1, max=10_000_000, help="How many users to make.")] = 10_000,
    groups: Annotated[int, typer.Option(min=0, max=5_000_000, help="How many groups to make.")] = 2_000,
    seed: Annotated[int, typer.Option(help="The same seed makes the same data.")] = 7,
) -> None:
    """Make the stores, filled with demo data, and the consumer groups.

    Refuses a folder that has stores, and a stream or groups that are in use: they belong to other stores.
    """
    from imsync.bus.binding import bound_stores
    from imsync.errors import UsageError
    from imsync.im.demo_data import generate
    from imsync.im.events import DESTINATION
    from imsync.im.setup import make_stores, refuse_existing
    from imsync.im.workspace import PROJECTIONS

    refuse_existing(run.workspace)
    stream = run.bus.stream(DESTINATION)
    if stream.length():
        raise UsageError(
            f"the stream {stream.key} at {stream.where} has {stream.length()} entries of other stores",
            "choose another prefix (IMSYNC_PREFIX), or delete that stream",
        )
    for group in PROJECTIONS:
        if any(bound_stores(run.bus.client, stream, run.bus.keys(DESTINATION), group).values()):
            raise UsageError(
                f"group {group!a} at {stream.where} feeds the store of another data folder",
                f"choose another prefix (IMSYNC_PREFIX), or drop it: imsync group drop {group}",
            )
    with run.out.progress("making data", 4) as advance:
        data = generate(users=users, groups=groups, seed=seed)
        advance(1)
        made = make_stores(run.workspace, data, on_step=lambda step: advance(1))
    for group in PROJECTIONS:
        stream.create_group(group)
        projection = run.workspace.projection(group)
        run.bus.binding(DESTINATION, group, projection).rebind(projection.generation)
        projection.close()
    example = next((user.id for user in data.users[1:] if not user.deleted), data.users[0].id)
    run.out.result(
        {
            "data_dir": str(run.settings.data_dir),
            "redis": str(run.bus.endpoint),
            "users": made.users,
            "groups": made.groups,
            "members": made.members,
            "friends": made.friends,
            "example_user": example,
        },
        f"{made.users:,} users, {made.groups:,} groups, {made.members:,} members, {made.friends:,} friendships",
        f"stores in {run.settings.data_dir}, Redis at {run.bus.endpoint}",
        f"try: imsync publish user-update --user {example} --nick-name 小明",
    )
