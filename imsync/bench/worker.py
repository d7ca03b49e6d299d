"""A process that does what it is told on standard input: `python -m imsync.bench.worker imsync|by_hand`.

The first line is where, each further one a job, all of them JSON objects. For each job it prints one line, when it is
done; a job that follows prints `{"ready": true}` besides, before. When standard input ends, so does the process, in the
middle of a job too: whoever started it is gone.
"""

from __future__ import annotations

import json
import os
import queue
import sys
import threading
from pathlib import Path
from typing import Any

from imsync.bench.place import Place


def main() -> None:
    """Works until standard input ends."""
    jobs: queue.SimpleQueue[str] = queue.SimpleQueue()
    place = Place(**_with_paths(json.loads(sys.stdin.readline())))
    threading.Thread(target=_read, args=(jobs,), daemon=True).start()
    worker: Any
    if sys.argv[1] == "imsync":
        from imsync.bench.library import Library

        worker = Library(place)
    else:
        from imsync.bench.by_hand import ByHand

        worker = ByHand(place)
    while True:
        job = json.loads(jobs.get())
        name = job.pop("job")
        if name == "follow":
            job["ready"] = lambda: _tell({"ready": True})
        try:
            _tell({"done": getattr(worker, name)(**job)})
        except Exception as error:
            _tell({"failed": f"{type(error).__name__}: {getattr(error, 'message', error)}"})


def _with_paths(values: dict[str, Any]) -> dict[str, Any]:
    return {**values, "template": Path(values["template"]), "round_": Path(values["round_"])}


def _read(jobs: queue.SimpleQueue[str]) -> None:
    for line in sys.stdin:
        jobs.put(line)
    os._exit(0)


def _tell(message: object) -> None:
    sys.stdout.write(json.dumps(message) + "\n")
    sys.stdout.flush()


if __name__ == "__main__":
    main()
