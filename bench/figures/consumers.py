"""Those who do the job by hand or with other libraries, into a dict or into the expert's tables."""

from __future__ import annotations

from collections.abc import Callable

from bench.job import Job, expert_store, verify
from bench.processes import Ran, loop, peers, run
from bench.run import Bench

EXPERT, NAIVE = "expert loop", "naive loop"
SHARE = 10
"""Who takes one message at a time takes a tenth of the job: the rate does not depend on it."""
FASTSTREAM_KEY = "bench:{user-update}:faststream"


def others(bench: Bench, events: int, *, into_dict: bool) -> dict[str, Callable[[], Ran]]:
    """Their sides, the expert's first. Each verifies its end state."""
    job, small = bench.job(events), bench.job(events // SHARE)
    sides = {
        EXPERT: _side(bench, job, EXPERT, "expert", ["expert", "consume"], into_dict=into_dict),
        NAIVE: _side(bench, small, NAIVE, "naive", ["naive", "consume"], into_dict=into_dict),
    }
    if peers():
        for each in (job, small):
            if not each.client.exists(FASTSTREAM_KEY):
                run(loop("faststream_loop", "copy", each.url, python=str(peers())))
        sides |= {
            "walrus": _side(bench, job, "walrus", "walrus", ["walrus_loop", "consume"], into_dict=into_dict),
            "FastStream, in batches": _side(
                bench, job, "FastStream", "faststream", ["faststream_loop", "batch"], into_dict=into_dict
            ),
            "FastStream": _side(
                bench, small, "FastStream", "faststream", ["faststream_loop", "consume"], into_dict=into_dict
            ),
        }
    else:
        bench.say("  without walrus and FastStream: `make bench` installs them")
    return sides


def _side(bench: Bench, job: Job, who: str, group: str, words: list[str], *, into_dict: bool) -> Callable[[], Ran]:
    is_faststream = group == "faststream"
    python = {} if group in ("expert", "naive") else {"python": str(peers())}

    def one_round() -> Ran:
        workspace = job.begin(group, bench.folder / "round")
        if is_faststream:
            job.client.execute_command("XGROUP", "DESTROY", FASTSTREAM_KEY, group)
            job.client.execute_command("XGROUP", "CREATE", FASTSTREAM_KEY, group, "0")
        path = "dict" if into_dict else str(expert_store(workspace))
        ran = run(loop(*words, job.url, path, *([job.events] if is_faststream else []), **python))
        if into_dict:
            verify_dict(who, job, ran)
        else:
            verify(who, workspace, workspace.data_dir / "expert.db")
        return ran

    return one_round


def verify_dict(who: str, job: Job, ran: Ran) -> None:
    """Compares the copies in a dict with the user store.

    Raises:
        SystemExit: they differ.
    """
    if ran.result["digest"] != job.digest() or ran.result["events"] != job.events:
        raise SystemExit(f"{who} read {ran.result['events']:,} of {job.events:,} events, or left wrong copies")
