"""The container files agree with the checkout and the command line; no container engine is needed."""

import re
import shlex
from pathlib import Path
from typing import Any

import click
import pytest
import yaml

from app.cli import main

ROOT = Path(__file__).parents[2]
COMPOSE = yaml.safe_load((ROOT / "docker-compose.yml").read_text(encoding="utf-8"))
OURS = {name: service for name, service in COMPOSE["services"].items() if service["image"] == "crossdiff"}
VARIABLE = re.compile(r"\bCROSSDIFF_(?!TEST_)[A-Z_]+\b")


def instructions(name: str) -> list[list[str]]:
    """Words of every Dockerfile instruction of a kind, continuation lines joined."""
    text = (ROOT / "Dockerfile").read_text(encoding="utf-8").replace("\\\n", " ")
    return [shlex.split(line)[1:] for line in text.splitlines() if line.startswith(f"{name} ")]


def test_everything_the_image_copies_is_in_the_checkout_and_in_the_build():
    allowed = {line[1:] for line in (ROOT / ".dockerignore").read_text().splitlines() if line.startswith("!")}
    copied = [source for words in instructions("COPY") if not words[0].startswith("--") for source in words[:-1]]

    assert copied
    assert [source for source in copied if not (ROOT / source).exists()] == []
    assert [source for source in copied if source.split("/")[0] not in allowed] == []


def test_what_the_command_line_needs_at_run_time_is_copied():
    copied = {source for words in instructions("COPY") for source in words[:-1]}

    assert {"app", "trainer", "frontend", "alembic", "alembic.ini"} <= copied


def test_the_image_does_not_run_as_root():
    ((user,),) = instructions("USER")

    assert user not in ("root", "0")


@pytest.mark.parametrize("name", sorted(OURS))
def test_a_service_starts_with_a_command_that_exists(name: str):
    command, *arguments = OURS[name]["command"]
    parent = click.Context(main, **main.context_settings)

    with main.commands[command].make_context(command, arguments, parent=parent) as context:
        assert not context.args


def test_explorer_and_workers_share_their_data_and_their_secret():
    together = [OURS[name] for name in ("app", "worker", "worker-gpu")]

    assert all("data:/data" in service["volumes"] for service in together)
    assert len({service["environment"]["CROSSDIFF_WORKER_TOKEN"] for service in together}) == 1


def test_no_service_has_a_secret_written_into_the_file():
    values = [
        str(value)
        for service in COMPOSE["services"].values()
        for key, value in environment(service).items()
        if re.search("PASSWORD|TOKEN|DATABASE_URL", key)
    ]

    assert len(values) >= 4
    assert [value for value in values if ":?" not in value] == []


def test_every_setting_is_read_by_the_code_and_named_in_the_readme():
    code = names_in(*ROOT.glob("app/**/*.py"), *ROOT.glob("trainer/**/*.py"))
    documents = names_in(*ROOT.glob("*.md"), *ROOT.glob("docs/*.md"), ROOT / "Dockerfile", ROOT / "docker-compose.yml")

    assert sorted(documents - code) == []
    assert sorted(code - names_in(ROOT / "README.md")) == []


def environment(service: dict[str, Any]) -> dict[str, Any]:
    return dict(service.get("environment", {}))


def names_in(*paths: Path) -> set[str]:
    return {name for path in paths for name in VARIABLE.findall(path.read_text(encoding="utf-8"))}
