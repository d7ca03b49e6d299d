"""The state machine that draws random histories: what can happen, one step at a time. See `histories` for how."""

from __future__ import annotations

import logging
import sys
from collections.abc import Callable, Iterator
from contextlib import closing, contextmanager

from hypothesis import HealthCheck, Phase, seed, settings
from hypothesis import strategies as st
from hypothesis.stateful import RuleBasedStateMachine, initialize, rule, run_state_machine_as_test

from imsync.im.relay import Order
from tests.faults.histories import KINDS_OF_HARM, Harm, World, backwards, in_order, three_times
from tests.faults.in_memory import NONE
from tests.faults.subjects import CONTAINERS, FIELDS, FRIEND, GROUP, INBOX, USERS, Kind

users = st.sampled_from(USERS)
texts = st.sampled_from(["a", "b", "c"])
refusals = st.sampled_from([NONE, NONE, NONE, range(1), range(1, 2), range(2, 3), range(99)])
workers = st.integers(0, 1)
clocks = st.sampled_from([0, -2, 5])
POISON = (b"", b"{", b"\xff", b"[1]", b'{"specversion":"1.0","type":"x.unknown"}')


def harms(**seams: int) -> st.SearchStrategy[Harm | None]:
    """Half of the steps in peace; in the others harm at one of so many seams of a place."""
    kinds = [(kind, 0) for kind in KINDS_OF_HARM] + [(KINDS_OF_HARM[-1], variant) for variant in (1, 2)]
    harmful = [
        Harm(place, nth, kind, variant) for place, n in seams.items() for nth in range(n) for kind, variant in kinds
    ]
    return st.sampled_from([None] * len(harmful) + harmful)


harm_anywhere = harms(
    transaction=2, commit=2, committed=3, reading=2, acknowledging=3, burying=2, publishing=4, recording=2
)

FULL = {"F": range(99), "G": range(1), "H": range(1, 2)}
"""Turns of a worker, and what is refused of the commands that need memory."""
FULL_FOR_RELAY = {"f": range(99), "g": range(1), "h": range(1, 2)}
turns = st.sampled_from(
    ["", "", "r", "r0", "r1", "r0", "r1", "r01", "0", "1", "01", "0011", "r0r1", *FULL, *FULL_FOR_RELAY]
)
"""Who has a turn after a step: the relay (r), one of the workers, or one of them when memory is short."""


STEPS = 20


class Histories(RuleBasedStateMachine):
    """What can happen, one step at a time."""

    def __init__(self) -> None:
        super().__init__()
        self.world: World | None = None

    @initialize(kind=st.sampled_from([GROUP, FRIEND, INBOX]))
    def begin(self, kind: Kind) -> None:
        self.world = World(kind)

    def teardown(self) -> None:
        if self.world is not None:
            with closing(self.world):
                if sys.exc_info()[1] is None:
                    self.world.heal()

    def step(self, act: Callable[[World], None], then: str, harm: Harm | None = None) -> None:
        """Something happens, and then somebody has a turn.

        Args:
            harm: what goes wrong, in the first of all this in which it can.
        """
        world = self.world
        assert world is not None
        with world.suffering(harm):
            act(world)
        for turn in then:
            with world.suffering(None if world.harmed else harm):
                match turn:
                    case "r":
                        world.relay()
                    case "0" | "1":
                        world.work(int(turn))
                    case _ if turn in FULL:
                        world.work(0, FULL[turn])
                    case _:
                        world.relay(refused=FULL_FOR_RELAY[turn])
        world.check()

    # people

    @rule(user=users, field=st.sampled_from(FIELDS), value=texts, harm=harm_anywhere, then=turns)
    def edit(self, user: int, field: str, value: str, harm: Harm | None, then: str) -> None:
        self.step(lambda world: world.edit(user, **{field: value}), then, harm)

    @rule(
        user=users,
        field=st.sampled_from(FIELDS),
        values=st.lists(texts, min_size=2, max_size=5),
        then=turns,
        harm=harm_anywhere,
    )
    def edit_quickly(self, user: int, field: str, values: list[str], then: str, harm: Harm | None) -> None:
        def act(world: World) -> None:
            for value in values:
                world.edit(user, **{field: value})

        self.step(act, then, harm)

    @rule(user=users, harm=harm_anywhere, then=turns)
    def create_or_delete(self, user: int, harm: Harm | None, then: str) -> None:
        self.step(lambda world: world.delete(user) if user in world.model.users else world.create(user), then, harm)

    @rule(user=users, container=st.sampled_from(CONTAINERS), remark=texts, harm=harm_anywhere, then=turns)
    def join(self, user: int, container: int, remark: str, harm: Harm | None, then: str) -> None:
        self.step(lambda world: world.join(user, container, remark), then, harm)

    # processes

    @rule(
        order=st.sampled_from([in_order, in_order, in_order, backwards, three_times]),
        refused=refusals,
        harm=harm_anywhere,
        then=turns,
    )
    def relay(self, order: Order, refused: range, harm: Harm | None, then: str) -> None:
        self.step(lambda world: world.relay(order, refused), then, harm)

    @rule(number=workers, refused=refusals, harm=harm_anywhere, then=turns)
    def work(self, number: int, refused: range, harm: Harm | None, then: str) -> None:
        self.step(lambda world: world.work(number, refused), then, harm)

    @rule(number=workers, harm=harm_anywhere, then=turns)
    def work_after_the_others_died(self, number: int, harm: Harm | None, then: str) -> None:
        """It finds what they held, once their heartbeats have expired."""

        def act(world: World) -> None:
            world.workers[1 - number].die()
            world.pass_time(4.0)
            world.work(number)

        self.step(act, then, harm)

    @rule()
    def a_second_passes(self) -> None:
        """Without arguments, it is what a failing history is thinned out with, before such steps are left out."""
        self.step(lambda world: world.pass_time(1.0), "")

    # what goes wrong besides

    @rule(
        what=st.sampled_from(["copy", "foreign", "late", "late", "late", *POISON]),
        number=st.integers(0, 5),
        then=turns,
        harm=harm_anywhere,
    )
    def others_append(self, what: str | bytes, number: int, then: str, harm: Harm | None) -> None:
        """A copy of an entry; an accepted edit in somebody else's words, or a later one of who is deleted; poison."""

        def act(world: World) -> None:
            match what:
                case "copy":
                    world.append_again(number)
                case bytes(body):
                    world.append_poison(body)
                case _:
                    world.append_foreign(number, late=what == "late")

        self.step(act, then, harm)

    @rule(user=users, times=st.sampled_from([0, 1, 2, 3, 9]), then=turns, harm=harm_anywhere)
    def handler_fails(self, user: int, times: int, then: str, harm: Harm | None) -> None:
        """On the next events of a user so often; or the newest entry kills whoever applies it."""
        self.step(lambda world: world.fail(user, times) if times else world.make_deadly(), then, harm)

    @rule(rows=st.integers(1, 4), then=turns, harm=harm_anywhere)
    def restore_outbox(self, rows: int, then: str, harm: Harm | None) -> None:
        self.step(lambda world: world.restore_outbox(rows), then, harm)

    @rule(
        what=st.sampled_from(["group", "tail", "tail", "all"]),
        entries=st.integers(1, 4),
        clock=clocks,
        then=turns,
        harm=harm_anywhere,
    )
    def server_forgets(self, what: str, entries: int, clock: int, then: str, harm: Harm | None) -> None:
        def act(world: World) -> None:
            match what:
                case "group":
                    world.delete_group()
                case "tail":
                    world.lose_tail(entries, acknowledgements=clock < 0)
                    world.move_server_clock(clock)
                case "all":
                    world.flush()

        self.step(act, then, harm)

    @rule(offer=st.booleans(), then=turns, harm=harm_anywhere)
    def copy_the_store(self, offer: bool, then: str, harm: Harm | None) -> None:
        self.step(lambda world: world.offer_the_copy() if offer else world.copy_the_store(), then, harm)

    @rule(entries=st.integers(1, 4), days=st.sampled_from([0, 1, 4]), then=turns, harm=harm_anywhere)
    def trim(self, entries: int, days: int, then: str, harm: Harm | None) -> None:
        """After days by the rules; or at once, by nobody's rules."""
        self.step(lambda world: world.trim(entries, days) if days else world.trim_too_far(entries), then, harm)


@contextmanager
def _quiet() -> Iterator[None]:
    """Without logging: nobody reads what thousands of histories have to say."""
    logging.disable(logging.CRITICAL)
    try:
        yield
    finally:
        logging.disable(logging.NOTSET)


def play(histories: int, first: int, *, shrink: bool = True) -> None:
    """Draws so many histories and lives through them.

    Args:
        first: the seed that all of them come from.
        shrink: whether a failing history is made as short as it can be.

    Raises:
        Violation: a promise is broken. Its notes tell the steps of the shortest history that was found.
    """
    with _quiet():
        run_state_machine_as_test(
            seed(first)(Histories),
            settings=settings(
                max_examples=histories,
                stateful_step_count=STEPS,
                database=None,
                deadline=None,
                phases=(Phase.generate, Phase.shrink) if shrink else (Phase.generate,),
                report_multiple_bugs=False,
                suppress_health_check=list(HealthCheck),
            ),
        )
