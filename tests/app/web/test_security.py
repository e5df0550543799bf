"""Names under which the explorer answers, and requests that are refused before they cost anything."""

from collections.abc import Iterator
from pathlib import Path

import pytest
from starlette.testclient import TestClient

from app.main import create_app
from app.settings import Settings
from app.web.security import LARGEST_BODY, LONGEST_ADDRESS
from tests.worlds.tiny_results import RUN

FEATURE = f"/runs/{RUN}/features/3"
FOREIGN = [
    "evil.example", "evil.example:8000", "EVIL.example.", "127.0.0.1.evil.example", "localhost.evil.example",
    "evil.example:80@127.0.0.1", "127.0.0.1@evil.example", "evil", "localhost:80.evil.example", "[evil.example]",
    "evil.example/", "notlocalhost", "[::1", "127.0.0.1 evil.example", "0x7f.evil",
    "crossdiff.example.org.evil.example",
]  # fmt: skip
OWN = [
    "localhost",
    "LOCALHOST:8000",
    "localhost.",
    "127.0.0.1",
    "127.0.0.1:1234",
    "[::1]:8000",
    "192.168.1.7",
    "a.localhost",
]


@pytest.fixture
def explorer(tiny_home: Path, tmp_path: Path) -> Iterator[TestClient]:
    """An explorer on the usual address, and behind one more name."""
    settings = Settings(
        home=tiny_home, hosts=("crossdiff.example.org",), database_url=f"sqlite:///{tmp_path / 'labels.db'}"
    )
    with TestClient(create_app(settings)) as client:
        yield client


@pytest.mark.parametrize("host", FOREIGN)
def test_a_foreign_name_reads_and_writes_nothing(explorer: TestClient, host: str):
    headers = {"Host": host, "Origin": f"http://{host}", "Sec-Fetch-Site": "same-origin"}
    for answer in (
        explorer.get("/", headers=headers),
        explorer.get(f"/api/v1{FEATURE}", headers=headers),
        explorer.post(f"{FEATURE}/labels", data={"author": "Eve", "text": "x"}, headers=headers),
        explorer.post(f"/api/v1{FEATURE}/labels", json={"author": "Eve", "text": "x"}, headers=headers),
    ):
        assert answer.status_code == 421
        assert "CROSSDIFF_HOSTS" in answer.json()["error"]["remedy"]
    assert explorer.get(f"/api/v1{FEATURE}/labels").json()["revisions"] == 0


@pytest.mark.parametrize("host", [*OWN, "crossdiff.example.org", "Crossdiff.Example.org:443"])
def test_own_names_and_addresses_are_answered(explorer: TestClient, host: str):
    headers = {"Host": host, "Origin": f"http://{host}", "Sec-Fetch-Site": "same-origin"}
    assert explorer.get("/", headers=headers).status_code == 200
    answer = explorer.post(f"/api/v1{FEATURE}/labels", json={"author": "Ada", "text": "x"}, headers=headers)
    assert answer.status_code == 201


def test_hosts_are_a_setting():
    environment = {"CROSSDIFF_HOSTS": "a.example, b.example"}
    assert Settings.from_environment(environment).hosts == ("a.example", "b.example")
    assert Settings.from_environment({}).hosts == ()


@pytest.mark.parametrize(
    ("host", "beyond"),
    [("127.0.0.1", False), ("127.8.8.8", False), ("::1", False), ("localhost", False),
     ("0.0.0.0", True), ("::", True), ("192.168.1.7", True), ("myhost", True)],
)  # fmt: skip
def test_listening_beyond_loopback_is_known(host: str, beyond: bool):
    assert Settings(host=host).beyond_loopback == beyond


@pytest.mark.parametrize(
    "path", [f"{FEATURE}/labels", f"/api/v1{FEATURE}/labels", f"/runs/{RUN}/generations", "/nowhere"]
)
@pytest.mark.parametrize(
    "kind", ["application/json", "application/x-www-form-urlencoded", "multipart/form-data; boundary=b"]
)
@pytest.mark.parametrize("announced", [True, False])
def test_a_body_that_no_form_makes_is_refused_early(explorer: TestClient, path: str, kind: str, announced: bool):
    def pieces() -> Iterator[bytes]:
        yield b'--b\r\nContent-Disposition: form-data; name="a"; filename="b"\r\n\r\n' if "multipart" in kind else b"a="
        for _ in range(8 * LARGEST_BODY // 65536):
            yield b"x" * 65536

    body = b"x" * (LARGEST_BODY + 1) if announced else pieces()
    answer = explorer.post(path, content=body, headers={"Content-Type": kind})

    unread = path == "/nowhere" or (kind == "application/json" and "/api/" not in path)
    assert answer.status_code in ((404, 422) if unread and not announced else (413,))


def test_the_longest_label_passes(explorer: TestClient):
    label = {"author": "😀" * 60, "text": "😀" * 300, "note": "😀" * 4000}
    assert explorer.post(f"/api/v1{FEATURE}/labels", json=label).status_code == 201
    assert explorer.post(f"{FEATURE}/labels", data=label | {"revision": 1}, follow_redirects=False).status_code == 303


@pytest.mark.parametrize("query", ["owner=" + "x" * 9000, "&".join(f"owner=o{n}" for n in range(2000)), "x" * 20_000])
def test_an_address_that_no_page_makes_is_refused(explorer: TestClient, query: str):
    assert len(query) > LONGEST_ADDRESS
    for path in (f"/runs/{RUN}/features", FEATURE, f"/api/v1/runs/{RUN}/features", "/static/site.css"):
        assert explorer.get(f"{path}?{query}").status_code == 414


def test_the_longest_address_makes_no_page_of_megabytes(explorer: TestClient):
    facets = ("owner", "verdict", "kind", "group", "corpus")
    most = "&".join(f"{facet}=value-{number:034}" for facet in facets for number in range(30))
    assert len(most) < LONGEST_ADDRESS
    answer = explorer.get(f"/runs/{RUN}/features?{most}")
    assert answer.status_code == 200
    assert len(answer.text) < 3_000_000
    one_more = explorer.get(f"/runs/{RUN}/features?" + "&".join(f"owner={number}" for number in range(31)))
    assert one_more.status_code == 422
    assert "owner" in one_more.text


def test_refusals_are_described(explorer: TestClient):
    paths = explorer.get("/api/openapi.json").json()["paths"]
    for path, operations in paths.items():
        for operation in operations.values():
            assert {"400", "404", "413", "421", "422", "503"} <= operation["responses"].keys(), path
