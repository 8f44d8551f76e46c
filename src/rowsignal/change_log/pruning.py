"""Keeping the change log within its retention for as long as a process lives."""

import asyncio
import logging
import random

from sqlalchemy.ext.asyncio import AsyncEngine

from rowsignal.change_log.retention import prune
from rowsignal.exceptions import MissingRightError
from rowsignal.postgres.errors import describe

logger = logging.getLogger("rowsignal.pruning")

INTERVAL = 60.0


async def keep_pruned(
    engine: AsyncEngine, url: str | None = None, *, interval: float = INTERVAL
) -> None:
    """Prune about every `interval` seconds until cancelled, by the retention that is stored.

    Any number of processes may do so: one works at a time. A role that may not prune leaves it to
    others. `url` as in `set_retention`.
    """
    said = ""
    while True:
        await asyncio.sleep(interval * random.uniform(0.8, 1.2))  # noqa: S311 -- spreads processes
        try:
            await prune(engine, url=url)
        except MissingRightError:
            logger.info("this role may not prune the change log: another process has to")
            return
        except Exception as error:  # noqa: BLE001 -- whatever it was, it is tried again
            if said != describe(error):  # it may stay so for days
                said = describe(error)
                logger.warning("the change log could not be pruned: %s", said)
