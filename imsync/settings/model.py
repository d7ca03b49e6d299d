"""The settings themselves: names, defaults, bounds and the words that explain them."""

from __future__ import annotations

import json
import re
import textwrap
from collections.abc import Iterator
from pathlib import Path

from pydantic import BaseModel, ConfigDict, Field, SecretStr, field_validator
from pydantic.fields import FieldInfo

from imsync.settings.url import redact, split_url

LOG_FORMATS = ("text", "json")
LOG_LEVELS = ("debug", "info", "warning", "error")


def _user_data_folder() -> Path:
    from platformdirs import user_data_path

    return user_data_path("imsync", appauthor=False)


class _Table(BaseModel):
    model_config = ConfigDict(frozen=True, strict=True, extra="forbid", hide_input_in_errors=True)


class ConsumerSettings(_Table):
    """How the consumers read, and when they give up."""

    batch: int = Field(
        default=5000,
        ge=1,
        le=10_000,
        description="How many entries one read takes and one transaction applies. More is faster under load; "
        "fewer holds the store's write lock for a shorter time.",
    )
    block_ms: int = Field(
        default=500,
        ge=1,
        le=10_000,
        description="How long, in milliseconds, a read waits when there is nothing to read. Entries arrive "
        "at once whatever it is; an idle consumer may take this long to notice a stop.",
    )
    heartbeat_ms: int = Field(
        default=1000,
        ge=100,
        le=60_000,
        description="How often, in milliseconds, a consumer says that it lives. One that misses 3 in a row "
        "is dead, and the living take over its pending entries.",
    )
    max_attempts: int = Field(
        default=5,
        ge=1,
        le=1000,
        description="How often a handler may fail on one event before it becomes a dead letter. Trouble with "
        "Redis or the disk does not count: that is retried for ever.",
    )
    stop_deadline_seconds: float = Field(
        default=10.0,
        ge=0.1,
        le=3600.0,
        description="How long, in seconds, a consumer that was told to stop may take to finish and "
        "acknowledge its transaction. What is unfinished then is delivered again.",
    )


class RelaySettings(_Table):
    """How the outbox is published."""

    batch: int = Field(
        default=1000,
        ge=1,
        le=10_000,
        description="How many outbox rows are published in one round trip.",
    )
    poll_ms: int = Field(
        default=100,
        ge=10,
        le=60_000,
        description="How often, in milliseconds, the relay looks for unsent rows: the most it adds to the "
        "delay of an edit while it is idle.",
    )
    keep_sent_hours: float = Field(
        default=168.0,
        ge=1.0,
        le=87_600.0,
        description="How long, in hours, the outbox keeps what was sent: from it everything is sent again that a "
        "restart or a failover of the server has lost. What some group has not acknowledged stays longer, and "
        "nothing leaves before retention.min_hours.",
    )


class RetentionSettings(_Table):
    """How much of the stream is kept."""

    hours: float = Field(
        default=168.0,
        ge=0.01,
        le=87_600.0,
        description="How old, in hours, entries get before they leave the stream. What some group has not "
        "acknowledged stays, however old it is; `imsync status` names the group then.",
    )
    entries: int = Field(
        default=1_000_000,
        ge=1,
        le=1_000_000_000,
        description="How many entries the stream holds before the oldest leave it, likewise only once every group "
        "has acknowledged them. A million profile edits take about half a gigabyte of the server's memory.",
    )
    min_hours: float = Field(
        default=24.0,
        ge=0.0,
        le=87_600.0,
        description="How long, in hours, an entry stays in the stream whatever hours and entries say: that much can "
        "be applied again after a mistake, and sent again after a failover.",
    )


class StoreSettings(_Table):
    """How the SQLite stores behave."""

    busy_timeout_ms: int = Field(
        default=5000,
        ge=1,
        le=60_000,
        description="How long, in milliseconds, a transaction waits for another process that holds the same "
        "store's write lock, before that counts as trouble and is retried.",
    )


class Settings(_Table):
    """Every setting of imsync. Immutable; `imsync.settings.load` makes one from file, environment and flags.

    Raises:
        pydantic.ValidationError: a value has the wrong type or is out of bounds. It does not echo the value.
    """

    url: str = Field(
        default="",
        repr=False,
        description="The Redis server: redis://HOST:PORT/DB, rediss://HOST:PORT/DB (TLS, verified) or "
        "unix:///PATH. Empty: a server of imsync's own, started on demand in data_dir.",
    )
    username: str = Field(
        default="",
        description="The ACL user to log in as. Empty: the server's default user.",
    )
    password: SecretStr = Field(
        default=SecretStr(""),
        examples=["…"],
        description="The password. Better in IMSYNC_PASSWORD or password_file: here (or inside url) it is "
        "accepted only while nobody else may read this file (chmod 600), and never on the command line.",
    )
    password_file: Path | None = Field(
        default=None,
        examples=["/etc/imsync/password"],
        description="A file that holds the password and nothing else. Refused if others may read it (chmod 600).",
    )
    tls_ca_file: Path | None = Field(
        default=None,
        examples=["/etc/ssl/redis-ca.pem"],
        description="The CA certificates (PEM) that a rediss:// server must be signed by. Not set: those of "
        "the system.",
    )
    data_dir: Path = Field(
        default_factory=_user_data_folder,
        examples=["~/.local/share/imsync"],
        description="The folder of user.db, group.db, friend.db and the files of imsync's own server. Not "
        "set: the platform's folder for user data (on Linux the one below).",
    )
    prefix: str = Field(
        default="imsync",
        description="What the name of every key in Redis begins with. Installations that share a server need "
        "different ones; a changed one is a fresh start with empty streams.",
    )
    log_format: str = Field(
        default="text",
        description="What stderr gets: text for people, or json for programs, one object per line.",
    )
    log_level: str = Field(
        default="warning",
        description="The least severe log lines that are shown: debug, info, warning or error. A command's own "
        "messages always are.",
    )
    consumer: ConsumerSettings = Field(default_factory=ConsumerSettings)
    relay: RelaySettings = Field(default_factory=RelaySettings)
    retention: RetentionSettings = Field(default_factory=RetentionSettings)
    store: StoreSettings = Field(default_factory=StoreSettings)

    @field_validator("url")
    @classmethod
    def _url_is_usable(cls, url: str) -> str:
        if url:
            split_url(url)
        return url

    @field_validator("username", "password")
    @classmethod
    def _login_is_text(cls, value: str | SecretStr) -> str | SecretStr:
        # Bytes of the environment that are not UTF-8 arrive as lone surrogates, which no client can send.
        text = value if isinstance(value, str) else value.get_secret_value()
        if any("\ud800" <= character <= "\udfff" for character in text):
            raise ValueError("must be UTF-8 text")
        return value

    @field_validator("prefix")
    @classmethod
    def _prefix_is_a_name(cls, name: str) -> str:
        if not re.fullmatch(r"[A-Za-z0-9._:-]{1,64}", name):
            raise ValueError("must be 1 to 64 letters, digits or any of . _ : -")
        return name

    @field_validator("log_format")
    @classmethod
    def _log_format_is_known(cls, name: str) -> str:
        if name not in LOG_FORMATS:
            raise ValueError(f"must be {' or '.join(LOG_FORMATS)}")
        return name

    @field_validator("log_level")
    @classmethod
    def _log_level_is_known(cls, name: str) -> str:
        if name not in LOG_LEVELS:
            raise ValueError(f"must be one of {', '.join(LOG_LEVELS)}")
        return name

    def public(self) -> dict[str, object]:
        """Return dotted key → JSON-able value. Secrets are `***`, or an empty string where there is none."""
        shown: dict[str, object] = {}
        for key in fields():
            value: object = self
            for name in key.split("."):
                value = getattr(value, name)
            if isinstance(value, SecretStr):
                value = "***" if value else ""
            elif isinstance(value, Path):
                value = str(value)
            shown[key] = redact(str(value)) if key == "url" else value
        return shown


def fields() -> dict[str, FieldInfo]:
    """Return every setting by its dotted key (`consumer.batch`), in the order of the reference file."""
    return dict(_walk(Settings, ""))


def tables() -> dict[str, type[BaseModel]]:
    """Return the tables of the config file by name (`consumer`)."""
    found: dict[str, type[BaseModel]] = {}
    for name, info in Settings.model_fields.items():
        if isinstance(info.annotation, type) and issubclass(info.annotation, BaseModel):
            found[name] = info.annotation
    return found


def bounds(info: FieldInfo) -> str:
    """Return a number's limits in words (`1 to 10000`), or an empty string where there are none."""
    low = next((rule.ge for rule in info.metadata if hasattr(rule, "ge")), None)
    high = next((rule.le for rule in info.metadata if hasattr(rule, "le")), None)
    return "" if low is None or high is None else f"{low:.15g} to {high:.15g}"


def reference() -> str:
    """Render the annotated reference config file. Loading it gives exactly the defaults."""
    lines = _HEADER.splitlines()
    for key, info in fields().items():
        table, _, name = key.rpartition(".")
        if table and f"[{table}]" not in lines:
            lines += ["", f"[{table}]"]
        elif not table or lines[-1] != f"[{table}]":
            lines.append("")
        limits = f" ({bounds(info)})" if bounds(info) else ""
        words = textwrap.wrap(f"{info.description}{limits}", 96, break_on_hyphens=False)
        lines += [f"# {line}" for line in words]
        if info.examples:
            lines.append(f"# {name} = {_toml(info.examples[0])}")
        else:
            lines.append(f"{name} = {_toml(info.default)}")
    return "\n".join(lines) + "\n"


_HEADER = """\
# imsync: every setting with its default. A value that is commented out is an example.
#
# A setting is taken from the first of these that gives it: a flag of the command, the environment, the
# config file, the default. In the environment consumer.batch is called IMSYNC_CONSUMER_BATCH.
# The config file is the one that --config or IMSYNC_CONFIG names, else imsync.toml in the current folder,
# else config.toml in imsync's folder of the user's configuration (on Linux ~/.config/imsync).
# Relative paths in this file start at its own folder. `imsync config show` tells what is in force and why."""


def _walk(model: type[BaseModel], prefix: str) -> Iterator[tuple[str, FieldInfo]]:
    nested = tables() if model is Settings else {}
    for name, info in model.model_fields.items():
        if name in nested:
            yield from _walk(nested[name], f"{name}.")
        else:
            yield prefix + name, info


def _toml(value: object) -> str:
    # JSON's strings and numbers are TOML's too.
    return json.dumps(value, ensure_ascii=False)
