"""A Chromium at an explorer with a tiny run; every test fails on a broken content security policy or a script error."""

from collections.abc import Iterator
from pathlib import Path

import pytest
from playwright.sync_api import Browser, BrowserContext, ConsoleMessage, Page, sync_playwright

from app.settings import Settings
from tests.worlds.compared import COMPARED, DIVERGING, FOUND
from tests.worlds.judged import CALIBRATED
from tests.worlds.served import served
from tests.worlds.tiny_results import write_tiny_run

JUDGED_RUN = "judged-00000000"
AXE = Settings().frontend / "node_modules" / "axe-core" / "axe.min.js"
ARGUMENTS = [
    "--headless",
    "--no-sandbox",
    "--disable-gpu",
    "--disable-dev-shm-usage",
    "--disable-background-networking",
]
LISTEN = """
window.violations = [];
document.addEventListener("securitypolicyviolation", (event) =>
  console.error("violation", event.violatedDirective, event.blockedURI, event.sample));
"""


@pytest.fixture(scope="session")
def world(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """A home with two finished runs: one as it is, one judged, calibrated and compared without a crosscoder."""
    home = tmp_path_factory.mktemp("browser-home")
    write_tiny_run(home, run=JUDGED_RUN, amend=(*CALIBRATED, *COMPARED, *FOUND, *DIVERGING))
    write_tiny_run(home)
    return home


@pytest.fixture(scope="session")
def site(world: Path) -> Iterator[str]:
    """Address of an explorer over that home."""
    with served(world) as (address, _):
        yield address


@pytest.fixture(scope="module")
def chromium(chromium_path: str) -> Iterator[Browser]:
    """One Chromium for a module's tests; each test has its own profile in it."""
    with sync_playwright() as playwright:
        browser = playwright.chromium.launch(executable_path=chromium_path, args=ARGUMENTS)
        yield browser
        browser.close()


@pytest.fixture
def complaints() -> list[str]:
    """Errors that the browser reported."""
    return []


@pytest.fixture
def profile(chromium: Browser, site: str, complaints: list[str]) -> Iterator[BrowserContext]:
    """A fresh profile: no cookies, nothing stored."""
    context = chromium.new_context(base_url=site, viewport={"width": 1280, "height": 900})
    context.set_default_timeout(20_000)
    context.add_init_script(LISTEN)
    yield context
    context.close()
    assert complaints == []


@pytest.fixture
def tab(profile: BrowserContext, complaints: list[str]) -> Page:
    """A tab whose errors are recorded."""
    page = profile.new_page()
    listen(page, complaints)
    return page


def listen(page: Page, complaints: list[str]) -> None:
    """Record console and script errors."""

    def keep(message: ConsoleMessage) -> None:
        if message.type == "error" and "404" not in message.text and "422" not in message.text:
            complaints.append(message.text)

    page.on("console", keep)
    page.on("pageerror", lambda error: complaints.append(str(error)))


def axe_violations(page: Page) -> list[str]:
    """What axe-core finds wrong, one line each."""
    page.evaluate(AXE.read_text(encoding="utf-8"))
    found = page.evaluate("axe.run()")["violations"]
    return [f"{rule['id']}: {rule['nodes'][0]['html'][:200]} ({len(rule['nodes'])})" for rule in found]
