"""Simulated edits are as many, as mixed and as bursty as promised; faults disturb as much as asked."""

from __future__ import annotations

import hashlib
import json
import math
import random
import tracemalloc
from collections import Counter, defaultdict
from itertools import islice, pairwise
from statistics import median

import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from imsync.bus.codec import MAX_BODY_BYTES, Decoder
from imsync.errors import DataError, UsageError
from imsync.im import simulator
from imsync.im.events import IMBaseEvent, User2FriendEvent, User2GroupEvent, UserUpdated
from imsync.im.simulator import (
    BURST_SECONDS,
    INVALID_KINDS,
    MAX_DISPLACEMENT,
    Faults,
    SimulatedEdit,
    distort,
    invalid_bodies,
    invalid_body,
    simulate_edits,
)

MANY = range(10**12)
"""So many users that no two sessions are of the same one."""


def sessions(edits: list[SimulatedEdit]) -> dict[int, list[tuple[int, float]]]:
    """The (number, time) of each user's edits."""
    by_user: defaultdict[int, list[tuple[int, float]]] = defaultdict(list)
    for number, edit in enumerate(edits):
        by_user[edit.user_id].append((number, edit.at))
    return by_user


# --- edits ------------------------------------------------------------------------------------------------


@pytest.mark.parametrize("seed", [1, 99])
def test_what_the_edits_change(seed: int) -> None:
    edits = list(simulate_edits(range(1_000), count=20_000, seed=seed))
    kinds = Counter((edit.head_image is not None, edit.nick_name is not None) for edit in edits)
    assert kinds[True, False] / len(edits) == pytest.approx(0.70, abs=0.02)
    assert kinds[False, True] / len(edits) == pytest.approx(0.25, abs=0.02)
    assert kinds[True, True] / len(edits) == pytest.approx(0.05, abs=0.01)
    assert all((edit.head_image is None) == (edit.head_image_thumb is None) for edit in edits)


def test_every_edit_is_a_change() -> None:
    profiles: dict[int, dict[str, str]] = defaultdict(dict)
    for edit in simulate_edits([5, 6, 7], count=5_000, seed=1):
        profile = profiles[edit.user_id]
        for field in ("nick_name", "head_image", "head_image_thumb"):
            value = getattr(edit, field)
            if value is not None:
                assert value != profile.get(field)
                profile[field] = value


def test_runs_with_different_seeds_differ_in_content() -> None:
    contents = [
        {text for edit in simulate_edits([5], count=200, seed=seed) for text in tuple(edit)[1:4] if text}
        for seed in (1, 2)
    ]
    assert not contents[0] & contents[1]


def test_avatars_are_of_the_user() -> None:
    for edit in simulate_edits([2**63 - 1], count=50, seed=1):
        if edit.head_image and edit.head_image_thumb:
            stem = edit.head_image.removesuffix(".webp")
            assert stem.startswith(f"https://cdn.example.com/avatars/{2**63 - 1}/")
            assert edit.head_image_thumb == f"{stem}_96.webp"


@pytest.mark.parametrize("rate", [None, 50.0])
def test_bursts_are_short_and_interleaved(rate: float | None) -> None:
    edits = list(simulate_edits(MANY, count=20_000, seed=4, rate=rate))
    lengths = Counter(len(edits_of_user) for edits_of_user in sessions(edits).values())
    assert set(lengths) == {1, 2, 3, 4, 5}
    bursts = [edits_of_user for edits_of_user in sessions(edits).values() if len(edits_of_user) > 1]
    assert len(bursts) / sum(lengths.values()) == pytest.approx(0.35, abs=0.02)
    assert all(lengths[n] / len(bursts) == pytest.approx(0.25, abs=0.03) for n in (2, 3, 4, 5))
    spans = [burst[-1][1] - burst[0][1] for burst in bursts]
    assert max(spans) <= BURST_SECONDS + 1e-9
    assert median(spans) > BURST_SECONDS / 2
    steps = [later[0] - earlier[0] for burst in bursts for earlier, later in pairwise(burst)]
    assert steps.count(1) / len(steps) < 0.05


def test_bursts_survive_a_slow_rate() -> None:
    edits = list(simulate_edits(MANY, count=300, seed=4, rate=0.05))
    bursts = [edits_of_user for edits_of_user in sessions(edits).values() if len(edits_of_user) > 1]
    assert len(bursts) > 30
    assert all(burst[-1][1] - burst[0][1] <= BURST_SECONDS + 1e-9 for burst in bursts)
    assert edits[-1].at == pytest.approx(300 / 0.05, rel=0.05)


def test_a_short_run_has_bursts_too() -> None:
    edits = list(simulate_edits(MANY, count=40, seed=4))
    assert max(len(edits_of_user) for edits_of_user in sessions(edits).values()) > 1
    assert edits[-1].at <= 0.04


@settings(max_examples=60, deadline=None)
@given(
    users=st.integers(1, 50),
    count=st.integers(0, 300),
    seed=st.integers(),
    rate=st.one_of(st.none(), st.floats(1e-3, 1e6)),
)
def test_count_and_clock(users: int, count: int, seed: int, rate: float | None) -> None:
    edits = list(simulate_edits(range(users), count=count, seed=seed, rate=rate))
    assert len(edits) == count
    assert all(0 <= edit.user_id < users for edit in edits)
    times = [edit.at for edit in edits]
    assert times == sorted(times)
    assert times[:1] == [0.0] * min(count, 1)
    assert all(at <= number / (rate or 1_000) for number, at in enumerate(times))


def test_the_rate_is_kept_on_average() -> None:
    *_, last = simulate_edits(range(500), count=10_000, seed=1, rate=200)
    assert last.at == pytest.approx(50, abs=0.1)


def test_some_users_are_much_more_active() -> None:
    per_user = Counter(edit.user_id for edit in simulate_edits(range(1_000), count=20_000, seed=1))
    ranked = sorted(per_user.values(), reverse=True)
    assert sum(ranked[:100]) > 0.25 * 20_000
    assert ranked[0] > 10 * median(ranked)


def test_the_most_active_users_are_not_always_the_first_ones() -> None:
    busiest = [
        Counter(edit.user_id for edit in simulate_edits(range(100), count=1_000, seed=seed)).most_common(1)[0][0]
        for seed in range(20)
    ]
    assert len(set(busiest)) > 10


@pytest.mark.parametrize("users", [1, 2, 3, 4, 6, 9, 10, 16, 30])
def test_everybody_is_edited(users: int) -> None:
    assert {edit.user_id for edit in simulate_edits(range(users), count=3_000, seed=2)} == set(range(users))


def test_it_is_lazy_and_keeps_only_the_bursts_in_flight() -> None:
    endless = simulate_edits(MANY, count=10**12, seed=1)
    tracemalloc.start()
    try:
        for _ in islice(endless, 20_000):
            pass
        _, peak = tracemalloc.get_traced_memory()
    finally:
        tracemalloc.stop()
    assert peak < 500_000  # bytes; the edits themselves would take 5 MB


def test_the_random_stream_is_what_it_was() -> None:
    edits = [tuple(edit) for edit in simulate_edits(range(50), count=200, seed=7, rate=20)]
    assert (
        hashlib.sha256(json.dumps(edits).encode()).hexdigest()
        == "6abd507f49c6ef278d72804ce191d192ac45eeccecfb4ac5c7002d5b9aad4abf"
    )


def test_other_seeds_choose_other_users() -> None:
    chosen = {tuple(edit.user_id for edit in simulate_edits(range(50), count=50, seed=seed)) for seed in range(9)}
    assert len(chosen) == 9


@pytest.mark.parametrize("rate", [0, -1.0, math.nan, math.inf])
def test_an_impossible_rate_is_refused_at_once(rate: float) -> None:
    with pytest.raises(UsageError, match="per second"):
        simulate_edits([1], count=1, seed=1, rate=rate)


def test_other_impossible_wishes_are_refused_at_once() -> None:
    with pytest.raises(UsageError, match="cannot simulate -1"):
        simulate_edits([1], count=-1, seed=1)
    with pytest.raises(UsageError, match="no users"):
        simulate_edits([], count=1, seed=1)
    assert list(simulate_edits([], count=0, seed=1)) == []


# --- disturbed order --------------------------------------------------------------------------------------

shares = st.sampled_from([0.0, 0.05, 0.5, 1.0])


@settings(max_examples=150, deadline=None)
@given(size=st.integers(0, 300), dup=shares, reorder=shares, seed=st.integers(0, 10**6))
def test_nothing_is_lost_and_duplicates_come_later(size: int, dup: float, reorder: float, seed: int) -> None:
    order = distort(range(size), Faults(dup=dup, reorder=reorder), random.Random(seed))
    times = Counter(order)
    assert set(times) == set(range(size))
    assert set(times.values()) <= {1, 2}
    if dup in (0.0, 1.0):
        assert len(order) == size * (1 + dup)
    if not reorder:
        assert list(dict.fromkeys(order)) == list(range(size))
    if not dup and not reorder:
        assert order == list(range(size))


@settings(max_examples=100, deadline=None)
@given(size=st.integers(0, 300), reorder=shares, seed=st.integers(0, 10**6))
def test_displaced_items_are_overtaken_by_their_near_followers_only(size: int, reorder: float, seed: int) -> None:
    order = distort(range(size), Faults(reorder=reorder), random.Random(seed))
    foremost = -1
    for item in order:
        assert foremost - item <= MAX_DISPLACEMENT
        foremost = max(foremost, item)


@settings(max_examples=100, deadline=None)
@given(size=st.integers(1, 300), dup=shares, seed=st.integers(0, 10**6))
def test_duplicates_stay_near(size: int, dup: float, seed: int) -> None:
    seen: set[int] = set()
    foremost = -1
    for item in distort(range(size), Faults(dup=dup), random.Random(seed)):
        if item in seen:
            assert 0 <= foremost - item <= MAX_DISPLACEMENT
            assert foremost > item or item == size - 1
        seen.add(item)
        foremost = max(foremost, item)


@pytest.mark.parametrize("asked", [0.02, 0.2])
def test_faults_have_the_shares_asked_for(asked: float) -> None:
    size = 20_000
    doubled = distort(range(size), Faults(dup=asked), random.Random(1))
    assert len(doubled) / size - 1 == pytest.approx(asked, rel=0.1)
    foremost, overtaken = -1, 0
    for item in distort(range(size), Faults(reorder=asked), random.Random(1)):
        overtaken += item < foremost
        foremost = max(foremost, item)
    assert overtaken / size == pytest.approx(asked, rel=0.15)


def test_items_are_opaque() -> None:
    items = [object() for _ in range(200)]  # neither comparable nor equal to one another
    order = distort(items, Faults(dup=0.5, reorder=0.5), random.Random(1))
    assert set(map(id, order)) == set(map(id, items))
    assert order == distort(items, Faults(dup=0.5, reorder=0.5), random.Random(1))


@pytest.mark.parametrize("name", Faults._fields)
@pytest.mark.parametrize("share", [-0.1, 1.01, math.nan])
def test_impossible_shares_are_refused(name: str, share: float) -> None:
    with pytest.raises(UsageError, match=name):
        distort([1], Faults()._replace(**{name: share}), random.Random(1))


# --- invalid bodies ---------------------------------------------------------------------------------------

READERS = [User2GroupEvent, User2FriendEvent, UserUpdated]

REASONS = {
    "too_large": "too_large",
    "unknown_type": "unknown_type",
    **dict.fromkeys(
        ["empty", "not_json", "truncated", "trailing_comma", "bad_utf8", "overlong_utf8", "lone_surrogate"],
        "bad_json",
    ),
    **dict.fromkeys(["raw_control_character", "deep_nesting"], "bad_json"),
}
"""Why a body of a kind is refused; those not named here are `invalid`."""


@pytest.mark.parametrize("reader", READERS)
@pytest.mark.parametrize("kind", INVALID_KINDS)
def test_every_reader_refuses_every_kind(kind: str, reader: type[IMBaseEvent]) -> None:
    with pytest.raises(DataError) as refusal:
        Decoder([reader]).decode(invalid_body(kind, random.Random(1)))
    assert refusal.value.reason == REASONS.get(kind, "invalid")


@pytest.mark.parametrize("reader", READERS)
def test_the_body_that_is_spoiled_was_valid(reader: type[IMBaseEvent]) -> None:
    """So each kind is refused for its own fault only."""
    event = Decoder([reader]).decode(json.dumps(simulator._valid_event(random.Random(1))).encode())
    assert event is not None
    assert event.event_id.version == 7
    assert event.event_id.int >> 80 == event.occurred_at.timestamp() * 1_000


def test_invalid_bodies_are_of_as_many_kinds_as_possible() -> None:
    kinds = len(INVALID_KINDS)
    assert kinds >= 12
    for seed in range(5):
        bodies = invalid_bodies(random.Random(seed), 2 * kinds)
        assert len(bodies) == 2 * kinds
        assert len(set(bodies[:kinds])) == kinds
        assert sum(len(body) > MAX_BODY_BYTES for body in bodies) == 2
    assert invalid_bodies(random.Random(1), 0) == []
    assert len({tuple(invalid_bodies(random.Random(seed), 1)) for seed in range(50)}) > 20


def test_invalid_bodies_repeat_with_the_seed() -> None:
    assert invalid_bodies(random.Random(3), 100) == invalid_bodies(random.Random(3), 100)
    assert invalid_bodies(random.Random(3), 100) != invalid_bodies(random.Random(4), 100)
