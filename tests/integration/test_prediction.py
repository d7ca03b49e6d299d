"""What a plan predicts is what happens: random selections are predicted, then applied, and compared one by one."""

from __future__ import annotations

import random
from collections import Counter
from collections.abc import Sequence
from contextlib import closing
from pathlib import Path

from imsync.bus.codec import encode
from imsync.bus.entry import FIELD, Entry
from imsync.bus.handler import Received, Rejected
from imsync.bus.outcome import Ack, DeadLetter
from imsync.errors import DataError
from imsync.im.events import IMBaseEvent
from imsync.im.prediction import Predicted, Predictor
from tests.projections import Kind, Store, deliver, everything, tombstone, update

USERS = 6
VERSIONS = 8


def entry(event: IMBaseEvent, entry_id: str = "1-0") -> Entry:
    return Entry.of(entry_id, {FIELD: encode(event, source="urn:test")})


def predicted(store: Store, *batches: Sequence[Entry]) -> list[str]:
    predictor = Predictor(store)
    return [each.outcome for batch in batches for each in predictor.predict(batch)]


def really(kind: Kind, store: Store, batch: Sequence[Entry]) -> list[str]:
    """What becomes of a batch when it is applied."""
    received: list[Received[IMBaseEvent]] = []
    outcomes: dict[int, str] = {}
    places: list[int] = []
    for place, each in enumerate(batch):
        try:
            event = kind.decoder.read(each)
        except DataError:
            outcomes[place] = "bad"
            continue
        assert event is not None
        received.append(Received(event, each.id))
        places.append(place)
    for place, outcome in zip(places, store.apply(received), strict=True):
        assert isinstance(outcome, Ack)
        outcomes[place] = str(outcome.effect)
    return [outcomes[place] for place in range(len(batch))]


def random_entries(rng: random.Random, number: int, past: Sequence[Entry] = ()) -> list[Entry]:
    """Events of a few users in any order, some of them or of the past twice, and some that are no events."""
    entries: list[Entry] = []
    for place in range(number):
        kind = rng.random()
        if kind < 0.2 and (entries or past):
            entries.append(Entry.of(f"1-{place}", rng.choice([*entries, *past]).fields))
            continue
        user, version = rng.randint(1, USERS), rng.randint(1, VERSIONS)
        event = tombstone(user, version) if kind < 0.27 else update(user, version, f"name {rng.randint(1, 3)}")
        body = encode(event, source="urn:test")
        if kind > 0.92:
            body = rng.choice([b"not JSON", body.replace(b"nickName", b"nickname"), body.replace(b"im.user", b"no")])
        fields = {b"other": body} if kind > 0.98 else {FIELD: body}
        entries.append(Entry.of(f"1-{place}", fields))
    return entries


def test_predictions_of_random_selections_come_true(kind: Kind, tmp_path: Path) -> None:
    first_seed = random.SystemRandom().randrange(10**9)
    seen: Counter[str] = Counter()
    for seed in range(first_seed, first_seed + 10):
        print(f"seed {seed}")
        rng = random.Random(seed)
        with closing(kind.make(tmp_path / f"{seed}.db", create=True)) as store:
            past = random_entries(rng, 20)
            for event_entry in past:  # applied, dead, or nothing
                try:
                    event = kind.decoder.read(event_entry)
                except DataError:
                    continue
                assert event is not None
                if rng.random() < 0.5:
                    deliver(kind, store, event)
                elif rng.random() < 0.5:
                    store.record_dead([Rejected(event, "1-0", DeadLetter("max_attempts", "x"))])
            selection = random_entries(rng, 40, past)
            size = rng.choice([2, 7, 40])
            batches = [selection[start : start + size] for start in range(0, len(selection), size)]
            before = everything(store)
            foretold = predicted(store, *batches)
            assert everything(store) == before, "a prediction changes nothing"
            assert foretold == [each for batch in batches for each in really(kind, store, batch)]
            seen.update(foretold)
    assert seen.keys() == {"applied", "superseded", "duplicate", "bad"}, "these selections prove too little"


def test_of_several_events_of_one_user_the_newest_wins(kind: Kind, store: Store) -> None:
    deliver(kind, store, update(1, 3))
    events = [entry(update(1, 4)), entry(update(1, 6)), entry(update(1, 5))]
    assert predicted(store, events) == ["superseded", "applied", "superseded"]
    assert predicted(store, *([each] for each in events)) == ["applied", "applied", "superseded"]


def test_nothing_comes_after_a_tombstone(kind: Kind, store: Store) -> None:
    deliver(kind, store, tombstone(1, 3))
    assert predicted(store, [entry(update(1, 9))]) == ["superseded"]
    assert predicted(store, [entry(tombstone(2, 5))], [entry(update(2, 9))]) == ["applied", "superseded"]
    assert Predictor(store).supersedes(1, 9)
    assert not Predictor(store).supersedes(2, 1)


def test_a_dead_event_is_applied_and_a_settled_one_is_a_duplicate(kind: Kind, store: Store) -> None:
    dead, settled = update(1, 2), update(2, 2)
    store.record_dead([Rejected(kind.received(dead).event, "1-0", DeadLetter("max_attempts", "x"))])
    deliver(kind, store, settled)
    assert predicted(store, [entry(dead), entry(settled), entry(dead)]) == ["applied", "duplicate", "duplicate"]


def test_a_bad_one_says_why_in_the_decoders_words(store: Store) -> None:
    bad = Entry.of("1-0", {FIELD: b"{"})
    (prediction,) = Predictor(store).predict([bad])
    assert (prediction.outcome, prediction.reason, prediction.event) == (Predicted.BAD, "bad_json", None)
    (prediction,) = Predictor(store).predict([Entry.of("1-0", {b"x": b"y"})])
    assert prediction.reason == "no_event_field"


def test_only_one_users_events_are_played_when_they_alone_are_given(kind: Kind, store: Store) -> None:
    batch = [entry(update(1, 1)), entry(update(2, 1)), Entry.of("1-0", {FIELD: b"{"}), entry(update(1, 2))]
    assert [each.outcome for each in Predictor(store).predict_about(1, batch)] == ["superseded", "applied"]


def test_the_projection_tells_how_events_were_settled(kind: Kind, store: Store) -> None:
    """The seam that predictions stand on."""
    applied, dead, unknown = update(1, 2), update(2, 2), update(3, 3)
    store.apply([kind.received(applied, "5-1"), kind.received(update(1, 1), "5-0")])
    store.record_dead([Rejected(kind.received(dead).event, "6-0", DeadLetter("max_attempts", "x"))])
    found = store.settled([each.event_id.bytes for each in (applied, dead, unknown)])
    assert found == {applied.event_id.bytes: ("applied", "5-1"), dead.event_id.bytes: ("dead", "6-0")}
    assert store.settled([]) == {}
    many = [update(4, 1).event_id.bytes for _ in range(1100)]
    assert store.settled([*many, applied.event_id.bytes]).keys() == {applied.event_id.bytes}


def test_the_rows_of_a_user_are_not_counted_for_a_prediction(kind: Kind, store: Store) -> None:
    """There may be a hundred thousand of them, and as many dead letters about that user."""
    deliver(kind, store, update(1, 2), tombstone(2, 3))
    statements: list[str] = []
    store._database._connection.set_trace_callback(statements.append)  # type: ignore[union-attr]
    assert predicted(store, [entry(update(1, 1)), entry(update(2, 4)), entry(update(3, 1))]) == [
        "superseded", "superseded", "applied",
    ]  # fmt: skip
    assert statements
    assert not any(kind.table in each for each in statements)


def test_without_a_shorter_way_the_whole_state_is_asked_for(kind: Kind, store: Store) -> None:
    class Plain:
        events, settled, state = store.events, store.settled, store.state

    deliver(kind, store, update(1, 2), tombstone(2, 3))
    predictor = Predictor(Plain())  # type: ignore[arg-type]
    assert [predictor.version(each) for each in (1, 2, 3)] == [2, 3, 0]
    assert [predictor.supersedes(each, 9) for each in (1, 2, 3)] == [False, True, False]
    assert [store.applied(each) for each in (1, 2, 3)] == [(2, False), (3, True), (0, False)]
