"""The explorer as a whole: files, headers, and errors as page, fragment or JSON."""

import re
from pathlib import Path

import pytest
from starlette.testclient import TestClient

from app.main import create_app
from app.settings import Settings
from tests.worlds.tiny_results import RUN

HTMX = {"HX-Request": "true", "HX-Request-Type": "partial", "HX-Target": "section#contexts"}
PAGES = ["/", f"/runs/{RUN}", f"/runs/{RUN}/features", f"/runs/{RUN}/features/3", "/api/docs", "/nowhere"]


@pytest.mark.parametrize("page", [*PAGES, "/api/v1/runs", "/static/site.css"])
def test_every_answer_forbids_foreign_scripts_and_frames(reader: TestClient, page: str):
    policy = reader.get(page).headers["content-security-policy"]

    assert "default-src 'self'" in policy
    assert "unsafe" not in policy
    assert "frame-ancestors 'none'" in policy
    assert reader.get(page).headers["x-content-type-options"] == "nosniff"


@pytest.mark.parametrize("page", PAGES)
def test_no_page_needs_an_inline_style_or_script(reader: TestClient, page: str):
    text = reader.get(page).text

    assert " style=" not in text
    assert "<style" not in text
    assert "<script>" not in text
    assert " onclick=" not in text


def test_pages_say_that_they_differ_for_htmx(reader: TestClient):
    assert "HX-Request" in reader.get(f"/runs/{RUN}/features/3").headers["vary"]


def test_htmx_gets_a_part_and_a_reload_or_the_way_back_the_whole(reader: TestClient):
    address = f"/runs/{RUN}/features/3?bucket=q1"

    part = reader.get(address, headers=HTMX).text
    assert part.lstrip().startswith('<section id="contexts"')
    for headers in ({}, {**HTMX, "HX-History-Restore-Request": "true"}, {**HTMX, "HX-Request-Type": "full"}):
        assert reader.get(address, headers=headers).text.startswith("<!doctype html>")


def test_an_error_is_a_page_a_fragment_or_json_with_the_same_words(reader: TestClient):
    path = f"/runs/{RUN}/features/99999"

    page, part, data = reader.get(path), reader.get(path, headers=HTMX), reader.get(f"/api/v1{path}")

    assert page.status_code == part.status_code == data.status_code == 404
    assert page.text.startswith("<!doctype html>")
    assert "<!doctype" not in part.text
    assert data.json() == {
        "error": {
            "status": 404,
            "title": "No such feature",
            "message": f"Run '{RUN}' has no feature 99999.",
            "remedy": "Its features are numbered 0 to 239.",
        }
    }
    for text in (page.text, part.text):
        assert "Its features are numbered 0 to 239." in text


@pytest.mark.parametrize(
    ("path", "status", "words"),
    [
        ("/nowhere", 404, "There is no page at /nowhere."),
        ("/runs/other", 404, "No run named &#39;other&#39;"),
        (f"/runs/{RUN}/features/abc", 422, "feature: "),
        (f"/runs/{RUN}/features/-1", 422, "feature: "),
        (f"/runs/{RUN}/features?density_min=much", 422, "density_min: "),
        (f"/runs/{RUN}/features?sort=beauty", 422, "Sort by one of"),
        (f"/runs/{RUN}/features/3?bucket=best", 422, "Kinds: top"),
        (f"/runs/{RUN}/features/3?tokens=llama", 422, "both, smollm2, gemma3"),
        (f"/runs/{RUN}/sequences/99999?feature=3", 404, "keeps no sequence 99999"),
        (f"/runs/{RUN}/sequences/1", 422, "feature: "),
        (f"/runs/{RUN}/method?scale=cubic", 422, "scale: "),
        ("/static/../../app/main.py", 404, "There is no"),
        ("/static/..%2f..%2fapp/main.py", 404, "There is no file"),
        ("/vendor/package.json", 404, "There is no file"),
    ],
)
def test_an_error_that_a_visitor_causes_has_its_status(reader: TestClient, path: str, status: int, words: str):
    answer = reader.get(path)

    assert answer.status_code == status
    assert words in answer.text
    assert "Traceback" not in answer.text


@pytest.mark.parametrize(
    ("path", "offered"),
    [
        (f"/runs/{RUN}/features?sort=beauty", True),
        (f"/runs/{RUN}/features/99999", True),
        ("/runs/other", False),
        ("/nowhere", False),
    ],
)
def test_an_error_inside_a_run_leads_back_to_the_run(reader: TestClient, path: str, offered: bool):
    page = reader.get(path).text

    assert (f'href="/runs/{RUN}/features"' in page) == offered
    assert "All comparisons" in page


@pytest.mark.parametrize(
    ("method", "path", "allowed"),
    [
        ("PUT", "/api/v1/runs", "GET"),
        ("DELETE", f"/api/v1/runs/{RUN}/features/3/labels", "GET, POST"),
        ("POST", f"/runs/{RUN}", "GET"),
        ("TRACE", "/healthz", "GET"),
    ],
)
def test_a_method_that_is_not_taken_is_refused_with_those_that_are(
    reader: TestClient, method: str, path: str, allowed: str
):
    answer = reader.request(method, path)

    assert (answer.status_code, answer.headers["allow"]) == (405, allowed)


def test_an_unexpected_exception_is_a_500_and_other_pages_still_work(tiny_home: Path, monkeypatch: pytest.MonkeyPatch):
    def broken(*args: object) -> None:
        raise RuntimeError("secret detail")

    monkeypatch.setattr("app.pages.home.all_runs", broken)
    with TestClient(create_app(Settings(home=tiny_home)), raise_server_exceptions=False) as client:
        answer = client.get("/")
        assert answer.status_code == 500
        assert "The explorer made a mistake (RuntimeError)." in answer.text
        assert "secret detail" not in answer.text
        assert client.get(f"/runs/{RUN}").status_code == 200


def test_a_write_that_another_site_asks_for_is_refused(reader: TestClient):
    path = f"/runs/{RUN}/features/3/labels"

    for headers in (
        {"Sec-Fetch-Site": "cross-site"},
        {"Sec-Fetch-Site": "same-site"},
        {"Origin": "http://elsewhere.example"},
        {"Origin": "null"},
    ):
        assert reader.post(path, data={"author": "a", "text": "b"}, headers=headers).status_code == 403
    assert "elsewhere" not in reader.get(path).text


@pytest.mark.parametrize("headers", [{"Sec-Fetch-Site": "same-origin"}, {"Origin": "http://localhost"}, {}])
def test_a_write_from_our_own_pages_or_from_a_program_passes(reader: TestClient, headers: dict[str, str]):
    assert reader.post("/nowhere", headers=headers).status_code == 404


def test_a_file_of_the_version_in_its_address_may_be_kept_for_ever_and_others_not(reader: TestClient):
    (ours,) = set(re.findall(r"/static/site\.css\?v=\w+", reader.get("/").text))
    assert "immutable" in reader.get(ours).headers["cache-control"]
    for other in (
        "/static/site.css",
        "/static/site.css?v=1",
        "/static/site.css?v=",
        f"{ours}x",
        "/static/site.css?v=x&v=",
    ):
        assert reader.get(other).headers["cache-control"] == "no-cache"


@pytest.mark.parametrize("path", [*PAGES, "/api/v1/runs", f"/api/v1/runs/{RUN}/features/3", "/healthz", "/metrics"])
def test_pages_are_kept_by_no_cache_without_asking_again(reader: TestClient, path: str):
    assert reader.get(path).headers["cache-control"] == "private, no-cache"


@pytest.mark.parametrize("root", ["static", "vendor"])
@pytest.mark.parametrize("name", ["%00", "a%00b", "x" * 300, "x/" * 2000, "..%00", "%ff", "."])
def test_a_file_that_cannot_be_is_not_found(reader: TestClient, root: str, name: str):
    assert reader.get(f"/{root}/{name}").status_code == 404


@pytest.mark.parametrize(
    ("asked", "led_to"),
    [
        (f"/runs/{RUN}/", f"/runs/{RUN}"),
        (f"/runs/{RUN}/features/?q=a%26b&owner=x", f"/runs/{RUN}/features?q=a%26b&owner=x"),
        ("//evil.example/", "/evil.example"),
        ("/%5Cevil.example/", "/%5Cevil.example"),
        ("/%0D%0ASet-Cookie:a=b/", "/%0D%0ASet-Cookie%3Aa%3Db"),
    ],
)
@pytest.mark.parametrize("root_path", ["", "/crossdiff"])
def test_a_slash_too_many_leads_to_the_page_below_the_prefix(tiny_home: Path, root_path: str, asked: str, led_to: str):
    app = create_app(Settings(home=tiny_home, root_path=root_path))
    with TestClient(app, follow_redirects=False) as client:
        answer = client.get(f"http://localhost{asked}", headers={"Host": "10.0.0.1:99"})
    assert (answer.status_code, answer.headers["location"]) == (307, root_path + led_to)


def test_behind_a_proxy_that_strips_a_prefix_every_address_has_it(tiny_home: Path):
    with TestClient(create_app(Settings(home=tiny_home, root_path="/crossdiff"))) as client:
        for page in ("/", f"/runs/{RUN}", f"/runs/{RUN}/features?owner=gemma3", f"/runs/{RUN}/features/3"):
            text = client.get(page).text
            for attribute in ('href="/', 'src="/', 'hx-get="/', 'action="/', 'data-plot="/'):
                assert text.count(attribute) == text.count(f"{attribute}crossdiff/"), attribute


def test_without_node_modules_pages_are_readable_and_say_what_to_do(tiny_home: Path, tmp_path: Path):
    frontend = tmp_path / "frontend"
    frontend.mkdir()
    for name in ("templates", "static"):
        (frontend / name).symlink_to(Settings().frontend / name)
    with TestClient(create_app(Settings(home=tiny_home, frontend=frontend))) as client:
        page = client.get("/")
        assert page.status_code == 200
        assert "<code>make setup</code>" in page.text
        ready = client.get("/readyz")
        assert ready.status_code == 503
        assert "make setup" in ready.json()["problems"][0]
