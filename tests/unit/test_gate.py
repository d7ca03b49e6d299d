"""The version gate against a plain model: any order, any batches and any repeats end in the same state."""

from __future__ import annotations

from collections.abc import Iterable, Sequence
from dataclasses import dataclass
from typing import TypeAlias

from hypothesis import given, settings
from hypothesis import strategies as st

from imsync.im.gate import newest

NEVER_AGAIN = 2**63 - 1
"""What stands for the applied version of a key whose tombstone was applied."""


@dataclass(frozen=True)
class Fact:
    id: int
    version: int
    final: bool = False
    label: str = ""


State: TypeAlias = dict[int, Fact]


def consume(batches: Iterable[Sequence[Fact]], state: State | None = None) -> State:
    """A store in a few lines, as the projections use the gate. Checks each step besides."""
    state = dict(state or {})
    for batch in batches:
        applied = {key: NEVER_AGAIN if fact.final else fact.version for key, fact in state.items()}
        winners = newest(batch, applied)
        for key, fact in winners.items():
            assert fact.id == key
            assert fact in batch
            assert fact.version > applied.get(key, 0)  # never at or below what was applied
        untouched = {fact.id for fact in batch} - winners.keys()
        assert all(fact.version <= applied.get(fact.id, 0) for fact in batch if fact.id in untouched)
        state.update(winners)
    return state


@st.composite
def histories(draw: st.DrawFn) -> list[Fact]:
    """Sane ones: for each key the versions 1 to n, the last of which may be its tombstone."""
    history = []
    for key in range(1, draw(st.integers(1, 4)) + 1):
        n = draw(st.integers(1, 6))
        deleted = draw(st.booleans())
        history += [Fact(key, version, final=deleted and version == n) for version in range(1, n + 1)]
    return history


@st.composite
def deliveries(draw: st.DrawFn) -> tuple[list[Fact], list[list[Fact]]]:
    """A history, and its facts repeated, in any order, in batches of any size."""
    history = draw(histories())
    repeats = draw(st.lists(st.sampled_from(history), max_size=8))
    order = draw(st.permutations(history + repeats))
    cuts = sorted(draw(st.lists(st.integers(0, len(order)), max_size=6)))
    return history, [order[start:end] for start, end in zip([0, *cuts], [*cuts, len(order)], strict=True)]


@settings(max_examples=300)
@given(deliveries())
def test_any_order_any_batches_and_any_repeats_end_in_the_newest(
    case: tuple[list[Fact], list[list[Fact]]],
) -> None:
    history, batches = case
    newest_of_all: State = {}
    for fact in history:  # in their true order, so the last one counts
        newest_of_all[fact.id] = fact
    end = consume(batches)
    assert end == newest_of_all
    assert consume(batches, end) == end  # all of it once more changes nothing


@given(deliveries(), st.data())
def test_a_tombstone_is_final(case: tuple[list[Fact], list[list[Fact]]], data: st.DataObject) -> None:
    """Also against histories that no sane source has: versions after the tombstone."""
    history, batches = case
    end = consume(batches)
    insane = [Fact(fact.id, data.draw(st.integers(1, 20)), label="late") for fact in history]
    after = consume([insane[:2], insane[2:]], end)
    assert {key: fact for key, fact in after.items() if end[key].final} == {
        key: fact for key, fact in end.items() if fact.final
    }


@given(st.lists(st.builds(Fact, id=st.integers(1, 3), version=st.integers(1, 4), label=st.text(max_size=2))))
def test_of_equal_versions_the_first_wins_in_one_batch_as_in_many(facts: list[Fact]) -> None:
    end = consume([facts])
    assert end == consume([[fact] for fact in facts])
    for key, winner in end.items():
        rivals = [fact for fact in facts if (fact.id, fact.version) == (key, winner.version)]
        assert winner is rivals[0]


def test_a_tombstone_wins_over_higher_versions_beside_it() -> None:
    tombstone = Fact(1, 3, final=True)
    for batch in ([tombstone, Fact(1, 5)], [Fact(1, 5), tombstone]):
        assert newest(batch, {}) == {1: tombstone}


def test_what_was_applied_is_left_alone() -> None:
    assert newest([], {}) == {}
    assert newest([Fact(1, 4), Fact(1, 5), Fact(2, 5)], {1: 5}) == {2: Fact(2, 5)}
    assert newest([Fact(1, 6), Fact(1, 5)], {1: 5}) == {1: Fact(1, 6)}
