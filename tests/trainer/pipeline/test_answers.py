"""Text that a source's own model writes, as a part of the corpus."""

import json
import shutil
from pathlib import Path

import pytest
from safetensors.torch import load_file, save_file

from tests.worlds.tiny_diff import result_rows, tiny_diff
from tests.worlds.tiny_models import tiny_llama
from trainer.errors import RecipeError
from trainer.models.source import load_source
from trainer.pipeline.commands import run
from trainer.reading import answers as answers_module
from trainer.recipe.fitting import SourceRecipe
from trainer.recipe.recipe import load_recipe


def answered(world: Path, **changes: object) -> Path:
    """A recipe whose chats are answered by `left`."""
    recipe = tiny_diff(world, **changes)
    text = recipe.read_text()
    chats = f"path: {world / 'chats.jsonl'}"
    assert chats in text
    recipe.write_text(text.replace(chats, f"{chats}\n    answers: {{source: left, count: 12, tokens: 24}}"))
    return recipe


def answers(home: Path) -> list[Path]:
    return sorted((home / "corpora" / "answers").glob("*.jsonl"))


def test_questions_are_answered_once_and_the_same_run_twice_reads_the_same_text(tmp_path, own_home):
    recipe = answered(tmp_path / "world", training={"batch": 128, "epochs": 1, "learning_rate": 0.01})
    folder = run(recipe)
    (path,) = answers(own_home)
    chats = [json.loads(line)["messages"] for line in path.read_text().splitlines()]
    asked = {
        json.loads(line)["messages"][0]["content"] for line in (tmp_path / "world/chats.jsonl").read_text().splitlines()
    }
    before = path.stat().st_mtime_ns, result_rows(folder, "select text from sequence order by text")

    run(recipe, force=True)

    assert len(chats) == 12
    assert all([turn["role"] for turn in chat] == ["user", "assistant"] for chat in chats)
    assert {chat[0]["content"].strip() for chat in chats} <= {question.strip() for question in asked}
    assert answers(own_home) == [path] and path.stat().st_mtime_ns == before[0], "kept, not written again"
    assert result_rows(folder, "select text from sequence order by text") == before[1]
    texts = [text for (text,) in before[1]]
    assert any(chat[1]["content"][:10] in text for chat in chats for text in texts)


def test_another_model_and_other_settings_give_answers_of_their_own(tmp_path, own_home):
    world = tmp_path / "world"
    recipe = answered(world, training={"batch": 128, "epochs": 1, "learning_rate": 0.01})
    run(recipe, stages=("harvest",))
    weights = load_file(world / "llama" / "model.safetensors")
    save_file(
        {name: weight * 1.1 for name, weight in weights.items()},
        world / "llama" / "model.safetensors",
        metadata={"format": "pt"},
    )

    run(recipe, stages=("harvest",))
    assert len(answers(own_home)) == 2
    recipe.write_text(recipe.read_text().replace("tokens: 24", "tokens: 12, temperature: 1.0"))
    run(recipe, stages=("harvest",))

    found = answers(own_home)
    assert len(found) == 3
    shutil.rmtree(own_home / "activations")
    content = {path: path.read_text() for path in found}
    for path in found:
        path.unlink()
    run(recipe, stages=("harvest",))
    (again,) = answers(own_home)
    assert again.read_text() == content[again], "sampled with a seed"


def test_a_source_that_is_not_there_cannot_answer(tmp_path):
    recipe = answered(tmp_path / "world")
    recipe.write_text(recipe.read_text().replace("source: left", "source: nobody"))

    with pytest.raises(RecipeError, match=r"no source is named 'nobody'; there are left, right"):
        load_recipe(recipe)


def test_a_part_that_is_answered_has_another_identity_and_one_that_is_not_keeps_its_own(tmp_path):
    plain = load_recipe(tiny_diff(tmp_path / "world"))
    with_answers = load_recipe(answered(tmp_path / "world"))

    assert "answers" not in plain.identity()["corpus"]["mix"][1]
    assert plain.fingerprint() != with_answers.fingerprint()


@pytest.mark.parametrize(
    "change", [{"deduplicate": False}, {"seed": 1}, {"context": 32}, {"sequences_per_document": 1}]
)
def test_answers_to_questions_that_are_chosen_otherwise_are_others(tmp_path, change):
    recipe = load_recipe(answered(tmp_path / "world"))
    part = recipe.corpus.mix[1]
    other = recipe.corpus.model_copy(update=change)

    assert answers_module.answers_file(part, recipe.corpus, "r", "q") != answers_module.answers_file(
        part, other, "r", "q"
    )
    renamed = part.model_copy(update={"name": "other", "share": 0.9})
    assert answers_module.answers_file(part, other, "r", "q") == answers_module.answers_file(renamed, other, "r", "q")


def test_a_model_whose_template_fails_answers_plain_text_and_stops_before_the_next_question(tmp_path):
    tiny_llama(tmp_path / "llama")
    source = load_source(SourceRecipe(name="left", model=str(tmp_path / "llama"), layer=1, device="cpu"))
    source.tokenizer.chat_template = "{{ raise_exception('no users here') }}"

    text = source.tokenizer.decode(answers_module._prompt(source, "Where is it?"))

    assert "User: Where is it?" in text and text.rstrip().endswith("Assistant:")
    assert answers_module._first_turn("It is here.\n\nUser: And now?") == "It is here."
