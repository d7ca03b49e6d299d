"""The demo data has the shape that it promises, at every size, and is the same for the same seed."""

from __future__ import annotations

import hashlib
import json
import unicodedata
from collections import Counter, defaultdict
from dataclasses import astuple
from statistics import median

import pytest

from imsync.errors import UsageError
from imsync.im.demo_data import MAX_NICK_NAME, DemoData, generate

SEEDS = (7, 20_260_101)


@pytest.fixture(scope="module", params=SEEDS, ids=lambda seed: f"seed{seed}")
def data(request: pytest.FixtureRequest) -> DemoData:
    return generate(seed=request.param)


def share(flags: list[bool]) -> float:
    return sum(flags) / len(flags)


def digest(data: DemoData) -> str:
    return hashlib.sha256(json.dumps(astuple(data)).encode()).hexdigest()


def memberships_per_user(data: DemoData) -> Counter[int]:
    return Counter(row.user_id for row in data.members)


def assert_consistent(data: DemoData) -> None:
    """What must hold at every size: keys are unique, references resolve, owners can act."""
    for ids in ([user.id for user in data.users], [group.id for group in data.groups]):
        assert ids == sorted(set(ids))
        assert all(2**62 < number < 2**63 for number in ids)
    users = {user.id: user for user in data.users}
    groups = {group.id for group in data.groups}
    assert not users.keys() & groups
    assert len({user.user_name for user in data.users}) == len(data.users)

    assert len({(row.user_id, row.group_id) for row in data.members}) == len(data.members)
    members = {(row.user_id, row.group_id): row for row in data.members}
    assert {row.group_id for row in data.members} == groups
    assert {row.user_id for row in data.members} <= users.keys()
    for group in data.groups:
        assert not members[group.owner_id, group.id].quit
        assert not users[group.owner_id].deleted

    pairs = {(row.user_id, row.friend_id) for row in data.friends}
    assert len(pairs) == len(data.friends)
    assert all(one != other and (other, one) in pairs for one, other in pairs)
    assert {row.user_id for row in data.friends} <= users.keys()


# --- the promised distributions ---------------------------------------------------------------------------


def test_rows_are_consistent(data: DemoData) -> None:
    assert_consistent(data)


def test_counts(data: DemoData) -> None:
    assert len(data.users) == 10_000
    assert len(data.groups) == 2_000
    assert 35_000 <= len(data.members) <= 45_000


def test_group_sizes_are_lognormal_with_a_few_huge_ones(data: DemoData) -> None:
    sizes = sorted(Counter(row.group_id for row in data.members).values())
    usual, huge = [n for n in sizes if n < 500], [n for n in sizes if n >= 500]
    assert 4 <= len(huge) <= 8
    assert 1_500 < huge[-1] <= 3_000
    assert usual[0] == 3
    assert 8 <= median(usual) <= 10
    # one sigma of ln(size) around ln 9 is 3.0 to 27.0, two sigma end at 81.2
    assert 24 <= usual[len(usual) * 841 // 1_000] <= 30
    assert 65 <= usual[len(usual) * 977 // 1_000] <= 100
    assert 0.13 <= share([n == 3 for n in usual]) <= 0.23


def test_members_are_in_four_groups_and_some_in_many(data: DemoData) -> None:
    per_user = memberships_per_user(data)
    assert per_user.pop(data.users[0].id) == 2_000
    assert median(per_user.values()) == 4
    assert 7_900 <= len(per_user) <= 8_100
    top_percent = sorted(per_user.values())[-len(per_user) // 100 :]
    assert sum(top_percent) > 0.05 * sum(per_user.values())
    assert 50 <= top_percent[-1] <= 400


def test_the_bot_is_the_first_user_and_in_all_groups(data: DemoData) -> None:
    bot = data.users[0]
    assert (bot.user_name, bot.deleted) == ("imsync.bot", False)
    assert "bot" in bot.nick_name
    assert bot.head_image
    rows = [row for row in data.members if row.user_id == bot.id]
    assert {row.group_id for row in rows} == {group.id for group in data.groups}
    assert not any(row.quit for row in rows)


def test_about_two_thousand_users_are_in_no_group(data: DemoData) -> None:
    assert 1_900 <= len(data.users) - len(memberships_per_user(data)) <= 2_100


def test_overrides_and_quits(data: DemoData) -> None:
    assert share([row.remark_nick_name != "" for row in data.members]) == pytest.approx(0.15, abs=0.01)
    assert share([row.quit for row in data.members]) == pytest.approx(0.05, abs=0.01)
    assert share([row.remark_nick_name != "" for row in data.friends]) == pytest.approx(0.10, abs=0.01)


def test_deleted_users_keep_their_memberships(data: DemoData) -> None:
    deleted = {user.id for user in data.users if user.deleted}
    assert 70 <= len(deleted) <= 130
    still_members = deleted & memberships_per_user(data).keys()
    assert len(still_members) > 0.6 * len(deleted)


def test_friendships(data: DemoData) -> None:
    per_user = Counter(row.user_id for row in data.friends)
    assert 5.5 <= sum(per_user.values()) / len(per_user) <= 6.5
    assert max(per_user.values()) == 100  # the cap, which the most sociable of both seeds reach
    members = memberships_per_user(data).keys() - {data.users[0].id}
    assert members <= per_user.keys()
    assert data.users[0].id not in per_user


def test_there_are_users_without_any_copy_and_users_with_friends_only(data: DemoData) -> None:
    befriended = {row.user_id for row in data.friends}
    ungrouped = {user.id for user in data.users} - memberships_per_user(data).keys()
    assert len(ungrouped & befriended) > 500
    assert len(ungrouped - befriended) > 500


def test_nicknames_are_of_many_scripts(data: DemoData) -> None:
    kinds: defaultdict[str, int] = defaultdict(int)
    for name in (user.nick_name for user in data.users):
        kinds["cjk"] += any(unicodedata.name(c, "").startswith(("CJK", "HANGUL", "HIRAGANA")) for c in name)
        kinds["emoji"] += any(unicodedata.category(c) == "So" for c in name)
        kinds["zwj"] += "\u200d" in name
        kinds["rtl"] += any(unicodedata.bidirectional(c) in ("R", "AL") for c in name)
        kinds["combining"] += any(unicodedata.combining(c) for c in name)
        kinds["decomposed"] += unicodedata.normalize("NFC", name) != name
        kinds["beyond_bmp"] += any(ord(c) > 0xFFFF for c in name)
        kinds["longest"] += len(name) == MAX_NICK_NAME == 255
    assert kinds["cjk"] > 1_500
    assert kinds["emoji"] > 1_000
    assert kinds["beyond_bmp"] > 1_000
    assert kinds["zwj"] > 150
    assert kinds["rtl"] > 200
    assert kinds["combining"] > 150
    assert kinds["decomposed"] > 80
    assert 3 <= kinds["longest"] <= 60


def test_all_text_can_be_stored_and_shown(data: DemoData) -> None:
    texts = {text for rows in astuple(data) for row in rows for text in row if isinstance(text, str)}
    for text in texts:
        assert text.encode().decode() == text
        assert not any(unicodedata.category(c) in ("Cc", "Cs") for c in text)
    assert all(1 <= len(user.nick_name) <= 255 for user in data.users)
    assert all(group.name for group in data.groups)


def test_avatars_are_urls_or_both_empty(data: DemoData) -> None:
    with_avatar = [user for user in data.users if user.head_image]
    assert 0.03 <= 1 - len(with_avatar) / len(data.users) <= 0.15
    assert all(not user.head_image_thumb for user in data.users if not user.head_image)
    for user in with_avatar:
        stem = user.head_image.removesuffix(".webp")
        number = stem.removeprefix(f"https://cdn.example.com/avatars/{user.id}/")
        assert number.isdecimal()
        assert user.head_image_thumb == f"{stem}_96.webp"


# --- the same seed, the same rows -------------------------------------------------------------------------


def test_the_random_stream_is_what_it_was() -> None:
    """Demo data and everything measured on it stay comparable between versions of imsync and of Python."""
    assert (
        digest(generate(users=200, groups=120, seed=7))
        == "5d039e4fff1cb7e03367049327490dae4d855dad6718a6ac13639a964fd2702c"
    )


def test_same_seed_same_data() -> None:
    assert generate(users=300, groups=60, seed=5) == generate(users=300, groups=60, seed=5)


def test_other_seeds_give_other_data() -> None:
    seeds = (-5, 0, 5, 2**70)
    assert len({digest(generate(users=300, groups=60, seed=seed)) for seed in seeds}) == len(seeds)


def test_users_do_not_depend_on_the_number_of_groups() -> None:
    assert generate(users=50, groups=0).users == generate(users=50, groups=20).users


# --- other sizes ------------------------------------------------------------------------------------------


@pytest.mark.parametrize("groups", range(4))
@pytest.mark.parametrize("users", range(1, 11))
def test_small_sizes(users: int, groups: int) -> None:
    data = generate(users=users, groups=groups)
    assert (len(data.users), len(data.groups)) == (users, groups)
    assert_consistent(data)
    if groups and users > 1:
        assert len(memberships_per_user(data)) > 1


@pytest.mark.parametrize(
    ("users", "groups"),
    [(10_000, 3), (3_000, 100), (10, 2_000), (200, 3_000)],
    ids=["few groups", "huge group", "everybody in every group", "crowded"],
)
def test_lopsided_sizes(users: int, groups: int) -> None:
    data = generate(users=users, groups=groups)
    assert (len(data.users), len(data.groups)) == (users, groups)
    assert_consistent(data)


def test_a_lone_bot_owns_its_groups() -> None:
    data = generate(users=1, groups=2)
    assert {group.owner_id for group in data.groups} == {data.users[0].id}
    assert len(data.members) == 2
    assert data.friends == ()


def test_the_shape_scales() -> None:
    data = generate(users=20_000, groups=4_000, seed=3)
    per_user = memberships_per_user(data)
    assert median(per_user.values()) == 4
    assert len(data.members) == pytest.approx(80_000, rel=0.08)


@pytest.mark.parametrize(("users", "groups"), [(0, 5), (-1, 0), (5, -1)])
def test_impossible_sizes_are_refused(users: int, groups: int) -> None:
    with pytest.raises(UsageError, match="cannot generate"):
        generate(users=users, groups=groups)
