"""`Bus`: the way in. Publishers and consumers of one Redis, under one prefix."""

from __future__ import annotations

from collections.abc import Callable, Collection, Iterable, Sequence
from pathlib import Path
from types import TracebackType
from typing import TypeVar

from imsync.bus.binding import Binding
from imsync.bus.connection import Endpoint, translated
from imsync.bus.consumer import Consumer
from imsync.bus.event import Event
from imsync.bus.handler import BoundStore, Handler
from imsync.bus.keys import Keys
from imsync.bus.options import ConsumerOptions
from imsync.bus.processor import Counts
from imsync.bus.publisher import Publisher
from imsync.bus.stream import Stream
from imsync.bus.telemetry import Listener, Telemetry
from imsync.errors import DataError, InfrastructureError

E = TypeVar("E", bound=Event)


class Bus:
    """An event bus on Redis Streams.

        bus = Bus.from_url("redis://localhost:6379/0")
        bus.publish(OrderPaid(order_id=7))
        bus.consumer("orders", group="billing", events=[OrderPaid], handler=handler).run()

    Args:
        endpoint: where Redis is.
        prefix: what all keys start with.
        source: the CloudEvents source of events that name none: a URI reference that names the producer.
        attempts: how often a publication is tried when the connection breaks.
        listeners: who is told what happens in its publishers and consumers; see `imsync.bus.telemetry`.
    """

    def __init__(
        self,
        endpoint: Endpoint,
        *,
        prefix: str = "imsync",
        source: str = "imsync",
        attempts: int = 5,
        listeners: Iterable[Listener] = (),
    ) -> None:
        self.endpoint = endpoint
        self.prefix = prefix
        self.source = source
        self._attempts = attempts
        self.telemetry = Telemetry(listeners)
        """What its publishers and consumers tell their events to."""
        self.client = endpoint.connect()
        """The bus's own connection pool, for reading what is going on."""
        self._publishers: dict[str, Publisher] = {}

    @classmethod
    def from_url(
        cls, url: str, *, prefix: str = "imsync", source: str = "imsync", listeners: Iterable[Listener] = ()
    ) -> Bus:
        """A bus on the Redis at `url` (`redis://`, `rediss://` or `unix://`). Connects when first used.

        Raises:
            ConfigError: the URL is not one of Redis.
        """
        return cls(Endpoint(url), prefix=prefix, source=source, listeners=listeners)

    @classmethod
    def embedded(
        cls,
        data_dir: Path | str,
        *,
        prefix: str = "imsync",
        source: str = "imsync",
        listeners: Iterable[Listener] = (),
    ) -> Bus:
        """A bus on a server of its own, kept in `data_dir` and started now unless it runs already.

        Raises:
            ImsyncError: no server binary was found, or it does not start.
        """
        from imsync.embedded import EmbeddedServer

        endpoint = Endpoint(EmbeddedServer(Path(data_dir)).start().url)
        return cls(endpoint, prefix=prefix, source=source, listeners=listeners)

    def publish(self, event: Event) -> str:
        """Publishes one event to its class's destination; its entry id. Raises as `Publisher.publish`."""
        return self._publisher_of(event).publish(event)

    def publish_many(self, events: Iterable[Event]) -> list[str]:
        """Publishes events of one destination, in order; their entry ids. Raises as `Publisher.publish_many`."""
        listed = list(events)
        if not listed:
            return []
        if len({event.event_destination for event in listed}) > 1:
            raise DataError("mixed_destinations", "publish_many takes events of one destination")
        return self._publisher_of(listed[0]).publish_many(listed)

    def publisher(self, destination: str) -> Publisher:
        """The publisher of a destination."""
        if destination not in self._publishers:
            self._publishers[destination] = Publisher(
                self.stream(destination), self.source, attempts=self._attempts, telemetry=self.telemetry
            )
        return self._publishers[destination]

    def consumer(
        self,
        destination: str,
        *,
        group: str,
        events: Sequence[type[E]],
        handler: Handler[E],
        ignore: Collection[str] = (),
        name: str | None = None,
        options: ConsumerOptions | None = None,
        on_batch: Callable[[Counts], None] | None = None,
        on_trouble: Callable[[InfrastructureError, float], None] | None = None,
    ) -> Consumer[E]:
        """A consumer with connections of its own. Its `run()` consumes; see `Consumer` for the arguments."""
        return Consumer(
            self.endpoint,
            self.keys(destination),
            group=group,
            events=events,
            handler=handler,
            ignore=ignore,
            name=name,
            options=options,
            on_batch=on_batch,
            on_trouble=on_trouble,
            telemetry=self.telemetry,
        )

    def keys(self, destination: str) -> Keys:
        """The keys of a destination."""
        return Keys(self.prefix, destination)

    def stream(self, destination: str) -> Stream:
        """The stream of a destination."""
        return Stream(self.client, self.keys(destination).stream, str(self.endpoint))

    def dead_letters(self, destination: str, group: str) -> Stream:
        """The stream of a group's dead letters."""
        return Stream(self.client, self.keys(destination).dead(group), str(self.endpoint))

    def binding(self, destination: str, group: str, store: BoundStore) -> Binding:
        """What ties a group to the store that its handler writes, for whoever applies events beside its consumers."""
        return Binding(self.client, self.stream(destination), self.keys(destination), group, store)

    def ping(self) -> None:
        """Raises RedisUnreachable or RedisRefused unless Redis answers."""
        with translated(str(self.endpoint)):
            self.client.ping()

    def close(self) -> None:
        """Closes the bus's own connections."""
        self.client.close()

    def __enter__(self) -> Bus:
        return self

    def __exit__(
        self, kind: type[BaseException] | None, error: BaseException | None, trace: TracebackType | None
    ) -> None:
        self.close()

    def _publisher_of(self, event: Event) -> Publisher:
        if not event.event_destination:
            raise DataError("no_destination", f"{type(event).__name__} declares no destination")
        return self.publisher(event.event_destination)
