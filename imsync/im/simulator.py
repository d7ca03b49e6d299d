"""Simulated profile edits, and the faults that a publisher can be asked to add to them.

Pure code: edits are values for the caller to apply, randomness comes in as a seed or a `random.Random`. Only
`random()` is called on it, the one method whose sequence Python promises to keep between versions.
"""

from __future__ import annotations

import heapq
import json
import math
import random
from collections.abc import Callable, Iterator, Sequence
from operator import itemgetter
from typing import Any, NamedTuple, TypeVar

from imsync.errors import UsageError

T = TypeVar("T")

BURST_SECONDS = 3.0
"""All edits of a burst happen within this many seconds."""
MAX_DISPLACEMENT = 50
"""A displaced or duplicated item moves at most this many places."""

_AVATAR_SHARE, _NICK_NAME_SHARE = 0.70, 0.25  # the others change both
_BURST_SHARE = 0.35
_DEFAULT_RATE = 1_000.0
_NICK_NAMES = ("Mia", "Noah", "晓明", "Zoe\u0308", "🚀 Max", "نور", "Ольга", "さくら", "👩🏽\u200d💻 Eve")


class SimulatedEdit(NamedTuple):
    """One edit of one user's profile. `None` leaves a field unchanged.

    `at` is in seconds since the start of the simulation.
    """

    user_id: int
    nick_name: str | None
    head_image: str | None
    head_image_thumb: str | None
    at: float


def simulate_edits(
    user_ids: Sequence[int], *, count: int, seed: int, rate: float | None = None
) -> Iterator[SimulatedEdit]:
    """Yield exactly `count` edits in the order of their time.

    70 % change the avatar (image and thumb), 25 % the nickname, 5 % both. A third of the editing sessions are
    bursts: 2-5 edits of the same user within `BURST_SECONDS`, among other users' edits. Few users make most
    edits. Every edit of a run carries content that no other edit of the run carries, so each is a change.

    Args:
        user_ids: whom to choose from; indexed, never copied. May be empty only if `count` is 0.
        count: how many edits.
        seed: any integer; it is part of the content, so that runs with different seeds differ in content too.
        rate: edits per second on average; `None` means 1,000 for the simulated clock. The edit number n
            (from 0) comes no later than n / rate; the later edits of a burst may come ahead of that, which
            is what lets a burst stay one at rates below one edit per second.

    Raises:
        UsageError: `count` is negative, `rate` not a positive number, or there are no users to choose from.
    """
    if count < 0:
        raise UsageError(f"cannot simulate {count} edits", "give a count of 0 or more")
    if rate is not None and not (rate > 0 and math.isfinite(rate)):
        raise UsageError(f"cannot simulate {rate} edits per second", "give a positive rate")
    if count and not user_ids:
        raise UsageError("there are no users to edit", "create users first")
    return _edits(user_ids, count, seed, _DEFAULT_RATE if rate is None else rate)


def _edits(user_ids: Sequence[int], count: int, seed: int, rate: float) -> Iterator[SimulatedEdit]:
    uniform = random.Random(f"imsync simulator/{seed}").random
    users = len(user_ids)
    stride, offset = _permutation(users, uniform)
    follow_ups: list[tuple[float, int]] = []  # a heap of (time, user id): the bursts in flight
    for number in range(count):
        at = number / rate
        unplanned = count - number - len(follow_ups)
        if follow_ups and (not unplanned or follow_ups[0][0] <= at):
            due, user_id = heapq.heappop(follow_ups)
            at = min(at, due)
        else:
            rank = int(users * uniform() ** 2)  # density 1/sqrt(rank): of 10,000 users the first gets 1 %
            user_id = user_ids[(rank * stride + offset) % users]
            if uniform() < _BURST_SHARE:
                for _ in range(min(1 + int(uniform() * 4), unplanned - 1)):
                    heapq.heappush(follow_ups, (at + uniform() * BURST_SECONDS, user_id))
        kind = uniform()
        nick_name = image = thumb = None
        if kind >= _AVATAR_SHARE:
            nick_name = f"{_NICK_NAMES[int(uniform() * len(_NICK_NAMES))]} {seed}-{number}"
        if kind < _AVATAR_SHARE or kind >= _AVATAR_SHARE + _NICK_NAME_SHARE:
            avatar = f"https://cdn.example.com/avatars/{user_id}/{seed}-{number}"
            image, thumb = f"{avatar}.webp", f"{avatar}_96.webp"
        yield SimulatedEdit(user_id, nick_name, image, thumb, at)


def _permutation(size: int, uniform: Callable[[], float]) -> tuple[int, int]:
    """A stride and an offset such that `(rank * stride + offset) % size` visits every index once.

    It scatters the active users over the whole sequence without a shuffled copy of it: otherwise the first
    ones (a bot that is in all groups, say) would always be the most active.
    """
    stride = max(1, int(size * (0.3 + 0.4 * uniform())))
    while math.gcd(stride, size) > 1:
        stride += 1
    return stride, int(size * uniform())


# --- faults -----------------------------------------------------------------------------------------------


class Faults(NamedTuple):
    """How much of a publish batch goes wrong, each a probability per item from 0 to 1."""

    dup: float = 0.0
    """Published twice."""
    reorder: float = 0.0
    """Published later than its turn."""
    invalid: float = 0.0
    """Accompanied by an invalid body (see `invalid_bodies`)."""


def distort(items: Sequence[T], faults: Faults, rng: random.Random) -> list[T]:
    """Return the order in which to publish a batch, with duplicates and displaced items.

    A displaced item is overtaken by up to `MAX_DISPLACEMENT` of its followers, a duplicate comes after its
    original; items that are neither keep their order. Near the end of the batch there is less room to move.
    `faults.invalid` is not used here: items are opaque.

    Raises:
        UsageError: a probability is not between 0 and 1.
    """
    for name, share in zip(faults._fields, faults, strict=True):
        if not 0 <= share <= 1:
            raise UsageError(f"the share of {name} faults is {share}", "give a number from 0 to 1")
    placed: list[tuple[int, T]] = []
    for turn, item in enumerate(items):
        # Undisturbed items take even places, the others squeeze in behind one of them.
        place = 2 * turn
        if rng.random() < faults.reorder:
            place = 2 * (turn + _displacement(rng)) + 1
        placed.append((place, item))
        if rng.random() < faults.dup:
            placed.append((place + 2 * _displacement(rng) + 1, item))
    placed.sort(key=itemgetter(0))
    return [item for _, item in placed]


def _displacement(rng: random.Random) -> int:
    return 1 + int(rng.random() * MAX_DISPLACEMENT)


def invalid_bodies(rng: random.Random, n: int) -> list[bytes]:
    """Return `n` wire bodies that every reader of user updates must refuse, of as many kinds as possible."""
    kinds = list(INVALID_KINDS)
    for last in range(len(kinds) - 1, 0, -1):
        other = int(rng.random() * (last + 1))
        kinds[last], kinds[other] = kinds[other], kinds[last]
    return [invalid_body(kinds[index % len(kinds)], rng) for index in range(n)]


def invalid_body(kind: str, rng: random.Random) -> bytes:
    """Return one invalid wire body of the given kind (one of `INVALID_KINDS`).

    Everything else about it is right, and the fault is where all readers look: the JSON itself, the envelope,
    `id` or `nickName`. No body is larger than the 64 KiB cap, except those of the kind `too_large`.

    Raises:
        KeyError: there is no such kind.
    """
    return _SPOILERS[kind](_valid_event(rng))


def _valid_event(rng: random.Random) -> dict[str, Any]:
    """A user update as CloudEvents 1.0 in structured mode, about a user of the snowflake range."""
    user_id = 7_300_000_000_000_000_000 + int(rng.random() * 2**52)
    version = 1 + int(rng.random() * 1_000)
    high, low = int(rng.random() * 2**12), int(rng.random() * 2**48)
    avatar = f"https://cdn.example.com/avatars/{user_id}/invalid-{version}"
    return {
        "specversion": "1.0",
        "id": f"019b76da-a800-7{high:03x}-8000-{low:012x}",  # UUIDv7 of 2026-01-01T00:00:00.000Z
        "source": "/imsync/simulator",
        "type": "im.user.updated.v1",
        "subject": str(user_id),
        "time": "2026-01-01T00:00:00.000Z",
        "sequence": f"{version:019d}",
        "data": {
            "id": user_id,
            "destination": "user-update",
            "nickName": f"invalid {version}",
            "headImage": f"{avatar}.webp",
            "headImageThumb": f"{avatar}_96.webp",
        },
    }


_Spoiler = Callable[[dict[str, Any]], bytes]


def _dump(event: dict[str, Any]) -> bytes:
    return json.dumps(event, separators=(",", ":")).encode()


def _with_data(**fields: object) -> _Spoiler:
    return lambda event: _dump({**event, "data": {**event["data"], **fields}})


def _with_envelope(**fields: object) -> _Spoiler:
    return lambda event: _dump({**event, **fields})


def _without_data(name: str) -> _Spoiler:
    return lambda event: _dump({**event, "data": {key: v for key, v in event["data"].items() if key != name}})


def _without_envelope(name: str) -> _Spoiler:
    return lambda event: _dump({key: value for key, value in event.items() if key != name})


def _with_raw_nick_name(raw: bytes) -> _Spoiler:
    """For what `json.dumps` would not write, or not at that depth."""
    return lambda event: _with_data(nickName="@raw@")(event).replace(b'"@raw@"', raw)


_SPOILERS: dict[str, _Spoiler] = {
    "empty": lambda event: b"",
    "not_json": lambda event: b"PUT " + _dump(event),
    "truncated": lambda event: _dump(event)[:-2],
    "trailing_comma": lambda event: _dump(event)[:-1] + b",}",
    "not_an_object": lambda event: b"[" + _dump(event) + b"]",
    "json_null": lambda event: b"null",
    "bad_utf8": _with_raw_nick_name(b'"\xc3\x28\xff"'),
    "overlong_utf8": _with_raw_nick_name(b'"\xc0\xafetc"'),
    "lone_surrogate": _with_raw_nick_name(rb'"\ud83d"'),
    "raw_control_character": _with_raw_nick_name(b'"a\x1b[2Jb"'),
    "nan_id": _with_data(id=math.nan),
    "nan_nick_name": _with_data(nickName=math.nan),
    "infinite_id": _with_data(id=math.inf),
    "deep_nesting": _with_raw_nick_name(b"[" * 20_000 + b"]" * 20_000),
    "nul_in_nick_name": _with_data(nickName="ad\0min"),
    "nick_name_too_long": _with_data(nickName="long" * 2_500),
    "too_large": _with_data(nickName="x" * 70_000),
    "missing_id": _without_data("id"),
    "missing_nick_name": _without_data("nickName"),
    "missing_data": _without_envelope("data"),
    "missing_type": _without_envelope("type"),
    "missing_sequence": _without_envelope("sequence"),
    "null_id": _with_data(id=None),
    "null_nick_name": _with_data(nickName=None),
    "null_data": _with_envelope(data=None),
    "id_as_string": lambda event: _with_data(id=str(event["data"]["id"]))(event),
    "id_as_float": _with_data(id=7.5),
    "id_as_boolean": _with_data(id=True),
    "nick_name_as_number": _with_data(nickName=7),
    "nick_name_as_object": _with_data(nickName={"value": "Eve"}),
    "data_as_list": lambda event: _dump({**event, "data": list(event["data"].values())}),
    "data_as_string": lambda event: _dump({**event, "data": json.dumps(event["data"])}),
    "id_zero": _with_data(id=0),
    "id_negative": _with_data(id=-7),
    "id_too_big": _with_data(id=2**63),
    "sequence_too_big": _with_envelope(sequence=str(2**63)),
    "unknown_type": _with_envelope(type="im.user.exploded.v9"),
}

INVALID_KINDS: tuple[str, ...] = tuple(_SPOILERS)
"""The kinds of invalid bodies."""
