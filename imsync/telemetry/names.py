"""The names of all metrics: what `imsync consume` and `imsync relay` serve, and what `imsync check` prints."""

from __future__ import annotations

from dataclasses import dataclass

from imsync.bus.outcome import Effect

OTHER = "other"
"""The label's value for words that are not known here: a label must not take any value that somebody sends."""

OUTCOMES = (*(str(effect) for effect in Effect), "ignored", "dead", "lost", "retry")
"""What becomes of a delivery."""

REASONS = (
    "bad_json",
    "unknown_type",
    "invalid",
    "too_large",
    "no_event_field",
    "max_attempts",
    "kills_consumer",
)
"""The reasons of dead letters that are imsync's own. A handler may give others."""

KINDS = (
    "infrastructure",
    "redis_unreachable",
    "redis_refused",
    "group_missing",
    "lease_taken",
    "store_unusable",
)
"""The kinds of trouble that are imsync's own."""

STEPS = ("decode", "apply", "acknowledge")


@dataclass(frozen=True, slots=True)
class Metric:
    """One metric.

    Args:
        name: as it is scraped; a histogram's without `_bucket`, `_sum` and `_count`.
        kind: `counter`, `gauge` or `histogram`.
        buckets: a histogram's upper bounds.
    """

    name: str
    kind: str
    meaning: str
    labels: tuple[str, ...] = ()
    buckets: tuple[float, ...] = ()

    @property
    def samples(self) -> tuple[str, ...]:
        """The names of the series."""
        suffixes = ("_bucket", "_sum", "_count") if self.kind == "histogram" else ("",)
        return tuple(self.name + suffix for suffix in suffixes)


BUILD = Metric("imsync_build_info", "gauge", "Always 1; the version is a label.", ("version",))

EVENTS = Metric("imsync_events_total", "counter", "Deliveries by what became of them.", ("group", "outcome"))
BATCHES = Metric("imsync_batches_total", "counter", "Batches that were applied and acknowledged.", ("group",))
TROUBLES = Metric("imsync_troubles_total", "counter", "How often Redis or the store was in trouble.", ("group", "kind"))
TAKEN_OVER = Metric("imsync_taken_over_total", "counter", "Entries that were claimed from dead consumers.", ("group",))
DEAD_LETTERS = Metric("imsync_dead_letters_total", "counter", "Entries that became dead letters.", ("group", "reason"))
LOST = Metric("imsync_lost_total", "counter", "Entries that were trimmed while they were pending.", ("group",))
STEP_SECONDS = Metric("imsync_step_seconds_total", "counter", "Where the time of the batches went.", ("group", "step"))
BATCH_SECONDS = Metric(
    "imsync_batch_seconds",
    "histogram",
    "How long a batch took, from decoding to the acknowledgement.",
    ("group",),
    (0.001, 0.0025, 0.005, 0.01, 0.025, 0.05, 0.1, 0.25, 0.5, 1, 2.5, 5, 10, 30),
)
BATCH_ENTRIES = Metric(
    "imsync_batch_entries",
    "histogram",
    "How many entries a batch had.",
    ("group",),
    (1, 2, 5, 10, 20, 50, 100, 200, 500, 1000, 2000, 5000, 10000),
)
STALENESS = Metric(
    "imsync_staleness_seconds",
    "histogram",
    "How old an event was when it had been applied: from the edit to the copy.",
    ("group",),
    (0.005, 0.01, 0.025, 0.05, 0.1, 0.25, 0.5, 1, 2.5, 5, 10, 30, 60, 300, 900, 3600, 86400),
)

CONSUMER = (
    EVENTS,
    BATCHES,
    TROUBLES,
    TAKEN_OVER,
    DEAD_LETTERS,
    LOST,
    STEP_SECONDS,
    BATCH_SECONDS,
    BATCH_ENTRIES,
    STALENESS,
)
"""What a consumer serves."""

RELAY_PUBLISHED = Metric("imsync_relay_published_total", "counter", "Outbox rows that were noted as sent.")
RELAY_RESENT = Metric(
    "imsync_relay_resent_total", "counter", "Outbox rows that were due again because the stream had lost them."
)
RELAY_REFUSED = Metric("imsync_relay_refused_total", "counter", "Events that Redis refused.")
RELAY_TROUBLES = Metric(
    "imsync_relay_troubles_total", "counter", "How often Redis or the store was in trouble.", ("kind",)
)
ROUND_TRIP_SECONDS = Metric(
    "imsync_relay_round_trip_seconds",
    "histogram",
    "How long a round trip to Redis took, with its repetitions.",
    (),
    (0.0005, 0.001, 0.0025, 0.005, 0.01, 0.025, 0.05, 0.1, 0.25, 0.5, 1, 2.5, 5, 10),
)

RELAY = (RELAY_PUBLISHED, RELAY_RESENT, RELAY_REFUSED, RELAY_TROUBLES, ROUND_TRIP_SECONDS)
"""What a relay serves."""

GROUP_GAUGES = (
    Metric("imsync_group_lag_entries", "gauge", "Entries that were not delivered to the group yet.", ("group",)),
    Metric("imsync_group_lag_seconds", "gauge", "Age of the oldest of them; 0 when there is none.", ("group",)),
    Metric("imsync_group_pending_entries", "gauge", "Entries delivered and not acknowledged.", ("group",)),
    Metric(
        "imsync_group_oldest_pending_seconds",
        "gauge",
        "Time since the oldest of them was published; 0 when there is none.",
        ("group",),
    ),
    Metric("imsync_group_consumers_alive", "gauge", "Consumers with a heartbeat, on any host.", ("group",)),
    Metric("imsync_group_dead_letters", "gauge", "Dead letters that wait for somebody.", ("group",)),
    Metric(
        "imsync_group_unexplained_events",
        "gauge",
        "Published events that the accounts miss; negative when more was settled than published.",
        ("group",),
    ),
)

GROUP_STALENESS = Metric(
    "imsync_group_staleness_seconds",
    "gauge",
    "From the edit to the copy, over the last 24 hours, by quantile, to about 12 %.",
    ("group", "quantile"),
)

PLAIN_GAUGES = (
    Metric("imsync_outbox_unsent_rows", "gauge", "Events that wait in the outbox."),
    Metric("imsync_outbox_oldest_seconds", "gauge", "Age of the oldest of them; 0 when there is none."),
    Metric("imsync_stream_entries", "gauge", "Entries in the stream."),
    Metric("imsync_healthy", "gauge", "1 when every check is passed, 0 when one is not or cannot be known."),
)

CHECK = (*GROUP_GAUGES, GROUP_STALENESS, *PLAIN_GAUGES)
"""What `imsync check --format prometheus` prints. What is unknown is left out."""
