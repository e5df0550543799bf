"""`crossdiff bench NAME` prints a table, and with --json one object in the last line."""

import json

from click.testing import CliRunner, Result

from app.cli import main

TINY = (
    "train",
    "--variant",
    "dfc",
    "--widths",
    "8, 12",
    "--features",
    "40",
    "--k",
    "3",
    "--batch",
    "32",
    "--rounds",
    "1",
)


def bench(*arguments: str) -> Result:
    return CliRunner().invoke(main, ["bench", *arguments], prog_name="crossdiff")


def test_with_json_the_last_line_is_one_json_object():
    outcome = bench(*TINY, "--json")

    assert outcome.exit_code == 0, outcome.output
    *table, last = outcome.stdout.splitlines()
    (result,) = json.loads(last)["results"]
    assert (result["variant"], result["widths"], result["batch"]) == ("dfc", [8, 12], 32)
    assert any(line.startswith("variant") for line in table)


def test_without_json_only_the_table_is_printed():
    assert "{" not in bench(*TINY).stdout


def test_malformed_widths_are_a_usage_error():
    outcome = bench("train", "--variant", "dfc", "--widths", "wide")

    assert outcome.exit_code == 2
    assert "like 576,640." in outcome.stderr


def test_without_the_demo_s_models_one_sentence_says_how_to_get_them():
    outcome = bench("harvest")

    assert outcome.exit_code == 1
    assert "is not on this machine" in outcome.stderr
    assert outcome.stderr.count("\n") == 1


def test_the_analysis_bench_needs_two_widths():
    outcome = bench("analyse", "--widths", "8,12,16")

    assert outcome.exit_code == 2
    assert "is not two numbers" in outcome.output
