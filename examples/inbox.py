"""Exactly-once effects for events of your own: a counter that must not count twice.

python examples/inbox.py redis://localhost:6379/0       # or, without an argument, on a server of its own

A payment has no version: delivered twice, it would be booked twice. The inbox writes down each settled event in the
transaction of its effect, so a repeat changes nothing, however a process died.
"""

from __future__ import annotations

import sqlite3
import sys
import tempfile
from pathlib import Path

from imsync.bus import Bus, ConsumerOptions, Event, PositiveInt
from imsync.store.inbox import Inbox, Refuse

TABLES = [
    """
    CREATE TABLE account (name TEXT PRIMARY KEY, cents INTEGER NOT NULL);
    INSERT INTO account (name, cents) VALUES ('mia', 0), ('noah', 0);
    """,
]
"""One script per version of the tables: to change them, add another."""


class Payment(Event, type="shop.payment.v1", destination="payments"):
    """Somebody has paid in."""

    account: str
    cents: PositiveInt


def book(connection: sqlite3.Connection, payment: Payment) -> None:
    """Adds a payment to its account. Called inside the inbox's transaction, which it leaves alone."""
    booked = connection.execute("UPDATE account SET cents = cents + ? WHERE name = ?", (payment.cents, payment.account))
    if not booked.rowcount:
        raise Refuse("unknown_account", f"there is no account {payment.account!r}")


def run(bus: Bus, folder: Path) -> None:
    """Publishes a hundred payments, some of them twice and one to nobody, and books them."""
    payments = [Payment(account="mia" if n % 2 else "noah", cents=n) for n in range(1, 101)]
    bus.publish_many([*payments, *payments[:10], Payment(account="nobody", cents=1)])
    inbox = Inbox(folder / "accounts.db", schema_sql=TABLES, effect=book, name="accounts")
    consumer = bus.consumer(
        "payments",
        group="accounts",
        events=[Payment],
        handler=inbox,
        options=ConsumerOptions(until_empty=True),
    )
    counts = consumer.run()
    print(f"{counts.applied} applied, {counts.duplicates} duplicates, {counts.dead} dead")
    for name, cents in inbox.query("SELECT name, cents FROM account ORDER BY name"):
        print(f"{name}: {cents} cents")
    inbox.close()


def main() -> None:
    """Runs against the Redis given as an argument, or on a temporary server."""
    with tempfile.TemporaryDirectory() as name:
        folder = Path(name)
        if len(sys.argv) > 1:
            with Bus.from_url(sys.argv[1]) as bus:
                run(bus, folder)
            return
        from imsync.embedded import EmbeddedServer

        try:
            with Bus.embedded(folder) as bus:
                run(bus, folder)
        finally:
            EmbeddedServer(folder).stop()


if __name__ == "__main__":
    main()
