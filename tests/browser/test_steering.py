"""Steering and labelling in a real browser: text streams in, nothing is lost, the content policy always holds."""

import re
from collections.abc import Iterator
from dataclasses import dataclass, field
from pathlib import Path

import pytest
from playwright.sync_api import Browser, Page, Route, expect

from tests.browser.conftest import axe_violations
from tests.worlds.served import served
from tests.worlds.steerable import ONLY_GEMMA3, SHARED, write_steerable_run
from tests.worlds.tiny_results import RUN

pytestmark = pytest.mark.browser

FEATURE = f"/runs/{RUN}/features/{SHARED}"
HOSTILE = """<img src=x onerror="document.title='pwned'"><script>document.title='pwned'</script>"""
PATIENCE = 240_000
"""Milliseconds: the first generation loads torch and the models."""


@dataclass
class Tab:
    """A page and the errors it reported."""

    page: Page
    address: str
    complaints: list[str] = field(default_factory=list)

    def open(self, path: str) -> Page:
        """Go to a page of the explorer."""
        self.page.goto(self.address + path)
        return self.page


@pytest.fixture(scope="module")
def address(tmp_path_factory: pytest.TempPathFactory) -> Iterator[str]:
    """An explorer whose models can generate."""
    home: Path = tmp_path_factory.mktemp("served")
    write_steerable_run(home)
    with served(home) as (address, _):
        yield address


@pytest.fixture(autouse=True)
def patience() -> Iterator[None]:
    """Raise the timeout, since test machines may be busy."""
    expect.set_options(timeout=30_000)
    yield
    expect.set_options(timeout=5_000)


@pytest.fixture
def tab(chromium: Browser, address: str) -> Iterator[Tab]:
    """A fresh visitor's tab; at its end nothing may have been reported."""
    context = chromium.new_context()
    page = context.new_page()
    tab = Tab(page, address)
    page.on("console", lambda message: tab.complaints.append(message.text) if message.type == "error" else None)
    page.on("pageerror", lambda error: tab.complaints.append(str(error)))
    yield tab
    context.close()
    # A refused form is an answer with status 409, 422 or 503, which Chromium calls an error.
    assert [text for text in tab.complaints if "status of 4" not in text and "status of 503" not in text] == []


def generate(page: Page, prompt: str, **numbers: float) -> None:
    """Fill the form and send it."""
    page.get_by_label("Prompt", exact=True).fill(prompt)
    if set(numbers) - {"strength"}:
        page.get_by_text("More", exact=True).click()
    for name, value in numbers.items():
        page.locator(f"input[name={name}]").fill(str(value))
    page.get_by_role("button", name="Generate").click()


def done(page: Page) -> list[str]:
    """Wait for the end and give the texts."""
    expect(page.locator("#generation-status .state")).to_have_text(re.compile(r"\s*Done\s*"), timeout=PATIENCE)
    return page.locator(".lane .text").all_text_contents()


def test_from_the_feature_page_both_models_answer_with_and_without(tab: Tab):
    page = tab.open(FEATURE)
    generate(page, "The capital", strength=8, max_tokens=15)
    expect(page.locator(".lane")).to_have_count(4, timeout=PATIENCE)
    texts = done(page)
    assert page.url.endswith(FEATURE), "the feature's page keeps its address"
    assert texts[0] != texts[1]
    assert texts[2] != texts[3]
    page.get_by_role("link", name="permalink").click()
    expect(page.locator("h1")).to_contain_text(f"feature {SHARED}")
    assert page.locator(".lane .text").all_text_contents() == texts


def test_text_grows_on_the_page_and_a_second_viewer_and_a_reload_see_the_same(tab: Tab, chromium: Browser):
    page = tab.open(f"/runs/{RUN}/steer?feature={SHARED}")
    generate(page, "Once upon a time", strength=0.5, max_tokens=300)
    expect(page).to_have_url(re.compile(r"/generations/[\w-]+$"))
    expect(page.locator("#lane-0 .text")).to_have_text(re.compile(r".{6}", re.DOTALL), timeout=PATIENCE)
    early = page.locator("#lane-0 .text").text_content() or ""
    other = chromium.new_page()
    other.goto(page.url)
    texts = done(page)
    assert texts[0].startswith(early)
    assert len(texts[0]) > len(early), "it was still growing"
    assert done(other) == texts
    other.close()
    page.reload()
    assert page.locator(".lane .text").all_text_contents() == texts
    expect(page.get_by_role("button", name="Stop")).to_have_count(0)


def test_a_generation_is_followed_also_where_scripts_come_late(tab: Tab, chromium: Browser):
    page = tab.open(f"/runs/{RUN}/steer?feature={SHARED}")
    generate(page, "Late", strength=0.5, max_tokens=300)
    expect(page).to_have_url(re.compile(r"/generations/[\w-]+$"))
    other = chromium.new_page()

    def late(route: Route) -> None:
        other.wait_for_timeout(500)
        route.continue_()

    other.route("**/hx-sse.js*", late)
    other.goto(page.url)
    assert done(other) == done(page)
    other.close()


def test_a_stream_that_does_not_come_about_is_tried_again(tab: Tab):
    page = tab.open(f"/runs/{RUN}/steer?feature={SHARED}&max_tokens=8&seed=77&prompt=Lost+on+the+way")
    failures = iter(["abort", "refuse"])

    def fail_twice(route: Route) -> None:
        match next(failures, None):
            case "abort":
                route.abort()
            case "refuse":
                route.fulfill(status=503, body="<p>not now</p>", content_type="text/html")
            case _:
                route.continue_()

    page.route("**/events", fail_twice)
    page.get_by_role("button", name="Generate").click()
    assert len(done(page)) == 4
    assert next(failures, None) is None
    tab.complaints.clear()


def test_stop_stops(tab: Tab):
    page = tab.open(f"/runs/{RUN}/steer?feature={SHARED}&max_tokens=400&strength=0.5&seed=5&prompt=Stop+me")
    page.get_by_role("button", name="Generate").click()
    expect(page.locator("#lane-0 .text")).to_have_text(re.compile(r".{6}", re.DOTALL), timeout=PATIENCE)
    page.get_by_role("button", name="Stop").click()
    expect(page.locator("#generation-status .state")).to_contain_text("Stopped", timeout=PATIENCE)
    expect(page.get_by_role("button", name="Run again")).to_be_visible()
    expect(page.locator("#steer-models")).to_contain_text("smollm2: loaded")


def test_back_and_forward_between_form_and_generation(tab: Tab):
    page = tab.open(f"/runs/{RUN}/steer?feature={SHARED}&prompt=There+and+back&max_tokens=5")
    page.get_by_role("button", name="Generate").click()
    expect(page).to_have_url(re.compile(r"/generations/[\w-]+$"))
    texts = done(page)
    page.go_back()
    expect(page.get_by_label("Prompt", exact=True)).to_have_value("There and back")
    page.go_forward()
    expect(page.locator(".lane .text")).to_have_text(texts, use_inner_text=False)


def test_slider_and_number_follow_each_other_and_obey_the_keyboard(tab: Tab):
    page = tab.open(FEATURE)
    slider, number = page.locator("input[type=range]"), page.locator("input[name=strength]")
    expect(slider).to_be_visible()
    number.fill("-2.5")
    expect(slider).to_have_value("-2.5")
    slider.focus()
    page.keyboard.press("ArrowRight")
    expect(number).to_have_value("-2")


def test_a_source_that_is_left_alone_is_marked(tab: Tab):
    page = tab.open(f"/runs/{RUN}/steer?feature={ONLY_GEMMA3}&strength=8&max_tokens=8&prompt=Hello")
    expect(page.get_by_text("The feature does not write to smollm2")).to_be_visible()
    page.get_by_role("button", name="Generate").click()
    texts = done(page)
    assert texts[0] == texts[1]
    expect(page.get_by_text("The feature does not write here")).to_have_count(1)


def test_a_refused_form_keeps_what_was_typed(tab: Tab):
    page = tab.open(f"/runs/{RUN}/steer?feature=15&prompt=Dead+feature")
    page.get_by_role("button", name="Generate").click()
    expect(page.locator("#steer-result [role=alert]")).to_contain_text("never fired")
    expect(page.get_by_label("Prompt", exact=True)).to_have_value("Dead feature")


def test_hostile_prompt_and_label_stay_text(tab: Tab):
    page = tab.open(FEATURE)
    generate(page, HOSTILE, max_tokens=3)
    done(page)
    expect(page.locator(".asked pre")).to_have_text(HOSTILE)
    page.get_by_label("Your name").fill("<b>Ada</b>")
    page.get_by_label("Label", exact=True).fill(HOSTILE)
    page.get_by_role("button", name="Save label").click()
    expect(page.locator("#labels [role=status]")).to_have_text("Saved.")
    expect(page.locator("#labels .label-list .label-text")).to_have_text(HOSTILE)
    assert page.title() != "pwned"
    page.reload()
    assert page.title() != "pwned"


def test_two_tabs_label_the_same_feature_and_nothing_is_lost(tab: Tab):
    here = f"/runs/{RUN}/features/5"
    page = tab.open(here)
    page.get_by_label("Your name").fill("Bo")
    page.get_by_label("Label", exact=True).fill("first")
    page.get_by_role("button", name="Save label").click()
    expect(page.locator("#labels [role=status]")).to_have_text("Saved.")
    second = page.context.new_page()
    second.goto(tab.address + here)
    page.get_by_label("Label", exact=True).fill("from tab one")
    page.get_by_role("button", name="Save label").click()
    expect(page.locator("#labels .label-list .label-text")).to_have_text("from tab one")
    second.get_by_label("Label", exact=True).fill("from tab two")
    second.get_by_role("button", name="Save label").click()
    expect(second.locator("#labels [role=alert]").first).to_contain_text("nothing was overwritten")
    expect(second.get_by_label("Label", exact=True)).to_have_value("from tab two")
    second.get_by_role("button", name="Save label").click()
    expect(second.locator("#labels .label-list .label-text")).to_have_text("from tab two")
    second.get_by_text("History (3)").click()
    expect(second.locator("#labels .history .label-text")).to_have_text(["from tab two", "from tab one", "first"])


def test_when_the_explorer_does_not_answer_the_form_says_so_and_keeps_the_text(tab: Tab):
    page = tab.open(f"/runs/{RUN}/features/6")
    page.get_by_label("Your name").fill("Bo")
    page.get_by_label("Label", exact=True).fill("precious")
    page.route("**/labels", lambda route: route.abort())
    page.get_by_role("button", name="Save label").click()
    expect(page.locator("#labels [data-form-error]")).to_contain_text("does not answer")
    expect(page.get_by_label("Label", exact=True)).to_have_value("precious")
    tab.complaints.clear()


def test_forms_and_texts_are_accessible(tab: Tab):
    page = tab.open(f"/runs/{RUN}/steer?feature={ONLY_GEMMA3}&max_tokens=4&prompt=For+everybody")
    page.get_by_text("More", exact=True).click()
    assert axe_violations(page) == []
    page.get_by_role("button", name="Generate").click()
    done(page)
    page.reload()
    assert axe_violations(page) == []
    page = tab.open(f"/runs/{RUN}/features/9/labels")
    page.get_by_label("Your name").fill("Di")
    page.get_by_label("Label", exact=True).fill("something")
    page.get_by_role("button", name="Save label").click()
    expect(page.locator("#labels [role=status]")).to_have_text("Saved.")
    page.get_by_text("History (1)").click()
    assert axe_violations(page) == []


def test_everything_works_without_scripts(chromium: Browser, address: str):
    context = chromium.new_context(java_script_enabled=False)
    page = context.new_page()
    page.goto(address + FEATURE)
    page.get_by_label("Prompt", exact=True).fill("No scripts")
    page.get_by_text("More", exact=True).click()
    page.locator("input[name=max_tokens]").fill("5")
    page.get_by_role("button", name="Generate").click()
    expect(page).to_have_url(re.compile(r"/generations/[\w-]+$"))
    assert len(done(page)) == 4, "the page reloads by itself until all is said"
    page.goto(address + f"/runs/{RUN}/features/7")
    page.get_by_label("Your name").fill("Cy")
    page.get_by_label("Label", exact=True).fill("by hand")
    page.get_by_role("button", name="Save label").click()
    expect(page.locator("#labels .label-list .label-text")).to_have_text("by hand")
    context.close()
