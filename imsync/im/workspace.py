"""A data folder: one SQLite file per service, and how each is opened."""

from __future__ import annotations

from dataclasses import dataclass
from pathlib import Path

from imsync.bus.telemetry import Telemetry
from imsync.im.friend_store import FriendStore
from imsync.im.group_store import GroupStore
from imsync.im.profile_projection import ProfileProjection
from imsync.im.user_store import UserStore
from imsync.store.settling import SETTLED_HOURS

PROJECTIONS: dict[str, type[ProfileProjection]] = {"group": GroupStore, "friend": FriendStore}
"""The services that follow the user service, by the name of their consumer group."""


@dataclass(frozen=True, slots=True)
class Workspace:
    """The stores of a data folder. Each call opens a store anew; the caller closes it.

    Raises:
        StoreUnusable: on opening, when a file is missing, damaged, of another kind or of a newer version.
    """

    data_dir: Path
    busy_timeout_ms: int = 5000
    settled_hours: float = SETTLED_HOURS
    telemetry: Telemetry | None = None

    @property
    def files(self) -> list[Path]:
        """Where the stores are, whether they exist or not."""
        return [self.path_of(name) for name in ("user", *PROJECTIONS)]

    def path_of(self, name: str) -> Path:
        """The file of a store: `user`, `group` or `friend`."""
        return self.data_dir / f"{name}.db"

    def user_store(self) -> UserStore:
        """The user service's store."""
        return UserStore(self.path_of("user"), busy_timeout_ms=self.busy_timeout_ms, telemetry=self.telemetry)

    def projection(self, name: str, *, create: bool = False) -> ProfileProjection:
        """The store of the service that follows as `group` or `friend`.

        Args:
            create: make it when it is missing.
        """
        return PROJECTIONS[name](
            self.path_of(name),
            create=create,
            busy_timeout_ms=self.busy_timeout_ms,
            settled_hours=self.settled_hours,
        )

    def projections(self) -> list[ProfileProjection]:
        """The stores of all services that follow."""
        return [self.projection(name) for name in PROJECTIONS]
