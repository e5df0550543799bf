"""Many who write labels at once: nobody's thread or connection is taken while they wait, and nothing is lost."""

import asyncio
import threading
import time
from collections import Counter
from concurrent.futures import ThreadPoolExecutor
from pathlib import Path

import httpx
import pytest
from sqlalchemy import Engine
from sqlalchemy.orm import Session

from app.database.write_queue import LabelsBusy, WriteQueue
from app.labels.store import LabelTarget, count_revisions, save_label
from tests.worlds.served import served
from tests.worlds.tiny_results import RUN, write_tiny_run

WRITERS, EACH = 50, 4


@pytest.mark.parametrize("way", ["json", "form"])
def test_fifty_writers_at_once_lose_nothing_and_readers_go_on(tmp_path: Path, url: str, way: str):
    write_tiny_run(tmp_path, features=24)
    with served(tmp_path, database_url=url) as (address, _):
        client = httpx.Client(base_url=address, timeout=60, limits=httpx.Limits(max_connections=WRITERS + 1))
        labels = f"/runs/{RUN}/features/{{}}/labels"

        def write(writer: int) -> list[int]:
            form = {"author": f"writer {writer}"}
            statuses = []
            for revision in range(EACH):
                form |= {"text": f"text {revision}", "revision": str(revision)}
                path = labels.format(writer % 24)
                answer = client.post(f"/api/v1{path}", json=form) if way == "json" else client.post(path, data=form)
                statuses.append(answer.status_code)
            return statuses

        with ThreadPoolExecutor(WRITERS + 1) as threads:
            written = [threads.submit(write, writer) for writer in range(WRITERS)]
            began = time.monotonic()
            page = client.get(f"/runs/{RUN}/features/3")
            waited = time.monotonic() - began
            statuses = Counter(status for future in written for status in future.result())

        assert statuses == {201 if way == "json" else 303: WRITERS * EACH}
        assert page.status_code == 200
        assert waited < 10, "readers do not queue behind writers"
        found = [client.get(f"/api/v1{labels.format(feature)}").json() for feature in range(24)]
        assert sum(one["revisions"] for one in found) == WRITERS * EACH
        client.close()


class _Held:
    """A transaction that goes on until it is let go."""

    def __init__(self) -> None:
        self.begun, self.over = threading.Event(), threading.Event()

    def __call__(self, session: Session) -> None:
        del session
        self.begun.set()
        self.over.wait(20)


def test_the_queue_has_an_end_and_says_when_to_come_again(tmp_path: Path, labels: Engine, monkeypatch):
    monkeypatch.setattr("app.database.write_queue.LONGEST_QUEUE", 3)
    held = _Held()

    async def crowd() -> tuple[list[BaseException | int], list[BaseException | int]]:
        queue = WriteQueue(labels)
        first = [asyncio.create_task(queue.run(held)) for _ in range(queue._turns._value)]
        await asyncio.to_thread(held.begun.wait)
        await asyncio.sleep(0.1)
        waiting = [asyncio.create_task(queue.run(_saved(number))) for number in range(3)]
        await asyncio.sleep(0.1)
        refused = await asyncio.gather(*(queue.run(_saved(9)) for _ in range(2)), return_exceptions=True)
        held.over.set()
        await asyncio.gather(*first)
        taken = await asyncio.gather(*waiting)
        queue.close()
        return taken, refused

    taken, refused = asyncio.run(crowd())

    assert taken == [1, 1, 1], "those who waited are served"
    assert all(isinstance(error, LabelsBusy) for error in refused)
    assert refused[0].status == 503
    assert refused[0].retry_after is not None


def test_who_waits_too_long_is_told_and_nothing_of_theirs_is_saved_later(labels: Engine, monkeypatch):
    monkeypatch.setattr("app.database.write_queue.PATIENCE", 0.2)
    held = _Held()

    async def waits() -> int:
        queue = WriteQueue(labels)
        first = [asyncio.create_task(queue.run(held)) for _ in range(queue._turns._value)]
        await asyncio.to_thread(held.begun.wait)
        await asyncio.sleep(0.1)
        with pytest.raises(LabelsBusy, match="turn did not come"):
            await queue.run(_saved(1))
        held.over.set()
        await asyncio.gather(*first)
        count = await queue.run(lambda session: count_revisions(session, "pair", 1))
        queue.close()
        return count

    assert asyncio.run(waits()) == 0


def _saved(feature: int):
    target = LabelTarget("pair", feature, "f00d")
    return lambda session: save_label(session, target, "Ada", text="German", note="", based_on=0).revision
