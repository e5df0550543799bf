"""The command line: exit codes, error sentences instead of tracebacks, and start and end of the server."""

import contextlib
import json
import os
import signal
import socket
import subprocess
import sys
import time
import urllib.request
from collections.abc import Iterator
from pathlib import Path

import pytest
from click.testing import CliRunner, Result

from app.cli import main
from tests.worlds.tiny_results import write_tiny_run
from tests.worlds.tiny_store import tiny_crosscoder
from trainer.crosscoder.crosscoder import Crosscoder
from trainer.run.stages import STAGES

START_LIMIT = 60
"""Seconds; machines that run tests are busy."""


def crossdiff(*arguments: str) -> Result:
    return CliRunner().invoke(main, [*arguments], prog_name="crossdiff")


@pytest.mark.parametrize("command", ["run", "harvest", "train", "evaluate", "analyse"])
def test_a_recipe_that_is_not_there_is_a_usage_error_that_names_it(command: str, tmp_path: Path):
    outcome = crossdiff(command, str(tmp_path / "none.yaml"))

    assert outcome.exit_code == 2
    assert outcome.stderr.startswith(f"Error: No recipe at {tmp_path / 'none.yaml'}.")
    assert outcome.stderr.count("\n") == 1


def test_a_misspelt_key_is_a_usage_error_that_names_the_nearest(tmp_path: Path):
    recipe = tmp_path / "recipe.yaml"
    recipe.write_text("name: mine\ncrosscoder: {featurs: 64}\n")

    outcome = crossdiff("run", str(recipe))

    assert outcome.exit_code == 2
    assert "Did you mean 'features'?" in outcome.stderr


def test_an_override_is_checked_like_the_recipe_itself(tmp_path: Path):
    recipe = tmp_path / "recipe.yaml"
    recipe.write_text("name: mine\n")

    outcome = crossdiff("run", str(recipe), "--set", "training.epoch=4")

    assert outcome.exit_code == 2
    assert "Did you mean 'epochs'?" in outcome.stderr


def test_the_stages_to_choose_from_are_those_of_a_run():
    (stages,) = [option.type for option in main.commands["run"].params if option.name == "stages"]

    assert stages.choices == STAGES


def test_an_unknown_command_is_a_usage_error():
    assert crossdiff("compare").exit_code == 2


def test_a_crosscoder_is_exported_whole(own_home: Path, tmp_path: Path):
    crosscoder = tiny_crosscoder()
    crosscoder.save(own_home / "runs" / "mine-00000000")

    outcome = crossdiff("export", "mine-00000000", str(tmp_path / "out"), "--format", "crossdiff")

    assert outcome.exit_code == 0, outcome.output
    exported = Crosscoder.load(tmp_path / "out")
    assert exported.decoder("left").tolist() == crosscoder.decoder("left").tolist()


def test_an_option_reaches_the_format_it_is_for(own_home: Path, tmp_path: Path):
    tiny_crosscoder().save(own_home / "runs" / "mine-00000000")
    arguments = ("export", "mine-00000000", str(tmp_path / "out"), "--format", "sparsify", "--option", "k=3")

    outcome = crossdiff(*arguments)

    assert outcome.exit_code == 0, outcome.output
    configs = [json.loads(path.read_text()) for path in (tmp_path / "out").rglob("cfg.json")]
    assert [config["k"] for config in configs] == [3]


def test_exporting_a_run_that_is_not_there_names_the_nearest(own_home: Path, tmp_path: Path):
    tiny_crosscoder().save(own_home / "runs" / "mine-00000000")

    outcome = crossdiff("export", "mine-0000000", str(tmp_path / "out"), "--format", "sparsify")

    assert outcome.exit_code == 1
    assert "Did you mean 'mine-00000000'?" in outcome.stderr


def test_without_a_secret_the_worker_does_not_listen():
    outcome = crossdiff("worker")

    assert outcome.exit_code == 2
    assert "CROSSDIFF_WORKER_TOKEN" in outcome.stderr


def test_with_no_runs_the_list_says_how_to_make_one():
    outcome = crossdiff("runs")

    assert outcome.exit_code == 0
    assert "crossdiff demo" in outcome.stdout


def test_the_list_of_runs_shows_state_and_what_was_found(own_home: Path):
    write_tiny_run(own_home, run="tiny-00000000")

    (line,) = crossdiff("runs").stdout.splitlines()

    assert line.startswith("tiny-00000000  finished")
    assert "shared" in line
    assert "variance explained" in line


def test_doctor_fails_on_a_recipe_whose_model_is_not_there(tmp_path: Path):
    recipe = tmp_path / "recipe.yaml"
    recipe.write_text(
        json.dumps(
            {
                "name": "mine",
                "sources": [{"name": "here", "model": str(tmp_path / "none"), "layer": 0}],
                "corpus": {"mix": [{"path": str(tmp_path / "none.txt")}]},
            }
        )
    )

    outcome = crossdiff("doctor", str(recipe))

    assert outcome.exit_code == 1
    lines = {line[6:].split("  ")[0]: line[:4].strip() for line in outcome.stdout.splitlines()}
    assert lines["source here"] == "FAIL"
    assert lines["corpus"] == "FAIL"
    assert lines["python"] == "ok"


def test_doctor_knows_a_database_that_is_not_reachable(monkeypatch: pytest.MonkeyPatch):
    monkeypatch.setenv("CROSSDIFF_DATABASE_URL", f"postgresql://nobody@127.0.0.1:{free_port()}/labels")

    outcome = crossdiff("doctor")

    (line,) = [line for line in outcome.stdout.splitlines() if line[6:].startswith("labels")]
    assert line.startswith("FAIL")
    assert "CROSSDIFF_DATABASE_URL" in line
    assert outcome.exit_code == 1


def test_a_port_in_use_is_named_with_another_to_choose():
    with socket.create_server(("127.0.0.1", 0)) as taken:
        port = taken.getsockname()[1]

        outcome = crossdiff("serve", "--port", str(port))

    assert outcome.exit_code == 1
    assert f"Port {port} of 127.0.0.1 is in use" in outcome.stderr
    assert "--port" in outcome.stderr.split("is in use")[1]
    assert outcome.stderr.count("\n") == 1


def test_an_address_of_another_machine_is_refused_with_the_option_to_change():
    outcome = crossdiff("serve", "--host", "192.0.2.1", "--port", str(free_port()))

    assert outcome.exit_code == 1
    assert "'192.0.2.1' is not an address of this machine" in outcome.stderr
    assert "--host" in outcome.stderr


def test_a_port_in_the_environment_that_is_none_is_named(monkeypatch: pytest.MonkeyPatch):
    monkeypatch.setenv("CROSSDIFF_PORT", "http")

    outcome = crossdiff("serve")

    assert outcome.exit_code == 1
    assert "CROSSDIFF_PORT is 'http'" in outcome.stderr


def test_ctrl_c_ends_the_server_quietly():
    with serving() as (server, _):
        server.send_signal(signal.SIGINT)
        _, errors = server.communicate(timeout=START_LIMIT)

    assert server.returncode == 0
    assert b"Traceback" not in errors


def test_a_second_server_on_the_same_port_points_to_the_first():
    with serving() as (_, port):
        outcome = crossdiff("serve", "--port", str(port))

    assert outcome.exit_code == 1
    assert f"An explorer already runs at http://127.0.0.1:{port}" in outcome.stderr


def test_a_server_beside_a_run_ends_when_the_run_is_killed():
    with serving("--until-input-ends") as (server, _):
        assert server.stdin is not None
        server.stdin.close()

        server.wait(timeout=START_LIMIT)


def test_demo_serves_while_it_runs_and_ends_the_server_when_the_run_fails(tmp_path: Path):
    recipe = tmp_path / "recipe.yaml"
    sources = "[{name: a, model: ./none, layer: 0}, {name: b, model: ./none, layer: 1}]"
    recipe.write_text(f"name: mine\nsources: {sources}\ncorpus: {{mix: [{{path: none.txt}}]}}\n")
    port = free_port()

    outcome = crossdiff("demo", "--recipe", str(recipe), "--port", str(port), "--no-browser")

    assert f"The explorer is at http://127.0.0.1:{port}" in outcome.stdout
    assert outcome.exit_code == 1, outcome.output
    assert "none" in outcome.stderr
    with pytest.raises(ConnectionRefusedError):
        socket.create_connection(("127.0.0.1", port), timeout=2)


def test_demo_of_an_incomplete_recipe_ends_before_it_serves(tmp_path: Path, own_home: Path):
    recipe = tmp_path / "recipe.yaml"
    recipe.write_text("name: mine\nsources: []\n")

    outcome = crossdiff("demo", "--recipe", str(recipe), "--port", str(free_port()), "--no-browser")

    assert (outcome.exit_code, outcome.stdout) == (2, ""), outcome.output
    assert "--activations" in outcome.stderr
    assert not own_home.exists(), "it leaves no run behind"


def free_port() -> int:
    with socket.create_server(("127.0.0.1", 0)) as probe:
        return int(probe.getsockname()[1])


@contextlib.contextmanager
def serving(*options: str) -> Iterator[tuple["subprocess.Popen[bytes]", int]]:
    """`crossdiff serve` in a process of its own, answering."""
    port = free_port()
    command = [sys.executable, "-m", "app.cli", "serve", "--port", str(port), *options]
    server = subprocess.Popen(
        command, stdin=subprocess.PIPE, stdout=subprocess.PIPE, stderr=subprocess.PIPE, env=dict(os.environ)
    )
    try:
        wait_until_it_answers(server, port)
        yield server, port
    finally:
        server.kill()
        server.wait()
        for stream in (server.stdin, server.stdout, server.stderr):
            if stream is not None:
                stream.close()


def wait_until_it_answers(server: "subprocess.Popen[bytes]", port: int) -> None:
    deadline = time.monotonic() + START_LIMIT
    while True:
        assert server.poll() is None, server.communicate()[1]
        with contextlib.suppress(OSError), urllib.request.urlopen(f"http://127.0.0.1:{port}/healthz", timeout=2):
            return
        assert time.monotonic() < deadline
        time.sleep(0.1)


@pytest.mark.parametrize(("host", "beyond"), [("127.0.0.1", False), ("0.0.0.0", True)])
def test_a_server_says_where_it_is_and_what_that_means(host: str, beyond: bool):
    port = free_port()
    command = [sys.executable, "-m", "app.cli", "serve", "--host", host, "--port", str(port)]
    with subprocess.Popen(command, stderr=subprocess.PIPE, text=True) as server:
        assert server.stderr is not None
        lines = [server.stderr.readline() for _ in range(2 if beyond else 1)]
        server.send_signal(signal.SIGINT)
        server.communicate(timeout=START_LIMIT)
    assert f"http://127.0.0.1:{port}" in lines[-1]
    assert ("anybody who can reach it may read all results and write labels" in lines[0]) == beyond
