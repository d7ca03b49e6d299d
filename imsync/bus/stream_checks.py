"""Whether a stream, its groups and their consumers are as they should be."""

from __future__ import annotations

from collections.abc import Collection
from typing import TYPE_CHECKING

from imsync.bus.finding import Finding, bad, ok, warn
from imsync.bus.inspection import RetentionView, is_beyond_end, view_consumers
from imsync.errors import GroupMissing

if TYPE_CHECKING:
    from imsync.bus.bus import Bus

MANY_DEAD = 50
"""So many names of dead consumers in one group are a leak: of somebody who kills consumers, or never reuses names."""


def present(bus: Bus, destination: str) -> Finding:
    """Whether there is a stream under this prefix."""
    stream = bus.stream(destination)
    info = stream.info()
    if info is None:
        # a system that was set up has had a stream: `imsync init` would refuse it
        remedy = (
            "imsync relay makes it anew and sends what was lost; or check the prefix: another one is another system"
        )
        return warn("stream", f"there is no {stream.key}", remedy)
    return ok("stream", f"{stream.key} holds {info.length:,} entries")


def groups(bus: Bus, destination: str, services: Collection[str]) -> Finding:
    """Whether the services' groups are there, and stand where entries come.

    Args:
        services: the names that the groups should have.
    """
    stream = bus.stream(destination)
    infos = {info.name: info for info in stream.groups()}
    if lost := [name for name in services if name not in infos]:
        named = ", ".join(lost)
        return bad("groups", f"no group {named}: what is published now may be trimmed unread", "; ".join(
            f"imsync rebuild {name}" for name in lost))  # fmt: skip
    if beyond := [name for name in services if is_beyond_end(stream, infos[name])]:
        return bad(
            "groups", f"behind the end of the stream, and given nothing: {', '.join(beyond)}",
            "; ".join(f"imsync rebuild {name}" for name in beyond),
        )  # fmt: skip
    return ok("groups", ", ".join(infos))


def consumers(bus: Bus, destination: str) -> Finding:
    """Whether names of dead consumers pile up. Each costs memory, and every look at the group more time."""
    leaking: list[str] = []
    alive = total = 0
    for group in bus.stream(destination).groups():
        try:
            views = view_consumers(bus, destination, group.name)
        except GroupMissing:
            continue  # dropped this moment
        dead = sum(not view.alive for view in views)
        total += len(views)
        alive += len(views) - dead
        if dead > MANY_DEAD:
            leaking.append(f"{group.name} remembers {dead:,}")
    if leaking:
        return warn("consumers", f"dead consumers: {'; '.join(leaking)}", "imsync consumer prune")
    return ok("consumers", f"{alive:,} alive of {total:,} remembered")


def retention(view: RetentionView) -> Finding:
    """Whether a group keeps the stream from being trimmed."""
    if view.pinned_by is None:
        return ok("retention", f"{view.length:,} entries, none of them pinned beyond its time")
    hours = (view.waiting_seconds or 0.0) / 3600
    evidence = f"group {view.pinned_by} has not acknowledged an entry for {hours:,.1f} h, and pins the stream"
    remedy = "start its consumer, or `imsync group drop` it if nobody needs it"
    return (bad if view.pinned_beyond(2) else warn)("retention", evidence, remedy)
