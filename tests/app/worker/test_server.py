"""The worker: a real process with real (tiny) models, asked over its socket."""

import asyncio
import contextlib
import itertools
import json
import os
import signal
import socket
import subprocess
import sys
import time
from collections.abc import Callable
from pathlib import Path

import httpx
import pytest

from app.inference.client import Address, Client, RemoteWorker, WorkerBusy, WorkerRefused, WorkerUnreachable
from app.inference.messages import Answer, Ended, GenerationRequest, Started, TextUpdate
from app.inference.supervisor import SOCKET_PATH_LIMIT, Supervisor
from app.settings import REPOSITORY
from tests.worlds.steerable import ONLY_GEMMA3, SHARED, steerable_recipe
from tests.worlds.tiny_results import RUN
from trainer.models.hookpoint import locate
from trainer.models.source import load_source

Listen = Callable[[GenerationRequest], list[Answer]]


def texts(answers: list[Answer]) -> dict[int, str]:
    """The last text of each lane."""
    return {answer.lane: answer.text for answer in answers if isinstance(answer, TextUpdate)}


def endings(answers: list[Answer]) -> dict[int, tuple[str, str]]:
    """How each lane ended."""
    return {answer.lane: (answer.state, answer.reason) for answer in answers if isinstance(answer, Ended)}


def test_every_lane_begins_grows_and_ends_and_the_end_comes_last(listen: Listen, ask):
    answers = listen(ask())
    kinds = [answer.kind for answer in answers]
    assert kinds[-1] == "finished"
    for lane in range(4):
        mine = [answer for answer in answers if getattr(answer, "lane", None) == lane]
        assert [answer.kind for answer in mine[:2]] == ["loading", "started"]
        assert {answer.kind for answer in mine[2:-1]} == {"text"}
        assert mine[-1].kind == "ended"
        updates = [answer for answer in mine if isinstance(answer, TextUpdate)]
        assert [answer.tokens for answer in updates] == list(range(1, len(updates) + 1))
        assert all(later.text.startswith(earlier.text) for earlier, later in itertools.pairwise(updates))


def test_the_text_that_is_off_is_that_of_plain_generation(listen: Listen, ask, steerable_home: Path):
    updates = texts(listen(ask()))
    for place, recipe in (
        (0, steerable_recipe(steerable_home).sources[0]),
        (2, steerable_recipe(steerable_home).sources[1]),
    ):
        source = load_source(recipe)
        ids = [source.bos_id, *source.tokenizer.encode("The capital of France", add_special_tokens=False)]
        tensor = source.tokenizer(
            [source.tokenizer.decode(ids)], add_special_tokens=False, return_tensors="pt"
        ).input_ids
        assert tensor[0].tolist() == ids
        whole = source.model.generate(tensor, max_new_tokens=12, do_sample=False)[0]
        assert updates[place].rstrip("\ufffd") == source.tokenizer.decode(whole)[
            len(source.tokenizer.decode(ids)) :
        ].rstrip("\ufffd")


def test_steering_changes_the_text(listen: Listen, ask):
    updates = texts(listen(ask(strength=8.0)))
    assert updates[0] != updates[1]
    assert updates[2] != updates[3]


def test_strength_zero_gives_both_lanes_the_same_text(listen: Listen, ask):
    updates = texts(listen(ask(strength=0.0)))
    assert (updates[0], updates[2]) == (updates[1], updates[3])


def test_a_source_that_the_feature_does_not_write_to_says_so_and_says_the_same(listen: Listen, ask):
    answers = listen(ask(ONLY_GEMMA3, strength=8.0))
    updates = texts(answers)
    assert {answer.lane: answer.writes for answer in answers if isinstance(answer, Started)} == {
        0: False,
        1: False,
        2: True,
        3: True,
    }
    assert updates[0] == updates[1]
    assert updates[2] != updates[3]


def test_the_same_request_gives_the_same_text(listen: Listen, ask):
    sampled = {"temperature": 1.0, "top_p": 0.9}
    assert texts(listen(ask(**sampled, seed=5))) == texts(listen(ask(**sampled, seed=5)))
    assert texts(listen(ask(**sampled, seed=5))) != texts(listen(ask(**sampled, seed=6)))


def test_a_chat_prompt_is_shown_as_the_model_reads_it(listen: Listen, ask):
    prompts = {answer.lane: answer.prompt for answer in listen(ask(chat=True)) if isinstance(answer, Started)}
    assert prompts[0] == "<|im_start|>user\nThe capital of France<|im_end|>\n<|im_start|>assistant\n"
    assert prompts[2] == "<bos>The capital of France", "no template, so the raw prompt"


@pytest.mark.slow
def test_models_are_absent_until_somebody_asks_and_ready_after(steerable_home: Path, ask):
    supervisor = Supervisor(steerable_home)
    client = Client(supervisor)
    try:
        assert client.states(RUN) == [], "looking starts nothing"
        supervisor.address()
        assert [(one.source, one.state) for one in client.states(RUN)] == [("smollm2", "absent"), ("gemma3", "absent")]

        async def one() -> None:
            async for _ in client.generate(ask(sources=("smollm2",))):
                pass

        asyncio.run(one())
        assert [(one.source, one.state) for one in client.states(RUN)] == [("smollm2", "ready"), ("gemma3", "absent")]
    finally:
        supervisor.stop()


@pytest.mark.slow
def test_hanging_up_ends_a_generation_within_a_token_or_two(client: Client, ask):
    async def hang_up_and_ask_again() -> float:
        async with contextlib.aclosing(client.generate(ask(max_tokens=400, feature=SHARED))) as answers:
            async for answer in answers:
                if answer.kind == "text":
                    break
        began = time.monotonic()
        async for answer in client.generate(ask(max_tokens=1)):
            if answer.kind == "finished":
                break
        return time.monotonic() - began

    async def whole() -> float:
        began = time.monotonic()
        async for _ in client.generate(ask(max_tokens=400, strength=0.5)):
            pass
        return time.monotonic() - began

    assert asyncio.run(hang_up_and_ask_again()) < asyncio.run(whole()) / 2, "the next did not wait for the first to end"


def test_stopping_keeps_the_text_and_says_stopped(client: Client, ask):
    async def stop_soon() -> list[Answer]:
        answers: list[Answer] = []
        request = ask(max_tokens=400)
        async for answer in client.generate(request):
            answers.append(answer)
            if answer.kind == "text" and answer.tokens == 5:
                await client.stop(request.id)
        return answers

    answers = asyncio.run(stop_soon())
    assert "stopped" in {state for state, _ in endings(answers).values()}
    assert max(answer.tokens for answer in answers if isinstance(answer, TextUpdate)) < 400
    assert answers[-1].kind == "finished"


@pytest.mark.slow
def test_those_who_wait_are_told_their_place_and_too_many_are_sent_away(client: Client, ask):
    async def crowd() -> tuple[list[int], list[BaseException | None]]:
        places: list[int] = []
        first = ask(max_tokens=400)

        async def go(request: GenerationRequest) -> BaseException | None:
            try:
                places.extend([answer.place async for answer in client.generate(request) if answer.kind == "queued"])
            except WorkerBusy as busy:
                return busy
            return None

        running = asyncio.create_task(go(first))
        await asyncio.sleep(0.3)
        others = [asyncio.create_task(go(ask(max_tokens=1))) for _ in range(10)]
        refused = await asyncio.gather(*others)
        await client.stop(first.id)
        await running
        return places, list(refused)

    places, outcomes = asyncio.run(crowd())
    assert {1, 2, 8} <= set(places)
    assert sum(outcome is not None for outcome in outcomes) >= 2, "eight may wait"
    assert sum(outcome is None for outcome in outcomes) >= 8, "and those are served"


@pytest.mark.slow
def test_a_worker_that_is_killed_in_the_middle_is_started_again(client: Client, supervisor: Supervisor, listen, ask):
    async def kill_in_the_middle() -> None:
        async for answer in client.generate(ask(max_tokens=400)):
            if answer.kind == "text" and answer.tokens == 3:
                os.kill(supervisor.process() or 0, signal.SIGKILL)

    supervisor.address()
    before = supervisor.process()
    with pytest.raises(WorkerUnreachable, match="ended in the middle"):
        asyncio.run(kill_in_the_middle())
    assert texts(listen(ask())), "and answers again"
    assert supervisor.process() != before


def test_the_worker_ends_when_the_process_that_started_it_is_killed(steerable_home: Path):
    program = f"""
from pathlib import Path
from app.inference.supervisor import Supervisor
supervisor = Supervisor(Path({str(steerable_home)!r}))
supervisor.address()
print(supervisor.process(), flush=True)
import time; time.sleep(60)
"""
    parent = subprocess.Popen([sys.executable, "-c", program], cwd=REPOSITORY, stdout=subprocess.PIPE, text=True)
    assert parent.stdout is not None
    worker = int(parent.stdout.readline())
    parent.kill()
    parent.wait()
    parent.stdout.close()
    for _ in range(100):
        if not Path(f"/proc/{worker}").exists() or "Z" in Path(f"/proc/{worker}/stat").read_text().split(")")[1][:3]:
            return
        time.sleep(0.1)
    os.kill(worker, signal.SIGKILL)
    pytest.fail("the worker outlived its parent by ten seconds")


def test_a_long_temporary_folder_does_not_break_the_socket(steerable_home: Path, tmp_path: Path, monkeypatch):
    long = tmp_path / ("x" * 90)
    long.mkdir()
    monkeypatch.setattr("tempfile.tempdir", str(long))
    supervisor = Supervisor(steerable_home)
    try:
        address = supervisor.address()
        assert len(str(address.socket)) <= SOCKET_PATH_LIMIT
        assert Path(str(address.socket)).parent.stat().st_mode & 0o077 == 0, "nobody else may enter"
        assert len(Client(supervisor).states(RUN)) == 2
    finally:
        supervisor.stop()
    assert not Path(str(address.socket)).parent.exists()


@pytest.mark.slow
def test_over_tcp_only_who_shows_the_token_is_answered(steerable_home: Path):
    with socket.socket() as probe:
        probe.bind(("127.0.0.1", 0))
        port = probe.getsockname()[1]
    command = [sys.executable, "-m", "app.worker.server", "--home", str(steerable_home), "--port", str(port)]
    without = subprocess.run(command, cwd=REPOSITORY, capture_output=True, text=True, check=False)
    assert without.returncode == 2
    assert "CROSSDIFF_WORKER_TOKEN" in without.stderr
    environment = {**os.environ, "CROSSDIFF_WORKER_TOKEN": "open sesame"}
    worker = subprocess.Popen(command, cwd=REPOSITORY, env=environment)
    try:
        url = f"http://127.0.0.1:{port}"
        for _ in range(200):
            with contextlib.suppress(httpx.ConnectError):
                assert httpx.get(f"{url}/healthz").status_code == 200, "a health check needs no token"
                break
            time.sleep(0.1)
        assert httpx.get(f"{url}/runs/{RUN}/sources").status_code == 401
        with pytest.raises(WorkerRefused, match="same CROSSDIFF_WORKER_TOKEN"):
            Client(RemoteWorker(Address(url=url, token="guessed"))).states(RUN)
        assert len(Client(RemoteWorker(Address(url=url, token="open sesame"))).states(RUN)) == 2
    finally:
        worker.terminate()
        worker.wait()


@pytest.mark.parametrize("run", ["none", "..", "a/../../etc"])
def test_a_run_that_is_not_there_is_refused(client: Client, supervisor: Supervisor, run: str):
    supervisor.address()
    with pytest.raises(WorkerRefused):
        client.states(run)


def test_a_model_that_cannot_be_loaded_fails_its_lanes_alone(steerable_home: Path, listen, ask, client: Client):
    from trainer.recipe.recipe import Recipe

    recipe = steerable_recipe(steerable_home).model_dump(mode="json")
    recipe["sources"][1]["model"] = str(steerable_home / "models" / "gone")
    folder = steerable_home / "runs" / "half-a-pair"
    folder.mkdir()
    (folder / "recipe.yaml").write_text(Recipe.model_validate(recipe).to_yaml(), encoding="utf-8")
    for name in ("crosscoder.json", "crosscoder.safetensors"):
        (folder / name).write_bytes((steerable_home / "runs" / RUN / name).read_bytes())

    answers = listen(ask().model_copy(update={"run": "half-a-pair"}))
    ended = endings(answers)
    assert {ended[0][0], ended[1][0]} == {"done"}
    assert {ended[2][0], ended[3][0]} == {"failed"}
    assert "gone" in ended[2][1]
    states = {one.source: one for one in client.states("half-a-pair")}
    assert states["gemma3"].state == "failed"
    assert states["gemma3"].reason == ended[2][1]


def test_no_worker_at_the_address_says_so(tmp_path: Path, ask):
    client = Client(RemoteWorker(Address(socket=str(tmp_path / "nobody.sock"))))

    async def go() -> None:
        async for _ in client.generate(ask()):
            pass

    with pytest.raises(WorkerUnreachable, match="does not answer"):
        asyncio.run(go())
    with pytest.raises(WorkerUnreachable):
        client.states(RUN)


def test_requests_that_make_no_sense_never_reach_a_model(supervisor: Supervisor, ask):
    at = supervisor.address()
    body = ask().model_dump(mode="json")
    with httpx.Client(transport=httpx.HTTPTransport(uds=at.socket), base_url=at.url) as http:
        for change in ({"max_activation": 0}, {"run": "../etc"}, {"lanes": []}, {"feature": -1}, {"surprise": 1}):
            assert http.post("/generations", json={**body, **change}).status_code == 422, change
        broken = json.dumps(body).replace('"strength": 3.0', '"strength": NaN')
        assert (
            http.post("/generations", content=broken, headers={"content-type": "application/json"}).status_code == 422
        )


def test_the_hookpoint_of_each_source_is_that_of_its_recipe(steerable_home: Path):
    recipe = steerable_recipe(steerable_home).sources[1]
    source = load_source(recipe)
    assert locate(source, recipe.hookpoint, recipe.layer).module is source.blocks[2]
