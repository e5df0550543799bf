"""Charts of a run's method in a real browser."""

import re

import pytest
from playwright.sync_api import Page, expect

from tests.worlds.tiny_results import RUN

pytestmark = pytest.mark.browser


def test_a_bar_of_the_method_opens_its_features(tab: Page):
    tab.goto(f"/runs/{RUN}/method", wait_until="networkidle")
    bar = tab.locator("#density .bars .point path").first
    bar.scroll_into_view_if_needed()
    box = bar.bounding_box()
    tab.mouse.click(box["x"] + box["width"] / 2, box["y"] + box["height"] / 2)

    expect(tab).to_have_url(re.compile(r"density_min=.*density_max="))


def test_charts_follow_the_theme_and_the_choice_stays(tab: Page):
    tab.emulate_media(color_scheme="light")
    tab.goto(f"/runs/{RUN}/method", wait_until="networkidle")
    ink = "() => getComputedStyle(document.querySelector('#owners .xtick text')).fill"
    light = tab.evaluate(ink)
    toggle = tab.get_by_role("button", name=re.compile("Theme"))
    toggle.click()
    toggle.click()
    expect(toggle).to_contain_text("dark")
    tab.wait_for_function(f"({ink})() !== '{light}'")

    tab.goto(f"/runs/{RUN}/features")
    assert tab.evaluate("document.documentElement.dataset.theme") == "dark"
