"""Bad input: the exit code, one line that says what is wrong and what helps, no traceback, and nothing changed.

What leaves the stores untouched runs in this process, which takes a tenth of the time.
"""

from __future__ import annotations

import hashlib
import shlex
import shutil
from collections.abc import Iterator
from pathlib import Path
from typing import Any

import pytest

from imsync.im.user_store import Profile, UserStore
from tests.acceptance.driver import Done, Imsync
from tests.acceptance.inprocess import InProcess
from tests.servers import StartServer

SECRET = "hunter2-secret"
EDIT = "publish user-update"
NOBODY_LISTENS = "redis://127.0.0.1:1"
RIGHT = {"accepted", "unchanged", "rejected", "published", "outbox"}


def check_words(done: Done, code: int, part: str) -> None:
    """An error for people: one line on stderr with a hint in brackets, nothing on stdout."""
    assert (done.code, done.out) == (code, ""), done
    (line,) = done.err.splitlines()
    assert line.startswith("imsync: "), line
    assert line.endswith(")"), f"no hint: {line}"
    assert part in line


def check_json(done: Done, code: int, kind: str, part: str) -> None:
    """An error for programs: exactly one object on stdout, nothing on stderr."""
    assert (done.code, done.err) == (code, ""), done
    answer = done.json()
    assert answer.keys() == {"error"}
    error = answer["error"]
    assert error.keys() == {"kind", "message", "hint"}
    assert error["kind"] == kind, error
    assert all(isinstance(text, str) and text and "\n" not in text for text in error.values()), error
    assert part in error["message"], error


def digests(im: Imsync) -> dict[str, str]:
    """The files of the stores, byte by byte."""
    return {path.name: hashlib.sha256(path.read_bytes()).hexdigest() for path in sorted(im.data.glob("*.db"))}


@pytest.fixture(scope="module")
def shared(tmp_path_factory: pytest.TempPathFactory, template: Path) -> Iterator[Imsync]:
    """Made stores that no test of this file changes."""
    im = InProcess(tmp_path_factory.mktemp("bad"))
    im.secrets.append(SECRET)
    shutil.copytree(template, im.data)
    yield im
    im.close()


@pytest.fixture
def untouched(shared: Imsync) -> Iterator[Imsync]:
    """The shared stores, with a proof that this test has not changed them either."""
    before = digests(shared)
    yield shared
    assert digests(shared) == before


# ── what is said on the command line and in the environment ──────────────────────────────────────────

IN_WORDS = [
    (f"{EDIT} --user 4242 --nick-name x", "no user 4242"),  # told by the store
    (EDIT, "say what to publish"),  # by the command
    (f"{EDIT} --user abc --nick-name x", "--user"),  # by the parser
    ("nonsense", "nonsense"),
]
USAGE = [
    (f"{EDIT} --user 4242 --nick-name x", "no user 4242"),
    (EDIT + " --user {deleted} --nick-name x", "is deleted"),
    (EDIT + " --user {user}", "changes nothing"),
    (EDIT, "say what to publish"),
    (EDIT + " --user {user} --nick-name x --count 3", "say what to publish"),
    (f"{EDIT} --count 3 --nick-name x", "go with --user"),
    (EDIT + " --user {user} --nick-name x --dup 0.5", "go with --count"),
    (f"{EDIT} --count 3 --strict", "--strict goes with --stdin"),
    (f"{EDIT} --user 0 --nick-name x", "bad user_id"),
    (EDIT + " --user {user} --nick-name ''", "bad nick_name"),
    (EDIT + " --user {user} --nick-name " + "ü" * 256, "bad nick_name"),
    (EDIT + " --user {user} --head-image " + "u" * 2049, "bad head_image"),
    ("replay pending --min-idle 5", "bad duration"),
    ("replay pending --id 17-x", "bad entry id"),
    ("replay pending --group nobody", "no service"),
    ("dead list --group nobody", "no service"),
    ("dead list --since 5", "bad duration"),
    ("dead list --user 0", "bad user"),
    ("dead show 17-x", "bad entry id"),
    ("dead purge --yes", "say which"),
    ("replay dead --rate 0", "--rate"),
    ("replay dead --id x", "bad entry id"),
    ("replay from yesterday", "no such place"),
    ("replay from start --to x", "no such place"),
    ("replay from start --user -1", "bad user"),
    ("replay from start --seek --to now", "--seek moves"),
    ("trace 4242", "no user 4242"),
    ("trace 0", "bad user"),
    ("consume group --name 'two words'", "bad consumer name"),
    ("consume group --batch 0", "--batch"),
    ("consume nobody", "nobody"),
    ("init", "has stores already"),
    (f"{EDIT} --stdin --count 3", "say what to publish"),
    (f"{EDIT} --user -1 --nick-name x", "bad user_id"),
    (f"{EDIT} --user {2**63} --nick-name x", "bad user_id"),
    (f"{EDIT} --count 3 --dup 1.5", "--dup"),
    (f"{EDIT} --count 3 --invalid nan", "--invalid"),
    (f"{EDIT} --count 3 --rate inf", "per second"),
    ("replay pending --min-idle -1s", "bad duration"),
    (f"replay pending --id {2**64}-0", "bad entry id"),
    ("replay pending --limit 0", "--limit"),
    (f"dead list --limit {2**64}", "--limit"),
    ("verify --nonsense", "--nonsense"),
    ("verify twice", "twice"),
]


def arguments(im: Imsync, text: str) -> list[str]:
    """The words of a command; `{user}` and `{deleted}` stand for ids of such users."""
    ids = {"user": im.users()[0], "deleted": im.users("deleted = 1")[0]}
    return shlex.split(text.format(**ids))


@pytest.mark.parametrize(("command", "part"), USAGE, ids=[command[:50] for command, _ in USAGE])
def test_wrong_usage(untouched: Imsync, command: str, part: str) -> None:
    check_json(untouched.run(*arguments(untouched, command), "--json"), 2, "usage", part)


@pytest.mark.parametrize(("command", "part"), IN_WORDS)
def test_wrong_usage_in_words(untouched: Imsync, command: str, part: str) -> None:
    check_words(untouched.run(*command.split()), 2, part)


@pytest.mark.parametrize(
    "url", ["localhost:6379", "http://localhost", "redis://h:99999", "redis://h?protocol=3", "redis://h h", "unix://"]
)
def test_a_bad_url_is_refused(untouched: Imsync, url: str) -> None:
    check_json(untouched.run("status", "--json", "--url", url), 2, "config", "flag --url: url ")


@pytest.mark.parametrize("address", ["localhost:6379", "localhost:99999"])
def test_a_password_on_the_command_line_is_refused_and_never_echoed(untouched: Imsync, address: str) -> None:
    check_words(untouched.run("status", "--url", f"rediss://mia:{SECRET}@{address}"), 2, "flag --url")


@pytest.mark.parametrize(
    ("text", "part"),
    [
        ("url = 'unix:///s'\n\n[consumer\nbatch = 1\n", ":3:"),  # a bracket is missing
        ("prefix = 'a'\nprefix = 'b'\n", ":2:"),
        ("# nothing\nbatches = 5\n", ":2: unknown key 'batches'"),
        ("[consumer]\nbatch = 'many'\n", ":2: consumer.batch must be a whole number"),
        ("[consumer]\nbatch = 0\n", ":2: consumer.batch must be a whole number from 1 to 10000"),
        (f"url = 'redis://:{SECRET}@h'\n", ":1: a url with a password is refused"),
    ],
)
def test_a_bad_file_is_named_with_its_line(untouched: Imsync, tmp_path: Path, text: str, part: str) -> None:
    file = tmp_path / "bad.toml"
    file.write_text(text)
    file.chmod(0o644)
    done = untouched.run("status", "--config", file)
    assert (done.code, done.out) == (2, "")
    (line,) = done.err.splitlines()
    assert f"{file}{part}" in line


def test_a_file_that_is_not_there_is_refused(untouched: Imsync) -> None:
    check_words(untouched.run("status", "--config", "no.toml"), 2, "no.toml does not exist")


@pytest.mark.parametrize(
    ("name", "value", "part"),
    [
        ("IMSYNC_NONSENSE", "1", "IMSYNC_NONSENSE: there is no such setting"),
        ("IMSYNC_CONSUMER_BATCH", "many", "IMSYNC_CONSUMER_BATCH: consumer.batch must be a whole number"),
        ("IMSYNC_URL", f"redis:/:{SECRET}@h", "IMSYNC_URL: url "),
        ("IMSYNC_CONFIG", "/no/such.toml", "does not exist"),
    ],
)
def test_a_bad_variable_is_named(untouched: Imsync, name: str, value: str, part: str) -> None:
    setting: dict[str, Any] = {name: value}
    done = untouched.run("status", "--json", **setting)
    assert done.code == 2
    assert done.json()["error"]["kind"] == "config"
    assert part in done.json()["error"]["message"]


def test_init_never_overwrites(untouched: Imsync) -> None:
    check_words(untouched.run("init", "--users", 5, "--seed", 1), 2, "group.db")


def test_the_simulator_edits_only_what_init_made(bare: Imsync) -> None:
    store = UserStore(bare.data / "user.db", create=True)
    store.create_user(Profile(1, "mia", "Mia", "", ""))
    store.close()
    before = digests(bare)
    check_words(bare.run("publish", "user-update", "--count", 5), 2, "not demo data")
    assert digests(bare) == before
    counts = bare.json("publish", "user-update", "--user", 1, "--nick-name", "Mia 2", "--url", NOBODY_LISTENS)
    assert counts["accepted"] == 1  # only the simulator is choosy


# ── lines from standard input ────────────────────────────────────────────────────────────────────────


@pytest.fixture
def lines(im: Imsync) -> tuple[str, dict[int, str], dict[int, str]]:
    """Lines, the parts of what is said about the bad ones by number, and the nicknames that the good ones set."""
    first, second, third = im.users()[:3]
    (deleted,) = im.users("deleted = 1")[:1]
    written = [
        (f'{{"id": {first}, "nickName": "一"}}', ""),
        (f'{{"id": {first}, "nickName": ', "not a JSON object"),
        ("[1, 2]", "not a JSON object"),
        (f'{{"id": {first}, "nick_name": "x"}}', "unknown field 'nick_name'"),
        ('{"nickName": "x"}', "no id"),
        (f'{{"id": {first}, "nickName": null}}', "nickName is null"),
        ('{"id": 4242, "nickName": "x"}', "no user 4242"),
        (f'{{"id": {deleted}, "nickName": "x"}}', "is deleted"),
        (f'{{"id": {first}, "nickName": "{"x" * 256}"}}', "bad nick_name"),
        (f'{{"id": {first}, "nickName": "a\\u0000b"}}', "bad nick_name"),
        (f'{{"id": {first}, "nickName": "\\ud800"}}', "bad nick_name"),
        (f'{{"id": {first}}}', "changes nothing"),
        (f'{{"id": "{first}", "nickName": "x"}}', "bad user_id"),
        ('{"id": true, "nickName": "x"}', "bad user_id"),
        (f'{{"id": {2**63}, "nickName": "x"}}', "bad user_id"),
        ('{"id": 1' + "0" * 5000 + ', "nickName": "x"}', "not a JSON object"),
        ("[" * 60_000, "not a JSON object"),
        (f'{{"id": {first}, "nickName": "{"x" * 70_000}"}}', "longer than 64 KiB"),
        (f'{{"id": {first}, "\x1b]52;c;AAAA\x07": "x"}}', "not a JSON object"),
        ("", ""),
        (f'{{"id": {second}, "nickName": "二", "headImage": ""}}', ""),
        (f'{{"id": {third}, "nickName": "三"}}', ""),  # no line end after the last one
    ]
    bad = {number: part for number, (_, part) in enumerate(written, start=1) if part}
    return "\n".join(line for line, _ in written), bad, {first: "一", second: "二", third: "三"}


def told(done: Done) -> dict[int, str]:
    """What stderr says about which line."""
    rows = [line.removeprefix("imsync: line ").split(": ", 1) for line in done.err.splitlines()]
    return {int(number): message for number, message in rows}


def nicknames(im: Imsync, users: dict[int, str]) -> dict[int, str]:
    found = dict(im.query("user", "SELECT id, nick_name FROM im_user"))
    return {user: found[user] for user in users}


def test_good_lines_are_applied_and_bad_ones_told_by_number(im: Imsync, lines: tuple[Any, ...]) -> None:
    text, bad, good = lines
    done = im.run("publish", "user-update", "--stdin", "--json", stdin=text).expect(2)
    counts = done.json()
    assert counts.keys() >= RIGHT
    assert (counts["accepted"], counts["rejected"], counts["published"]) == (3, len(bad), 3)
    assert {error["line"] for error in counts["errors"]} == told(done).keys() == bad.keys()
    for number, part in bad.items():
        assert part in told(done)[number]
    assert nicknames(im, good) == good


def test_strict_applies_no_line_when_one_is_bad(im: Imsync, lines: tuple[Any, ...]) -> None:
    text, bad, good = lines
    before = nicknames(im, good)
    told_by_the_store = [number for number, part in bad.items() if part in ("no user 4242", "is deleted")]
    told_by_themselves = "\n".join(
        "" if number in told_by_the_store else line for number, line in enumerate(text.split("\n"), start=1)
    )
    done = im.run("publish", "user-update", "--stdin", "--strict", "--json", stdin=told_by_themselves).expect(2)
    assert told(done).keys() == bad.keys() - set(told_by_the_store)
    user = next(iter(good))
    unknown = f'{{"id": {user}, "nickName": "x"}}\n{{"id": 4242, "nickName": "x"}}\n'
    done = im.run("publish", "user-update", "--stdin", "--strict", "--json", stdin=unknown).expect(2)
    assert told(done).keys() == {2}
    assert (done.json()["accepted"], done.json()["rejected"], done.json()["published"]) == (0, 1, 0)
    assert nicknames(im, good) == before
    assert im.query("user", "SELECT count(*) FROM outbox") == [(0,)]

    all_good = "\n".join(line for number, line in enumerate(text.split("\n"), start=1) if number not in bad)
    assert im.json("publish", "user-update", "--stdin", "--strict", stdin=all_good)["accepted"] == 3
    assert nicknames(im, good) == good


def test_no_standard_input_is_no_lines(im: Imsync) -> None:
    assert im.json("publish", "user-update", "--stdin", stdin="")["accepted"] == 0


# ── stores and servers ───────────────────────────────────────────────────────────────────────────────


@pytest.mark.parametrize(
    "command",
    [
        "consume group",
        "relay",
        "status",
        "verify",
        "dead list",
        "replay pending",
        "replay dead",
        "replay from start",
        "dead show 1-1",
        "dead purge --all",
        "trace 7",
        f"{EDIT} --count 3",
    ],
)
def test_without_init_everything_points_to_it_and_makes_nothing(bare: Imsync, command: str) -> None:
    check_json(bare.run(*command.split(), "--json"), 5, "store_unusable", str(bare.data))
    assert not bare.data.exists()


def test_consume_without_init_says_what_to_do(bare: Imsync) -> None:
    done = bare.run("consume", "group")
    check_words(done, 5, "there is no group store")
    assert "run `imsync init` first" in done.err


@pytest.mark.parametrize("command", ["consume group", "relay", "status", "dead list", "replay pending"])
def test_an_unreachable_server(untouched: Imsync, command: str) -> None:
    words = [*command.split(), "--url", NOBODY_LISTENS]
    check_json(untouched.run(*words, "--json"), 4, "redis_unreachable", NOBODY_LISTENS)


def test_init_with_an_unreachable_server_makes_nothing(bare: Imsync) -> None:
    check_words(bare.run("init", "--url", NOBODY_LISTENS), 4, "cannot reach Redis")
    assert not list(bare.data.glob("*.db"))


def test_a_wrong_password_is_refused_and_never_echoed(untouched: Imsync, start_server: StartServer) -> None:
    url = start_server(requirepass=SECRET).url
    check_json(untouched.run("status", "--json", IMSYNC_URL=url), 4, "redis_refused", "")
    untouched.secrets.append("wrong-secret")
    done = untouched.run("status", IMSYNC_URL=url, IMSYNC_PASSWORD="wrong-secret")
    check_words(done, 4, "refuses")
    # where a password may be in the URL, messages show it without
    check_words(untouched.run("status", IMSYNC_URL=f"redis://:{SECRET}@127.0.0.1:1"), 4, "redis://:***@127.0.0.1:1")
    shown = untouched.ok("config", "show", IMSYNC_PASSWORD=SECRET).out
    assert "password" in shown


def damaged(im: Imsync) -> None:
    pages = bytearray((im.data / "group.db").read_bytes())
    pages[:100] = b"this was a database " * 5
    (im.data / "group.db").write_bytes(pages)


def damaged_inside(im: Imsync) -> None:
    pages = bytearray((im.data / "group.db").read_bytes())
    pages[4096:] = b"\xde\xad\xbe\xef" * ((len(pages) - 4096) // 4)
    (im.data / "group.db").write_bytes(pages)


def emptied(im: Imsync) -> None:
    (im.data / "group.db").write_bytes(b"")


def of_another_kind(im: Imsync) -> None:
    shutil.copy(im.data / "friend.db", im.data / "group.db")


def of_a_newer_version(im: Imsync) -> None:
    with im.locked("group") as connection:
        connection.execute("COMMIT")
        connection.execute("PRAGMA user_version = 99")


@pytest.mark.parametrize("how", [damaged, damaged_inside, emptied, of_another_kind, of_a_newer_version])
def test_an_unusable_store(im: Imsync, how: Any) -> None:
    how(im)
    check_json(im.run("verify", "--json"), 5, "store_unusable", str(im.data / "group.db"))
    if how is damaged:
        check_words(im.run("consume", "group", "--until-empty"), 5, str(im.data / "group.db"))


def test_a_locked_store_fails_commands_that_run_once(im: Imsync) -> None:
    im.set(STORE_BUSY_TIMEOUT_MS="50")
    user = im.users()[0]
    with im.locked("user"):
        check_words(im.run("publish", "user-update", "--user", user, "--nick-name", "x"), 5, "locked")
        check_json(im.run("publish", "user-update", "--count", 3, "--json"), 5, "store_unusable", "locked")
        assert im.json("verify")["drift"] == 0  # reading goes on
    im.json("publish", "user-update", "--count", 3)
    with im.client() as client:
        client.xreadgroup("group", "somebody", {im.stream: ">"})
    with im.locked("group"):
        done = im.run("replay", "pending", "--min-idle", "0s").expect(5)
        assert "locked" in done.err
        assert "predicted" in done.out  # the plan comes first
    assert len(im.pending()) == 3  # claimed, and lost by nobody
    assert im.json("replay", "pending", "--min-idle", "0s")["taken_over"] == 3
