"""FIFO queue of generations: `running` slots, `waiting` places, then it is full."""

import asyncio
from collections.abc import AsyncIterator


class QueueFull(Exception):
    """All slots and all places are taken."""


class Slot:
    """One entry of the queue, running or waiting."""

    def __init__(self) -> None:
        self.moved = asyncio.Event()


class AdmissionQueue:
    """First come, first served; belongs to one event loop."""

    def __init__(self, *, running: int, waiting: int) -> None:
        self._running = running
        self._waiting = waiting
        self._slots: list[Slot] = []

    def __len__(self) -> int:
        """How many run and wait."""
        return len(self._slots)

    def enter(self) -> Slot:
        """Join the end of the queue. Raises QueueFull."""
        if len(self._slots) >= self._running + self._waiting:
            raise QueueFull
        slot = Slot()
        self._slots.append(slot)
        return slot

    def place(self, slot: Slot) -> int:
        """How many must finish before this one may run; 0 when it may, and when it has left."""
        return max(self._slots.index(slot) + 1 - self._running, 0) if slot in self._slots else 0

    async def places(self, slot: Slot) -> AsyncIterator[int]:
        """Yield the place in the queue, now and each time it changes, until the slot may run or has left."""
        last = 0
        while place := self.place(slot):
            if place != last:
                yield place
            last = place
            await slot.moved.wait()
            slot.moved.clear()

    def leave(self, slot: Slot) -> None:
        """Leave, finished or not; the others move up. Leaving twice does no harm."""
        if slot in self._slots:
            for one in self._slots:
                one.moved.set()
            self._slots.remove(slot)
