"""Loss of models with replaced activations, against an independent implementation with hooks."""

import json
import math
from pathlib import Path

import pytest
import torch
from torch.nn.functional import cross_entropy, kl_div, log_softmax

from tests.worlds.tiny_activations import tiny_activations
from tests.worlds.tiny_diff import tiny_diff
from tests.worlds.tiny_models import tiny_gemma3, tiny_llama
from trainer.evaluation.fidelity import HeldOutSequence, Losses, add_sequence, held_out_sequences
from trainer.models.source import Source, load_source
from trainer.pipeline.commands import run
from trainer.recipe.fitting import SourceRecipe
from trainer.recipe.recipe import load_recipe
from trainer.store.store import ActivationStore


@pytest.fixture
def sources(tmp_path) -> list[Source]:
    tiny_llama(tmp_path / "llama")
    tiny_gemma3(tmp_path / "gemma")
    return [
        load_source(SourceRecipe(name="left", model=str(tmp_path / "llama"), layer=1, dtype="float32", device="cpu")),
        load_source(SourceRecipe(name="right", model=str(tmp_path / "gemma"), layer=2, dtype="float32", device="cpu")),
    ]


@pytest.fixture
def sequence(sources) -> HeldOutSequence:
    """Text that each model likes best itself, so that any damage shows; some positions have rows."""
    ids = {}
    for source, length in zip(sources, (14, 12), strict=True):
        written = torch.tensor([[source.bos_id, 7, 9]])
        while written.shape[1] < length:
            following = source.model(input_ids=written).logits[:, -1].argmax(dim=1, keepdim=True)
            written = torch.cat([written, following], dim=1)
        ids[source.name] = written[0]
    return HeldOutSequence(ids, {"left": torch.tensor([2, 5, 6, 13]), "right": torch.tensor([1, 4, 7, 10])})


@pytest.fixture
def means() -> dict[str, torch.Tensor]:
    return {"left": torch.linspace(-1, 1, 16), "right": torch.linspace(2, -1, 24)}


def test_its_own_activations_put_back_cost_a_model_nothing(sources, sequence, means):
    losses = {source.name: Losses() for source in sources}

    add_sequence(sequence, sources, lambda rows: rows, means, losses)

    for name, sums in losses.items():
        found = {row["measure"]: row["value"] for row in sums.measures(name)}
        assert found["cross_entropy_reconstruction"] == found["cross_entropy"]
        assert found["kl_reconstruction"] == 0
        assert found["loss_recovered_zero"] == found["loss_recovered_mean"] == 1
        assert min(found["kl_zero"], found["kl_mean"]) > 0.01


def test_ablations_cost_what_a_hook_and_full_logits_say(sources, sequence, means):
    losses = {"left": Losses(), "right": Losses()}
    add_sequence(sequence, sources, lambda rows: {name: 0.5 * x for name, x in rows.items()}, means, losses)

    for source, scored in zip(sources, ([2, 5, 6], [1, 4, 7, 10]), strict=True):  # left's last row has no next token
        ids, at = sequence.ids[source.name], sequence.positions[source.name]

        def logits(change, source=source, ids=ids, at=at):
            def replace(module, inputs, output):
                hidden = (output if isinstance(output, torch.Tensor) else output[0]).clone()
                for position in at.tolist():
                    hidden[0, position] = change(hidden[0, position])
                return hidden if isinstance(output, torch.Tensor) else (hidden, *output[1:])

            handle = source.blocks[source.recipe.layer].register_forward_hook(replace)
            found = source.model(input_ids=ids[None]).logits[0].double()
            handle.remove()
            return found

        clean = logits(lambda x: x)
        found = {row["measure"]: row["value"] for row in losses[source.name].measures(source.name)}
        following = ids[[position + 1 for position in scored]]
        assert found["cross_entropy"] == pytest.approx(float(cross_entropy(clean[scored], following)), rel=1e-5)
        changes = {
            "reconstruction": lambda x: 0.5 * x,
            "zero": torch.zeros_like,
            "mean": lambda _, name=source.name: means[name],
        }
        for condition, change in changes.items():
            other = logits(change)[scored]
            slow = float(cross_entropy(other, following))
            divergence = kl_div(log_softmax(other, 1), log_softmax(clean[scored], 1), reduction="sum", log_target=True)
            assert found[f"cross_entropy_{condition}"] == pytest.approx(slow, rel=1e-5)
            assert found[f"kl_{condition}"] == pytest.approx(float(divergence) / len(scored), rel=1e-4)
        assert found["positions_replaced"] == 4 / len(ids)


def test_only_positions_with_a_row_change(sources, sequence, means):
    left = sources[0]
    seen = []
    handle = left.blocks[2].register_forward_pre_hook(lambda _, args: seen.append(args[0][0].clone()))

    add_sequence(sequence, sources, lambda rows: {name: x + 1 for name, x in rows.items()}, means, {"left": Losses()})
    handle.remove()

    clean, *changed = seen
    at = sequence.positions["left"]
    others = [position for position in range(14) if position not in at.tolist()]
    assert len(changed) == 3
    for state, wanted in zip(changed, (clean[at] + 1, torch.zeros(4, 16), means["left"].expand(4, -1)), strict=True):
        assert torch.equal(state[others], clean[others])
        assert torch.equal(state[at], wanted)


def test_losses_of_two_predictions_by_hand():
    sums = Losses()
    even, odd = torch.zeros(1, 2), torch.tensor([[0.0, math.log(3)]])  # chances 1/2, 1/2 and 1/4, 3/4

    sums.add(even, [even, odd, odd], torch.tensor([1]))
    sums.add(even, [even, odd, odd], torch.tensor([0]))

    half = math.log(2)
    assert sums.cross_entropy.tolist() == pytest.approx([2 * half, 2 * half] + [math.log(4 / 3) + math.log(4)] * 2)
    assert sums.divergence.tolist() == pytest.approx([0, *[math.log(4 / 3)] * 2])


def test_loss_recovered_is_a_share_of_what_an_ablation_costs_and_absent_when_it_costs_nothing():
    sums = Losses(torch.tensor([10.0, 15.0, 30.0, 5.0]), torch.zeros(3), predictions=10, replaced=3, tokens=4)

    found = {row["measure"]: row["value"] for row in sums.measures("left")}

    assert found["loss_recovered_zero"] == 0.75
    assert "loss_recovered_mean" not in found
    assert found["cross_entropy"] == 1.0 and found["cross_entropy_mean"] == 0.5
    assert found["positions_replaced"] == 0.75


def test_a_run_measures_both_models_at_its_held_out_rows_and_never_at_special_tokens(tmp_path):
    path = tiny_diff(tmp_path / "world", evaluation={"sequences": 5})

    folder = run(path, stages=("harvest", "train", "evaluate"))

    rows = json.loads(folder.evaluation.read_text())
    found = {(row["source"], row["measure"]): row["value"] for row in rows}
    store = ActivationStore.open(Path(json.loads(folder.store.read_text())["path"]))
    for name in ("left", "right"):
        assert 0 < found[name, "cross_entropy"] < 20 and found[name, "kl_reconstruction"] > 0
        assert 0.3 < found[name, "positions_replaced"] < 1
    loaded = [load_source(source) for source in load_recipe(path).sources]
    chosen, means = held_out_sequences(store, loaded, 5)
    block = store.read(store.shards("held_out")[0])
    assert len(chosen) == 5
    first = block.sequence == block.sequence[0]
    assert block.position[first].tolist() == chosen[0].positions["left"].tolist()
    stored = torch.cat([b.rows["right"] for b in store.blocks("held_out")]).double().mean(dim=0)
    assert torch.allclose(means["right"].double(), stored, atol=1e-6)

    common = int(chosen[0].ids["right"][chosen[0].positions["right"]].mode().values)
    loaded[1].tokenizer.add_special_tokens(
        {"additional_special_tokens": [loaded[1].tokenizer.convert_ids_to_tokens(common)]}
    )
    fewer, _ = held_out_sequences(store, loaded, 5)
    dropped = int((chosen[0].ids["right"][chosen[0].positions["right"]] == common).sum())
    assert dropped > 0
    for name in ("left", "right"):
        assert len(fewer[0].positions[name]) == len(chosen[0].positions[name]) - dropped


def test_without_models_only_the_rows_are_evaluated_and_the_log_says_so(tmp_path):
    tiny_activations(tmp_path / "store")
    recipe = tmp_path / "recipe.yaml"
    recipe.write_text("name: mine\ncrosscoder: {features: 40, exclusive_share: 0.1}\ntraining: {batch: 64}\n")

    folder = run(recipe, activations=tmp_path / "store", stages=("train", "evaluate"))

    measures = {row["measure"] for row in json.loads(folder.evaluation.read_text())}
    assert "variance_explained" in measures and "cross_entropy" not in measures
    assert "not measured, because the recipe has no sources" in folder.log.read_text()
