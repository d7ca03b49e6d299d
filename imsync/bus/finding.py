"""What a check of `imsync doctor` says."""

from __future__ import annotations

from dataclasses import dataclass
from enum import StrEnum


class Verdict(StrEnum):
    """How a check ended. What could not be looked at is `UNKNOWN`, never `OK`."""

    OK = "ok"
    WARN = "warn"
    BAD = "bad"
    UNKNOWN = "unknown"


@dataclass(frozen=True, slots=True)
class Finding:
    """One check.

    Args:
        check: its name, stable for programs.
        evidence: what was seen. May hold names from the server: not safe for a terminal as it is.
        remedy: what to do, or how to find out; empty when all is well.
    """

    check: str
    verdict: Verdict
    evidence: str
    remedy: str = ""


def ok(check: str, evidence: str) -> Finding:
    """All is well."""
    return Finding(check, Verdict.OK, evidence)


def warn(check: str, evidence: str, remedy: str) -> Finding:
    """It works, and may stop working."""
    return Finding(check, Verdict.WARN, evidence, remedy)


def bad(check: str, evidence: str, remedy: str) -> Finding:
    """It does not work, or a promise does not hold."""
    return Finding(check, Verdict.BAD, evidence, remedy)


def unknown(check: str, evidence: str, remedy: str) -> Finding:
    """It could not be looked at."""
    return Finding(check, Verdict.UNKNOWN, evidence, remedy)
