"""The task that prunes the change log while a process reads it."""

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
    """Prune about every `interval` seconds until cancelled, by the stored retention.

    Any number of processes may run this: one prunes at a time. A role without the right leaves
    pruning to others. `url` as in `set_retention`.
    """
    said = ""
    while True:
        await asyncio.sleep(interval * random.uniform(0.8, 1.2))  # noqa: S311 -- spreads processes
        try:
            await prune(engine, url=url)
        except MissingRightError:
            logger.info(
                "this role has no right to prune the change log: another process must prune it"
            )
            return
        except Exception as error:  # noqa: BLE001 -- whatever it was, it is tried again
            if said != describe(error):  # log each error once: it may last for days
                said = describe(error)
                logger.warning("the change log could not be pruned: %s", said)
