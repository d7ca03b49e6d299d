"""A random sample of the users: for a look at a store that is too large to be compared whole every time."""

from __future__ import annotations

import random
from collections.abc import Iterator

from imsync.im.user_store import UserStore
from imsync.im.verify import FIRST_KEY

PAGE = 10_000


def sample_ids(users: UserStore, size: int, rng: random.Random) -> Iterator[int]:
    """The ids of so many users, or of all if there are fewer, each as likely as any other, in rising order. Reads all
    ids, a page at a time.
    """
    total = users.count_users()
    wanted = sorted(rng.sample(range(total), min(size, total)))
    seen, after = 0, FIRST_KEY
    positions = iter(wanted)
    position = next(positions, None)
    while position is not None and (page := users.ids(after, PAGE)):
        while position is not None and position < seen + len(page):
            yield page[position - seen]
            position = next(positions, None)
        seen, after = seen + len(page), page[-1]
