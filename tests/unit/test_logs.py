"""Lines on stderr: for people, or one JSON object each."""

from __future__ import annotations

import json
import logging
import warnings
from collections.abc import Iterator
from datetime import UTC, datetime
from typing import Any

import pytest

from imsync.bus.logfields import Fields
from imsync.cli.logs import configure, early_format, tell
from imsync.cli.render import Output

HOSTILE = "\x1b[2J\x1b]52;c;QUFB\x07 \x9b31m \u202e\u2066 \r\nimsync: fine\u2028[bold]x[/] \ud800"
log = logging.getLogger("imsync.bus.somewhere")


@pytest.fixture(autouse=True)
def loggers() -> Iterator[None]:
    """Leaves the loggers as they were."""
    own, root = logging.getLogger("imsync"), logging.getLogger()
    before = own.handlers, own.level, own.propagate, root.handlers
    yield
    own.handlers, own.level, own.propagate, root.handlers = before
    logging.captureWarnings(False)


def lines(capsys: pytest.CaptureFixture[str]) -> list[dict[str, Any]]:
    """The objects on stderr; nothing else is there or on stdout."""
    out, err = capsys.readouterr()
    assert out == ""
    assert err.isascii()
    return [json.loads(line) for line in err.splitlines()]


def test_text_is_a_line_for_people(capsys: pytest.CaptureFixture[str]) -> None:
    configure()
    log.info("not shown")
    log.warning("hm %s", "a\nb", extra={"group": "g"})
    tell("done", logging.ERROR, kind="k")
    assert capsys.readouterr().err == "imsync: warning: hm a\\nb\nimsync: done\n"


def test_json_has_the_fields_of_the_record(capsys: pytest.CaptureFixture[str]) -> None:
    configure("json")
    before = datetime.now(UTC)
    Fields(log, group="g", consumer="c").error("%d gone", 3, extra={"entries": 3, "group": "other"})
    (line,) = lines(capsys)
    time = line.pop("time")
    assert time.endswith("Z")
    assert abs((datetime.fromisoformat(time) - before).total_seconds()) < 5
    assert line == {
        "level": "error", "logger": "imsync.bus.somewhere", "message": "3 gone", "group": "other", "consumer": "c",
        "entries": 3,
    }  # fmt: skip


def test_a_commands_own_message_is_a_line_too(capsys: pytest.CaptureFixture[str]) -> None:
    configure("json", "error")
    Output(as_json=True).note("waiting", logging.WARNING, delay_seconds=0.5)
    (line,) = lines(capsys)
    line.pop("time")
    assert line == {"level": "warning", "logger": "imsync.cli", "message": "waiting", "delay_seconds": 0.5}


def test_nothing_hostile_is_in_a_line(capsys: pytest.CaptureFixture[str]) -> None:
    configure("json")
    log.error("%s", HOSTILE, extra={HOSTILE: HOSTILE, "consumer": HOSTILE, "value": object, "many": [HOSTILE]})
    configure("text")
    log.error("%s", HOSTILE, extra={"consumer": HOSTILE})
    tell(HOSTILE, consumer=HOSTILE)
    err = capsys.readouterr().err
    as_json, *as_text = err.removesuffix("\n").split("\n")
    for text in (*json.loads(as_json).values(), *json.loads(as_json), *as_text):
        assert text.isprintable()
    assert len(as_text) == 2


def test_a_fields_value_is_json(capsys: pytest.CaptureFixture[str]) -> None:
    configure("json")
    values = {"a": None, "b": True, "c": 7, "d": float("nan"), "e": float("inf"), "f": {"x": 1}, "g": 0.5}
    log.error("x", extra=values)
    (line,) = lines(capsys)
    assert {key: line[key] for key in values} == {
        "a": None, "b": True, "c": 7, "d": None, "e": None, "f": "{'x': 1}", "g": 0.5,
    }  # fmt: skip


def test_a_traceback_stays_on_its_line(capsys: pytest.CaptureFixture[str]) -> None:
    configure("json")
    try:
        raise ValueError(HOSTILE)
    except ValueError:
        log.exception("failed")
    (line,) = lines(capsys)
    assert "test_logs.py" in line["exception"]
    assert line["exception"].isprintable()


def test_what_others_say_is_json_as_well(capsys: pytest.CaptureFixture[str]) -> None:
    configure("json")
    logging.getLogger("somebody.else").warning("an exporter failed")
    with warnings.catch_warnings():
        warnings.simplefilter("always")
        logging.captureWarnings(True)
        warnings.warn("old", stacklevel=1)
    first, second = lines(capsys)
    assert (first["logger"], first["message"]) == ("somebody.else", "an exporter failed")
    assert second["logger"] == "py.warnings"


@pytest.mark.parametrize(
    ("level", "shown"),
    [("debug", "debug info warning error"), ("info", "info warning error"), ("error", "error")],
)
def test_the_level_is_the_least_severe(level: str, shown: str, capsys: pytest.CaptureFixture[str]) -> None:
    configure("json", level)
    for name in ("debug", "info", "warning", "error"):
        getattr(log, name)(name)
    assert [line["level"] for line in lines(capsys)] == shown.split()


def test_debug_shows_everything_safely(capsys: pytest.CaptureFixture[str], monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setenv("IMSYNC_DEBUG", "1")
    configure()
    log.debug("%s", "\x1b[2J")
    assert capsys.readouterr().err == "imsync: debug: \\x1b[2J\n"


@pytest.mark.parametrize(
    ("args", "environ", "form"),
    [
        ([], {}, "text"),
        (["status"], {"IMSYNC_LOG_FORMAT": "json"}, "json"),
        (["status", "--log-format", "json"], {}, "json"),
        (["status", "--log-format=json"], {}, "json"),
        (["status", "--log-format", "text"], {"IMSYNC_LOG_FORMAT": "json"}, "text"),
        (["status", "--log-format"], {}, "text"),
        (["status", "--log-format", "xml"], {}, "text"),
    ],
)
def test_the_format_is_known_before_the_settings_are(args: list[str], environ: dict[str, str], form: str) -> None:
    assert early_format(args, environ) == form
