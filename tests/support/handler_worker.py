"""A worker process for tests: python handler_worker.py URL OPTIONS (JSON)."""

import asyncio
import json
import signal
import sys
from pathlib import Path

sys.path.insert(0, str(Path(__file__).parents[1]))

from sqlalchemy.ext.asyncio import AsyncSession, create_async_engine

from rowsignal.changes import Change
from rowsignal.handlers import ChangeHandlers
from support.handlers import Task, record


async def main(url: str, lease: float, partitions: int, stall: int | None) -> None:
    engine = create_async_engine(url)
    changes = ChangeHandlers(engine, lease=lease)

    @changes.on(Task, name="recorder", partitions=partitions, start="beginning")
    async def recorder(session: AsyncSession, change: Change) -> None:
        await record(session, change)
        await session.flush()
        if change.key == {"id": stall}:
            print("stalled", flush=True)
            await asyncio.to_thread(sys.stdin.readline)

    ending = asyncio.Event()
    asyncio.get_running_loop().add_signal_handler(signal.SIGTERM, ending.set)
    async with changes:
        print("ready", flush=True)
        await ending.wait()
    await engine.dispose()


asyncio.run(main(sys.argv[1], **json.loads(sys.argv[2])))
