"""Desk: the line in which generations wait; few run at once, few wait, and everybody knows their place."""

import asyncio
from collections.abc import AsyncIterator


class Full(Exception):
    """Too many wait already."""


class Slot:
    """One place in the line."""

    def __init__(self) -> None:
        self.moved = asyncio.Event()


class AdmissionQueue:
    """A first-come line; belongs to one event loop."""

    def __init__(self, *, running: int, waiting: int) -> None:
        self._running = running
        self._waiting = waiting
        self._line: list[Slot] = []

    def __len__(self) -> int:
        """How many run and wait."""
        return len(self._line)

    def enter(self) -> Slot:
        """Join the end of the line. Raises Full when too many wait."""
        if len(self._line) >= self._running + self._waiting:
            raise Full
        ticket = Slot()
        self._line.append(ticket)
        return ticket

    def place(self, ticket: Slot) -> int:
        """How many must go before this one may run; 0 when it may."""
        return max(self._line.index(ticket) + 1 - self._running, 0)

    async def places(self, ticket: Slot) -> AsyncIterator[int]:
        """Yield the place in the line, now and each time it changes, until it is this one's turn."""
        last = 0
        while place := self.place(ticket):
            if place != last:
                yield place
            last = place
            await ticket.moved.wait()
            ticket.moved.clear()

    def leave(self, ticket: Slot) -> None:
        """Leave, done or not; the others move up. Leaving twice does no harm."""
        if ticket in self._line:
            self._line.remove(ticket)
            for other in self._line:
                other.moved.set()
