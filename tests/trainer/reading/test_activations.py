"""What a source cannot read as asked for is refused, or counted and told."""

import json
from collections import Counter
from pathlib import Path

import pytest
import torch

from tests.worlds.tiny_diff import tiny_diff
from trainer.corpus.document import Document
from trainer.errors import CorpusError, SourceError
from trainer.harvest import Harvest
from trainer.models.source import Source, load_source
from trainer.reading import activations
from trainer.reading.activations import ActivationReader
from trainer.reading.tokenize import SourceTokenizer, tokenize_documents
from trainer.recipe.recipe import Recipe, load_recipe
from trainer.run.folder import RunFolder
from trainer.run.progress import Progress
from trainer.store.store import ActivationStore


@pytest.fixture(scope="module")
def world(tmp_path_factory: pytest.TempPathFactory) -> tuple[Recipe, list[Source]]:
    recipe = load_recipe(tiny_diff(tmp_path_factory.mktemp("world")))
    return recipe, [load_source(source) for source in recipe.sources]


@pytest.fixture
def left(world) -> Source:
    """The first source; whatever a test does to its template and recipe is undone."""
    source = world[1][0]
    template, recipe = source.tokenizer.chat_template, source.recipe
    yield source
    source.tokenizer.chat_template, source.recipe = template, recipe


def harvest(world, folder: Path, capsys=None, **changes) -> tuple[ActivationStore, str]:
    """The store, and what was printed and logged."""
    recipe, sources = world
    run = RunFolder(folder / "run")
    store = Harvest(recipe.model_copy(update=changes), sources, folder / "store", "f").run(Progress(run, "tiny"))
    printed = capsys.readouterr().err if capsys else ""
    assert all(line in run.log.read_text() for line in printed.splitlines() if line.startswith("harvest: "))
    return store, printed


REFUSING = {
    "system role": "{{ raise_exception('System role not supported') }}",
    "syntax": "{% for message in messages %}{{ message",
    "changes contents": "{% for message in messages %}{{ message['content'].split('the')[0] }}{% endfor %}",
    "parts": "{% for message in messages %}{{ message['content'][0]['text'] }}{% endfor %}",
    "no default": {"tools": "{{ messages }}", "rag": "{{ messages }}"},
    "empty": "{% if false %}{% endif %}",
}


@pytest.mark.parametrize("kind", REFUSING)
def test_chats_that_a_template_refuses_are_counted_told_and_recorded(world, left, tmp_path, capsys, kind: str):
    left.tokenizer.chat_template = REFUSING[kind]

    store, printed = harvest(world, tmp_path, capsys)

    statistics = store.manifest.statistics
    tally = statistics["templates"]["left"]
    assert 0 < tally["plain"] <= tally["chats"]
    assert f"{tally['plain']:,} of {tally['chats']:,} chats are read as plain text in left, because" in printed
    assert sum(tally["reasons"].values()) == tally["plain"]
    assert statistics["counts"]["chats/0/plain_chats"] == tally["plain"]
    assert not any(key.endswith("/1/plain_chats") for key in statistics["counts"])


@pytest.mark.parametrize("kind", REFUSING)
def test_a_template_that_the_recipe_insists_on_must_render_the_chats(world, left, tmp_path, kind: str):
    left.tokenizer.chat_template = REFUSING[kind]
    left.recipe = left.recipe.model_copy(update={"chat": "template"})

    with pytest.raises(
        SourceError, match=r"left: its chat template cannot render \d+ of \d+ chats .* Use `chat: auto`"
    ):
        harvest(world, tmp_path)


def test_a_template_that_renders_every_chat_leaves_no_trace(world, left, tmp_path, capsys):
    left.recipe = left.recipe.model_copy(update={"chat": "template"})

    store, printed = harvest(world, tmp_path, capsys)

    assert "plain text" not in printed
    assert "templates" not in store.manifest.statistics
    assert not any("plain" in key or "not_finite" in key for key in store.manifest.statistics["counts"])


def spoiled(monkeypatch, source: Source, number: float, choose) -> None:
    """Have a source's activations be a number that is not finite in the rows that `choose` masks."""
    original = activations.read

    def read(one, *args, **kwargs):
        found = original(one, *args, **kwargs).clone()
        if one is source:
            found[choose(found)] = number
        return found

    monkeypatch.setattr(activations, "read", read)


NUMBERS = [float("nan"), float("inf"), -float("inf")]


@pytest.mark.parametrize("number", NUMBERS)
@pytest.mark.parametrize("index", [0, 1])
def test_rows_that_are_not_finite_are_told_and_leave_the_outlier_filter_alone(
    world, tmp_path, monkeypatch, index: int, number: float
):
    recipe = world[0].model_copy(update={"harvest": world[0].harvest.model_copy(update={"outlier_norm": 1.2})})
    clean, _ = harvest((recipe, world[1]), tmp_path / "clean")
    source = world[1][index]
    spoiled(monkeypatch, source, number, lambda found: (torch.arange(found.shape[1]) == 9).expand(found.shape[:2]))

    store, _ = harvest((recipe, world[1]), tmp_path / "spoiled")

    counts = store.manifest.statistics["counts"]
    lost = sum(n for key, n in counts.items() if key.endswith(f"/{index}/not_finite"))
    assert lost > 0
    place = f"{source.name}: its activations at resid_post.{source.recipe.layer} are NaN or infinite in float32"
    assert f"{place} for {lost:,} tokens, which are left out" in (tmp_path / "spoiled" / "run" / "log.txt").read_text()
    for name, median in clean.manifest.statistics["medians"].items():
        assert store.manifest.statistics["medians"][name] == pytest.approx(median, rel=0.1)
    rows = torch.cat([block.rows[source.name] for block in store.blocks("train", rows=1000)]).float()
    norms = torch.linalg.vector_norm(rows, dim=1)
    assert bool(torch.isfinite(norms).all())
    assert float(norms.max()) <= 1.2 * store.manifest.statistics["medians"][source.name]


@pytest.mark.parametrize("number", NUMBERS)
def test_without_a_finite_row_the_first_pool_ends_the_harvest(world, tmp_path, monkeypatch, number: float):
    pools = Counter()
    original = ActivationReader.next_pool

    def counted(self, stream):
        pools["read"] += 1
        return original(self, stream)

    monkeypatch.setattr(ActivationReader, "next_pool", counted)
    monkeypatch.setattr(activations, "POOL_ROWS", 500)
    spoiled(monkeypatch, world[1][1], number, lambda found: torch.ones(found.shape[:2], dtype=torch.bool))

    with pytest.raises(SourceError, match=r"right: .* NaN or infinite in float32 in all of the first [\d,]+ rows"):
        harvest(world, tmp_path)
    assert pools["read"] == 1


def test_an_endless_corpus_without_rows_ends(world, tmp_path, monkeypatch, capsys):
    texts = tmp_path / "short.jsonl"
    texts.write_text("".join(json.dumps({"text": f"a {n}"}) + "\n" for n in range(4000)))
    part = world[0].corpus.mix[0].model_copy(update={"path": str(texts), "share": 1.0})
    corpus = world[0].corpus.model_copy(update={"mix": (part,)})
    monkeypatch.setattr(activations, "POOL_ROWS", 500)

    with pytest.raises(CorpusError, match="The corpus gave no rows"):
        harvest(world, tmp_path, corpus=corpus)
    assert "the corpus gave no more rows after 0 of" in capsys.readouterr().err


@pytest.mark.parametrize(("context", "fits"), [(512, True), (513, False), (4096, False)])
def test_a_context_beyond_the_positions_is_refused_before_reading(world, context: int, fits: bool):
    recipe = world[0].model_copy(update={"corpus": world[0].corpus.model_copy(update={"context": context})})

    if fits:
        ActivationReader(recipe, world[1], medians={}, counts=Counter())
        return
    with pytest.raises(
        SourceError, match=rf"left: `corpus\.context` is {context:,} tokens and .* has positions for 512"
    ):
        ActivationReader(recipe, world[1], medians={}, counts=Counter())


def test_a_text_ends_before_a_token_that_the_model_has_no_embedding_for(world, tmp_path):
    source = world[1][0]
    tokenizer = type(source.tokenizer).from_pretrained(source.recipe.model)
    tokenizer.add_special_tokens({"additional_special_tokens": ["<image>"]})
    text = "the quick brown fox <image> jumps over"
    document = Document(0, "part", text, False, 0)
    known, everything = (
        next(iter(tokenize_documents([document], [SourceTokenizer(tokenizer, False, rows)], tokens=64)))
        for rows in (400, None)
    )

    assert everything.tokenized[0].ids.max() == 400
    assert known.tokenized[0].ends[-1] == text.index("<image>")
