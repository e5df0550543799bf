"""Pages carry strong validators: what is unchanged is not sent again, and whatever changes a page changes its tag."""

from pathlib import Path

import pytest
from starlette.testclient import TestClient

from app.main import create_app
from app.settings import Settings
from app.web import validators
from tests.worlds.tiny_results import RUN, write_tiny_run

LIST = f"/runs/{RUN}/features"
PAGES = (LIST, f"{LIST}?q=fox", f"{LIST}/3", f"/runs/{RUN}/sequences/3?feature=3", f"/runs/{RUN}/evidence")


@pytest.fixture
def visitor(own_home: Path):
    """A client of an explorer whose labels may change."""
    write_tiny_run(own_home, features=64)
    with TestClient(create_app(Settings(home=own_home))) as client:
        yield client


def tag_of(client: TestClient, path: str, **headers: str) -> str:
    return client.get(path, headers=headers).headers["etag"]


@pytest.mark.parametrize("path", PAGES)
def test_a_page_that_was_seen_is_not_sent_again(reader: TestClient, path: str):
    first = reader.get(path)
    again = reader.get(path, headers={"If-None-Match": f'"other", {first.headers["etag"]}'})

    assert first.headers["etag"].startswith('"'), "strong"
    assert (again.status_code, again.content) == (304, b"")
    assert again.headers["etag"] == first.headers["etag"]
    assert "no-cache" in again.headers["cache-control"]
    assert reader.get(path, headers={"If-None-Match": '"other"'}).status_code == 200


def test_equal_tags_mean_equal_bytes(reader: TestClient):
    first, second = reader.get(LIST), reader.get(LIST)

    assert first.headers["etag"] == second.headers["etag"]
    assert first.content == second.content


def test_parts_encodings_addresses_and_cookies_have_tags_of_their_own(reader: TestClient):
    reader.cookies.clear()  # those of other tests
    part = {"HX-Request": "true", "HX-Request-Type": "partial", "HX-Target": "div#browser"}
    tags = [
        tag_of(reader, LIST),
        tag_of(reader, LIST, **part),
        tag_of(reader, LIST, **{"Accept-Encoding": "identity"}),
        tag_of(reader, LIST, Cookie="crossdiff_name=Ada"),
        tag_of(reader, f"{LIST}?page=2"),
    ]

    assert len(set(tags)) == len(tags)
    assert tag_of(reader, LIST, Cookie="somebody-elses=1") == tags[0]


def test_a_label_changes_the_tags_of_its_run(visitor: TestClient):
    before = {path: tag_of(visitor, path) for path in (LIST, f"{LIST}/3")}
    visitor.post(f"{LIST}/9/labels", data={"author": "Ada", "text": "Zebra crossings"})
    visitor.cookies.clear()

    for path, tag in before.items():
        answer = visitor.get(path, headers={"If-None-Match": tag})
        assert answer.status_code == 200, path
        assert answer.headers["etag"] != tag


def test_other_results_change_the_tag(own_home: Path):
    write_tiny_run(own_home, features=64)
    with TestClient(create_app(Settings(home=own_home))) as client:
        before = tag_of(client, LIST)
        write_tiny_run(own_home, features=64, seed=1)
        assert tag_of(client, LIST) != before


def test_other_code_changes_the_tag(reader: TestClient, monkeypatch: pytest.MonkeyPatch):
    before = tag_of(reader, LIST)
    monkeypatch.setattr(validators, "_modules", lambda: "another version")
    validators._code_at.cache_clear()
    try:
        assert tag_of(reader, LIST) != before
    finally:
        validators._code_at.cache_clear()


def test_an_error_has_no_tag(reader: TestClient):
    assert "etag" not in reader.get(f"{LIST}/999999").headers
    assert "etag" not in reader.get(f"{LIST}?sort=beauty").headers
