"""A steerable home, and a real worker process on it."""

import asyncio
from collections.abc import AsyncIterator, Callable, Iterator
from pathlib import Path
from typing import Any

import pytest

from app.inference.client import Client
from app.inference.messages import Answer, GenerationRequest, Lane, Parameters
from app.inference.supervisor import Supervisor
from tests.worlds.steerable import SHARED, write_steerable_run
from tests.worlds.tiny_results import RUN


@pytest.fixture(scope="session")
def steerable_home(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """A home with a steerable run; nobody writes to it."""
    home = tmp_path_factory.mktemp("home")
    write_steerable_run(home)
    return home


@pytest.fixture(scope="module")
def supervisor(steerable_home: Path) -> Iterator[Supervisor]:
    """Starts a real worker process when it is first asked for one."""
    supervisor = Supervisor(steerable_home)
    yield supervisor
    supervisor.stop()


@pytest.fixture
def client(supervisor: Supervisor) -> Client:
    """Talks to that worker."""
    return Client(supervisor)


Ask = Callable[..., GenerationRequest]


@pytest.fixture
def ask() -> Ask:
    """Makes requests: both sources, off and on, with what is given on top."""
    numbers = iter(range(1000))

    def make(
        feature: int = SHARED,
        strength: float = 3.0,
        sources: tuple[str, ...] = ("smollm2", "gemma3"),
        **parameters: Any,
    ) -> GenerationRequest:
        chosen = {"prompt": "The capital of France", "strength": strength, "max_tokens": 12, "chat": False}
        return GenerationRequest(
            id=f"asked-{next(numbers)}",
            run=RUN,
            feature=feature,
            max_activation=6.0,
            parameters=Parameters.model_validate({**chosen, **parameters}),
            lanes=tuple(Lane(source=source, strength=value) for source in sources for value in (0.0, strength)),
        )

    return make


async def all_of(answers: AsyncIterator[Answer]) -> list[Answer]:
    """All answers of the worker."""
    return [answer async for answer in answers]


@pytest.fixture
def listen(client: Client) -> Callable[[GenerationRequest], list[Answer]]:
    """Sends a request and returns all answers."""
    return lambda request: asyncio.run(all_of(client.generate(request)))
