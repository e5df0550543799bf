"""Queues those who write labels, so that many at once are served one after another."""

import asyncio
from collections.abc import Callable
from concurrent.futures import ThreadPoolExecutor
from typing import TypeVar

from sqlalchemy import Engine
from sqlalchemy.orm import Session

from app.database.engine import PATIENCE, LabelsUnusable, transaction

LONGEST_QUEUE = 200
"""Writers that may wait at once."""
AT_ONCE = {"sqlite": 1, "postgresql": 4}
"""Transactions that write at once: a SQLite file takes one, whatever is tried."""

Value = TypeVar("Value")


class LabelsBusy(LabelsUnusable):
    """Too many write at once, or the ones before take too long."""

    title = "Too many write at once"
    retry_after = 2


class WriteQueue:
    """Runs writing transactions in order of arrival; waiting takes no thread and no connection."""

    def __init__(self, engine: Engine) -> None:
        self._engine = engine
        at_once = AT_ONCE[engine.dialect.name]
        self._turns = asyncio.Semaphore(at_once)
        self._threads = ThreadPoolExecutor(at_once, thread_name_prefix="labels")
        self._waiting = 0

    async def run(self, work: Callable[[Session], Value]) -> Value:
        """The value of `work(session)`, committed. Raises LabelsBusy, and everything that `transaction` raises."""
        remedy = "Nothing was saved. What you typed is still here; save it again in a moment."
        if self._waiting >= LONGEST_QUEUE:
            raise LabelsBusy(f"{self._waiting} others are waiting to write.", remedy=remedy)
        self._waiting += 1
        try:
            async with asyncio.timeout(PATIENCE):
                await self._turns.acquire()
        except TimeoutError:
            raise LabelsBusy(f"its turn did not come within {PATIENCE:g} seconds.", remedy=remedy) from None
        finally:
            self._waiting -= 1
        try:
            return await asyncio.get_running_loop().run_in_executor(self._threads, self._write, work)
        finally:
            self._turns.release()

    def _write(self, work: Callable[[Session], Value]) -> Value:
        with transaction(self._engine, writing=True) as session:
            return work(session)

    def close(self) -> None:
        """End the threads, once what they write is written."""
        self._threads.shutdown()
