"""Labels on pages: typed text survives every error, and hostile text is escaped."""

import html
import re
from collections.abc import Iterator
from pathlib import Path

import pytest
from starlette.testclient import TestClient

from app.database.engine import transaction
from app.labels.store import LabelTarget, save_label
from app.main import create_app
from app.settings import Settings
from tests.worlds.tiny_results import RUN, write_tiny_run

HERE = f"/runs/{RUN}/features/3/labels"
HTMX = {"HX-Request": "true", "HX-Request-Type": "partial", "HX-Target": "section#labels"}
HOSTILE = """<script>alert(1)</script>"' onfocus=alert(2) autofocus x="{{ 7*7 }}"""


@pytest.fixture(scope="module")
def home(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """A home with one run."""
    home = tmp_path_factory.mktemp("labelled")
    write_tiny_run(home, features=24)
    return home


@pytest.fixture
def visitor(home: Path, tmp_path: Path) -> Iterator[TestClient]:
    """A browser at an explorer with that run and no labels yet."""
    settings = Settings(home=home, database_url=f"sqlite:///{tmp_path / 'labels.db'}")
    with TestClient(create_app(settings)) as client:
        yield client


def fields(page: str) -> dict[str, str]:
    """What stands in the form."""
    inputs = {
        name: html.unescape(value) for name, value in re.findall(r'<input[^>]*name="(\w+)" value="([^"]*)"', page)
    }
    note = re.search(r"<textarea[^>]*>\n?(.*?)</textarea>", page, re.DOTALL)
    assert note is not None
    return {name: inputs[name] for name in ("author", "text", "revision")} | {"note": html.unescape(note.group(1))}


def save(visitor: TestClient, **form: str | int):
    """Send the form as HTMX does."""
    return visitor.post(HERE, data={"author": "Ada", "revision": 0, **form}, headers=HTMX)


def test_a_label_is_asked_for_with_a_name_once(visitor: TestClient):
    assert 'name="author" value=""' in visitor.get(HERE).text
    answer = save(visitor, text="German verbs", note="second line\nhere")
    assert answer.status_code == 200
    assert answer.text.lstrip().startswith("<section"), "HTMX gets the panel alone"

    page = visitor.get(HERE).text
    assert page.lstrip().startswith("<!doctype html>")
    assert fields(page) == {"author": "Ada", "text": "German verbs", "note": "second line\nhere", "revision": "1"}


def test_without_scripts_saving_leads_back_to_the_feature(visitor: TestClient):
    answer = visitor.post(HERE, data={"author": "Zoë", "text": "German"}, follow_redirects=False)
    assert (answer.status_code, answer.headers["location"]) == (303, f"/runs/{RUN}/features/3#labels")
    assert "as <bdi>Zoë</bdi>" in visitor.get(HERE).text


@pytest.mark.parametrize(
    ("form", "fact"),
    [
        ({"author": "anonymous", "text": "mine", "note": "n"}, "needs an author"),
        ({"author": "", "text": "mine", "note": "n"}, "needs an author"),
        ({"text": "", "note": "only a note"}, "The label is empty"),
        ({"text": "x" * 301, "note": "n"}, "301 characters; the limit is 300"),
        ({"text": "mine", "note": "y" * 4001}, "4,001 characters"),
        ({"text": "nul \x00", "note": "n"}, "U+0000"),
    ],
)
@pytest.mark.parametrize("headers", [HTMX, {}])
def test_what_cannot_be_saved_says_why_and_stays_in_the_form(visitor: TestClient, form, fact, headers):
    answer = visitor.post(HERE, data={"author": "Ada", "revision": "0", **form}, headers=headers)
    assert answer.status_code == 422
    assert fact in html.unescape(answer.text)
    assert {**fields(answer.text), "revision": "0"} == {"author": "Ada", "revision": "0", **form}
    assert "Nobody has labelled this feature yet" in visitor.get(HERE).text


def test_a_second_tab_is_shown_both_texts_and_loses_none(visitor: TestClient):
    save(visitor, text="German")
    save(visitor, text="from tab one", revision=1)
    answer = save(visitor, text="from tab two", note="and a note", revision=1)
    assert answer.status_code == 409
    assert "from tab one" in answer.text
    kept = fields(answer.text)
    assert (kept["text"], kept["note"], kept["revision"]) == ("from tab two", "and a note", "2")

    assert visitor.post(HERE, data=kept, headers=HTMX).status_code == 200, "saving again is all it takes"
    page = visitor.get(HERE).text
    assert fields(page)["text"] == "from tab two"
    assert "from tab one" in page, "in the history"


def test_withdraw_and_restore(visitor: TestClient):
    save(visitor, text="German")
    save(visitor, text="Dutch", revision=1)
    page = save(visitor, action="restore", restore=1, revision=2).text
    assert fields(page)["text"] == "German"
    assert "restores revision 1" in page
    page = save(visitor, action="withdraw", revision=3).text
    assert "Nobody has labelled this feature yet" in page
    assert "Dutch" in page, "the history keeps everything"


def test_hostile_text_does_no_harm_anywhere(visitor: TestClient):
    save(visitor, author='<img src=x onerror="alert(3)">', text=HOSTILE, note=HOSTILE)
    for page in (visitor.get(HERE).text, visitor.get(f"/runs/{RUN}/features").text):
        assert "<script>alert" not in page
        assert "<img src=x" not in page
        assert not re.search(r'"[^"<>]*"\' onfocus=', page), "no text leaves its attribute"
    assert fields(visitor.get(HERE).text)["text"] == HOSTILE


def test_the_list_shows_labels_and_finds_them(visitor: TestClient):
    save(visitor, text="Straßennamen")
    page = visitor.get(f"/runs/{RUN}/features", params={"q": "STRASSENNAMEN", "within": "labels"}).text
    assert "Straßennamen" in page
    assert f"/runs/{RUN}/features/3" in page


@pytest.mark.parametrize(
    ("path", "status"),
    [(f"/runs/{RUN}/features/99999/labels", 404), ("/runs/none/features/3/labels", 404)],
)
def test_labels_of_nothing_are_refused(visitor: TestClient, path: str, status: int):
    assert visitor.get(path).status_code == status
    assert visitor.post(path, data={"author": "Ada", "text": "x"}).status_code == status


def test_another_site_cannot_label(visitor: TestClient):
    answer = visitor.post(HERE, data={"author": "Ada", "text": "x"}, headers={"Sec-Fetch-Site": "cross-site"})
    assert answer.status_code == 403
    assert "Nobody has labelled" in visitor.get(HERE).text


def test_the_name_is_kept_out_of_reach_of_scripts(visitor: TestClient):
    cookie = save(visitor, text="German").headers["set-cookie"]
    assert re.search(r"HttpOnly", cookie)
    assert re.search(r"SameSite=lax", cookie)


@pytest.mark.parametrize(
    "value", ["anonymous%00", "x" * 2000, "%ff%fe", "a" * 61, "%ED%A0%80", "%F0%9F%98%80" * 61, "%00" * 300]
)
def test_a_cookie_that_is_no_name_counts_as_none(visitor: TestClient, value: str):
    cookie = {"Cookie": f"crossdiff_name={value}"}
    assert 'name="author" value=""' in visitor.get(HERE, headers=cookie).text
    assert visitor.get(f"/runs/{RUN}/features/3", headers=cookie).status_code == 200
    # The form is refused for what it lacks, and not for the cookie.
    assert "prompt" in visitor.post(f"/runs/{RUN}/generations", data={"feature": "3"}, headers=cookie).text


@pytest.mark.parametrize("name", ["😀" * 60, "𝒜" * 51, "é" * 60, "%" * 60])
def test_the_longest_names_are_remembered(visitor: TestClient, name: str):
    save(visitor, author=name, text="German")
    assert fields(visitor.get(HERE).text)["author"] == name
    assert visitor.get(f"/runs/{RUN}/features/3").status_code == 200


@pytest.mark.parametrize("number", [2**31, 2**63, 2**64, 10**40, -1])
@pytest.mark.parametrize("field", ["restore", "revision"])
def test_a_number_beyond_the_database_is_refused_everywhere(visitor: TestClient, field: str, number: int):
    save(visitor, text="German")
    form = {"author": "Ada", "text": "x", "revision": 1, "action": "restore", "restore": 1, field: number}
    for answer in (visitor.post(HERE, data=form), visitor.post(f"/api/v1{HERE}", json=form)):
        assert answer.status_code == 422
        assert field in answer.text


def test_a_long_history_comes_in_pages_and_many_authors_are_counted(visitor: TestClient):
    with transaction(visitor.app.state.labels, writing=True) as session:  # type: ignore[attr-defined]
        target = LabelTarget(RUN, 3, "f00d")
        for number in range(300):
            save_label(session, target, "Ada", text=f"text {number}", note="n" * 4000, based_on=number)
        for number in range(200):
            save_label(session, target, f"writer {number}", text="mine", note="n" * 4000, based_on=0)

    page = visitor.get(f"/runs/{RUN}/features/3").text
    assert len(page) < 500_000
    assert "History (500)" in page
    assert "And 151 labels of other authors." in page
    newest, second, oldest = (visitor.get(f"{HERE}?page={number}").text for number in (1, 2, 25))
    assert f"{HERE}?page=2" in newest
    assert f"{HERE}?page=1" in second
    assert "text 0<" in oldest
    assert visitor.get(f"{HERE}?page=26").text.count("<li>") == oldest.count("<li>"), "there is no later page"

    pages = [visitor.get(f"/api/v1{HERE}?page={number}").json() for number in range(1, 7)]
    assert [len(one["history"]) for one in pages] == [100] * 5 + [0]
    assert (pages[0]["revisions"], pages[0]["pages"], pages[0]["authors"]) == (500, 5, 201)
    assert len(pages[0]["labels"]) == 100
