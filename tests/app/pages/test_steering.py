"""Steering through the real explorer and a real worker: what is streamed, kept, replayed, stopped and refused."""

import html
import itertools
import os
import re
import shutil
import signal
import threading
import time
from collections.abc import Iterator
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import httpx
import pytest
from fastapi import FastAPI

from tests.worlds.served import served
from tests.worlds.steerable import DEAD, ONLY_GEMMA3, SHARED, write_steerable_run
from tests.worlds.tiny_results import RUN

HTMX = {"HX-Request": "true", "HX-Request-Type": "partial", "HX-Target": "div#steer-result"}
PROMPT = 'The capital of <b>France</b> & "Italy"'
LONG = {"max_tokens": 250, "strength": 0.5}


@dataclass
class Explorer:
    """A running explorer, and a browser without scripts at it."""

    address: str
    app: FastAPI
    browser: httpx.Client

    def ask(self, **form: Any) -> str:
        """Send the form and give the id that it leads to."""
        answer = self.browser.post(f"/runs/{RUN}/generations", data=asked(**form))
        assert answer.status_code == 303, answer.text
        return answer.headers["location"].removeprefix("/generations/").partition("?")[0]

    def events(self, generation: str, last: str = "") -> list[dict[str, str]]:
        """Follow a generation to its end."""
        headers = {"Last-Event-ID": last} if last else {}
        with self.browser.stream("GET", f"/generations/{generation}/events", headers=headers) as stream:
            assert stream.headers["content-type"].startswith("text/event-stream")
            return parse(stream.read().decode())

    def texts(self, generation: str) -> list[str]:
        """The texts on the page, in order of the lanes."""
        page = self.browser.get(f"/generations/{generation}").text
        return [html.unescape(text) for text in re.findall(r'<pre class="text"[^>]*>(.*?)</pre>', page, re.DOTALL)]

    def wait(self, generation: str, *states: str) -> str:
        """Reload until the page shows one of the states."""
        return self.wait_for(generation, rf"state-({'|'.join(states)})\b")

    def wait_for(self, generation: str, pattern: str, seconds: float = 240) -> str:
        """Reload until the page holds the pattern."""
        deadline = time.monotonic() + seconds
        while not re.search(pattern, page := self.browser.get(f"/generations/{generation}").text):
            assert time.monotonic() < deadline, page
            time.sleep(0.05)
        return page


def asked(**form: Any) -> dict[str, Any]:
    """A form as a person would fill it."""
    return {"feature": SHARED, "prompt": PROMPT, "strength": 3, "max_tokens": 10, **form}


def parse(stream: str) -> list[dict[str, str]]:
    """Server-sent events as their fields."""
    events = []
    for block in stream.split("\n\n"):
        lines = [line.partition(": ") for line in block.split("\n") if line and not line.startswith(":")]
        event = {name.rstrip(":"): value for name, _, value in lines if name != "data"}
        event["data"] = "\n".join(value for name, _, value in lines if name == "data")
        if lines:
            events.append(event)
    return events


@pytest.fixture(scope="module")
def home(tmp_path_factory: pytest.TempPathFactory) -> Path:
    home = tmp_path_factory.mktemp("served")
    write_steerable_run(home)
    return home


@pytest.fixture(scope="module")
def explorer(home: Path) -> Iterator[Explorer]:
    with served(home) as (address, app), httpx.Client(base_url=address, timeout=240) as browser:
        yield Explorer(address, app, browser)


def test_a_generation_is_streamed_kept_and_replayed(explorer: Explorer):
    generation = explorer.ask()
    live = explorer.events(generation)
    assert (live[-1]["event"], live[-1]["id"]) == ("done", "end")
    ids = [int(event["id"]) for event in live[:-2]]
    assert ids == sorted(ids)
    texts = explorer.texts(generation)
    assert len(texts) == 4
    assert texts[0] != texts[1]
    # A frame carries only the lanes that have changed since the one before.
    streamed = html.unescape("".join(event["data"] for event in live))
    assert all(text in streamed for text in texts)

    replay = explorer.events(generation)
    assert len(replay) == 2, "everything at once, and the end"
    assert all(text in html.unescape(replay[0]["data"]) for text in texts)
    assert explorer.events(generation, last="end") == [live[-1]], "whoever has heard it all hears only the end"


def test_every_frame_carries_the_whole_text_so_far(explorer: Explorer):
    generation = explorer.ask(max_tokens=40, seed=3)
    frames = [
        html.unescape(found.group(1))
        for event in explorer.events(generation)
        if (found := re.search(r'hx-target="#lane-0".*?<pre class="text"[^>]*>(.*?)</pre>', event["data"], re.DOTALL))
    ]
    assert all(later.startswith(earlier) for earlier, later in itertools.pairwise(frames))
    assert frames[-1] == explorer.texts(generation)[0]


def test_opening_streams_reloading_and_asking_again_start_nothing(explorer: Explorer):
    generation = explorer.ask(seed=11)
    for _ in range(3):
        explorer.events(generation)
        explorer.browser.get(f"/generations/{generation}")
    answer = explorer.browser.post(f"/runs/{RUN}/generations", data=asked(seed=11))
    assert answer.headers["location"] == f"/generations/{generation}?again=1"
    assert "The same request was made" in explorer.browser.get(answer.headers["location"]).text
    page = explorer.browser.get(f"/runs/{RUN}/steer", params={"feature": SHARED}).text
    assert page.count(f"/generations/{generation}") == 1


def test_run_again_makes_a_new_generation_with_the_same_text(explorer: Explorer):
    first = explorer.ask(seed=12)
    explorer.wait(first, "done")
    page = explorer.browser.get(f"/generations/{first}").text
    form = re.search(r'<form method="post" action="/runs/[^"]*/generations">(.*?)</form>', page, re.DOTALL)
    assert form is not None
    fields = dict(re.findall(r'name="(\w+)" value="([^"]*)"', form.group(1)))
    prompt = re.search(r'<textarea name="prompt" hidden>\n(.*?)</textarea>', form.group(1), re.DOTALL)
    assert prompt is not None
    second = (
        explorer.browser.post(f"/runs/{RUN}/generations", data={**fields, "prompt": html.unescape(prompt.group(1))})
        .headers["location"]
        .removeprefix("/generations/")
    )
    assert second != first
    explorer.wait(second, "done")
    assert explorer.texts(second) == explorer.texts(first)


def test_a_feature_that_writes_to_one_source_says_so_for_the_other(explorer: Explorer):
    generation = explorer.ask(feature=ONLY_GEMMA3, strength=8)
    page = explorer.wait(generation, "done")
    texts = explorer.texts(generation)
    assert texts[0] == texts[1]
    assert page.count("The feature does not write here") == 1
    form = explorer.browser.get(f"/runs/{RUN}/steer", params={"feature": ONLY_GEMMA3}).text
    assert "does not write to smollm2" in form


def test_htmx_gets_the_generation_in_place_and_the_page_gets_its_address(explorer: Explorer):
    answer = explorer.browser.post(f"/runs/{RUN}/generations", data=asked(seed=21), headers=HTMX)
    assert answer.status_code == 200
    assert answer.text.lstrip().startswith("<section")
    pushed = answer.headers["HX-Push-Url"]
    assert f'hx-sse:connect="{pushed}/events"' in answer.text
    on_panel = explorer.browser.post(f"/runs/{RUN}/generations", data=asked(seed=22, panel="1"), headers=HTMX)
    assert "HX-Push-Url" not in on_panel.headers, "a feature's page keeps its own address"


def test_the_form_is_filled_from_the_address(explorer: Explorer):
    typed = {
        "feature": 3,
        "prompt": PROMPT,
        "strength": -2.5,
        "positions": "prompt",
        "max_tokens": 77,
        "temperature": 0.7,
        "top_p": 0.9,
        "seed": 5,
        "chat": "False",
    }
    page = explorer.browser.get(f"/runs/{RUN}/steer", params=typed).text
    assert html.escape(PROMPT, quote=False).replace('"', "&#34;") in page
    for name in ("strength", "max_tokens", "temperature", "top_p", "seed", "feature"):
        assert re.search(rf'name="{name}"[^>]* value="{typed[name]}"', page), name
    assert '<option value="prompt" selected>' in page
    assert '<option value="False" selected>' in page


@pytest.mark.parametrize(
    ("form", "problem"),
    [
        ({"prompt": ""}, "prompt: Field required"),
        ({"prompt": "  \n"}, "prompt: type a prompt"),
        ({"prompt": "x" * 8001}, "prompt: String should have at most 8000 characters"),
        ({"prompt": "a\x00b"}, "control character U+0000"),
        ({"strength": "nan"}, "strength: Input should be a finite number"),
        ({"strength": "1e9"}, "strength: Input should be less than or equal to 100"),
        ({"strength": "much"}, "strength: Input should be a valid number"),
        ({"max_tokens": 401}, "max_tokens: Input should be less than or equal to 400"),
        ({"mode": "clamp"}, "mode 'clamp' is not built yet; use 'add'"),
        ({"feature": DEAD}, "The feature never fired"),
    ],
)
@pytest.mark.parametrize("headers", [HTMX, {}])
def test_what_makes_no_sense_is_refused_and_the_form_keeps_it(explorer: Explorer, form, problem, headers):
    answer = explorer.browser.post(f"/runs/{RUN}/generations", data=asked(**form), headers=headers)
    assert answer.status_code == 422
    assert problem in html.unescape(answer.text)
    if not headers:
        for name, value in form.items():
            if name not in ("mode", "prompt"):
                assert f'value="{value}"' in answer.text


@pytest.mark.parametrize("path", ["/generations/nothing", "/generations/nothing/events"])
def test_a_generation_that_is_not_there_is_404(explorer: Explorer, path: str):
    assert explorer.browser.get(path).status_code == 404
    assert explorer.browser.post("/generations/nothing/stop").status_code == 404


def test_a_feature_that_is_not_there_is_404(explorer: Explorer):
    assert explorer.browser.post(f"/runs/{RUN}/generations", data=asked(feature=999)).status_code == 404
    assert "no feature 999" in explorer.browser.get(f"/runs/{RUN}/steer", params={"feature": 999}).text


def test_stop_ends_it_and_keeps_the_text(explorer: Explorer):
    generation = explorer.ask(**LONG, seed=31)
    with explorer.browser.stream("GET", f"/generations/{generation}/events") as stream:
        for line in stream.iter_lines():
            if "generating" in line:
                break
    assert explorer.browser.post(f"/generations/{generation}/stop").status_code == 303
    page = explorer.wait(generation, "stopped")
    assert "the text generated so far is kept" in page
    assert explorer.events(generation)[-1]["event"] == "done"


def last_parts(events: str) -> dict[str, str]:
    """What stands last in every part of the page; somebody who comes late gets several parts in one event."""
    frames = "".join(one["data"] for one in parse(events))
    return dict(re.findall(r'<hx-partial hx-target="([^"]+)"[^>]*>(.*?)</hx-partial>', frames, re.DOTALL))


def test_those_who_watch_may_go_and_come_and_several_see_the_same(explorer: Explorer):
    generation = explorer.ask(**LONG, seed=32)
    with explorer.browser.stream("GET", f"/generations/{generation}/events") as stream:
        next(stream.iter_lines())
    seen: list[str] = []

    def watch() -> None:
        with httpx.Client(base_url=explorer.address, timeout=240) as other:
            seen.append(other.get(f"/generations/{generation}/events").text)

    watchers = [threading.Thread(target=watch) for _ in range(20)]
    for watcher in watchers:
        watcher.start()
    assert explorer.browser.get(f"/runs/{RUN}/steer").status_code == 200, "streams hold no database connection"
    for watcher in watchers:
        watcher.join()
    ends = [last_parts(text) for text in seen]
    assert all(one == ends[0] for one in ends)
    assert "state-done" in ends[0]["#generation-status"]


def test_when_too_many_are_under_way_the_next_is_told_to_come_back(explorer: Explorer, monkeypatch):
    monkeypatch.setattr("app.generations.live.LARGEST_COUNT", 4)
    crowd = [explorer.ask(**LONG, seed=100 + number) for number in range(4)]
    answer = explorer.browser.post(f"/runs/{RUN}/generations", data=asked(seed=99))
    assert (answer.status_code, answer.headers["Retry-After"]) == (503, "10")
    assert "Try again in a moment" in answer.text
    assert html.escape(PROMPT, quote=False).replace('"', "&#34;") in answer.text, "the form keeps the prompt"
    explorer.wait_for(crowd[-1], r"Waiting; [123] ahead in the queue")
    for generation in reversed(crowd):
        explorer.browser.post(f"/generations/{generation}/stop")
    for generation in crowd:
        explorer.wait(generation, "stopped", "done")


@pytest.mark.slow
def test_a_worker_killed_in_the_middle_fails_clearly_keeps_the_text_and_comes_back(explorer: Explorer):
    generation = explorer.ask(**LONG, seed=41)
    while not any(len(text) > 20 for text in explorer.texts(generation)):
        time.sleep(0.05)
    os.kill(explorer.app.state.supervisor.process(), signal.SIGKILL)
    page = explorer.wait(generation, "failed")
    assert "The inference worker ended in the middle" in page
    assert any(len(text) > 20 for text in explorer.texts(generation))
    again = explorer.ask(**LONG, seed=41)
    assert again != generation, "a failed one is no answer"
    explorer.wait(again, "done")


@pytest.mark.slow
def test_closing_the_explorer_keeps_the_text(home: Path, tmp_path: Path):
    shutil.copytree(home, tmp_path / "home", ignore=shutil.ignore_patterns("labels.db*"))
    with served(tmp_path / "home") as (address, app), httpx.Client(base_url=address, timeout=240) as browser:
        explorer = Explorer(address, app, browser)
        generation = explorer.ask(**LONG, seed=51)
        while not any(len(text) > 20 for text in explorer.texts(generation)):
            time.sleep(0.05)
    with served(tmp_path / "home") as (address, app), httpx.Client(base_url=address, timeout=240) as browser:
        explorer = Explorer(address, app, browser)
        page = explorer.wait(generation, "failed")
        assert "shut down while this was running" in page
        assert any(len(text) > 20 for text in explorer.texts(generation))


def test_no_run_of_another_site_starts_anything(explorer: Explorer):
    answer = explorer.browser.post(f"/runs/{RUN}/generations", data=asked(), headers={"Sec-Fetch-Site": "cross-site"})
    assert answer.status_code == 403
