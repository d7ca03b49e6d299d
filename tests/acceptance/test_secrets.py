"""No password is ever in an output, an error, a log or among a process's arguments, wherever it comes from and whatever
goes wrong.
"""

from __future__ import annotations

import re
import signal
from pathlib import Path
from urllib.parse import quote

import pytest

from imsync.cli.reference import commands
from tests.acceptance.driver import Imsync, free_port
from tests.acceptance.inprocess import InProcess
from tests.servers import Server, StartServer, eventually

RIGHT, WRONG = "r1ght-p@ss/word#ü", "wr0ng-p@ss/word#ü"


def forms(password: str) -> list[str]:
    """How a password may look when it escapes."""
    whole = {password, quote(password, safe=""), ascii(password)[1:-1], password.encode().hex()}
    return [*whole, password.split("-")[0], quote(password.split("@")[1], safe="")]


@pytest.fixture
def locked(start_server: StartServer) -> Server:
    """A server that wants a password."""
    return start_server(requirepass=RIGHT)


@pytest.fixture
def here(here: InProcess) -> InProcess:
    """That looks for the passwords in whatever is written."""
    here.set(CONSUMER_HEARTBEAT_MS="100", CONSUMER_BLOCK_MS="20")
    here.secrets = [*forms(RIGHT), *forms(WRONG)]
    return here


def give(here: Imsync, server: Server, way: str, password: str) -> None:
    """Makes the password known to the commands, in one of the ways there are."""
    url = server.url
    for name in ("IMSYNC_PASSWORD", "IMSYNC_PASSWORD_FILE", "IMSYNC_CONFIG"):
        here.environ.pop(name, None)
    (here.folder / "imsync.toml").unlink(missing_ok=True)
    if way == "environment":
        here.set(PASSWORD=password)
    elif way == "url":
        url = server.url.replace("unix://", f"unix://default:{quote(password, safe='')}@")
    elif way == "password file":
        file = here.folder / "password"
        file.write_text(password, encoding="utf-8")
        file.chmod(0o600)
        here.set(PASSWORD_FILE=str(file))
    else:
        config = here.folder / "imsync.toml"
        config.write_text(f'password = "{password}"\n', encoding="utf-8")
        config.chmod(0o600)
        here.set(CONFIG=str(config))
    here.set(URL=url)


WAYS = ["environment", "url", "password file", "config file"]


@pytest.mark.parametrize("way", WAYS)
def test_no_command_tells_a_password(here: InProcess, locked: Server, way: str) -> None:
    """The driver looks for it in every output."""
    give(here, locked, way, RIGHT)
    for service in ("group", "friend"):
        here.ok("group", "create", service)
    for more in ({}, {"IMSYNC_DEBUG": "1"}):
        for words in (["publish", "user-update", "--count", "3"], ["consume", "group", "--until-empty"], ["status"],
                      ["doctor"], ["doctor", "--json"], ["config", "show"], ["config", "show", "--json"],
                      ["config", "acl"], ["tail", "-e"], ["server", "status"]):  # fmt: skip
            here.run(*words, **more)
    shown = here.json("config", "show")["settings"]
    assert shown["password"]["value"] == ("" if way == "url" else "***")
    assert ":***@" in shown["url"]["value"] or way != "url"
    here.ok("status")  # it was let in


@pytest.mark.parametrize("way", WAYS)
def test_no_error_tells_a_password(here: InProcess, locked: Server, way: str) -> None:
    give(here, locked, way, WRONG)
    for words in (["status"], ["relay"], ["publish", "user-update", "--count", "2"], ["tail"], ["group", "list"],
                  ["doctor"], ["replay", "pending"]):  # fmt: skip
        for more in ({}, {"IMSYNC_DEBUG": "1"}):
            done = here.run(*words, **more)
            assert done.code in (0, 3, 4), done
            assert "refuses access" in done.out + done.err
            here.run(*words, "--json", **more)


@pytest.mark.parametrize("way", WAYS)
def test_no_server_no_word(here: InProcess, locked: Server, way: str) -> None:
    give(here, locked, way, RIGHT)
    locked.kill()
    for words in (["status"], ["group", "list"], ["doctor"]):
        done = here.run(*words, IMSYNC_DEBUG="1")
        assert "cannot reach Redis" in done.out + done.err
    give(here, locked, "url", RIGHT)
    here.set(URL=f"redis://default:{quote(RIGHT, safe='')}@127.0.0.1:{free_port()}/0")
    assert "cannot reach Redis" in here.run("group", "list").expect(4).err
    here.set(URL=f"redis://default:{RIGHT}@127.0.0.1/0")  # not encoded, so no URL at all
    here.run("group", "list").expect(2)
    here.run("config", "show").expect(2)


def test_no_help_tells_what_is_set(here: InProcess, locked: Server) -> None:
    give(here, locked, "environment", RIGHT)
    for name, _ in commands():
        done = here.ok(*name.split()[1:], "--help")
        assert "password" not in done.out.lower() or name == "imsync config acl", "no command takes one on its line"


def test_a_password_is_refused_among_the_arguments(here: InProcess, locked: Server) -> None:
    url = locked.url.replace("unix://", f"unix://default:{quote(RIGHT, safe='')}@")
    leaves = {name.removeprefix("imsync ") for name, command in commands() if not hasattr(command, "commands")}
    for command in sorted(leaves - {"demo", "config init"}):  # which read no setting
        here.run(*command.split(), "--url", url).expect(2)
    assert "a password is not taken from the command line" in here.run("status", "--url", url).err


def arguments_of(pid: int) -> str:
    return Path(f"/proc/{pid}/cmdline").read_bytes().decode(errors="replace")


@pytest.mark.parametrize("way", WAYS)
def test_ps_shows_no_password(here: InProcess, locked: Server, way: str) -> None:
    give(here, locked, way, RIGHT)
    here.ok("group", "create", "group")
    process = here.start("tail", IMSYNC_DEBUG="1")
    with locked.client(password=RIGHT) as client:
        eventually(lambda: client.info("clients")["blocked_clients"], within=20)
        names = [row["name"] for row in client.client_list()]
    assert set(names) == {""}, "no password in the name of a connection either"
    seen = arguments_of(process.pid)
    assert re.search(r"cli\.py.tail", seen)
    for form in here.secrets:
        assert form not in seen
    assert here.end(process, signal.SIGTERM).code == 0


def test_files_hold_no_password(here: InProcess, locked: Server) -> None:
    """Neither the stores nor what lies beside them."""
    give(here, locked, "environment", RIGHT)
    here.ok("group", "create", "group")
    here.ok("publish", "user-update", "--count", 3)
    here.ok("consume", "group", "--until-empty")
    here.ok("config", "init", "written.toml")
    for path in [each for each in here.folder.rglob("*") if each.is_file()]:
        content = path.read_bytes()
        assert not [form for form in (RIGHT, quote(RIGHT, safe="")) if form.encode() in content], path
