"""A whole analysis of concepts with known owners, in one activation space and in two."""

from pathlib import Path
from typing import Any

import duckdb
import numpy as np
import pytest
import torch

from trainer.analysis.per_feature.decoder_norms import cosines
from trainer.analysis.stage import analyse
from trainer.crosscoder.crosscoder import Crosscoder
from trainer.crosscoder.groups import Group
from trainer.crosscoder.initial_weights import initial_weights
from trainer.crosscoder.normalisation import Normaliser
from trainer.recipe.recipe import parse_recipe
from trainer.run.folder import RunFolder
from trainer.run.progress import Progress
from trainer.store.store import ActivationStore, StoredSource, StoreWriter

CONCEPTS, OWN = 24, 3
"""The last three concepts are only in `tuned`; the one before is in both, but its feature writes to `tuned` only."""
MISTAKEN = CONCEPTS - OWN - 1
ROWS = 6000


def directions(widths: dict[str, int]) -> dict[str, torch.Tensor]:
    """Direction of each concept, by source; similar in sources of one width."""
    generator = torch.Generator().manual_seed(1)
    first = torch.nn.functional.normalize(torch.randn(CONCEPTS, widths["base"], generator=generator), dim=1)
    if widths["tuned"] == widths["base"]:
        second = first + 0.02 * torch.randn(first.shape, generator=generator)
    else:
        second = torch.randn(CONCEPTS, widths["tuned"], generator=generator)
    return {"base": first, "tuned": torch.nn.functional.normalize(second, dim=1)}


def known_store(path: Path, widths: dict[str, int]) -> ActivationStore:
    """Rows on which about one concept in twelve is active."""
    generator = torch.Generator().manual_seed(2)
    active = (torch.rand(ROWS, CONCEPTS, generator=generator) + 0.5) * (
        torch.rand(ROWS, CONCEPTS, generator=generator) < 1 / 12
    )
    vectors = directions(widths)
    vectors["base"][-OWN:] = 0
    writer = StoreWriter(path, tuple(StoredSource(name, width, "float32") for name, width in widths.items()))
    noise = {name: 0.02 * torch.randn(ROWS, width, generator=generator) for name, width in widths.items()}
    writer.add({name: active @ vectors[name] + noise[name] for name in widths}, {}, "train")
    writer.finish(None, {})
    return ActivationStore.open(path)


def known_crosscoder(widths: dict[str, int]) -> Crosscoder:
    """A crosscoder with an exact feature for every concept; the dedicated group has one feature too many."""
    shared = CONCEPTS - OWN - 1
    groups = (
        Group("shared", shared, 0, ("base", "tuned"), ("base", "tuned")),
        Group("tuned", OWN + 1, shared, ("tuned",), ("tuned",)),
    )
    weights = initial_weights(widths, groups, decoder_norm=1.0, generator=torch.Generator())
    for name, vectors in directions(widths).items():
        reader = torch.linalg.pinv(vectors).T
        for group in groups:
            if name in group.writes:
                part = slice(group.first, group.stop)
                weights[f"encoder.{name}.{group.name}"] = (reader[part] / len(group.reads)).contiguous()
                weights[f"decoder.{name}.{group.name}"] = vectors[part].contiguous()
    normaliser = {name: Normaliser(torch.zeros(width), 1.0) for name, width in widths.items()}
    threshold = {group.name: torch.tensor(0.3) for group in groups}
    return Crosscoder(widths, groups, weights, normaliser, threshold)


def analysed(folder: Path, widths: dict[str, int]) -> dict[str, list[dict[str, Any]]]:
    run = RunFolder(folder / "run")
    recipe = parse_recipe({"name": "known"}, origin="the test")
    store = known_store(folder / "store", widths)
    path = analyse(recipe, store, known_crosscoder(widths), folder=run, progress=Progress(run, "known"))
    found = {}
    with duckdb.connect(str(path), read_only=True) as connection:
        for table in ("source", "feature", "feature_source", "agreement"):
            rows = connection.execute(f"select * from {table} order by rowid")
            names = [column[0] for column in rows.description]
            found[table] = [dict(zip(names, row, strict=True)) for row in rows.fetchall()]
    return found


@pytest.mark.parametrize("width", [32, 40])
def test_a_concept_is_read_out_from_sources_that_have_it_and_not_from_others(tmp_path: Path, width: int):
    found = analysed(tmp_path, {"base": 32, "tuned": width})
    ratio = [row["probe_ratio"] for row in found["feature"]]

    assert ratio[:MISTAKEN] == [None] * MISTAKEN
    assert ratio[MISTAKEN] == pytest.approx(1, abs=0.05)
    # Each fires on one row in twelve, so that by chance a probe finds that share.
    assert all(value < 0.15 for value in ratio[MISTAKEN + 1 :])
    for row in found["feature"][MISTAKEN:]:
        assert row["probe_low"] <= row["probe_ratio"] <= row["probe_high"]
        assert row["excess_low"] <= row["excess"] <= row["excess_high"]
    readout = [(row["source"], row["readout"]) for row in found["feature_source"] if row["feature"] == CONCEPTS - 1]
    assert readout == [(0, pytest.approx(0, abs=0.02)), (1, pytest.approx(1, abs=0.1))]
    assert all(row["coherence"] > 0.3 and row["polysemous"] is False for row in found["feature"])


def test_in_one_space_latent_scaling_finds_a_direction_that_the_dictionary_missed(tmp_path: Path):
    found = analysed(tmp_path, {"base": 32, "tuned": 32})
    in_base = [row for row in found["feature_source"] if row["source"] == 0]

    assert [row["space"] for row in found["source"]] == [0, 0]
    # The dictionary missed this concept in `base`, so it is in the error there; no other feature reconstructs it.
    assert in_base[MISTAKEN]["nu_error"] == pytest.approx(1, abs=0.1)
    assert in_base[MISTAKEN]["nu_reconstruction"] == pytest.approx(0, abs=0.1)
    for row in in_base[MISTAKEN + 1 :]:
        assert (row["nu_error"], row["nu_reconstruction"]) == pytest.approx((0, 0), abs=0.15)
    assert all(row["nu_error"] == 1 for row in found["feature_source"] if row["source"] == 1 and row["feature"] > 20)
    # A shared feature has its longest direction in one source; the cosine is in the row of the other.
    shared = [[row["cosine"] for row in found["feature_source"] if row["feature"] == feature] for feature in range(20)]
    assert all(sum(value is None for value in pair) == 1 for pair in shared)
    assert all(value is None or value > 0.9 for pair in shared for value in pair)


def test_in_two_spaces_there_is_no_latent_scaling_and_no_cosine(tmp_path: Path):
    found = analysed(tmp_path, {"base": 32, "tuned": 40})

    assert [row["space"] for row in found["source"]] == [None, None]
    for column in ("nu_error", "nu_reconstruction", "beta_error", "beta_reconstruction", "cosine"):
        assert {row[column] for row in found["feature_source"]} == {None}


def test_cosines_are_with_the_longest_direction():
    crosscoder = known_crosscoder({"base": 32, "tuned": 32})
    crosscoder.weights["decoder.base.shared"][0] *= 2
    crosscoder.weights["decoder.tuned.shared"][0] *= -1

    table = cosines(crosscoder)

    assert np.isnan(table[0, 0])
    assert table[0, 1] < -0.9
