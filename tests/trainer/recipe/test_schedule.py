"""The rule for training settings that a recipe leaves open, against sizes worked out by hand."""

from typing import Any

import pytest

from trainer.recipe.recipe import Recipe, parse_recipe
from trainer.recipe.schedule import BATCHES, MOST_EPOCHS, Schedule

DEMO = {"smollm2": 576, "gemma3": 640}
TOY = {"one": 128, "two": 128}


def recipe(features: int, k: int, **changes: Any) -> Recipe:
    data: dict[str, Any] = {"name": "x", "crosscoder": {"features": features, "sparsity": {"k": k}}} | changes
    return parse_recipe(data, origin="the test")


@pytest.mark.parametrize(
    ("features", "k", "rows", "widths", "expected"),
    [
        # A feature fires on every 256th row: 3,000 times in 1.9 passes, twice in 512 rows, 64 times in 16,384.
        (8192, 32, 400_000, DEMO, Schedule(2, 512, 3.0e-3, 16_384)),
        # Every 128th row: 3.2 passes; 256 rows are 1,406 steps.
        (4096, 32, 120_000, {"base": 576, "tuned": 576}, Schedule(3, 256, 3.1e-3, 8192)),
        # Every 102.4th row: twice in 205 rows, of which the nearest power of two is 256.
        (512, 5, 2_000_000, TOY, Schedule(1, 256, 6.6e-3, 6554)),
        # 2,000 million rows in steps of 1,024 would be two million steps.
        (32_768, 64, 2_000_000_000, {"large": 4096}, Schedule(1, 4096, 1.2e-3, 32_768)),
    ],
)
def test_settings_follow_from_how_often_an_average_feature_fires(features, k, rows, widths, expected):
    assert Schedule.of(recipe(features, k), rows, widths) == expected


def test_few_rows_are_read_more_often_in_smaller_steps_but_not_without_end():
    # By firings 77 passes and 512 rows per step; 4 passes of 10,000 rows in a thousand steps are 40 rows per step.
    found = Schedule.of(recipe(8192, 32), 10_000, DEMO)

    assert (found.epochs, found.batch) == (MOST_EPOCHS, BATCHES[0])


@pytest.mark.parametrize("rows", [0, 1, 17, 63])
def test_rows_fewer_than_a_batch_are_one_batch(rows):
    assert Schedule.of(recipe(512, 5), rows, TOY).batch == max(1, rows)


def test_a_feature_is_silent_for_some_steps_before_it_is_dead():
    # An average feature fires on every second row, so that 64 firings are 128 rows, two of these steps.
    found = Schedule.of(recipe(64, 32, training={"batch": 64}), 100_000, TOY)

    assert found.dead_after_rows == 8 * 64


def test_a_wider_source_is_trained_at_a_rate_lower_by_the_root_of_its_width():
    narrow, wide = (Schedule.of(recipe(512, 5), 10**6, {"a": width}).learning_rate for width in (100, 400))

    assert narrow == pytest.approx(2 * wide, rel=0.05)


@pytest.mark.parametrize(
    ("section", "key", "value", "field"),
    [
        ("training", "epochs", 7, "epochs"),
        ("training", "batch", 96, "batch"),
        ("training", "learning_rate", 1e-4, "learning_rate"),
        ("dead_features", "after_rows", 1234, "dead_after_rows"),
    ],
)
def test_a_stated_setting_wins(section, key, value, field):
    stated = {"training": {key: value}} if section == "training" else {}
    one = recipe(512, 5, **stated)
    if section == "dead_features":
        one = parse_recipe({"name": "x", "crosscoder": {"features": 512, "dead_features": {key: value}}}, origin="")

    assert getattr(Schedule.of(one, 10**6, TOY), field) == value


def test_what_is_not_stated_follows_from_the_rule_all_the_same():
    assert Schedule.of(recipe(512, 5, training={"epochs": 9}), 10**6, TOY) == Schedule(9, 256, 6.6e-3, 6554)


def test_stated_in_a_recipe_the_schedule_is_what_the_recipe_gives_back():
    one = recipe(512, 5)
    found = Schedule.of(one, 10**6, TOY)
    stated = found.stated_in(one)

    assert (stated.training.batch, stated.crosscoder.dead_features.after_rows) == (256, 6554)
    assert Schedule.of(stated, 17, {"other": 9000}) == found


def test_a_stream_is_read_once_and_sized_by_the_rows_that_the_recipe_names():
    streamed = recipe(8192, 32, harvest={"rows": 100_000, "stream": {}})

    assert Schedule.of(streamed, 10, DEMO) == Schedule.of(recipe(8192, 32, training={"epochs": 1}), 100_000, DEMO)


def test_features_of_custom_groups_are_counted_together():
    groups = [{"name": name, "features": 256, "reads": ["one"], "writes": ["one"]} for name in ("a", "b")]
    data = {"name": "x", "crosscoder": {"variant": "custom", "groups": groups, "sparsity": {"k": 5}}}

    assert Schedule.of(parse_recipe(data, origin="here"), 10**6, TOY) == Schedule.of(recipe(512, 5), 10**6, TOY)
