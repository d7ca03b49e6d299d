"""What every command has in common: its options, its settings, and the ways to the stores and to Redis."""

from __future__ import annotations

import functools
import inspect
import os
from collections.abc import Callable
from contextlib import suppress
from dataclasses import dataclass, field
from functools import cached_property
from pathlib import Path
from typing import TYPE_CHECKING, Annotated, Any

import typer

from imsync.cli.render import Output

if TYPE_CHECKING:
    from imsync.bus import Bus, ConsumerOptions, Publisher
    from imsync.bus.telemetry import Listener
    from imsync.im.relay import Relay
    from imsync.im.user_store import UserStore
    from imsync.im.workspace import Workspace
    from imsync.settings import Loaded, Settings

UrlOption = Annotated[
    str | None,
    typer.Option("--url", help="Redis, such as redis://host:6379/0. Without one imsync runs a server of its own.",
                 show_default=False, rich_help_panel="Common options"),
]  # fmt: skip
DataDirOption = Annotated[
    Path | None,
    typer.Option("--data-dir", help="The folder of the stores.", show_default=False,
                 rich_help_panel="Common options"),
]  # fmt: skip
ConfigOption = Annotated[
    Path | None,
    typer.Option("--config", help="The configuration file.", show_default=False, rich_help_panel="Common options"),
]  # fmt: skip
JsonOption = Annotated[bool, typer.Option("--json", help="Print JSON for programs.", rich_help_panel="Common options")]
LogFormatOption = Annotated[
    str | None,
    typer.Option("--log-format", help="What stderr gets: text, or json for one object per line.", show_default=False,
                 rich_help_panel="Common options"),
]  # fmt: skip
LogLevelOption = Annotated[
    str | None,
    typer.Option("--log-level", help="The least severe log lines: debug, info, warning or error.", show_default=False,
                 rich_help_panel="Common options"),
]  # fmt: skip


SETTLED_MARGIN_HOURS = 24.0
"""How much longer settled events are remembered than the outbox remembers them, while both are pruned."""


@dataclass
class Run:
    """One run of a command.

    Args:
        flags: the settings given on the command line, by dotted name.
        default_config: the configuration file of last resort.
    """

    flags: dict[str, object]
    as_json: bool
    default_config: Path | None = None
    listeners: list[Listener] = field(default_factory=list)
    """Who is told what happens on the bus; to be filled before the bus is used."""

    @cached_property
    def loaded(self) -> Loaded:
        """The settings, with where each is from. Raises ConfigError."""
        from imsync.settings import load

        return load(self.flags, os.environ, Path.cwd(), self.default_config)

    @property
    def settings(self) -> Settings:
        """The settings."""
        return self.loaded.settings

    def configure_logs(self) -> None:
        """Log lines by the settings. Where those cannot be read, the command says so when it needs them."""
        from imsync.cli.logs import configure
        from imsync.errors import ConfigError

        with suppress(ConfigError):
            configure(self.settings.log_format, self.settings.log_level)

    @cached_property
    def out(self) -> Output:
        """Where results go."""
        return Output(as_json=self.as_json)

    @cached_property
    def workspace(self) -> Workspace:
        """The data folder."""
        from imsync.bus.telemetry import Telemetry
        from imsync.cli.tracing import tracing
        from imsync.im.workspace import Workspace
        from imsync.store.settling import SETTLED_HOURS

        settings = self.settings
        # repeats are recognised for longer than the relay keeps what it may send again
        kept = max(SETTLED_HOURS, settings.relay.keep_sent_hours, settings.retention.min_hours)
        return Workspace(
            settings.data_dir, settings.store.busy_timeout_ms, kept + SETTLED_MARGIN_HOURS, Telemetry(tracing())
        )

    @cached_property
    def bus(self) -> Bus:
        """The bus. Starts the embedded server when no URL is configured; a configured one never falls back to it.

        Raises:
            ImsyncError: the embedded server does not start. (A Redis that is away shows at the first command.)
        """
        from imsync.bus import Bus, Endpoint
        from imsync.cli.tracing import tracing

        settings = self.settings
        if not settings.url:
            from imsync.embedded import EmbeddedServer

            endpoint = Endpoint(EmbeddedServer(settings.data_dir).start().url)
        else:
            endpoint = Endpoint(
                settings.url,
                username=settings.username,
                password=settings.password.get_secret_value(),
                tls_ca_file=settings.tls_ca_file,
            )
        return Bus(endpoint, prefix=settings.prefix, listeners=[*self.listeners, *tracing()])

    def expect_stores(self) -> None:
        """For commands that open no store: a mistyped data folder must not get an empty server of its own.

        Raises:
            StoreUnusable: no URL is configured, and the data folder has no stores.
        """
        from imsync.errors import StoreUnusable

        if not self.settings.url and not any(path.exists() for path in self.workspace.files):
            raise StoreUnusable(
                f"there are no stores in {self.settings.data_dir}", "run `imsync init` first, or check --data-dir"
            )

    def relay(self, users: UserStore, *, publisher: Publisher | None = None, **options: Any) -> Relay:
        """The relay of a user store, by the settings and a command's own options."""
        from imsync.im.events import DESTINATION
        from imsync.im.relay import Relay

        relay, retention = self.settings.relay, self.settings.retention
        return Relay(
            users,
            publisher or self.bus.publisher(DESTINATION),
            batch=relay.batch,
            history_hours=retention.min_hours,
            keep_sent_hours=relay.keep_sent_hours,
            **options,
        )

    def consumer_options(self, **overrides: Any) -> ConsumerOptions:
        """How consumers work, by the settings and a command's own options."""
        from imsync.bus import ConsumerOptions, Retention, RetryPolicy

        consumer, retention = self.settings.consumer, self.settings.retention
        values: dict[str, Any] = {
            "batch": consumer.batch,
            "block_ms": consumer.block_ms,
            "heartbeat_ms": consumer.heartbeat_ms,
            "retry": RetryPolicy(consumer.max_attempts),
            "retention": Retention(retention.hours, retention.entries, retention.min_hours),
        }
        return ConsumerOptions(**(values | overrides))


def command(app: typer.Typer, name: str) -> Callable[[Callable[..., None]], Callable[..., None]]:
    """Registers a function as a command: its first parameter is the `Run`, and the common options are added."""

    def register(function: Callable[..., None]) -> Callable[..., None]:
        @functools.wraps(function)
        def wrapper(ctx: typer.Context, **values: Any) -> None:
            flags = {
                "url": values.pop("url"),
                "data_dir": values.pop("data_dir"),
                "config": values.pop("config"),
                "log_format": values.pop("log_format"),
                "log_level": values.pop("log_level"),
            }
            default_config = ctx.find_root().obj
            run = Run(flags, values.pop("as_json"), default_config)
            run.configure_logs()
            function(run, **values)

        signature = inspect.signature(function, eval_str=True)
        own = list(signature.parameters.values())[1:]
        wrapper.__signature__ = signature.replace(  # type: ignore[attr-defined]
            parameters=[_keyword("ctx", typer.Context), *(each.replace(kind=each.KEYWORD_ONLY) for each in own),
                        _keyword("url", UrlOption, None), _keyword("data_dir", DataDirOption, None),
                        _keyword("config", ConfigOption, None), _keyword("as_json", JsonOption, False),
                        _keyword("log_format", LogFormatOption, None), _keyword("log_level", LogLevelOption, None)]
        )  # fmt: skip
        wrapper.__annotations__ = {}
        app.command(name)(wrapper)
        return function

    return register


def _keyword(name: str, annotation: Any, default: Any = inspect.Parameter.empty) -> inspect.Parameter:
    return inspect.Parameter(name, inspect.Parameter.KEYWORD_ONLY, annotation=annotation, default=default)
