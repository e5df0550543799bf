"""Ten features are labelled by keyboard alone, in a real browser."""

import re

import pytest
from playwright.sync_api import Page, expect

from tests.browser.conftest import axe_violations
from tests.worlds.tiny_results import RUN

pytestmark = pytest.mark.browser

QUEUE = f"/runs/{RUN}/triage?owner=gemma3&life=alive"


def test_ten_labels_in_a_row_take_two_keys_each_beside_their_text(tab: Page):
    tab.goto(QUEUE)
    tab.get_by_label("As").fill("Grace")
    seen = []
    for number in range(10):
        seen.append(tab.locator("#triage-feature a").inner_text())
        tab.locator("main").click(position={"x": 2, "y": 2}) if not number else None
        tab.keyboard.press("l")
        tab.keyboard.type(f"label {number}")
        tab.keyboard.press("Enter")
        expect(tab.get_by_role("status")).to_contain_text(f"{number + 1} labelled")

    assert len(set(seen)) == 10
    assert axe_violations(tab) == []
    before = tab.locator("#triage-feature a").inner_text()
    tab.keyboard.press("u")
    expect(tab.get_by_role("status")).to_contain_text("9 labelled")
    expect(tab.locator("#triage-feature a")).to_have_text(seen[-1])
    tab.keyboard.press("j")
    expect(tab.locator("#triage-feature a")).to_have_text(before)
    tab.keyboard.press("k")
    expect(tab.locator("#triage-feature a")).to_have_text(seen[-1])
    tab.keyboard.press("?")
    expect(tab.get_by_text("take the last label back")).to_be_visible()
    tab.keyboard.press("l")
    tab.keyboard.type("jk")
    expect(tab.get_by_label("Label", exact=True)).to_have_value("jk")
    tab.keyboard.press("Escape")
    tab.keyboard.press("/")
    expect(tab).to_have_url(re.compile("/features.*owner=gemma3"))
