"""What several commands are told to work on: services, entries, users."""

from __future__ import annotations

from typing import Annotated

import typer

Group = Annotated[
    str | None, typer.Option(help="Only this service: group or friend. Both without.", show_default=False)
]
Ids = Annotated[
    list[str] | None,
    typer.Option(
        "--id",
        help="Only this letter, by its own id or that of its entry in the stream; may be given several times.",
        show_default=False,
    ),
]
UserId = Annotated[int | None, typer.Option(help="Only about this user, where that can be read.", show_default=False)]


def services(group: str | None) -> list[str]:
    """The services that are meant.

    Raises:
        UsageError: there is none of this name.
    """
    from imsync.errors import UsageError
    from imsync.im.workspace import PROJECTIONS

    if group is not None and group not in PROJECTIONS:
        raise UsageError(f"no service {group[:64]!a}", f"one of {', '.join(PROJECTIONS)}")
    return [group] if group else list(PROJECTIONS)


def check_ids(ids: list[str] | None) -> tuple[str, ...]:
    """The entry ids that were typed, in full.

    Raises:
        UsageError: one is none.
    """
    from imsync.bus.entry import id_parts, is_entry_id
    from imsync.errors import UsageError

    if bad := [each for each in ids or () if not is_entry_id(each)]:
        raise UsageError(f"bad entry id {bad[0][:40]!a}", "such as 1795413835783-0")
    return tuple("{}-{}".format(*id_parts(each)) for each in ids or ())


def check_user(user: int | None) -> None:
    """Refuses a number that no user can have.

    Raises:
        UsageError: it is out of range.
    """
    from imsync.errors import UsageError

    if user is not None and not 1 <= user < 2**63:
        raise UsageError(f"bad user {user}", "ids are whole numbers from 1 to 9223372036854775807")
