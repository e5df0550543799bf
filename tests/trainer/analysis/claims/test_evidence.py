"""Evidence on claims, against relations between two sources that are known by construction."""

from dataclasses import replace

import numpy as np
import pytest
import torch

from tests.worlds.two_sources import ROWS, WIDTHS, as_sample, planted, two_sources
from trainer.analysis.claims.claims import null_rate
from trainer.analysis.claims.evidence import ClaimedFeatures, measure_claims
from trainer.analysis.claims.excess import energies
from trainer.analysis.claims.linear_map import fit_map
from trainer.analysis.claims.probes import probe_features
from trainer.analysis.rows.sample import RowSample
from trainer.crosscoder.prediction import joint
from trainer.crosscoder.row_moments import RowMoments

SOURCES = tuple(WIDTHS)


def claimed(sample: RowSample, source: str, direction: torch.Tensor, count: int) -> ClaimedFeatures:
    """A direction of one source, with the threshold that makes it fire `count` times."""
    score = (sample.rows[source].float() @ direction).numpy()
    least = np.sort(score)[-count]
    encoder = {name: torch.zeros(1, width) for name, width in WIDTHS.items()} | {source: direction[None]}
    holds = np.array([[name == source for name in SOURCES]])
    fires, threshold = np.flatnonzero(score >= least), torch.tensor([least])
    return ClaimedFeatures(SOURCES, holds, [fires], encoder, threshold, threshold)


def test_a_map_finds_the_relation_and_the_covariance_of_what_it_leaves():
    rows = two_sources(noise=0.7)
    sample, moments = as_sample(rows)
    linear_map = fit_map(moments, ["left"], ["right"])

    assert torch.allclose(linear_map.covariance, 0.49 * torch.eye(32).double(), atol=0.03)
    fold = torch.from_numpy(sample.fold)
    values = {name: x.float() for name, x in sample.rows.items()}
    residual = values["right"] - linear_map.predict(values, fold)
    assert torch.allclose(residual.T @ residual / ROWS, linear_map.covariance.float(), atol=2e-3)
    assert linear_map.size(residual).square().mean() == pytest.approx(1, abs=0.02)


def test_each_row_is_predicted_by_the_map_that_has_not_seen_it():
    sample, moments = as_sample(two_sources())
    linear_map = fit_map(moments, ["left"], ["right"])
    values = {name: x[:8].float() for name, x in sample.rows.items()}
    for fold in (0, 1):
        expected = joint(values, ["left"]) @ linear_map.weight[1 - fold] + linear_map.offset[1 - fold]
        assert torch.equal(linear_map.predict(values, torch.full((8,), fold)), expected)


def test_a_probe_ranks_the_rows_of_a_concept_first_in_its_own_source_and_not_in_the_other():
    rows = two_sources()
    _, fires = planted(rows, "right", strength=12.0)
    sample, moments = as_sample(rows)
    probes = probe_features(sample, [fires, fires[:5]], SOURCES, moments)

    share = probes.hits.sum(axis=1)[:, 0] / len(fires)
    assert share[1] > 0.98 and share[0] < 0.05
    assert probes.auc[1, 0] > 0.99 and probes.auc[0, 0] == pytest.approx(0.5, abs=0.08)
    assert probes.enough.tolist() == [True, False] and np.isnan(probes.auc[:, 1]).all()
    by_document = np.bincount(sample.cluster[fires], minlength=sample.clusters)
    assert (probes.hits[1, :, 0] <= by_document).all()


@pytest.mark.parametrize("shift", [-1, 1])
def test_a_source_that_has_the_concept_a_row_earlier_or_later_tells_it(shift):
    rows = two_sources()
    _, fires = planted(rows, "right", strength=12.0)
    other = torch.nn.functional.normalize(torch.randn(24, generator=torch.Generator().manual_seed(5)), dim=0)
    rows["left"][torch.from_numpy(np.clip(fires + shift, 0, ROWS - 1))] += 12 * other
    sample, moments = as_sample(rows)
    unordered = replace(sample, sequence=np.full(ROWS, -1))

    near, alone = (probe_features(one, [fires], SOURCES, moments).hits[0, :, 0].sum() for one in (sample, unordered))

    assert near / len(fires) > 0.9, "all but those at the end of a document"
    assert alone / len(fires) < 0.1, "rows that are in no order have no neighbours"


def test_neighbours_are_in_the_same_sequence_and_fold():
    sample, _ = as_sample(two_sources())
    sample = replace(sample, sequence=np.arange(ROWS) // 3, fold=(np.arange(ROWS) >= 4).astype(np.int64))
    assert sample.neighbour(1)[:7].tolist() == [1, 2, 2, 3, 5, 5, 7]
    assert sample.neighbour(-1)[:7].tolist() == [0, 0, 1, 3, 4, 4, 6]
    assert sample.neighbour(0).tolist() == list(range(ROWS))


def test_a_planted_concept_is_in_excess_and_its_owners_alone_with_intervals_that_hold_the_value():
    rows = two_sources()
    direction, fires = planted(rows, "right", strength=6.0)
    sample, moments = as_sample(rows)
    evidence = measure_claims(sample, claimed(sample, "right", direction, len(fires)), moments)

    assert evidence.excess.low[0] > 1.5 and evidence.ratio.high[0] < 0.2
    for estimate in (evidence.excess, evidence.ratio):
        assert estimate.low[0] <= estimate.value[0] <= estimate.high[0]
    assert evidence.r_precision[0, 1] == evidence.own[0] > 0.7


def test_a_concept_that_both_have_is_told_from_either_side():
    rows = two_sources()
    direction, fires = planted(rows, "right", strength=12.0)
    other = torch.nn.functional.normalize(torch.randn(24, generator=torch.Generator().manual_seed(5)), dim=0)
    rows["left"][torch.from_numpy(fires)] += 12 * other
    sample, moments = as_sample(rows)
    evidence = measure_claims(sample, claimed(sample, "right", direction, len(fires)), moments)
    assert evidence.ratio.low[0] > 0.8


@pytest.mark.parametrize("seed", range(4))
def test_a_direction_that_means_nothing_fires_as_often_as_noise_would_make_it(seed):
    sample, moments = as_sample(two_sources(seed=seed))
    direction = torch.nn.functional.normalize(torch.randn(32, generator=torch.Generator().manual_seed(seed)), dim=0)
    evidence = measure_claims(sample, claimed(sample, "right", direction, 300), moments)
    assert evidence.excess.low[0] < 1 < evidence.excess.high[0]


@pytest.mark.parametrize("noise", ["heavy tails", "sizes that differ by row"])
def test_noise_of_any_symmetric_shape_is_no_feature(noise):
    rows = two_sources(noise=0.0)
    generator = torch.Generator().manual_seed(3)
    shape = torch.randn(rows["right"].shape, generator=generator)
    if noise == "heavy tails":
        rows["right"] += shape**3
    else:
        rows["right"] += shape * torch.rand(len(shape), 1, generator=generator) ** -0.5
    sample, moments = as_sample(rows)
    evidence = measure_claims(sample, claimed(sample, "right", torch.eye(32)[3], 300), moments)
    assert evidence.excess.low[0] < 1.1


def test_a_strong_and_frequent_concept_does_not_hide_itself():
    rows = two_sources()
    direction, fires = planted(rows, "right", rate=0.05, strength=20.0)
    sample, moments = as_sample(rows)
    evidence = measure_claims(sample, claimed(sample, "right", direction, len(fires)), moments)
    assert evidence.excess.low[0] > 5


def test_a_rare_feature_with_a_low_threshold_whose_encoder_is_turned_away_from_others_is_in_excess():
    """Most of its firings are weak ones that noise gives, and in the mirror the other feature makes it fire."""
    rows = two_sources()
    direction, _ = planted(rows, "right", rate=0.002, strength=10.0)
    other, _ = planted(rows, "right", rate=0.02, strength=6.0, seed=2)
    sample, moments = as_sample(rows)
    turned = direction - 0.35 * other
    asked = claimed(sample, "right", turned, 240)
    evidence = measure_claims(sample, asked, moments)

    score = sample.rows["right"].float() @ turned
    linear_map = fit_map(moments, ["left"], ["right"])
    told = linear_map.predict({name: x.float() for name, x in sample.rows.items()}, torch.from_numpy(sample.fold))
    assert int((2 * told @ turned - score >= asked.threshold).sum()) > 240, "it fires more often in the mirror"
    assert evidence.excess.low[0] > 1.1


def test_the_energy_is_the_sum_of_squared_activations_by_group_of_documents():
    sample, moments = as_sample(two_sources())
    direction, bias = torch.eye(32)[3], 0.25
    asked = claimed(sample, "right", direction, 200)
    detectors = asked.detectors(torch.tensor([0]), ["right"], ["left"])._replace(least=asked.threshold + bias)

    observed, mirrored = energies(sample, fit_map(moments, ["left"], ["right"]), detectors)

    score = (sample.rows["right"].float() @ direction).double().numpy()
    fires = asked.firings[0]
    by_group = np.bincount(sample.cluster[fires], (score[fires] + bias) ** 2, minlength=sample.clusters)
    assert observed[:, 0].numpy() == pytest.approx(by_group, rel=1e-4)
    assert mirrored.shape == observed.shape and not np.allclose(mirrored, observed)


def test_the_same_rows_give_the_same_evidence():
    sample, moments = as_sample(two_sources())
    direction = torch.eye(32)[3]
    one, other = (measure_claims(sample, claimed(sample, "right", direction, 200), moments) for _ in range(2))
    assert one.ratio.low[0] == other.ratio.low[0] and one.excess.high[0] == other.excess.high[0]


def copied(rows: dict[str, torch.Tensor], *, as_others: bool) -> tuple[RowSample, RowMoments]:
    """Every row twice: as rows of the same group of documents, or as if the copies were documents of their own."""
    sample, _ = as_sample(rows)
    twice = {name: torch.cat([x, x]) for name, x in sample.rows.items()}
    fold, cluster = np.tile(sample.fold, 2), np.tile(sample.cluster, 2)
    cluster[sample.size :] += sample.clusters * as_others
    moments = RowMoments(WIDTHS)
    moments.add({name: x.float() for name, x in twice.items()}, torch.from_numpy(fold))
    return RowSample(twice, fold, cluster, np.arange(len(fold)), len(fold), np.tile(sample.sequence, 2)), moments


def test_copies_of_documents_do_not_narrow_an_interval():
    rows = two_sources()
    direction, fires = planted(rows, "right", strength=6.0)
    once, grouped, apart = as_sample(rows), copied(rows, as_others=False), copied(rows, as_others=True)

    width = []
    for sample, moments in (once, grouped, apart):
        count = len(fires) * sample.size // ROWS
        evidence = measure_claims(sample, claimed(sample, "right", direction, count), moments)
        width.append([float(each.high[0] - each.low[0]) for each in (evidence.excess, evidence.ratio)])
    assert width[1] == pytest.approx(width[0], rel=0.05)
    assert width[2] == pytest.approx([each / 2**0.5 for each in width[0]], rel=0.2)


def test_training_rows_help_to_fit_and_are_not_judged():
    rows = two_sources()
    direction, fires = planted(rows, "right", strength=8.0)
    sample, moments = as_sample(rows)
    judged = ROWS // 4
    part = replace(sample, judged=judged)
    one = measure_claims(part, claimed(part, "right", direction, len(fires)), moments)

    # What a training that overfits would do to its rows: the direction fires in them where it should not.
    spoilt = claimed(part, "right", direction, len(fires))
    wrong = np.arange(judged, judged + 4 * len(fires), 4)
    spoilt = replace(spoilt, firings=[np.union1d(spoilt.firings[0], wrong)])
    other = measure_claims(part, spoilt, moments)
    assert one.excess.value[0] == other.excess.value[0]
    assert one.own[0] > 0.8 and other.own[0] > 0.7
    everywhere = measure_claims(sample, spoilt, moments)
    assert everywhere.own[0] < 0.6 and everywhere.excess.value[0] != one.excess.value[0]


def test_a_feature_that_fires_in_one_half_of_the_judged_rows_only_is_judged_there():
    rows = two_sources()
    _, fires = planted(rows, "right", strength=12.0)
    sample, moments = as_sample(rows)
    early = sample.cluster < 40
    kept = fires[~early[fires] | (sample.fold[fires] == 0)]
    part = replace(sample, judged=int(early.sum()))
    probes = probe_features(part, [kept], SOURCES, moments)

    assert probes.enough.all() and probes.hits[1].sum() >= 0.9 * (kept < part.judged).sum()


def test_what_is_seldom_is_not_judged_and_few_documents_widen_the_interval():
    sample, moments = as_sample(two_sources())
    direction = torch.eye(32)[3]
    few = measure_claims(sample, claimed(sample, "right", direction, 12), moments)
    assert np.isnan(few.ratio.value[0])

    rows = two_sources()
    direction, fires = planted(rows, "right", rate=0.002, strength=12.0)
    sample, moments = as_sample(rows)
    rare = measure_claims(sample, claimed(sample, "right", direction, len(fires)), moments)
    documents = len(np.unique(sample.cluster[fires]))
    assert rare.ratio.value[0] < 0.05 and rare.ratio.high[0] >= 3 / documents


@pytest.mark.parametrize(
    ("strength", "run", "null", "expected"),
    [
        ([3.0, 2.0, 1.0], [3.0, 2.0, 1.0], [2.5], [0.0, 0.5, 1 / 3]),
        ([2.0, 1.0], [2.0, 1.0], [], [0.0, 0.0]),
        ([2.0, 1.0], [2.0, 1.0], [9.0, 9.0, 9.0], [1.0, 1.0]),
        ([np.nan, 1.5], [2.0, 1.0], [1.2], [np.nan, 0.0]),
    ],
)
def test_the_rate_of_noise_among_claims_by_hand(strength, run, null, expected):
    found = null_rate(np.array(strength), run, np.array(null))
    # A cut that accepts more claims may be purer by chance; a claim gets the rate of the best cut that accepts it.
    best = [min(expected[i:]) if not np.isnan(expected[i]) else np.nan for i in range(len(expected))]
    np.testing.assert_allclose(found, best)
