"""Divergence and surprise of two models, against an independent slow implementation."""

import math

import pytest
import torch
from torch import nn
from transformers import LlamaForCausalLM

from tests.worlds.tiny_models import byte_level_bpe, gemma_style, tiny_gemma3, tiny_llama
from trainer.baselines.divergence import compare_models, divergence_rows, divergences
from trainer.baselines.outcomes import first_bytes
from trainer.baselines.passages import passage_rows
from trainer.baselines.spans import AlignedSequence, align_sequence
from trainer.models.source import Source, load_source
from trainer.reading.alignment import encode
from trainer.recipe.fitting import SourceRecipe
from trainer.run.folder import RunFolder
from trainer.run.progress import Progress

TEXT = "The capital of Italy is Rome; über the river 31 dogs sleep, la niña cruzó."
CHANGED = 300
"""Token whose row of the unembedding a fine-tune changed."""


@pytest.fixture
def progress(tmp_path) -> Progress:
    return Progress(RunFolder(tmp_path / "run"), "run")


def source_at(folder, name: str) -> Source:
    return load_source(SourceRecipe(name=name, model=str(folder), layer=1, dtype="float32", device="cpu"))


@pytest.fixture
def llama(tmp_path) -> Source:
    tiny_llama(tmp_path / "llama")
    return source_at(tmp_path / "llama", "base")


@pytest.fixture
def tuned(tmp_path) -> Source:
    """The same model but for one row of the unembedding."""
    model = tiny_llama(tmp_path / "tuned")
    model.config.tie_word_embeddings = False
    changed = LlamaForCausalLM(model.config)
    changed.load_state_dict(model.state_dict())
    changed.lm_head.weight = nn.Parameter(model.lm_head.weight.clone())
    with torch.no_grad():
        changed.lm_head.weight[CHANGED] += 0.5
    changed.save_pretrained(tmp_path / "tuned")
    return source_at(tmp_path / "tuned", "tuned")


def align_text(*tokenizers) -> AlignedSequence:
    """The text aligned between these tokenizers, BOS first."""
    read = [encode(tokenizer, TEXT) for tokenizer in tokenizers]
    line = {
        "sequence": 3,
        "document": 3,
        "corpus": "texts",
        "text": TEXT,
        "template_spans": [],
        "tokens": [
            [{"text": "<s>", "byte_end": -1}, *({"text": "?", "byte_end": end} for end in one.ends.tolist())]
            for one in read
        ],
        "token_ids": [[t.bos_token_id, *one.ids.tolist()] for t, one in zip(tokenizers, read, strict=True)],
    }
    return align_sequence(line, [tokenizer.all_special_ids for tokenizer in tokenizers])


def log_probabilities(source: Source, sequence: AlignedSequence, index: int) -> torch.Tensor:
    """Log-probabilities of every token after every position, computed directly."""
    logits = source.model(input_ids=torch.from_numpy(sequence.ids[index])[None]).logits[0]
    return logits.double().log_softmax(dim=1)


def test_divergences_of_two_bernoulli_distributions_match_hand_computed_values():
    fair, loaded, other = (torch.tensor([pair]).log() for pair in ([0.5, 0.5], [0.9, 0.1], [1.0, 0.0]))

    found = divergences(fair, loaded)

    assert found.kl_from.item() == pytest.approx(0.5 * math.log(5 / 9) + 0.5 * math.log(5))
    assert found.kl_to.item() == pytest.approx(0.9 * math.log(9 / 5) + 0.1 * math.log(1 / 5))
    middle = 0.5 * math.log(5 / 7) + 0.5 * math.log(5 / 3) + 0.9 * math.log(9 / 7) + 0.1 * math.log(1 / 3)
    assert found.jensen_shannon.item() == pytest.approx(middle / 2, rel=1e-5)
    apart = divergences(other.clamp_min(-90), other.flip(1).clamp_min(-90))
    assert apart.jensen_shannon.item() == pytest.approx(math.log(2))


def test_a_model_differs_from_itself_by_nothing(llama, progress):
    sequence = align_text(llama.tokenizer, llama.tokenizer)

    ((scores,),) = compare_models(llama, [llama], (0, [1]), [sequence], progress)

    assert scores.kind == "token"
    assert sequence.scored.all()
    assert abs(scores.divergence).max() < 1e-6
    assert (scores.surprise[0] == scores.surprise[1]).all() and scores.surprise.min() > 0


def test_one_changed_row_of_the_unembedding_shows_as_much_as_full_logits_say(llama, tuned, progress):
    sequence = align_text(llama.tokenizer, tuned.tokenizer)

    ((scores,),) = compare_models(llama, [tuned], (0, [1]), [sequence], progress)

    base, other = log_probabilities(llama, sequence, 0), log_probabilities(tuned, sequence, 1)
    unchanged = [token for token in range(base.shape[1]) if token != CHANGED]
    ratio = (other - base)[:, unchanged]
    assert (ratio - ratio[:, :1]).abs().max() < 1e-4, "the world is as it says: all other tokens move together"
    at = sequence.positions[0][:-1]
    forth = (base.exp() * (base - other)).sum(dim=1)[at]
    back = (other.exp() * (other - base)).sum(dim=1)[at]
    assert scores.divergence[0] == pytest.approx(forth.numpy(), abs=1e-5)
    assert scores.divergence[1] == pytest.approx(back.numpy(), abs=1e-5)
    assert scores.divergence[2].max() > 1e-4


def test_models_of_different_tokenizers_are_compared_on_common_byte_ends(llama, tmp_path, progress):
    tiny_gemma3(tmp_path / "gemma")
    gemma = source_at(tmp_path / "gemma", "gemma")
    sequence = align_text(byte_level_bpe(), gemma_style())

    ((scores,),) = compare_models(llama, [gemma], (0, [1]), [sequence], progress)

    assert scores.kind == "byte"
    both = [log_probabilities(llama, sequence, 0), log_probabilities(gemma, sequence, 1)]
    for span in range(len(sequence.scored)):
        expected = []
        for index, source in enumerate((llama, gemma)):
            first, last = sequence.positions[index][span], sequence.positions[index][span + 1]
            cost = -sum(both[index][at - 1, sequence.ids[index][at]].item() for at in range(first + 1, last + 1))
            assert scores.surprise[index, span] == pytest.approx(cost, rel=1e-4)
            sums = [0.0] * 257
            for token, byte in enumerate(first_bytes(source.tokenizer).tolist()):
                sums[byte] += both[index][first, token].exp().item()
            expected.append(sums)
        forth = sum(p * math.log(p / q) for p, q in zip(*expected, strict=True) if p > 1e-12)
        assert scores.divergence[0, span] == pytest.approx(forth, rel=1e-3, abs=1e-5)


def test_measures_are_means_over_scored_spans_by_corpus_part(llama, tuned, progress):
    sequence = align_text(llama.tokenizer, tuned.tokenizer)
    ((scores,),) = compare_models(llama, [tuned], (0, [1]), [sequence], progress)

    rows = {
        (row["corpus"], row["measure"], row["base"], row["source"]): row for row in divergence_rows([scores], (0, 1))
    }

    size = sequence.anchors[-1] - sequence.anchors[0]
    assert rows[None, "surprise", None, 1]["value"] == pytest.approx(scores.surprise[1].sum() / size)
    apart = abs(scores.surprise[0] - scores.surprise[1]).sum() / size
    assert rows["texts", "surprise_apart", 0, 1]["value"] == pytest.approx(apart)
    assert rows["texts", "jensen_shannon_token", 0, 1]["value"] == pytest.approx(scores.divergence[2].mean())
    assert rows["texts", "kl_source_base_token", 0, 1]["n"] == len(sequence.scored)


def test_the_most_different_passages_have_both_tokenizations_and_every_anchor(llama, tuned, progress):
    sequence = align_text(llama.tokenizer, tuned.tokenizer)
    ((scores,),) = compare_models(llama, [tuned], (0, [1]), [sequence], progress)

    found = passage_rows([scores], (0, 1))

    assert found
    assert [row["rank"] for row in found] == list(range(len(found)))
    assert [row["apart"] for row in found] == sorted((row["apart"] for row in found), reverse=True)
    for row in found:
        start, end = row["byte_start"], row["byte_start"] + len(row["text"].encode())
        assert row["text"] == TEXT.encode()[start:end].decode(), "cut between characters"
        assert [place["byte_end"] for place in row["places"]] == [at for at in sequence.anchors if start < at <= end]
        for tokens in row["tokens"]:
            assert [token["byte_end"] for token in tokens] == [at for at in sequence.anchors if start < at <= end]
        mean = sum(place["divergence"] for place in row["places"]) / len(row["places"])
        assert row["apart"] == pytest.approx(mean)
