"""Follows a generation wherever it runs: in this process, or in another that saves it to the same database."""

import asyncio
from collections.abc import AsyncIterator

from sqlalchemy import Engine

from app.database.engine import transaction
from app.errors import NotFound
from app.generations.generation import Generation
from app.generations.live import GenerationSnapshot, LiveGenerations, Save
from app.generations.store import find_generation, save_generation

POLL_EVERY = 1.0
"""Seconds between two reads of a generation that another process of this explorer runs."""


def snapshot(labels: Engine, live: LiveGenerations, generation: str) -> GenerationSnapshot:
    """A generation as it stands now, under way or stored. Raises NotFound."""
    # Under way first: what has ended here since then is in storage already.
    running = live.snapshot(generation)
    if running is not None:
        return running
    stored = _stored(labels, generation)
    if stored is None:
        raise NotFound("There is no such generation.", remedy="Check the address; it may have been cut off.")
    return GenerationSnapshot(stored)


async def follow(labels: Engine, live: LiveGenerations, generation: str) -> AsyncIterator[GenerationSnapshot]:
    """Yield a generation now and after each change until it has finished."""
    async for running in live.follow(generation):
        yield running
    while (stored := await asyncio.to_thread(_stored, labels, generation)) is not None:
        yield GenerationSnapshot(stored)
        if stored.finished:
            return
        await asyncio.sleep(POLL_EVERY)


def saver(labels: Engine) -> Save:
    """A function that stores how far a generation has come."""

    def save(generation: Generation) -> None:
        with transaction(labels, writing=True) as session:
            save_generation(session, generation)

    return save


def _stored(labels: Engine, generation: str) -> Generation | None:
    with transaction(labels) as session:
        return find_generation(session, generation)
