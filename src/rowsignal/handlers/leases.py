"""Leases: the right of this process to handle partitions, renewed in one statement."""

import json
from dataclasses import dataclass
from datetime import timedelta
from typing import Self
from uuid import UUID

from sqlalchemy.ext.asyncio import AsyncConnection, AsyncEngine

from rowsignal.postgres.connections import SideConnection, beside
from rowsignal.postgres.statements import query

QUERY_TIMEOUT = 10.0


class LeaseLostError(Exception):
    """Another worker holds the partition or will soon: nothing can be committed for it."""


@dataclass(frozen=True, slots=True)
class Partition:
    """A partition of a consumer, under one lease."""

    consumer: str
    number: int
    generation: int

    @property
    def key(self) -> tuple[str, int, int]:
        """Return the first three arguments of all statements about the partition."""
        return self.consumer, self.number, self.generation

    def __str__(self) -> str:
        return f"{self.consumer}[{self.number}]"


@dataclass(frozen=True, slots=True)
class Lease:
    """The state of a lease: whether to pass the partition on, and whether letters are due."""

    partition: Partition
    is_surplus: bool
    is_due: bool


@dataclass(frozen=True, slots=True)
class Leases:
    """The leases of a worker, and the time at which another worker's next lease ends."""

    held: tuple[Lease, ...]
    wait: float | None

    @classmethod
    def of(cls, text: str) -> Self:
        """Read the result of `lease_consumers_v1`."""
        answer = json.loads(text)
        held = tuple(
            Lease(
                Partition(row["consumer"], row["number"], row["generation"]),
                row["is_surplus"],
                row["is_due"],
            )
            for row in answer["held"]
        )
        return cls(held, answer["wait"])


class LeaseTable:
    """Takes, renews and releases leases on a side connection."""

    def __init__(
        self, engine: AsyncEngine, worker: UUID, label: str, names: list[str], seconds: float
    ) -> None:
        # Beside the pool: a lease must be renewed also while handlers hold all connections.
        self._own = SideConnection(beside(engine))
        self._worker = worker
        self._arguments = (worker, label, names, timedelta(seconds=seconds))

    async def renew(self) -> Leases:
        """Renew the held leases, and take free ones."""
        return Leases.of(await self._ask("consumer_lease", *self._arguments))

    async def release(self, partition: Partition) -> None:
        """Release a lease, so that another worker need not wait for its end."""
        await self._ask("consumer_release", *partition.key)

    async def leave(self) -> None:
        """Report that this worker ends."""
        await self._ask("consumer_leave", self._worker)

    async def close(self) -> None:
        """Close the connection."""
        await self._own.close()

    async def _ask(self, name: str, *arguments: object) -> str:
        async def work(connection: AsyncConnection) -> str:
            result = await connection.exec_driver_sql(query(name), arguments)
            return str(result.scalar()) if result.returns_rows else ""

        return await self._own.run(work, timeout=QUERY_TIMEOUT)
