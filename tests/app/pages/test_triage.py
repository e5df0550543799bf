"""Labelling one feature after the other, in the list's order."""

import html
import re
from pathlib import Path

import pytest
from starlette.testclient import TestClient

from app.main import create_app
from app.settings import Settings
from tests.worlds.tiny_results import RUN, write_tiny_run

LIST = f"/runs/{RUN}/features"
QUEUE = f"/runs/{RUN}/triage"
FILTER = "owner=gemma3&life=alive"


@pytest.fixture
def visitor(own_home: Path):
    write_tiny_run(own_home, features=64)
    with TestClient(create_app(Settings(home=own_home))) as client:
        yield client


def words(markup: str) -> str:
    return re.sub(r"\s+", " ", html.unescape(re.sub(r"<[^>]*>", " ", markup)))


def shown(page: str) -> int:
    found = re.search(r'name="feature" value="(\d+)"', page[page.index("triage-feature") :])
    assert found, page
    return int(found[1])


def save(visitor: TestClient, feature: int, text: str, author: str = "Ada", **more: object):
    form = {"feature": feature, "revision": 0, "author": author, "text": text, "action": "save", **more}
    return visitor.post(f"{QUEUE}?{FILTER}", data=form)


def labels(visitor: TestClient, feature: int) -> list[dict]:
    return visitor.get(f"/api/v1{LIST}/{feature}/labels").json()["labels"]


def order(visitor: TestClient) -> list[int]:
    return [one["feature"] for one in visitor.get(f"/api/v1{LIST}?{FILTER}").json()["features"]]


def test_the_queue_goes_through_the_list_in_its_order_and_counts(visitor: TestClient):
    first, second, third, *rest = order(visitor)
    page = visitor.get(f"{QUEUE}?{FILTER}").text
    assert shown(page) == first and "0 labelled by you" in words(page)

    page = save(visitor, first, "boats").text

    assert shown(page) == second and "1 labelled by you" in words(page)
    assert f"Saved: feature {first} , “ boats ”." in words(page)
    assert labels(visitor, first)[0]["text"] == "boats"
    skipped = visitor.get(f"{QUEUE}?{FILTER}&at={third}").text
    assert f"at={second}" in re.search(r'rel="prev" href="([^"]+)"', skipped)[1], "what has a label is passed over"
    assert f"at={rest[0]}" in re.search(r'rel="next" href="([^"]+)"', skipped)[1]
    assert FILTER.replace("&", "&amp;") in skipped


def test_what_others_wrote_is_shown_once_mine_is_saved_and_may_be_taken_back(visitor: TestClient):
    first, second, *_ = order(visitor)
    save(visitor, first, "ships", author="Bo")
    visitor.cookies.clear()

    page = visitor.get(f"{QUEUE}?{FILTER}").text
    assert shown(page) == first and "ships" not in page
    page = save(visitor, first, "boats").text
    assert shown(page) == second and "Others wrote: “ ships ” ( Bo )" in words(page)

    page = save(visitor, first, "", action="withdraw", revision=1).text
    assert shown(page) == first and "0 labelled by you" in words(page)
    assert [(one["author"], one["text"]) for one in labels(visitor, first)] == [("Bo", "ships")]


def test_a_note_stays_and_a_text_saved_elsewhere_is_shown_under_either_spelling_of_the_name(visitor: TestClient):
    first = order(visitor)[0]
    visitor.post(
        f"{LIST}/{first}/labels", data={"author": "Ada", "text": "boats", "note": "a long note", "revision": 0}
    )

    save(visitor, first, "ships", revision=1)
    assert [(one["text"], one["note"]) for one in labels(visitor, first)] == [("ships", "a long note")]

    refused = save(visitor, first, "planes", author=" Ada ", revision=1)
    assert refused.status_code == 409 and "Saved meanwhile: “ ships ”" in words(refused.text)
    assert 'name="revision" value="2"' in refused.text and "planes" in refused.text
    again = save(visitor, first, "planes", author=" Ada ", revision=2)
    assert [one["text"] for one in labels(visitor, first)] == ["planes"] and again.status_code == 200


def test_a_label_that_the_search_finds_does_not_lead_back_to_the_beginning(visitor: TestClient):
    query = "q=fox&life=alive"
    found = [one["feature"] for one in visitor.get(f"/api/v1{LIST}?{query}").json()["features"]]

    for at, feature in enumerate(found[3:6], 3):
        form = {"feature": feature, "revision": 0, "author": "Ada", "text": "fox fox", "action": "save"}
        answer = visitor.post(f"{QUEUE}?{query}", data=form, follow_redirects=False)
        assert answer.headers["location"].endswith(f"at={found[at + 1]}")
        found = [one["feature"] for one in visitor.get(f"/api/v1{LIST}?{query}").json()["features"]]
        if found.index(feature) != at:
            break


@pytest.mark.parametrize(
    ("form", "said", "status"),
    [
        ({"text": " "}, "label", 422),
        ({"text": "boats", "author": "anonymous"}, "needs an author", 422),
        ({"text": "x" * 301}, "300", 422),
        ({"text": "boats", "revision": 3}, "saved this label somewhere else", 409),
    ],
)
def test_a_refused_label_stays_in_the_form(visitor: TestClient, form: dict, said: str, status: int):
    first = order(visitor)[0]

    answer = save(visitor, first, **{"author": "Ada", **form})

    assert answer.status_code == status and said in words(answer.text)
    assert shown(answer.text) == first
    assert html.escape(form["text"].strip()[:20]) in answer.text
    assert labels(visitor, first) == []


def test_an_empty_queue_and_one_that_is_done_say_so(visitor: TestClient):
    assert "No feature passes these filters." in words(visitor.get(f"{QUEUE}?q=nothing+like+it").text)
    some = "owner=gemma3&life=alive&activation_min=0&density_min=0"
    for feature in order(visitor):
        save(visitor, feature, f"<b>{feature}")
    page = visitor.get(f"{QUEUE}?{some}").text
    assert "Every feature of this list has a label of yours." in words(page)
    assert "<b>" not in visitor.get(f"{QUEUE}?{FILTER}&at={order(visitor)[0]}").text
    assert visitor.get(f"{QUEUE}?at=999999").status_code == 404
    assert visitor.get(f"{QUEUE}?at=-1").status_code == 422
