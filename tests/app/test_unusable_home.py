"""A home folder that cannot be used, and a folder given as a recipe, end in a sentence that names the remedy."""

from pathlib import Path

import pytest
from click.testing import CliRunner

from app.cli import main
from app.errors import BadSetting
from app.settings import Settings
from trainer.errors import UsageError
from trainer.run.folder import home

RECIPE = """
name: x
sources: [{name: a, model: ./one, layer: 0}, {name: b, model: ./two, layer: 0}]
corpus: {mix: [{path: a.txt}]}
"""


@pytest.fixture(params=["a file", "below a file", "a dangling link", "no permission"])
def unusable(request, tmp_path, monkeypatch) -> Path:
    (tmp_path / "file").write_text("text")
    (tmp_path / "link").symlink_to(tmp_path / "gone" / "for" / "good")
    path = {
        "a file": tmp_path / "file",
        "below a file": tmp_path / "file" / "home",
        "a dangling link": tmp_path / "link",
        "no permission": Path("/proc/crossdiff"),
    }[request.param]
    monkeypatch.setenv("CROSSDIFF_HOME", str(path))
    (tmp_path / "recipe.yaml").write_text(RECIPE)
    monkeypatch.chdir(tmp_path)
    return path


@pytest.mark.parametrize(
    "command",
    [
        "run recipe.yaml",
        "harvest recipe.yaml",
        "train recipe.yaml",
        "analyse recipe.yaml",
        "calibrate x",
        "export x out --format crosscode",
        "import recipe.yaml --name x",
        "runs",
    ],
)
def test_every_command_ends_in_a_sentence(unusable, command):
    result = CliRunner().invoke(main, command.split())

    assert result.exception is None or isinstance(result.exception, SystemExit), result.exception
    assert result.output.count("\n") < 8
    if command.endswith("recipe.yaml"):
        assert result.exit_code == 1
        assert "cannot be used" in result.output and "set CROSSDIFF_HOME" in result.output


def test_a_worker_asks_for_the_explorers_folder(unusable, monkeypatch):
    monkeypatch.setenv("CROSSDIFF_WORKER_TOKEN", "secret")

    result = CliRunner().invoke(main, ["worker"])

    assert result.exit_code == 1
    assert f"There is no folder {unusable}. Set CROSSDIFF_HOME to" in result.output


def test_doctor_finds_it(unusable):
    result = CliRunner().invoke(main, ["doctor"])

    assert result.exit_code == 1
    assert f"FAIL  disk       nothing can be written to {unusable}" in result.output


def test_a_folder_is_no_recipe(tmp_path):
    for command in ("run", "harvest", "doctor"):
        result = CliRunner().invoke(main, [command, str(tmp_path)])
        assert result.exit_code in (1, 2) and "is a folder, not a recipe" in result.output


def test_a_tilde_in_the_home_is_the_users_folder(tmp_path, monkeypatch):
    monkeypatch.setenv("HOME", str(tmp_path))
    monkeypatch.setenv("CROSSDIFF_HOME", "~/x")

    assert home() == Settings.from_environment().home == tmp_path / "x"


def test_a_tilde_of_nobody_is_refused(monkeypatch):
    monkeypatch.setenv("CROSSDIFF_HOME", "~nobodyhere/x")

    with pytest.raises(UsageError, match="there is no such user"):
        home()
    with pytest.raises(BadSetting, match="there is no such user"):
        Settings.from_environment()
