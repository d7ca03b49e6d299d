"""The configuration: one model, and where each value came from.

Precedence: defaults in code < config file < environment `IMSYNC_…` < flags.
"""

from imsync.settings.loading import Loaded, load
from imsync.settings.model import ConsumerSettings, RelaySettings, Settings, StoreSettings, reference
from imsync.settings.url import RedisUrl, redact, split_url

__all__ = [
    "ConsumerSettings",
    "Loaded",
    "RedisUrl",
    "RelaySettings",
    "Settings",
    "StoreSettings",
    "load",
    "redact",
    "reference",
    "split_url",
]
