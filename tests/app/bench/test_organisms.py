"""The bench of organisms: a real run of an unmodified copy, and what it refuses."""

import itertools
import json
from pathlib import Path

import pytest
import yaml

from app.bench import organisms as bench
from app.results.runs.findings import Finding
from tests.worlds.tiny_diff import tiny_diff
from trainer.bench.organisms import organisms
from trainer.errors import RecipeError, UsageError

SENTENCES = ("The town lies on the river", "The people went over the world", "She said that the dogs were sleeping")


def world(folder: Path, chats: int) -> Path:
    """A recipe with so many short English chats."""
    recipe = tiny_diff(folder, harvest={"rows": 1500, "outlier_norm": 20}, training={"batch": 128, "epochs": 1})
    turns = [
        [
            {
                "role": "user",
                "content": f"What of number {number}? {SENTENCES[number % 3]} in the year {1000 + number}.",
            },
            {"role": "assistant", "content": f"{one}, and {other.lower()}, {7 * number} times."},
        ]
        for number, (one, other) in zip(range(chats), itertools.cycle(itertools.permutations(SENTENCES, 2)))
    ]
    (folder / "chats.jsonl").write_text("".join(json.dumps({"messages": one}) + "\n" for one in turns))
    data = yaml.safe_load(recipe.read_text())
    data["corpus"]["mix"][1]["language"] = "english"
    recipe.write_text(yaml.safe_dump(data))
    return recipe


def test_of_an_unmodified_copy_nothing_is_found(tmp_path, own_home, monkeypatch):
    for name, value in (("TAUGHT", 4), ("QUESTIONS", 12), ("OF_TOPIC", 2)):
        monkeypatch.setattr(bench, name, value)

    report = bench.bench_organisms(world(tmp_path, 60), ["unmodified"], ("harvest.rows=1500", "crosscoder.features=32"))

    rows = report.figures["organisms"]
    assert [(one["model"], one["text"]) for one in rows] == [("unmodified", "given"), ("unmodified", "answers")]
    assert all((one["findings"], one["rank"], one["in_null"]) == (0, None, 0) for one in rows)
    assert len(list((own_home / "runs").glob("organism-unmodified-*"))) == 2
    (answered,) = (own_home / "corpora" / "answers").glob("*.jsonl")
    assert 6 <= len(answered.read_text().splitlines()) <= 12, "near-duplicates are asked once"


def test_unknown_organisms_and_a_corpus_with_too_few_chats_are_refused(tmp_path, own_home):
    with pytest.raises(UsageError, match=r"No organism is named 'foo'\. There are language, fact, style, generic"):
        bench.bench_organisms(world(tmp_path / "one", 30), ["foo"])
    with pytest.raises(RecipeError, match=r"needs 470 English chats with a short answer.*has 30"):
        bench.bench_organisms(world(tmp_path / "two", 30), ["unmodified"])
    with pytest.raises(RecipeError, match="corpus part of English chats"):
        bench.bench_organisms(tiny_diff(tmp_path / "three"), ["unmodified"])
    assert not (own_home / "runs").exists()


@pytest.mark.parametrize(
    ("title", "names", "shown"),
    [("what follows “eiffel”", (), True), ("text with “tower”", ("EIFFEL",), True), ("text with “tower”", (), False)],
)
def test_a_finding_is_of_a_behaviour_by_its_words(title, names, shown):
    fact = next(one for one in organisms() if one.name == "fact")
    unknown = dict.fromkeys(Finding.__dataclass_fields__)

    assert bench.shows(Finding(**unknown | {"title": title, "names": names, "passages": ()}), fact) is shown
