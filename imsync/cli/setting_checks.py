"""Whether settings contradict each other. Pure."""

from __future__ import annotations

from typing import TYPE_CHECKING
from urllib.parse import urlsplit

if TYPE_CHECKING:
    from imsync.bus.finding import Finding
    from imsync.settings import Settings

_NEAR = {"localhost", "127.0.0.1", "::1"}


def check_settings(settings: Settings) -> list[Finding]:
    """One finding for each contradiction; a single good one when there is none."""
    from imsync.bus.finding import ok

    return [
        *retention(settings),
        *stopping(settings),
        *connection(settings),
    ] or [ok("settings", "they do not contradict each other")]


def retention(settings: Settings) -> list[Finding]:
    """How long things are kept."""
    from imsync.bus.finding import warn

    kept, relay, found = settings.retention, settings.relay, []
    if kept.min_hours > kept.hours:
        found.append(
            warn(
                "settings", f"retention.min_hours {kept.min_hours:g} is above retention.hours {kept.hours:g}, and wins",
                "raise retention.hours, or lower retention.min_hours",
            )
        )  # fmt: skip
    if relay.keep_sent_hours < kept.min_hours:
        found.append(
            warn(
                "settings",
                f"relay.keep_sent_hours {relay.keep_sent_hours:g} is below retention.min_hours {kept.min_hours:g}, "
                "and without effect",
                "raise relay.keep_sent_hours, or lower retention.min_hours",
            )
        )
    if kept.entries < settings.consumer.batch:
        found.append(
            warn(
                "settings",
                f"retention.entries {kept.entries:,} is below consumer.batch {settings.consumer.batch:,}: "
                "little is left to be applied again",
                "raise retention.entries",
            )
        )
    return found


def stopping(settings: Settings) -> list[Finding]:
    """Whether what is at hand can be finished in the time that there is for it."""
    from imsync.bus.finding import warn

    deadline, busy = settings.consumer.stop_deadline_seconds, settings.store.busy_timeout_ms / 1000
    if deadline >= busy:
        return []
    return [
        warn(
            "settings",
            f"consumer.stop_deadline_seconds {deadline:g} is shorter than store.busy_timeout_ms, {busy:g} s: a "
            "consumer that waits for the store is ended in the middle, and its entries come again",
            "raise consumer.stop_deadline_seconds",
        )
    ]


def connection(settings: Settings) -> list[Finding]:
    """Whether login and encryption are what they seem."""
    from imsync.bus.finding import bad, warn

    url, found = urlsplit(settings.url), []
    has_password = bool(settings.password.get_secret_value() or url.password)
    if not settings.url and (settings.username or has_password or settings.tls_ca_file):
        found.append(
            warn(
                "settings", "username, password and tls_ca_file are without effect on imsync's own server",
                "set url / IMSYNC_URL, or leave them out",
            )
        )  # fmt: skip
    if settings.tls_ca_file and settings.url and url.scheme != "rediss":
        found.append(
            bad(
                "settings", "tls_ca_file is set, and the url is not rediss://: nothing is encrypted",
                "write rediss:// in url / IMSYNC_URL",
            )
        )  # fmt: skip
    elif url.scheme == "redis" and url.hostname not in _NEAR:
        what = "the password and the profiles travel" if has_password else "the profiles travel"
        found.append(warn("settings", f"{what} unencrypted to {url.hostname}", "use rediss:// and tls_ca_file"))
    if settings.username and not has_password:
        found.append(warn("settings", "a username without a password", "set IMSYNC_PASSWORD or password_file"))
    return found
