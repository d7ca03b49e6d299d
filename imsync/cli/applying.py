"""Applying pending entries outside a consumer: what `replay pending` and `consumer prune` share."""

from __future__ import annotations

from collections.abc import Sequence
from typing import TYPE_CHECKING

from imsync.cli.run import Run

if TYPE_CHECKING:
    from imsync.bus.replay import Planned

OUTCOMES = ("taken_over", "applied", "superseded", "duplicates", "dead", "lost", "failed")
"""What `apply_pending` counts."""


def apply_pending(run: Run, service: str, planned: Sequence[Planned], min_idle_ms: int) -> dict[str, int]:
    """Claims planned entries of a service and applies them to its store, under a consumer name of its own.

    Args:
        min_idle_ms: what was delivered or claimed since is left alone, in milliseconds.

    Returns:
        How many were taken over, and what became of them, by the names in `OUTCOMES`.

    Raises:
        StoreMismatch: the store is not its group's.
        InfrastructureError: Redis or the store is in trouble; what was not acknowledged stays pending.
    """
    from imsync.bus.attempts import Attempts
    from imsync.bus.codec import Decoder
    from imsync.bus.deferred import finish
    from imsync.bus.liveness import Heartbeat
    from imsync.bus.operator import remove_consumer
    from imsync.bus.options import unique_name
    from imsync.bus.processor import Processor
    from imsync.bus.replay import replay
    from imsync.im.events import DESTINATION

    store = run.workspace.projection(service)
    stream = run.bus.stream(DESTINATION)
    keys = run.bus.keys(DESTINATION)
    options = run.consumer_options()
    name = f"replay.{unique_name()}"[:64]
    heartbeat = Heartbeat(run.bus.endpoint, keys.alive(service, name), options.heartbeat_ms)
    binding = run.bus.binding(DESTINATION, service, store)
    processor = Processor(
        stream,
        keys.dead(service),
        group=service,
        consumer=name,
        decoder=Decoder(store.events),
        handler=store,
        retry=options.retry,
        attempts=Attempts(run.bus.client, keys, service, name, heartbeat.token, stream.where),
        binding=binding,
        telemetry=run.bus.telemetry,
    )
    failed = 0
    binding.check()
    with heartbeat, run.out.progress(f"replaying {service}", len(planned)) as advance:
        for failures in replay(processor, stream, service, name, planned, min_idle_ms, options.batch):
            failed += len(failures)
            advance(min(options.batch, len(planned)))
        finish(store)
    remove_consumer(run.bus.client, stream, keys, service, name)  # unless it holds what failed
    store.close()
    counts = processor.counts
    return {
        "taken_over": counts.taken_over,
        "applied": counts.applied,
        "superseded": counts.superseded,
        "duplicates": counts.duplicates,
        "dead": counts.dead,
        "lost": counts.lost,
        "failed": failed,
    }
