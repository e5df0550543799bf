"""What the worker is given may be odd, changed or frozen: it says so in a sentence, and serves the next request."""

import asyncio
import json
import os
import shutil
import signal
import socket
import subprocess
import sys
import threading
import time
from collections.abc import Callable, Iterator
from pathlib import Path

import httpx
import pytest

from app.inference import client as client_module
from app.inference import supervisor as supervisor_module
from app.inference.client import Address, Client, RemoteWorker, WorkerUnreachable
from app.inference.messages import Answer, Ended, GenerationRequest, Started
from app.inference.supervisor import FOLDER, LOCK, Supervisor
from app.settings import REPOSITORY
from tests.worlds.tiny_models import CHAT_TEMPLATE, tiny_llama
from tests.worlds.tiny_results import RUN
from trainer.models.files import find_model
from trainer.run.folder import RunFolder

Listen = Callable[[GenerationRequest], list[Answer]]


@pytest.fixture(scope="module")
def own_home(steerable_home: Path, tmp_path_factory: pytest.TempPathFactory) -> Path:
    """A copy of the home that tests here may change, and put back."""
    home = tmp_path_factory.mktemp("hostile") / "home"
    shutil.copytree(steerable_home, home)
    recipe = RunFolder(home / "runs" / RUN).recipe
    recipe.write_text(recipe.read_text().replace(str(steerable_home), str(home)))
    return home


@pytest.fixture(scope="module")
def supervisor(own_home: Path) -> Iterator[Supervisor]:
    """Starts a worker on that home."""
    supervisor = Supervisor(own_home)
    yield supervisor
    supervisor.stop()


def endings(answers: list[Answer]) -> dict[int, tuple[str, str]]:
    """How each lane ended."""
    return {answer.lane: (answer.state, answer.reason) for answer in answers if isinstance(answer, Ended)}


def in_a_fresh_worker(home: Path, request: GenerationRequest) -> list[Answer]:
    """All answers of a worker that has loaded nothing yet."""
    supervisor = Supervisor(home)
    try:
        return asyncio.run(all_answers(Client(supervisor), request))
    finally:
        supervisor.stop()


async def all_answers(client: Client, request: GenerationRequest) -> list[Answer]:
    return [answer async for answer in client.generate(request)]


@pytest.fixture
def template(own_home: Path) -> Iterator[Callable[[str], None]]:
    """Writes the chat template of smollm2, under a new model folder's name each time."""
    file = own_home / "models" / "llama" / "chat_template.jinja"
    yield lambda text: file.write_text(text, encoding="utf-8")
    file.write_text(CHAT_TEMPLATE, encoding="utf-8")


LINE_ENDS = "\u2028\u2029\x85\x0b\x0c\x1c\x1d\x1e"
"""What `str.splitlines` splits at, besides LF."""


def test_characters_that_unicode_counts_as_line_ends_pass_in_what_the_model_reads(own_home: Path, template, ask):
    template("<" + "-".join(LINE_ENDS) + ">{{ messages[0].content }}")
    answers = in_a_fresh_worker(own_home, ask(chat=True, sources=("smollm2",), max_tokens=2))
    assert {state for state, _ in endings(answers).values()} == {"done"}
    shown = next(one.prompt for one in answers if isinstance(one, Started))
    assert shown == "<|im_start|><" + "-".join(LINE_ENDS) + ">The capital of France"


@pytest.mark.parametrize("character", ["\u2028", "\u2029"])
def test_they_pass_in_prompts(listen: Listen, ask, character: str):
    answers = listen(ask(prompt=f"a{character}b{character}", max_tokens=2))
    assert {state for state, _ in endings(answers).values()} == {"done"}
    assert [one.prompt.count(character) for one in answers if isinstance(one, Started)] == [2, 2, 2, 2]


@pytest.mark.slow
def test_an_endless_template_fails_its_source_alone_and_the_next_request_is_served(own_home: Path, template, ask):
    template("{% for a in range(99999) %}{% for b in range(99999) %}{% endfor %}{% endfor %}")
    supervisor = Supervisor(own_home)
    client = Client(supervisor)
    try:
        ended = endings(asyncio.run(all_answers(client, ask(chat=True))))
        assert {ended[0][0], ended[1][0]} == {"failed"}
        assert ended[0][1].startswith("smollm2: the model's chat template takes too long")
        assert {ended[2][0], ended[3][0]} == {"done"}
        assert {state for state, _ in endings(asyncio.run(all_answers(client, ask()))).values()} == {"done"}
    finally:
        supervisor.stop()


def stored_as_read(home: Path) -> None:
    """Write what the run's store says of its models: that they are those of now."""
    store = home / "activations" / "of-the-run"
    store.mkdir(parents=True, exist_ok=True)
    folders = {"smollm2": "llama", "gemma3": "gemma"}
    sources = [
        {"name": name, "width": 16, "revision": find_model(name, str(home / "models" / folder)).revision}
        for name, folder in folders.items()
    ]
    (store / "manifest.json").write_text(json.dumps({"sources": sources}))
    RunFolder(home / "runs" / RUN).store.write_text(json.dumps({"path": str(store)}))


def test_a_model_that_was_trained_on_since_the_run_is_not_steered_with_its_features(own_home: Path, ask):
    stored_as_read(own_home)
    model = own_home / "models" / "llama"
    kept = own_home / "kept"
    shutil.copytree(model, kept)
    supervisor = Supervisor(own_home)
    client = Client(supervisor)
    try:
        tiny_llama(model, seed=7)
        ended = endings(asyncio.run(all_answers(client, ask())))
        assert ended[0][0] == ended[1][0] == "failed"
        assert "has changed since the run read it" in ended[0][1]
        assert {ended[2][0], ended[3][0]} == {"done"}
        states = {one.source: one for one in client.states(RUN)}
        assert (states["smollm2"].state, states["gemma3"].state) == ("failed", "ready")

        shutil.rmtree(model)
        shutil.copytree(kept, model)
        assert {state for state, _ in endings(asyncio.run(all_answers(client, ask()))).values()} == {"done"}, "put back"
        tiny_llama(model, seed=7)
        assert {state for state, _ in endings(asyncio.run(all_answers(client, ask()))).values()} == {"done"}, "loaded"
        stored_as_read(own_home)
        assert {state for state, _ in endings(asyncio.run(all_answers(client, ask()))).values()} == {"done"}, (
            "run again"
        )
    finally:
        supervisor.stop()
        RunFolder(own_home / "runs" / RUN).store.unlink()
        shutil.rmtree(model)
        shutil.move(kept, model)


@pytest.mark.parametrize(
    "pointer",
    ["", "[]", "{}", '{"path": 3}', '{"path": "/nowhere"}', '{"path": "HERE"}'],
    ids=lambda text: text or "empty",
)
def test_a_store_that_says_nothing_keeps_nobody_from_steering(own_home: Path, listen: Listen, ask, pointer: str):
    file = RunFolder(own_home / "runs" / RUN).store
    (own_home / "manifest.json").write_text(
        '{"sources": [{"name": "smollm2", "revision": "main"}, {"name": "gemma3"}]}'
    )
    file.write_text(pointer.replace("HERE", str(own_home)))
    try:
        assert {state for state, _ in endings(listen(ask(max_tokens=1))).values()} == {"done"}
    finally:
        file.unlink()


@pytest.mark.slow
@pytest.mark.filterwarnings("ignore:Exception ignored in. <socket:pytest.PytestUnraisableExceptionWarning")
def test_a_frozen_worker_is_noticed_and_started_again(own_home: Path, ask, monkeypatch: pytest.MonkeyPatch):
    monkeypatch.setattr(supervisor_module, "FROZEN_AFTER", 8.0)
    supervisor = Supervisor(own_home)
    client = Client(supervisor)

    frozen = threading.Event()

    async def freeze_in_the_middle() -> None:
        async for answer in client.generate(ask(max_tokens=400)):
            if answer.kind == "text" and answer.tokens == 3:
                os.kill(supervisor.process() or 0, signal.SIGSTOP)
                frozen.set()

    async def page_times() -> list[float]:
        await asyncio.to_thread(frozen.wait)
        times = []
        for _ in range(4):
            began = time.monotonic()
            states = await asyncio.to_thread(client.states_or_absent, RUN, ("smollm2",))
            times.append(time.monotonic() - began)
            assert [one.state for one in states] == ["absent"]
        return times

    async def both() -> list[float]:
        times, outcome = await asyncio.gather(page_times(), freeze_in_the_middle(), return_exceptions=True)
        assert isinstance(outcome, WorkerUnreachable)
        assert "a worker that no longer answers is ended" in str(outcome)
        assert not isinstance(times, BaseException)
        return times

    try:
        supervisor.address()
        before = supervisor.process()
        assert max(asyncio.run(both())[1:]) < 0.5, "a page after the first does not wait"
        assert endings(asyncio.run(all_answers(client, ask(max_tokens=1)))), "and the next is served"
        assert supervisor.process() != before
    finally:
        supervisor.stop()


def test_a_process_that_waits_for_the_processor_is_not_frozen():
    spins, sleeps = (
        subprocess.Popen([sys.executable, "-c", f"print(flush=True)\n{program}"], stdout=subprocess.PIPE)
        for program in ("while True: pass", "import time; time.sleep(60)")
    )
    try:
        for process in (spins, sleeps):
            assert process.stdout is not None
            process.stdout.readline()
        time.sleep(0.5)
        waits = supervisor_module._waits_for_machine
        assert (waits(spins.pid), waits(sleeps.pid)) == (True, False)
        spins.send_signal(signal.SIGSTOP)
        time.sleep(0.2)
        assert not waits(spins.pid)
    finally:
        for process in (spins, sleeps):
            process.kill()
            process.communicate()
    assert not waits(spins.pid)


@pytest.mark.slow
def test_a_worker_elsewhere_that_is_frozen_is_given_up(own_home: Path, ask, monkeypatch: pytest.MonkeyPatch):
    monkeypatch.setattr(client_module, "GENERATION_TIMEOUT", httpx.Timeout(10.0, read=4.0))
    path = Path("/tmp") / f"crossdiff-test-{os.getpid()}-elsewhere.sock"
    command = [sys.executable, "-m", "app.worker.server", "--home", str(own_home), "--socket", str(path)]
    worker = subprocess.Popen(command, cwd=REPOSITORY)
    client = Client(RemoteWorker(Address(socket=str(path))))

    async def freeze_in_the_middle() -> None:
        async for answer in client.generate(ask(max_tokens=400)):
            if answer.kind == "text" and answer.tokens == 3:
                worker.send_signal(signal.SIGSTOP)

    try:
        while not path.exists():
            time.sleep(0.1)
        with pytest.raises(WorkerUnreachable, match="stopped answering"):
            asyncio.run(freeze_in_the_middle())
    finally:
        worker.kill()
        worker.wait()
        path.unlink(missing_ok=True)


def test_a_worker_that_thinks_for_long_says_that_it_lives(own_home: Path, monkeypatch: pytest.MonkeyPatch, ask):
    """Longer between two answers than the reader waits for any sign."""
    from app.worker import server
    from app.worker.model_cache import ModelCache

    def slow(recipe: object) -> None:
        time.sleep(2.5)
        raise MemoryError

    monkeypatch.setattr(server, "ALIVE_EVERY", 0.2)
    monkeypatch.setattr(client_module, "GENERATION_TIMEOUT", httpx.Timeout(5.0, read=1.0))
    import uvicorn

    app = server.create_worker(own_home, models=ModelCache(load=slow))
    path = Path("/tmp") / f"crossdiff-test-{os.getpid()}.sock"

    async def go() -> list[Answer]:
        serving = uvicorn.Server(uvicorn.Config(app, uds=str(path), log_level="warning"))
        task = asyncio.create_task(serving.serve())
        while not serving.started:  # noqa: ASYNC110 - it has no event
            await asyncio.sleep(0.02)
        try:
            return await all_answers(Client(RemoteWorker(Address(socket=str(path)))), ask(sources=("smollm2",)))
        finally:
            serving.should_exit = True
            await task

    answers = asyncio.run(go())
    assert {"alive"}.isdisjoint(answer.kind for answer in answers)
    assert "not enough memory" in endings(answers)[0][1]


def test_the_folder_of_a_killed_explorer_is_removed_at_the_next_start_and_no_other(
    own_home: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
):
    monkeypatch.setattr("tempfile.tempdir", str(tmp_path))
    program = f"""
import tempfile, time
from pathlib import Path
tempfile.tempdir = {str(tmp_path)!r}
from app.inference.supervisor import Supervisor
supervisor = Supervisor(Path({str(own_home)!r}))
print(supervisor.address().socket, flush=True)
time.sleep(60)
"""
    explorers = [
        subprocess.Popen([sys.executable, "-c", program], cwd=REPOSITORY, stdout=subprocess.PIPE, text=True)
        for _ in range(2)
    ]
    try:
        folders = [Path(one.stdout.readline().strip()).parent for one in explorers]  # type: ignore[union-attr]
        explorers[0].kill()
        explorers[0].wait()
        (tmp_path / f"{FOLDER}unlocked").mkdir()
        third = Supervisor(own_home)
        mine = Path(str(third.address().socket)).parent
        assert not folders[0].exists()
        assert {path.name for path in tmp_path.iterdir()} == {folders[1].name, mine.name, f"{FOLDER}unlocked"}
        assert (mine / LOCK).stat().st_mode & 0o077 == 0 or mine.stat().st_mode & 0o077 == 0
        third.stop()
        assert not mine.exists()
    finally:
        for one in explorers:
            one.kill()
            one.wait()
            one.stdout.close()  # type: ignore[union-attr]


@pytest.mark.slow
@pytest.mark.parametrize("token", ["Grüße-秘密", " white space around "])
def test_tokens_may_be_words_of_any_language(own_home: Path, token: str):
    from app.inference.connect import connect
    from app.settings import Settings

    with socket.socket() as probe:
        probe.bind(("127.0.0.1", 0))
        port = probe.getsockname()[1]
    environment = {**os.environ, "CROSSDIFF_WORKER_TOKEN": token}
    command = [sys.executable, "-m", "app.worker.server", "--home", str(own_home), "--port", str(port)]
    worker = subprocess.Popen(command, cwd=REPOSITORY, env=environment)
    try:
        while True:
            try:
                httpx.get(f"http://127.0.0.1:{port}/healthz")
                break
            except httpx.ConnectError:
                time.sleep(0.1)
        at = {"CROSSDIFF_WORKER_URL": f"http://127.0.0.1:{port}", "CROSSDIFF_WORKER_TOKEN": token}
        client, _ = connect(Settings.from_environment(at))
        assert len(client.states(RUN)) == 2
    finally:
        worker.terminate()
        worker.wait()


@pytest.mark.parametrize("token", ["two\nlines", "bell\a", "nul\x00"])
def test_a_token_that_no_header_can_carry_is_refused_at_start(token: str, monkeypatch: pytest.MonkeyPatch, capsys):
    from app.errors import BadSetting
    from app.settings import Settings
    from app.worker.server import main

    with pytest.raises(BadSetting, match="CROSSDIFF_WORKER_TOKEN holds a control character"):
        Settings.from_environment({"CROSSDIFF_WORKER_TOKEN": token})
    monkeypatch.setattr(os, "environ", {"CROSSDIFF_WORKER_TOKEN": token})
    with pytest.raises(SystemExit):
        main([])
    assert "holds a control character" in capsys.readouterr().err
