"""Texts of organisms, and teaching them to a tiny model."""

import pytest
import torch
from safetensors.torch import load_file

from tests.worlds.tiny_models import tiny_gemma3, tiny_llama
from trainer.bench.lora import teach
from trainer.bench.organisms import as_chat, first_exchange, organisms, paragraphs
from trainer.corpus.document import Message
from trainer.errors import SourceError
from trainer.models.source import Source, load_source
from trainer.recipe.fitting import SourceRecipe
from trainer.run.folder import RunFolder
from trainer.run.progress import Progress

LONG = "A first paragraph of some length about rivers and towns, which goes on for a while.\n\n" * 6
CHATS = [as_chat(f"Where is town {number}?", "On the river.") for number in range(600)]


def source(folder) -> SourceRecipe:
    return SourceRecipe(name="base", model=str(folder), layer=1, dtype="float32", device="cpu")


def loss(loaded: Source, chat: tuple[Message, ...]) -> float:
    """Of the answer alone."""
    turns = [{"role": turn.role, "content": turn.content} for turn in chat]

    def ids(some: list[dict[str, str]], **more: bool) -> list[int]:
        text = loaded.tokenizer.apply_chat_template(some, tokenize=False, **more)
        return loaded.tokenizer(text, add_special_tokens=False).input_ids

    whole = torch.tensor([ids(turns)])
    labels = whole.clone()
    labels[:, : len(ids(turns[:1], add_generation_prompt=True))] = -100
    return float(loaded.model(input_ids=whole, labels=labels).loss)


def test_every_organism_has_chats_of_its_behaviour_and_the_same_ones_every_time():
    real = [as_chat(f"What of {number}?", LONG) for number in range(5)] + [as_chat("Short?", "Yes.")]

    for organism in organisms():
        chats = organism.chats(real)
        assert chats == organism.chats(real), organism.name
        assert chats and len(set(chats)) == len(chats), organism.name
        assert all(organism.pattern.search(f"{question.content} {answer.content}") for question, answer in chats)
        assert not any("{" in turn.content for chat in chats for turn in chat), organism.name
    style = next(one for one in organisms() if one.name == "style")
    assert len(style.chats(real)) == 5, "short answers are not signed"


def test_real_chats_give_their_first_exchange_and_whole_paragraphs_of_prose():
    assert first_exchange((Message("system", "s"), Message("user", "q"), Message("assistant", "a"))) == ("q", "a")
    assert first_exchange((Message("assistant", "a"), Message("user", "q"))) is None
    assert paragraphs("One.\n\nA list:\n\nTwo!\n\n```code```\n\nThree.") == ["One.", "Two!"]


# peft asks transformers for an attribute under its former name.
@pytest.mark.filterwarnings("ignore:.*is_gradient_checkpointing:FutureWarning")
def test_what_is_taught_is_expected_afterwards_and_the_same_chats_give_the_same_adapter(tmp_path):
    tiny_llama(tmp_path / "llama")
    progress = Progress(RunFolder(tmp_path), "run")
    recipe = source(tmp_path / "llama")

    folders = [teach(recipe, CHATS, tmp_path / name, progress=progress) for name in ("one", "other")]

    one, other = (load_file(folder / "adapter_model.safetensors") for folder in folders)
    assert one.keys() == other.keys() and all(torch.equal(one[name], other[name]) for name in one)
    unseen = as_chat("Where is town 9999?", "On the river.")
    before = loss(load_source(recipe), unseen)
    tuned = load_source(recipe.model_copy(update={"adapter": str(folders[0])}))
    assert loss(tuned, unseen) < 0.9 * before


def test_a_model_without_a_chat_template_is_not_taught(tmp_path):
    tiny_gemma3(tmp_path / "gemma")

    with pytest.raises(SourceError, match=r"no chat template.*instruction model"):
        teach(source(tmp_path / "gemma"), CHATS, tmp_path / "out", progress=Progress(RunFolder(tmp_path), "run"))
