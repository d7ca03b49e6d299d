"""Seeded demo data: users, groups, memberships and friendships shaped like those of a real IM system.

Everything here is pure: the same arguments give the same rows on every platform and Python version. That is
why only `random.Random.random()` is called (the one method whose sequence the standard library promises to
keep, see "Notes on Reproducibility" in the documentation of `random`), and why nothing iterates over a set.
Every table draws from a stream of its own, so the users do not depend on the number of groups.
"""

from __future__ import annotations

import math
import random
from collections.abc import Sequence
from dataclasses import dataclass
from typing import NamedTuple, TypeVar

from imsync.errors import UsageError

T = TypeVar("T")

MAX_NICK_NAME = 255
"""The longest nickname generated, in characters (code points)."""

_EPOCH_MS = 1_735_689_600_000  # 2025-01-01T00:00:00Z
_USER_WORKER, _GROUP_WORKER = 1, 2

_MEMBER_SHARE = 0.8
_SIZE_MEDIAN, _SIZE_SIGMA, _SIZE_MIN, _SIZE_MAX = 9, 1.1, 3, 500
_HUGE_MIN, _HUGE_MAX, _GROUPS_PER_HUGE, _HUGE_FROM_GROUPS = 500, 3_000, 400, 100
_OVERRIDE_SHARE, _QUIT_SHARE, _DELETED_SHARE, _NO_AVATAR_SHARE = 0.15, 0.05, 0.01, 0.08
_FRIEND_OVERRIDE_SHARE, _MAX_FRIENDS = 0.10, 100


class UserRow(NamedTuple):
    """A user's profile as the user store keeps it. The images are URLs; empty strings mean "no avatar"."""

    id: int
    user_name: str
    nick_name: str
    head_image: str
    head_image_thumb: str
    deleted: bool


class GroupRow(NamedTuple):
    """A group. Its owner is one of its members."""

    id: int
    name: str
    owner_id: int


class MemberRow(NamedTuple):
    """A membership. `remark_nick_name` is the member's own override, empty when there is none."""

    user_id: int
    group_id: int
    remark_nick_name: str
    quit: bool


class FriendRow(NamedTuple):
    """One direction of a friendship: `user_id` sees `friend_id`, under `remark_nick_name` if not empty."""

    user_id: int
    friend_id: int
    remark_nick_name: str


@dataclass(frozen=True, slots=True)
class DemoData:
    """The rows of all tables.

    Users and groups rise by id, members come in the order of `groups` (the bot first), friends
    rise by (user_id, friend_id). The first user is the bot.
    """

    users: tuple[UserRow, ...]
    groups: tuple[GroupRow, ...]
    members: tuple[MemberRow, ...]
    friends: tuple[FriendRow, ...]


def generate(*, users: int = 10_000, groups: int = 2_000, seed: int = 7) -> DemoData:
    """Generate demo data.

    With the defaults: about 40,000 memberships, median 4 groups per member, one bot in all groups, about
    2,000 users in none, 15 % overrides, 5 % quit, 1 % deleted (whose memberships and friendships remain).
    Other sizes keep the shape as far as it fits.

    Args:
        users: how many users, the bot included; at least 1.
        groups: how many groups; 0 or more.
        seed: any integer; the same one gives the same rows.

    Raises:
        UsageError: `users` or `groups` is too small.
    """
    if users < 1:
        raise UsageError(f"cannot generate {users} users", "ask for at least 1 user: the first is the bot")
    if groups < 0:
        raise UsageError(f"cannot generate {groups} groups", "ask for 0 groups or more")
    user_rows = _users(_stream(seed, "users"), users)

    draw = _stream(seed, "memberships")
    others = list(range(1, users))
    _shuffle(draw, others)
    candidates = max(1, round(_MEMBER_SHARE * len(others))) if others else 0
    # The bot takes one place in every group, so the rest of a group can be no larger than the candidates.
    seats = [min(size - 1, candidates) for size in _group_sizes(draw, groups)]
    members = others[: min(candidates, sum(seats))]
    group_rows, member_rows = _memberships(draw, user_rows, _assign(draw, members, seats))

    # Half of those in no group have friends all the same: every combination of copies occurs.
    befriended = sorted(others[: len(members) + (len(others) - len(members)) // 2])
    friend_rows = _friends(_stream(seed, "friends"), user_rows, befriended)
    return DemoData(tuple(user_rows), tuple(group_rows), tuple(member_rows), tuple(friend_rows))


def _stream(seed: int, table: str) -> random.Random:
    return random.Random(f"imsync demo data/{seed}/{table}")


def _pick(draw: random.Random, items: Sequence[T]) -> T:
    return items[int(draw.random() * len(items))]


def _shuffle(draw: random.Random, items: list[int]) -> None:
    uniform = draw.random
    for last in range(len(items) - 1, 0, -1):
        other = int(uniform() * (last + 1))
        items[last], items[other] = items[other], items[last]


def _lognormal(draw: random.Random, median: float, sigma: float) -> float:
    radius = math.sqrt(-2.0 * math.log(1.0 - draw.random()))
    return median * math.exp(sigma * radius * math.cos(math.tau * draw.random()))


def _snowflakes(draw: random.Random, count: int, worker: int) -> list[int]:
    """Rising 63-bit ids: milliseconds since 1970 << 22 | worker << 12 | sequence.

    They are above 2**53, so a reader that goes through a double is found out.
    """
    ids = []
    millisecond = _EPOCH_MS
    for _ in range(count):
        millisecond += 1 + int(draw.random() * 2_000)
        ids.append(millisecond << 22 | worker << 12 | int(draw.random() * 4_096))
    return ids


# --- users ------------------------------------------------------------------------------------------------


def _users(draw: random.Random, count: int) -> list[UserRow]:
    rows = []
    for index, user_id in enumerate(_snowflakes(draw, count, _USER_WORKER)):
        user_name = f"{_pick(draw, _GIVEN)}.{_pick(draw, _FAMILY)}.{index}".lower()
        nick_name = _nick_name(draw)
        avatar = f"https://cdn.example.com/avatars/{user_id}/{1 + int(draw.random() * 9)}"
        has_avatar = draw.random() >= _NO_AVATAR_SHARE
        deleted = draw.random() < _DELETED_SHARE
        if index == 0:
            user_name, nick_name, has_avatar, deleted = "imsync.bot", "\U0001f916 imsync bot", True, False
        image, thumb = (f"{avatar}.webp", f"{avatar}_96.webp") if has_avatar else ("", "")
        rows.append(UserRow(user_id, user_name, nick_name, image, thumb, deleted))
    return rows


def _nick_name(draw: random.Random) -> str:
    kind = draw.random()
    if kind < 0.52:
        return f"{_pick(draw, _GIVEN)} {_pick(draw, _FAMILY)}"
    if kind < 0.74:
        return _pick(draw, _CJK_FAMILY) + _pick(draw, _CJK_GIVEN)
    if kind < 0.86:
        return f"{_pick(draw, _GIVEN)} {_pick(draw, _EMOJI)}"
    if kind < 0.89:
        return f"{_pick(draw, _ZWJ_EMOJI)} {_pick(draw, _GIVEN)}"
    if kind < 0.93:
        return _pick(draw, _RTL)
    if kind < 0.96:
        return _pick(draw, _COMBINING)
    if kind < 0.998:
        return _pick(draw, _OTHER_SCRIPTS)
    pattern = _pick(draw, (*_COMBINING, *_RTL, *_ZWJ_EMOJI, *_CJK_GIVEN, *_FAMILY))
    return (f"{pattern}-" * MAX_NICK_NAME)[: MAX_NICK_NAME - 1] + "!"


# --- groups and their members -----------------------------------------------------------------------------


def _group_sizes(draw: random.Random, count: int) -> list[int]:
    """Sizes with the bot included: lognormal and clipped, and a few huge ones.

    The huge sizes are log-uniform, one from each of as many equal strata: drawn freely, five numbers between
    500 and 3,000 alone would move the total of all memberships by thousands from seed to seed.
    """
    sizes = []
    for _ in range(count):
        sizes.append(min(max(round(_lognormal(draw, _SIZE_MEDIAN, _SIZE_SIGMA)), _SIZE_MIN), _SIZE_MAX))
    if count >= _HUGE_FROM_GROUPS:
        huge = max(1, round(count / _GROUPS_PER_HUGE))
        places = list(range(count))
        _shuffle(draw, places)
        for stratum, place in enumerate(places[:huge]):
            share = (stratum + draw.random()) / huge
            sizes[place] = round(_HUGE_MIN * (_HUGE_MAX / _HUGE_MIN) ** share)
    return sizes


def _assign(draw: random.Random, members: Sequence[int], seats: Sequence[int]) -> list[list[int]]:
    """Choose who sits in each group: `seats[g]` distinct members for every group `g`.

    Everybody gets a number of tickets (how many groups they are in), as many as there are seats in all, and
    the shuffled tickets are dealt to the groups. A ticket is void where its holder already sits; the few
    seats left empty by that, in the last groups, go to anybody.
    """
    tickets = _tickets(draw, members, sum(seats))
    _shuffle(draw, tickets)
    seated = []
    for wanted in seats:
        chosen: dict[int, None] = {}  # a set that keeps its order
        while len(chosen) < wanted:
            chosen[tickets.pop() if tickets else _pick(draw, members)] = None
        seated.append(list(chosen))
    return seated


def _tickets(draw: random.Random, members: Sequence[int], total: int) -> list[int]:
    """`total` tickets, at least one per member, the others in proportion to a lognormal popularity.

    One member in a hundred is eight times as popular. With 8,000 members and 38,000 seats the median is 4:
    the spread (sigma) decides how far the median lies below the mean of 4.75, and 0.65 leaves equal room
    to both sides. Proportions are rounded along the running total, so the sum is exact.
    """
    popularity = []
    for _ in members:
        boost = 8 if draw.random() < 0.01 else 1
        popularity.append(1 + int(1_000 * boost * _lognormal(draw, 1.0, 0.65)))
    extra, whole = total - len(members), sum(popularity)
    tickets: list[int] = []
    running = dealt = 0
    for member, weight in zip(members, popularity, strict=True):
        running += weight
        upto = running * extra // whole
        tickets.extend([member] * (1 + upto - dealt))
        dealt = upto
    return tickets


def _memberships(
    draw: random.Random, users: Sequence[UserRow], seated: Sequence[Sequence[int]]
) -> tuple[list[GroupRow], list[MemberRow]]:
    groups, rows = [], []
    bot_id = users[0].id
    ids = _snowflakes(draw, len(seated), _GROUP_WORKER)
    for number, (group_id, seats) in enumerate(zip(ids, seated, strict=True), start=1):
        owner_id = 0
        rows.append(MemberRow(bot_id, group_id, _override(draw, _OVERRIDE_SHARE, _ROLES), False))
        for index in seats:
            user = users[index]
            quits = draw.random() < _QUIT_SHARE
            if not owner_id and not quits and not user.deleted:
                owner_id = user.id
            rows.append(MemberRow(user.id, group_id, _override(draw, _OVERRIDE_SHARE, _ROLES), quits))
        groups.append(GroupRow(group_id, f"{_pick(draw, _TOPICS)} {number}", owner_id or bot_id))
    return groups, rows


def _override(draw: random.Random, share: float, words: Sequence[str]) -> str:
    if draw.random() >= share:
        return ""
    return f"{_pick(draw, words)} {_pick(draw, _GIVEN)}"


# --- friends ----------------------------------------------------------------------------------------------


def _friends(draw: random.Random, users: Sequence[UserRow], befriended: Sequence[int]) -> list[FriendRow]:
    """Friendships among `befriended` (rising indexes into `users`), two rows for each.

    Everybody asks a lognormal number of others (mean 3), so has twice as many friends on average and at
    least one, up to `_MAX_FRIENDS`.
    """
    count = len(befriended)
    if count < 2:
        return []
    friends: list[list[int]] = [[] for _ in range(count)]
    for asker, own in enumerate(friends):
        for _ in range(min(max(1, round(_lognormal(draw, 1.45, 1.2))), count - 1)):
            asked = int(draw.random() * (count - 1))
            asked += asked >= asker
            theirs = friends[asked]
            if len(own) < _MAX_FRIENDS and len(theirs) < _MAX_FRIENDS and asked not in own:
                own.append(asked)
                theirs.append(asker)
    rows = []
    for place, own in enumerate(friends):
        user_id = users[befriended[place]].id
        for other in sorted(own):
            friend_id = users[befriended[other]].id
            rows.append(FriendRow(user_id, friend_id, _override(draw, _FRIEND_OVERRIDE_SHARE, _REMARKS)))
    return rows


# --- words ------------------------------------------------------------------------------------------------

_GIVEN = (
    *("Mia", "Noah", "Emma", "Liam", "Olivia", "Lucas", "Sofia", "Mateo", "Hanna", "Jonas", "Chloe", "Hugo"),
    *("Aisha", "Omar", "Priya", "Arjun", "Mei", "Kenji", "Yuki", "Minh", "Linh", "Thabo", "Zola", "Kwame"),
    *("Ingrid", "Lars", "Elena", "Ivan", "Marta", "Pavel", "Giulia", "Marco", "Ana", "Diego", "Eve", "Max"),
)
_FAMILY = (
    *("Smith", "Garcia", "Tanaka", "Nguyen", "Kim", "Okafor", "Silva", "Rossi", "Novak", "Jensen", "Ivanova"),
    *("Patel", "Khan", "Haddad", "Cohen", "Dubois", "Schmidt", "Kowalski", "Papadopoulos", "Lindqvist", "Li"),
    *("Mbeki", "Moreau", "Costa", "Andersson", "Yilmaz", "Santos", "Ito", "Park", "Chen", "Wolf", "Meyer"),
)
_CJK_FAMILY = (
    *("王", "李", "张", "刘", "陈", "杨", "赵", "黄", "周", "吴", "欧阳", "司马"),
    *("佐藤", "鈴木", "高橋", "김", "이", "박", "𠮷田"),  # the last begins beyond the basic plane
)
_CJK_GIVEN = (
    *("伟", "芳", "娜", "秀英", "敏", "静", "丽", "强", "磊", "军", "晓明", "子涵", "浩然", "梓萱"),
    *("さくら", "ひなた", "大翔", "ケンジ", "민준", "서연", "지훈"),
)
_EMOJI = ("🌸", "🐱", "🚀", "☕", "🎧", "🍉", "⚽", "🌙", "🔥", "✨", "🐼", "👍🏽", "❤️", "🇯🇵", "🇧🇷")
_ZWJ_EMOJI = (
    "\U0001f468\u200d\U0001f469\u200d\U0001f467\u200d\U0001f466",  # family of four
    "\U0001f469\U0001f3fd\u200d\U0001f4bb",  # woman technologist, medium skin tone
    "\U0001f3f3\ufe0f\u200d\U0001f308",  # rainbow flag
    "\U0001f9d1\u200d\U0001f680",  # astronaut
    "\U0001f408\u200d\u2b1b",  # black cat
)
_RTL = ("محمد", "فاطمة الزهراء", "عمر خالد", "نور", "یاسمین", "דוד כהן", "נועה", "שירה לוי")
_COMBINING = (
    "Jose\u0301 Nun\u0303ez",  # decomposed on purpose: equal to the eye, not to `==`
    "Zoe\u0308",
    "A\u030ake Stro\u0308m",
    "Nguye\u0302\u0303n Thi\u0323",
    "Z\u0335a\u0336l\u0337g\u0338o\u0321\u0322",
    "प्रिया शर्मा",
    "สมชาย ใจดี",
    "தமிழ்ச்செல்வி",
)
_OTHER_SCRIPTS = ("Дмитрий", "Ольга Петрова", "Ελένη", "Γιώργος", "გიორგი", "Արմեն", "Þóra Ægis", "Łukasz")
_ROLES = ("Backend", "Design", "On call", "二组", "产品", "Coach", "Board", "Nights", "班长", "🎸", "Row 7")
_REMARKS = ("Mum of", "老同学", "Neighbour", "Plumber", "Uncle", "Gym", "同事", "Landlord", "❤", "Flat 4")
_TOPICS = (
    *("Team Aurora", "Book club", "Sunday football", "家庭群", "产品讨论", "同学会", "Flat 4b"),
    *("Release", "Chess", "Ремонт", "旅行の計画", "가족", "عائلة", "Parents of 3c", "🎉 Party", "Choir"),
)
