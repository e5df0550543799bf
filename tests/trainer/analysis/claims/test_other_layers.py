"""A claim is held against other layers of the other model, and of no model that its owner is of."""

from dataclasses import replace
from types import SimpleNamespace

import numpy as np
import pytest
import torch

from tests.trainer.analysis.claims.test_evidence import claimed
from tests.worlds.two_sources import ROWS, WIDTHS, as_sample, planted, two_sources
from trainer.analysis.claims.other_layers import DEPTHS, LayerReader, OtherLayers
from trainer.recipe.fitting import SourceRecipe
from trainer.run.folder import RunFolder
from trainer.run.progress import Progress


def model(name: str, address: str, layers: int = 8) -> SimpleNamespace:
    """What the reader asks of a loaded source."""
    return SimpleNamespace(name=name, recipe=SourceRecipe(name=name, model=address, layer=3), layers=layers)


@pytest.fixture
def asked(tmp_path):
    """A concept of `right` that `left` has at layer 5 alone, and what the reader finds of it."""
    rows = two_sources()
    direction, fires = planted(rows, "right", strength=12.0)
    sample, _ = as_sample(rows)
    sample = replace(sample, byte_end=np.arange(ROWS))
    elsewhere = torch.nn.functional.normalize(torch.randn(WIDTHS["left"]), dim=0)
    read: list[tuple[str, int]] = []

    def read_rows(source, layers, sequence, byte_end):
        read.extend((source.name, layer) for layer in layers)
        found = []
        for layer in layers:
            x = torch.randn(len(sequence), WIDTHS["left"], generator=torch.Generator().manual_seed(layer))
            x[torch.from_numpy(np.isin(byte_end, fires))] += 12 * elsewhere * (layer == 5)
            found.append(x.to(torch.bfloat16))
        return found

    def ask(models, depths=DEPTHS) -> tuple[OtherLayers, list[tuple[str, int]]]:
        reader = LayerReader(depths, models, read_rows, Progress(RunFolder(tmp_path / "run"), "test"))
        (tmp_path / "run").mkdir(exist_ok=True)
        return reader.measure(sample, claimed(sample, "right", direction, len(fires))), read

    return ask


def test_the_layer_that_tells_the_concept_is_found_and_its_own_is_not_asked_again(asked):
    found, read = asked([model("left", "L"), model("right", "R")])

    assert read == [("left", 1), ("left", 5), ("left", 7)], "a quarter, three quarters and all of eight; 3 is compared"
    assert (found.source, found.layer) == (["left"] * 3, [1, 5, 7])
    assert [float(one.value[0]) for one in found.ratio] == pytest.approx([0, 1, 0], abs=0.1)
    largest = found.largest(1)
    assert largest.low[0] > 0.8 and largest.low[0] <= largest.value[0] <= largest.high[0]
    columns = found.columns(np.array([17]), ["left", "right"])
    assert columns["feature"].tolist() == [17] * 3 and columns["layer"].tolist() == [1, 5, 7]


@pytest.mark.parametrize("models", [[], ["R", "R"]], ids=["no models", "layers of one model"])
def test_nothing_is_said_of_other_layers_of_the_owners_own_model(asked, models):
    found, read = asked([model(name, address) for name, address in zip(("left", "right"), models, strict=False)])

    assert read == [] and np.isnan(found.largest(1).value).all()
    assert all(len(column) == 0 for column in found.columns(np.array([17]), ["left", "right"]).values())


def test_no_depths_ask_no_layer(asked):
    assert asked([model("left", "L"), model("right", "R")], depths=())[1] == []
