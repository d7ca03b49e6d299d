"""Events of your own: publish orders, bill each of them.

python examples/orders.py redis://localhost:6379/0      # or, without an argument, on a server of its own
"""

from __future__ import annotations

import sys
import tempfile
from collections.abc import Sequence
from pathlib import Path

from imsync.bus import APPLIED, Bus, ConsumerOptions, Event, Outcome, PositiveInt, Received


class OrderPaid(Event, type="shop.order.paid.v1", destination="orders"):
    """A customer has paid an order."""

    order_id: PositiveInt
    amount_cents: PositiveInt


class Billing:
    """Writes one invoice per paid order. Deliveries may repeat, so the order's id decides, not the delivery."""

    def __init__(self) -> None:
        self.invoices: dict[int, int] = {}

    def apply(self, batch: Sequence[Received[OrderPaid]]) -> list[Outcome]:
        for received in batch:
            self.invoices[received.event.order_id] = received.event.amount_cents
        return [APPLIED for _ in batch]


def run(bus: Bus) -> Billing:
    """Publishes a hundred orders and consumes them."""
    bus.publish(OrderPaid(order_id=1, amount_cents=999))
    bus.publish_many([OrderPaid(order_id=n, amount_cents=100 * n) for n in range(2, 101)])
    billing = Billing()
    consumer = bus.consumer(
        "orders",
        group="billing",
        events=[OrderPaid],
        handler=billing,
        options=ConsumerOptions(until_empty=True),
    )
    counts = consumer.run()
    print(f"{counts.applied} events, {len(billing.invoices)} invoices, {sum(billing.invoices.values())} cents")
    return billing


def main() -> None:
    """Runs against the Redis given as an argument, or on a temporary server."""
    if len(sys.argv) > 1:
        with Bus.from_url(sys.argv[1]) as bus:
            run(bus)
        return
    from imsync.embedded import EmbeddedServer

    with tempfile.TemporaryDirectory() as folder:
        try:
            with Bus.embedded(folder) as bus:
                run(bus)
        finally:
            EmbeddedServer(Path(folder)).stop()


if __name__ == "__main__":
    main()
