"""The gauges of `imsync check --format prometheus`: their names, and what each means."""

from __future__ import annotations

GROUP_GAUGES = {
    "imsync_group_lag_entries": "Entries that were not delivered to the group yet.",
    "imsync_group_lag_seconds": "Age of the oldest entry that was not delivered to the group yet; 0 for none.",
    "imsync_group_pending_entries": "Entries that were delivered to the group and not acknowledged.",
    "imsync_group_oldest_pending_seconds": "Time since the oldest pending entry was published; 0 for none.",
    "imsync_group_consumers_alive": "Consumers of the group with a heartbeat, on any host.",
    "imsync_group_dead_letters": "Dead letters of the group.",
    "imsync_group_unexplained_events": "Published events that the accounts do not explain; negative when more was "
    "settled than published.",
}
"""Labelled with `group`."""

STALENESS_GAUGE = "imsync_group_staleness_seconds"
STALENESS_HELP = "Time from an edit to its copies over the last 24 hours, to about 12 %."
"""Labelled with `group` and `quantile`, one of `QUANTILES`."""
QUANTILES = ("0.5", "0.99")

PLAIN_GAUGES = {
    "imsync_outbox_unsent_rows": "Events in the outbox that wait to be sent.",
    "imsync_outbox_oldest_seconds": "Age of the oldest of them; 0 when there is none.",
    "imsync_stream_entries": "Entries in the stream.",
    "imsync_healthy": "1 when every check is passed, 0 when one is not or cannot be known.",
}

GAUGES = {**GROUP_GAUGES, STALENESS_GAUGE: STALENESS_HELP, **PLAIN_GAUGES}
"""Every gauge by its name."""
