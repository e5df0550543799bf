"""The explorer as people use it: by mouse, by keyboard, in two browsers, on a telephone, without scripts."""

import os
import re
from pathlib import Path

import pytest
from playwright.sync_api import Browser, BrowserContext, Page, Route, expect

from tests.browser.conftest import JUDGED_RUN, axe_violations, listen
from tests.worlds.tiny_results import RUN, write_progress

pytestmark = pytest.mark.browser

LIST = f"/runs/{RUN}/features"
JUDGED = f"/runs/{JUDGED_RUN}"
CLAIMED = f"{JUDGED}/features/220"
PAGES = {
    "home": "/",
    "overview": f"/runs/{RUN}",
    "method": f"/runs/{RUN}/method",
    "method, logarithmic": f"/runs/{RUN}/method?scale=log",
    "method of a judged run": f"{JUDGED}/method",
    "list": LIST,
    "filtered list": f"{LIST}?owner=gemma3&owner=other&density_min=0.0001&sort=-density",
    "empty list": f"{LIST}?q=nothing+like+it",
    "feature": f"{LIST}/3",
    "exclusive feature, one tokenization": f"{LIST}/200?tokens=gemma3&bucket=q4",
    "dead feature": f"{LIST}/15",
    "sequence": f"/runs/{RUN}/sequences/3?feature=3",
    "labels": f"{LIST}/3/labels",
    "steering": f"/runs/{RUN}/steer?feature=3",
    "interface": "/api/docs",
    "error": "/runs/nothing",
    "judged overview": JUDGED,
    "judged feature": CLAIMED,
    "feature where the models differ": f"{JUDGED}/features/3",
    "claims": f"{JUDGED}/evidence",
    "queue": f"{JUDGED}/triage?owner=gemma3",
    "steering without a feature": f"/runs/{RUN}/steer",
}


def indexes(tab: Page) -> list[str]:
    return tab.locator("a.open").all_inner_texts()


@pytest.mark.parametrize("scheme", ["light", "dark"])
def test_no_page_violates_the_content_security_policy_or_axe_rules(
    chromium: Browser, site: str, complaints: list[str], scheme: str
):
    context = chromium.new_context(base_url=site, color_scheme=scheme, viewport={"width": 1280, "height": 900})
    context.add_init_script(
        'document.addEventListener("securitypolicyviolation", (e) => console.error("violation", e.violatedDirective));'
    )
    tab = context.new_page()
    listen(tab, complaints)
    found = {}
    for name, path in PAGES.items():
        tab.goto(path, wait_until="networkidle" if name != "home" else "load")
        found[name] = axe_violations(tab)
    context.close()

    assert {name: violations for name, violations in found.items() if violations} == {}
    assert complaints == []


def test_on_a_narrow_screen_no_page_is_wider_than_the_screen(chromium: Browser, site: str):
    context = chromium.new_context(base_url=site, viewport={"width": 390, "height": 800})
    tab = context.new_page()
    wider = {}
    for name, path in PAGES.items():
        tab.goto(path)
        over = tab.evaluate("document.documentElement.scrollWidth - window.innerWidth")
        if over > 0:
            wider[name] = over
    context.close()

    assert wider == {}


def test_from_filter_to_feature_to_the_next_and_the_same_view_elsewhere(
    profile: BrowserContext, tab: Page, chromium: Browser, site: str
):
    profile.grant_permissions(["clipboard-read", "clipboard-write"])
    tab.goto(LIST)
    tab.get_by_label("Filters").get_by_role("link", name=re.compile("gemma3.*38")).click()
    expect(tab.get_by_role("status").first).to_contain_text("38 features")
    assert tab.url.endswith(f"{LIST}?owner=gemma3")
    tab.get_by_role("link", name="Density").click()
    expect(tab.locator("th[aria-sort=descending]")).to_contain_text("Density")
    order = indexes(tab)

    tab.get_by_role("link", name=order[0], exact=True).click()
    expect(tab.get_by_role("heading", level=1)).to_contain_text(f"Feature {order[0]}")
    tab.keyboard.press("j")
    expect(tab.get_by_role("heading", level=1)).to_contain_text(f"Feature {order[1]}")
    tab.keyboard.press("k")
    expect(tab.get_by_role("heading", level=1)).to_contain_text(f"Feature {order[0]}")

    tab.get_by_role("group", name="Tokens of").get_by_role("link", name="gemma3").click()
    chosen = tab.get_by_role("group", name="Tokens of").locator("[aria-current]")
    expect(chosen).to_have_text("gemma3")
    expect(chosen).to_be_focused()
    tab.get_by_role("button", name="Copy link").click()
    copied = tab.evaluate("navigator.clipboard.readText()")
    assert copied == tab.url == f"{site}{LIST}/{order[0]}?tokens=gemma3&owner=gemma3&sort=-density"

    other = chromium.new_context().new_page()
    other.goto(copied)
    expect(other.get_by_role("heading", level=1)).to_contain_text(f"Feature {order[0]}")
    assert other.locator("#contexts").inner_text() == tab.locator("#contexts").inner_text()
    expect(other.get_by_role("link", name=re.compile("1 of 38"))).to_be_visible()
    other.context.close()


def test_the_back_button_restores_the_list(tab: Page):
    tab.goto(LIST)
    before = indexes(tab)
    tab.get_by_role("link", name="next →").last.click()
    expect(tab.get_by_text("page 2 of 5").first).to_be_visible()
    assert tab.evaluate("window.scrollY") < 200, "the next page is read from its top"
    second = indexes(tab)
    assert second != before
    tab.get_by_role("link", name=second[0], exact=True).click()
    expect(tab.get_by_role("heading", level=1)).to_contain_text("Feature")

    tab.go_back()
    expect(tab.get_by_text("page 2 of 5").first).to_be_visible()
    assert indexes(tab) == second
    tab.go_back()
    expect(tab.get_by_text("page 1 of 5").first).to_be_visible()
    assert indexes(tab) == before
    tab.go_forward()
    expect(tab.get_by_text("page 2 of 5").first).to_be_visible()
    tab.get_by_role("link", name="next →").first.click()
    expect(tab.get_by_text("page 3 of 5").first).to_be_visible()


def test_typing_searches_and_keeps_the_cursor(tab: Page):
    tab.goto(LIST)
    box = tab.get_by_role("searchbox")
    box.click()
    tab.keyboard.type("copyright", delay=30)

    expect(tab).to_have_url(re.compile(r"q=copyright"))
    expect(box).to_be_focused()
    expect(box).to_have_value("copyright")
    total = int(tab.get_by_role("status").first.inner_text().split()[0])
    assert 0 < total < 240
    tab.get_by_label("Where to search").select_option("labels")
    expect(tab.get_by_text("No feature passes these filters.")).to_be_visible()
    tab.get_by_role("link", name="Start again without filters").click()
    expect(tab.get_by_role("status").first).to_contain_text("240 features")
    expect(tab.get_by_role("searchbox")).to_have_value("")


def test_a_search_shows_the_match_marked_in_a_context_that_has_it(tab: Page):
    tab.goto(f"{LIST}?q=copyright&within=contexts")

    total = int(tab.get_by_role("status").first.inner_text().split()[0])
    assert 0 < total < 50
    rows = tab.locator("table.features tbody tr")
    assert rows.count() == total
    for row in rows.all():
        assert "copyr" in "".join(row.locator(".kwic mark").all_inner_texts())
    tab.get_by_role("link", name="Remove text copyright").click()
    expect(tab.get_by_role("status").first).to_contain_text("240 features")


def test_promoted_tokens_of_another_script_are_found_and_marked(tab: Page):
    tab.goto(LIST)
    tab.get_by_role("searchbox").fill("كتاب")
    expect(tab).to_have_url(re.compile(r"q=%D9%83"))

    expect(tab.locator("table.features tbody tr").first.locator("mark").first).to_have_text("كتاب")


def test_a_row_leads_to_its_feature_wherever_it_is_clicked(tab: Page):
    tab.goto(LIST)
    first = indexes(tab)[0]
    row = tab.locator("table.features tbody tr").first
    box = row.bounding_box()
    tab.mouse.click(box["x"] + box["width"] - 12, box["y"] + box["height"] - 6)

    expect(tab.get_by_role("heading", level=1)).to_contain_text(f"Feature {first}")


@pytest.mark.parametrize("failure", ["silence", "error"])
def test_a_request_that_fails_is_said_and_the_list_stays(tab: Page, complaints: list[str], failure: str):
    tab.goto(LIST)
    before = indexes(tab)
    problem = '<div class="alarm" role="alert"><p>The disk is &lt;b&gt;gone.</p><p>Find it.</p></div>'

    def answer(route: Route) -> None:
        if failure == "silence":
            route.abort()
        else:
            route.fulfill(status=503, body=problem, content_type="text/html")

    tab.route("**/features?*", answer)
    tab.get_by_label("Filters").get_by_role("link", name=re.compile("gemma3")).first.click()

    said = "The explorer does not answer" if failure == "silence" else "The disk is <b>gone. Find it."
    expect(tab.locator("#toast")).to_contain_text(said)
    assert indexes(tab) == before
    tab.get_by_role("button", name="Close").click()
    expect(tab.locator("#toast")).to_have_count(0)
    complaints.clear()  # the browser reports what was made to fail


def test_on_a_telephone_the_list_is_sorted_from_its_filters(chromium: Browser, site: str):
    context = chromium.new_context(base_url=site, viewport={"width": 390, "height": 800})
    tab = context.new_page()
    tab.goto(LIST)
    tab.get_by_role("checkbox", name="Filters").check()
    tab.get_by_label("Sort by").select_option("density")
    expect(tab).to_have_url(re.compile(r"\?sort=-density$"))
    by_density = tab.evaluate(
        "address => fetch(address).then(answer => answer.json()).then(list => list.features.map(one => one.feature))",
        f"/api/v1{LIST}?sort=-density",
    )
    expect(tab.locator("a.open").first).to_have_text(str(by_density[0]))
    assert [int(index) for index in indexes(tab)] == by_density
    context.close()


def test_a_range_narrows_the_list(tab: Page):
    tab.goto(LIST)
    tab.get_by_text("Ranges", exact=True).click()
    tab.get_by_label("Max activation from").fill("30")
    tab.get_by_label("Max activation from").press("Tab")

    expect(tab).to_have_url(re.compile(r"\?activation_min=30$"))
    assert int(tab.get_by_role("status").first.inner_text().split()[0]) < 60


def test_token_values_are_shown_to_mouse_and_keyboard(tab: Page):
    tab.goto(f"{LIST}/3")
    text = tab.locator("[data-rows]").first
    peak = text.locator(".r.peak")
    value = peak.get_attribute("data-v")
    peak.hover()
    shown = peak.evaluate("element => getComputedStyle(element, '::after').content")
    assert shown == f'"{value}"'

    peak.focus()
    readout = tab.locator("[data-readout]")
    expect(readout).to_contain_text(value)
    tab.keyboard.press("Home")
    first = text.locator(".r[data-v]").first
    expect(first).to_be_focused()
    expect(readout).to_contain_text(first.get_attribute("data-v"))
    tab.keyboard.press("ArrowRight")
    expect(text.locator(".r[data-v]").nth(1)).to_be_focused()
    stops = text.locator('.r[tabindex="0"]')
    assert stops.count() == 1, "one text is one stop of the Tab key"


def test_passage_figures_are_shown_to_mouse_and_keyboard(tab: Page):
    tab.goto(f"{JUDGED}/method")
    passage = tab.locator("#without-training [data-rows]").first
    strongest = passage.locator(".r.peak")
    figures = "divergence 0.350 nats; cost smollm2 4.50, gemma3 0.750 nats"
    strongest.hover()
    assert strongest.evaluate("element => getComputedStyle(element, '::after').content") == f'"{figures}"'

    strongest.focus()
    readout = tab.locator("[data-readout]")
    expect(readout).to_contain_text(figures)
    tab.keyboard.press("ArrowLeft")
    expect(readout).to_contain_text("divergence 0 nats; cost smollm2 1.25, gemma3 1.25 nats")
    assert passage.locator('.r[tabindex="0"]').count() == 1, "one passage is one stop of the Tab key"
    tab.keyboard.press("Tab")
    expect(readout).to_be_empty()


@pytest.mark.parametrize(
    ("path", "text"), [(JUDGED, "#findings"), (f"{JUDGED}/method", "#without-training"), (f"{LIST}/3", "#contexts")]
)
def test_a_tap_on_a_telephone_shows_a_value_at_the_foot_of_the_screen(
    chromium: Browser, site: str, path: str, text: str
):
    context = chromium.new_context(base_url=site, viewport={"width": 390, "height": 800}, has_touch=True)
    tab = context.new_page()
    tab.goto(path)
    if text == "#findings":
        tab.locator("#findings summary").first.click()
    token = tab.locator(f"{text} [data-rows] .r.peak").first
    readout = tab.locator("[data-readout]")
    assert readout.bounding_box()["height"] <= 1, "without a value it takes no room"
    token.tap()

    expect(readout).to_contain_text(token.get_attribute("data-v"))
    box = readout.bounding_box()
    assert (box["x"], box["width"]) == (0, 390)
    assert box["y"] + box["height"] == 800
    assert token.evaluate("element => getComputedStyle(element, '::after').content") == "none"
    assert axe_violations(tab) == []
    tab.locator("h2").first.tap()
    expect(readout).to_be_empty()
    context.close()


def test_on_a_telephone_deciding_tests_come_before_the_contexts(chromium: Browser, site: str):
    context = chromium.new_context(base_url=site, viewport={"width": 390, "height": 800})
    tab = context.new_page()
    tab.goto(CLAIMED)
    decided = tab.get_by_role("list", name="What decided")
    expect(decided).to_be_visible()
    assert decided.bounding_box()["y"] < tab.locator("#contexts").bounding_box()["y"]
    decided.get_by_role("link", name=re.compile("All the evidence")).click()
    expect(tab.locator("#evidence")).to_be_in_viewport()

    tab.goto(f"{JUDGED}/features?verdict=refuted")
    expect(tab.locator("table.features .verdict:visible").first).to_contain_text("in both")
    tab.goto(f"{JUDGED}/method")
    name = tab.locator("#provenance td.break").first.bounding_box()
    assert name["width"] > 150, "a model's name breaks between words, not letter by letter"
    context.close()

    wide = chromium.new_page(base_url=site, viewport={"width": 1280, "height": 900})
    wide.goto(CLAIMED)
    expect(wide.locator(".glance")).to_be_hidden()
    expect(wide.locator("#evidence")).to_be_in_viewport()
    wide.close()


def test_a_context_opens_whole_in_its_place(tab: Page):
    tab.goto(f"{LIST}/3")
    window = tab.locator(".window").first
    window.get_by_role("link", name=re.compile("Whole text")).click()

    expect(window.locator("#whole")).to_contain_text("kept firing")
    assert tab.url.endswith(f"{LIST}/3"), "the page stays where it is"


def test_a_label_is_written_on_the_page_and_seen_in_the_list(tab: Page):
    tab.goto(f"{LIST}/4")
    tab.get_by_label("Your name").fill("Ada")
    tab.get_by_label("Label", exact=True).fill("Foxes <b>and</b> hounds")
    tab.get_by_role("button", name="Save label").click()
    expect(tab.locator("#labels .label-text").first).to_have_text("Foxes <b>and</b> hounds")

    tab.goto(f"{LIST}?q=hounds")
    expect(tab.locator(".features .label")).to_have_text("Foxes <b>and</b> hounds")


def test_progress_moves_without_a_reload(tab: Page, world: Path):
    folder = world / "runs" / "live-00000001"
    write_progress(folder, done=100_000, pid=os.getpid())
    try:
        tab.goto("/")
        expect(tab.get_by_text("100,000 of 800,000 rows")).to_be_visible()
        tab.evaluate("window.stayed = true")
        write_progress(folder, done=200_000, pid=os.getpid())
        expect(tab.get_by_text("200,000 of 800,000 rows")).to_be_visible()
        write_progress(folder, status="failed", error="Out of <memory>. Use fewer rows.", stage="train")
        expect(tab.get_by_text("Out of <memory>. Use fewer rows.")).to_be_visible()
        assert tab.evaluate("window.stayed")
    finally:
        (folder / "progress.json").unlink()
        folder.rmdir()


def test_without_scripts_everything_can_be_read(chromium: Browser, site: str):
    context = chromium.new_context(base_url=site, java_script_enabled=False)
    tab = context.new_page()
    tab.goto(LIST)
    tab.get_by_role("searchbox").fill("fox")
    tab.get_by_role("button", name="Search").click()
    expect(tab.get_by_role("status").first).not_to_contain_text("240")
    tab.locator("a.open").first.click()
    expect(tab.get_by_role("heading", name="Text it fires on")).to_be_visible()
    tab.get_by_role("link", name=re.compile("Whole text")).first.click()
    expect(tab.get_by_text("kept firing")).to_be_visible()
    tab.goto(f"/runs/{RUN}/method")
    tab.get_by_text("The same as a table").first.click()
    expect(tab.get_by_role("group", name="relative norm")).to_be_visible()
    context.close()
