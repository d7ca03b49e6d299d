"""`Bus`, the way in: what it publishes where, and what it refuses."""

from __future__ import annotations

import pytest

from imsync.bus import Bus, Event
from imsync.bus.event import PositiveInt
from imsync.errors import DataError
from tests.consumers import Noted
from tests.servers import Server


class Elsewhere(Event, type="test.elsewhere.v1", destination="elsewhere"):
    number: PositiveInt


class Nowhere(Event, type="test.nowhere.v1"):
    number: PositiveInt


def test_events_go_to_the_destination_of_their_class(server: Server) -> None:
    with Bus.from_url(server.url) as bus:
        one = bus.publish(Elsewhere(number=1))
        more = bus.publish_many([Elsewhere(number=2), Elsewhere(number=3)])
        assert [entry.id for entry in bus.stream("elsewhere").range()] == [one, *more]
        assert bus.publish_many([]) == []
        assert bus.stream("notes").length() == 0


def test_what_has_no_destination_or_several_is_refused(server: Server) -> None:
    with Bus.from_url(server.url) as bus:
        with pytest.raises(DataError, match="declares no destination"):
            bus.publish(Nowhere(number=1))
        with pytest.raises(DataError, match="events of one destination") as raised:
            bus.publish_many([Elsewhere(number=1), Noted(number=2)])
        assert raised.value.reason == "mixed_destinations"
        assert bus.stream("elsewhere").length() == 0, "none of them, rather than some"
