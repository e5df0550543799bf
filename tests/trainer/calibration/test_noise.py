"""The noise null: the replaced source keeps its prediction and the shape of what remains, and nothing else."""

import pytest
import torch

from tests.worlds.tiny_activations import WIDTHS, tiny_activations
from trainer.analysis.claims.linear_map import fit_map
from trainer.calibration.noise import noise_store, store_moments
from trainer.crosscoder.crosscoder import Crosscoder
from trainer.crosscoder.groups import Group
from trainer.crosscoder.initial_weights import initial_weights
from trainer.crosscoder.normalisation import Normaliser
from trainer.crosscoder.row_moments import RowMoments
from trainer.store.store import ActivationStore

ROWS = 24_000
MEANS = {"left": 0.0, "right": 100.0}
SCALES = {"left": 2.0, "right": 0.05}


@pytest.fixture(scope="module")
def store(tmp_path_factory: pytest.TempPathFactory) -> ActivationStore:
    return tiny_activations(tmp_path_factory.mktemp("rows") / "store", rows=ROWS)


@pytest.fixture(scope="module")
def crosscoder() -> Crosscoder:
    names = tuple(WIDTHS)
    groups = (Group("shared", 4, 0, names, names),)
    weights = initial_weights(WIDTHS, groups, decoder_norm=1.0, generator=torch.Generator())
    normaliser = {name: Normaliser(torch.full((WIDTHS[name],), MEANS[name]), SCALES[name]) for name in names}
    return Crosscoder(WIDTHS, groups, weights, normaliser, {"shared": torch.tensor(0.1)})


@pytest.fixture(scope="module")
def moments(store: ActivationStore, crosscoder: Crosscoder) -> RowMoments:
    return store_moments(store, crosscoder)


def rows_of(store: ActivationStore, source: str) -> torch.Tensor:
    return torch.cat([block.rows[source] for block in store.blocks()])


@pytest.fixture(scope="module", params=list(WIDTHS))
def replaced(request, tmp_path_factory, store, crosscoder, moments) -> tuple[str, ActivationStore]:
    """A source, and the store in which it is noise."""
    path = tmp_path_factory.mktemp("noise") / request.param
    return request.param, noise_store(store, path, crosscoder, request.param, moments, rows=ROWS, seed=0)


def test_the_other_sources_stay_as_they_are_to_the_bit(store, replaced):
    source, noise = replaced
    other = next(name for name in WIDTHS if name != source)

    assert torch.equal(rows_of(noise, other).bfloat16(), rows_of(store, other).bfloat16())
    assert not torch.equal(rows_of(noise, source).bfloat16(), rows_of(store, source).bfloat16())


def test_the_replaced_source_is_predicted_as_before_and_the_rest_has_the_same_covariance(crosscoder, moments, replaced):
    source, noise = replaced
    others = [name for name in WIDTHS if name != source]
    before, after = fit_map(moments, others, [source]), fit_map(store_moments(noise, crosscoder), others, [source])

    def apart(one: torch.Tensor, other: torch.Tensor) -> float:
        return float(torch.linalg.norm(one - other) / torch.linalg.norm(one))

    assert apart(sum(before.weight), sum(after.weight)) < 0.1
    assert apart(sum(before.offset), sum(after.offset)) < 0.1
    # `right` is rounded to bfloat16 around 100 in steps of 0.5, here 0.025.
    assert apart(before.covariance, after.covariance) < 0.1
    assert apart(before.total, after.total) < 0.1


def test_what_the_prediction_leaves_has_the_size_it_had_on_each_row(store, crosscoder, moments, replaced):
    source, noise = replaced
    linear_map = fit_map(moments, [name for name in WIDTHS if name != source], [source])
    fold = torch.zeros(store.manifest.rows, dtype=torch.long)

    def sizes(of: ActivationStore) -> torch.Tensor:
        rows = crosscoder.normalise({name: rows_of(of, name).float() for name in WIDTHS})
        return linear_map.size(rows[source] - linear_map.predict(rows, fold))

    correlation = torch.corrcoef(torch.stack([sizes(store), sizes(noise)]))[0, 1]
    assert correlation > 0.7


def test_noise_depends_on_the_seed_and_on_nothing_else(tmp_path, store, crosscoder, moments):
    one, same, other = (
        noise_store(store, tmp_path / name, crosscoder, "left", moments, rows=2000, seed=seed)
        for name, seed in (("one", 0), ("same", 0), ("other", 1))
    )

    assert torch.equal(rows_of(one, "left"), rows_of(same, "left"))
    assert not torch.equal(rows_of(one, "left"), rows_of(other, "left"))
    assert one.count("train") <= 2000
