"""Quick real processes. A fork server that has imported everything starts a worker in about 10 ms.

    with Nursery(folder) as nursery:
        worker = nursery.start(ConsumerJob(…, steps=[At("before_commit")]))
        worker.reach("before_commit")  # it is held there, and has reported it
        worker.kill()                  # or: go_on, freeze, thaw, terminate, interrupt

Workers die with the nursery, and with the process that made it, stopped ones too.
"""

from __future__ import annotations

import ctypes
import logging
import multiprocessing
import os
import signal
import subprocess
import sys
import threading
import time
import traceback
from collections import Counter
from collections.abc import Callable, Sequence
from contextlib import ExitStack, suppress
from multiprocessing.connection import Connection
from multiprocessing.context import ForkServerContext
from pathlib import Path
from typing import Any

from tests.faults.steps import Deed, Failpoints
from tests.servers import eventually

CHECKOUT = Path(__file__).parents[2]

_PR_SET_PDEATHSIG = 1


class WorkerFailed(AssertionError):
    """A worker ended, or did not do, what it should not, or should, have."""


class _Context:
    """What a job is given in its process. See `workers.Context`."""

    def __init__(self, pipe: Connection, plan: Sequence[Any]) -> None:
        self._pipe = pipe
        self._sending = threading.Lock()
        self.failpoints = Failpoints(plan, self._report, self._wait)

    def tell(self, *message: object) -> None:
        with self._sending:
            self._pipe.send(message)

    def ready(self) -> None:
        self.tell("ready")

    def stopped_by(self, stop: Callable[[], None]) -> None:
        stop()
        self.tell("stopping")

    def _report(self, step: str, deed: Deed) -> None:
        self.tell("step", step, deed)

    def _wait(self) -> None:
        if self._pipe.recv() == "for good":
            self.failpoints.forget()


def _main(job: Any, pipe: Connection, log_path: Path, mutants: Sequence[str]) -> None:
    """The life of a worker."""
    _die_with_the_fork_server()
    log_file = os.open(log_path, os.O_CREAT | os.O_WRONLY | os.O_APPEND, 0o600)
    os.dup2(log_file, 1)
    os.dup2(log_file, 2)
    logging.basicConfig(stream=sys.stderr, level=logging.WARNING, format="%(name)s %(levelname)s %(message)s")
    context = _Context(pipe, job.steps)
    try:
        with ExitStack() as planted:
            if mutants:
                from tests.faults.mutants import MUTANTS

                for name in mutants:
                    planted.enter_context(MUTANTS[name].planted())
            planted.enter_context(context.failpoints.watching_transactions())
            result = job.run(context)
    except BaseException as error:
        traceback.print_exc()
        context.tell("failed", type(error).__name__, str(error))
        raise SystemExit(1) from None
    context.tell("end", result)


def _die_with_the_fork_server() -> None:
    if sys.platform == "linux":
        ctypes.CDLL(None).prctl(_PR_SET_PDEATHSIG, signal.SIGKILL)


class Worker:
    """A process of a nursery, seen from the test.

    Args:
        label: what failures call it.
        job: what it does.
    """

    def __init__(self, process: Any, pipe: Connection, log_path: Path, label: str, job: Any) -> None:
        self.job = job
        self._process = process
        self._pipe = pipe
        self.log_path = log_path
        self.label = label
        self.pid: int = process.pid
        self.steps: Counter[str] = Counter()
        """How often each step was reached."""
        self.ready = False
        """Whether it hears signals. One that comes earlier ends it at once."""
        self.stopping = False
        """Whether a signal has told it to stop."""
        self.result: Any = None
        self.error: tuple[str, str] | None = None
        """The exception that ended it: its class's name, and its text."""
        self.killed = False

    def __repr__(self) -> str:
        return f"<{self.label} {self.pid}>"

    @property
    def alive(self) -> bool:
        """Whether it has not ended. A frozen one is alive."""
        return bool(self._process.is_alive())

    @property
    def exit_code(self) -> int | None:
        """What it exited with; negative for the signal that killed it; None while it lives."""
        code: int | None = self._process.exitcode
        return code

    @property
    def log(self) -> str:
        """What it has said so far."""
        return self.log_path.read_text(errors="replace") if self.log_path.exists() else ""

    def reach(self, step: str, within: float = 10.0) -> Worker:
        """Waits until it has reported a step; frozen steps until it is really stopped."""
        before = self.steps[step]
        deadline = time.monotonic() + within
        while self.steps[step] == before:
            deed = self._hear(deadline, f"reach {step}")
            if self.steps[step] > before and deed == "freeze":
                eventually(lambda: self._state() == "T" or not self.alive)
        return self

    def go_on(self, *, for_good: bool = False) -> None:
        """Lets it go on from the step at which it is held.

        Args:
            for_good: and past all others that are to come.
        """
        with suppress(BrokenPipeError):  # it is dead
            self._pipe.send("for good" if for_good else "go on")

    def freeze(self) -> None:
        """SIGSTOP, and waits until it is stopped."""
        self._signal(signal.SIGSTOP)
        eventually(lambda: self._state() == "T" or not self.alive)

    def thaw(self) -> None:
        """SIGCONT."""
        self._signal(signal.SIGCONT)

    def kill(self) -> None:
        """kill -9, and waits until it is gone."""
        self.killed = True
        self._signal(signal.SIGKILL)
        self._process.join(10)

    def terminate(self) -> None:
        """SIGTERM, once it hears signals."""
        self._wait_ready()
        self._signal(signal.SIGTERM)

    def interrupt(self) -> None:
        """SIGINT, once it hears signals."""
        self._wait_ready()
        self._signal(signal.SIGINT)

    def wait_stopping(self, within: float = 10.0) -> None:
        """Waits until a signal has told it to stop, and it has heard it."""
        deadline = time.monotonic() + within
        while not self.stopping:
            self._hear(deadline, "hear the signal")

    def wait(self, within: float = 20.0) -> int:
        """Waits until it has ended; its exit code."""
        deadline = time.monotonic() + within
        while self._pump(deadline) is not None:
            if time.monotonic() > deadline:
                raise WorkerFailed(f"{self} has not ended within {within:g} s; {self._words()}")
        self._process.join(max(0.1, deadline - time.monotonic()))
        code = self.exit_code
        if code is None:
            raise WorkerFailed(f"{self} has not ended within {within:g} s; {self._words()}")
        return code

    def finish(self, within: float = 20.0) -> Any:
        """Waits until it has ended by itself, which must be well; its result."""
        if code := self.wait(within):
            raise WorkerFailed(f"{self} exited with {code}; {self._words()}")
        return self.result

    def cpu_seconds(self) -> float:
        """The processor time that it has used so far. It must be alive."""
        if not self.alive:
            raise WorkerFailed(f"{self} has ended with {self.exit_code}; {self._words()}")
        if sys.platform == "linux":
            fields = Path(f"/proc/{self.pid}/stat").read_text().rpartition(")")[2].split()
            return (int(fields[11]) + int(fields[12])) / os.sysconf("SC_CLK_TCK")
        out = subprocess.run(["ps", "-o", "time=", "-p", str(self.pid)], capture_output=True, text=True, check=True)
        minutes, _, seconds = out.stdout.strip().rpartition(":")
        return int(minutes or 0) * 60 + float(seconds)

    def close(self) -> None:
        """Ends it whatever its state."""
        if self.alive:
            self._signal(signal.SIGKILL)
        self._process.join(10)
        assert not self.alive, f"{self} survives SIGKILL"
        self._process.close()
        self._pipe.close()

    def _wait_ready(self) -> None:
        deadline = time.monotonic() + 10
        while not self.ready and self._pump(deadline) is not None:
            assert time.monotonic() < deadline, f"{self} does not begin"

    def _signal(self, number: int) -> None:
        if self.alive:
            os.kill(self.pid, number)

    def _state(self) -> str:
        """One letter: T is stopped."""
        if sys.platform == "linux":
            try:
                return Path(f"/proc/{self.pid}/stat").read_text().rpartition(")")[2].split()[0]
            except (FileNotFoundError, ProcessLookupError):
                return ""
        out = subprocess.run(["ps", "-o", "state=", "-p", str(self.pid)], capture_output=True, text=True)
        return out.stdout.strip()[:1]

    def _hear(self, deadline: float, what: str) -> str:
        """Waits for the next message; what is done at the step that it tells of."""
        deed = self._pump(deadline)
        if deed is None:
            self._process.join(1)
            raise WorkerFailed(f"{self} ended with {self.exit_code} and did not {what}; {self._words()}")
        if time.monotonic() > deadline:
            raise WorkerFailed(f"{self} does not {what}; {self._words()}")
        return deed

    def _pump(self, deadline: float) -> str | None:
        """Takes in one message, if one comes in time. None when there will be none."""
        try:
            if not self._pipe.poll(max(0.0, min(deadline - time.monotonic(), 1.0))):
                return ""
            message = self._pipe.recv()
        except (EOFError, ConnectionResetError):
            return None
        match message:
            case ("step", step, deed):
                self.steps[step] += 1
                return str(deed)
            case ("ready",):
                self.ready = True
            case ("stopping",):
                self.stopping = True
            case ("end", result):
                self.result = result
            case ("failed", kind, text):
                self.error = (kind, text)
        return ""

    def _words(self) -> str:
        log = self.log.splitlines()[-12:]
        return f"steps {dict(self.steps)}, log:\n" + "\n".join(log)


class Nursery:
    """Starts workers, and ends them.

    Args:
        folder: where their logs go.
    """

    def __init__(self, folder: Path) -> None:
        self._folder = folder
        self._context = _fork_server()
        self.workers: list[Worker] = []

    def __enter__(self) -> Nursery:
        return self

    def __exit__(self, *exception: object) -> None:
        self.close()

    def start(self, job: Any, *, mutants: Sequence[str] = ()) -> Worker:
        """Starts a worker for a job.

        Args:
            mutants: the planted bugs that it has. See `mutants`.
        """
        label = type(job).__name__.removesuffix("Job").lower()
        log_path = self._folder / f"{len(self.workers):03d}-{label}.log"
        mine, its = self._context.Pipe()
        process = self._context.Process(target=_main, args=(job, its, log_path, tuple(mutants)), daemon=True)
        process.start()
        its.close()
        worker = Worker(process, mine, log_path, label, job)
        self.workers.append(worker)
        return worker

    def close(self) -> None:
        """Ends all workers, whatever their state."""
        for worker in self.workers:
            worker.close()
        self.workers.clear()


def _fork_server() -> ForkServerContext:
    """The fork server of this process. It ends with it."""
    context = multiprocessing.get_context("forkserver")
    context.set_forkserver_preload(["tests.faults.workers", "tests.faults.nursery"])
    before = os.environ.get("PYTHONPATH")
    os.environ["PYTHONPATH"] = str(CHECKOUT)  # it imports what is to be preloaded before it hears of sys.path
    try:
        from multiprocessing.forkserver import ensure_running

        ensure_running()
    finally:
        if before is None:
            del os.environ["PYTHONPATH"]
        else:
            os.environ["PYTHONPATH"] = before
    return context
