"""Why the figures may mean less than they say. Pure."""

from __future__ import annotations

from collections.abc import Mapping

from imsync.bench.results import SIDES, Doubt, Figure, Latency, Machine, Result

BUSY_LOAD = 0.5
"""Processes per core that wanted to run before anything was measured."""
WIDE = 0.3
"""How far apart the rounds may be, as a share of the median."""
IN_MEMORY = {"tmpfs", "ramfs"}
REACHED = 0.95
"""The share of the rate that was asked for."""


def before(machine: Machine) -> list[Doubt]:
    """What is known before anything is measured."""
    found = []
    if machine.load > BUSY_LOAD * machine.cores:
        what = f"this machine is busy: load average {machine.load:.1f} on {machine.cores} "
        found.append(Doubt("busy", what + ("core" if machine.cores == 1 else "cores")))
    if machine.filesystem in IN_MEMORY:
        what = f"the stores are in memory ({machine.filesystem}), where fsync costs nothing: on a disk it is slower"
        found.append(Doubt("memory", what))
    return found


def after(result: Result) -> list[Doubt]:
    """What the figures themselves tell."""
    found = [*_wide(result.figures), *_late(result.latency)]
    if result.rounds == 1:
        found.append(Doubt("one_round", "one round only: nobody knows how far another would be from it"))
    if result.interrupted:
        found.append(Doubt("interrupted", "it was interrupted: this is what was measured until then"))
    return found


def _wide(figures: Mapping[str, Figure]) -> list[Doubt]:
    for name in ("publish_per_second", "consume_per_second"):
        if (figure := figures.get(name)) is None:
            continue
        for side in SIDES:
            each = figure.of(side)
            if each.high - each.low > WIDE * each.value:
                apart = (each.high - each.low) / each.value
                return [Doubt("spread", f"rounds differ by {apart:.0%}: something else is at work here")]
    return []


def _late(latency: Latency | None) -> list[Doubt]:
    if latency is None:
        return []
    for side in SIDES:
        if latency.made[side] < REACHED * latency.rate:
            who = "imsync" if side == "imsync" else "the loop by hand"
            what = f"{latency.rate:,.0f} edits/s were asked for, and {who} made {latency.made[side]:,.0f}"
            return [Doubt("late", f"{what}: these are latencies at overload")]
    return []
