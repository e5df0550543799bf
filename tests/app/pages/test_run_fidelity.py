"""Fidelity of the reconstruction, on a run's page."""

import html
from pathlib import Path

import pytest
from starlette.testclient import TestClient

from app.main import create_app
from app.settings import Settings
from tests.worlds.tiny_results import RUN, write_tiny_run

MEASURED = {"cross_entropy": 2.83, "loss_recovered_zero": 0.952, "kl_reconstruction": 0.5, "positions_replaced": 0.828}


@pytest.mark.parametrize("measured", [True, False])
def test_loss_recovered_is_shown_where_it_was_measured(own_home: Path, measured: bool):
    rows = ", ".join(f"(0, '{measure}', {value})" for measure, value in MEASURED.items())
    write_tiny_run(own_home, features=64, amend=(f"insert into evaluation values {rows}",) if measured else ())

    with TestClient(create_app(Settings(home=own_home))) as client:
        page = html.unescape(client.get(f"/runs/{RUN}/method").text)

    for words in (
        "loss recovered, against zero",
        "95.2 %",
        "2.83",
        "82.8 %",
        "model's cross-entropy on the next token",
    ):
        assert (words in page) == measured, words
    assert "loss_recovered" not in page
