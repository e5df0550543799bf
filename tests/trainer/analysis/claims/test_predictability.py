"""How much sources tell of each other linearly, where the share is known by construction."""

from typing import Any

import numpy as np
import pytest
import torch

from tests.worlds.two_sources import DOCUMENTS, ROWS, as_sample, two_sources
from trainer.analysis.claims.predictability import MIN_GROUPS, RowPartition, predictability
from trainer.analysis.rows.sample import RowSample
from trainer.crosscoder.row_moments import RowMoments


def told(rows: dict[str, torch.Tensor], *partitions: RowPartition) -> list[dict[str, Any]]:
    return list(predictability(*as_sample(rows), tuple(rows), partitions))


def cell(found: list[dict[str, Any]], source: str, given: str, **where: str) -> dict[str, Any]:
    wanted = {"source": source, "given": given, "corpus": None, "language": None, "band": None} | where
    (one,) = [row for row in found if wanted.items() <= row.items()]
    return one


def halves(kind: str, names: tuple[str, str], *, first: float = 0.5) -> RowPartition:
    """The first documents, and the others."""
    return RowPartition(kind, (np.arange(ROWS) >= first * ROWS).astype(int), names)


@pytest.mark.parametrize("noise", [0.3, 0.7, 2.0])
def test_a_linear_image_with_noise_is_told_but_for_the_noise(noise: float):
    one = cell(told(two_sources(noise=noise)), "right", "left")

    share = 1 / (1 + noise**2)
    assert one["low"] - 0.01 <= share <= one["high"] + 0.01
    assert one["r2"] == pytest.approx(share, abs=0.02)
    assert one["low"] <= one["r2"] <= one["high"] and one["high"] - one["low"] < 0.02
    assert one["groups"] == DOCUMENTS


def test_independent_sources_tell_nothing_of_each_other():
    rows = {"left": torch.randn(ROWS, 24), "right": torch.randn(ROWS, 32)}
    for source, given in (("left", "right"), ("right", "left")):
        one = cell(told(rows), source, given)
        assert -0.01 < one["low"] < one["high"] < 0.005


def test_bands_follow_the_principal_directions_and_add_up():
    generator = torch.Generator().manual_seed(0)
    left = torch.randn(ROWS, 30, generator=generator)
    scale = torch.cat([torch.tensor([10.0]), torch.full((9,), 3.0), torch.full((20,), 1.0)])
    noise = torch.randn(ROWS, 30, generator=generator)
    # The first direction is told wholly, the next nine by half, the others not at all.
    right = scale * torch.cat([left[:, :1], (left[:, 1:10] + noise[:, 1:10]) / 2**0.5, noise[:, 10:]], dim=1)
    found = told({"left": left, "right": right @ torch.linalg.qr(noise[:30])[0]})

    bands = {name: cell(found, "right", "left", band=name) for name in ("1", "2-10", "11-30")}
    assert [bands[name]["r2"] for name in bands] == pytest.approx([1.0, 0.5, 0.0], abs=0.02)
    assert [bands[name]["share"] for name in bands] == pytest.approx([100 / 201, 81 / 201, 20 / 201], abs=0.01)
    whole = cell(found, "right", "left")
    assert whole["r2"] == pytest.approx(sum(one["share"] * one["r2"] for one in bands.values()))
    assert whole["share"] is None


def test_parts_are_told_by_themselves_and_an_offset_of_one_is_no_knowledge():
    generator = torch.Generator().manual_seed(1)
    late = torch.arange(ROWS) >= ROWS // 2
    # All of `late` lies elsewhere, and so does its image: that tells the two parts apart and nothing more.
    left = torch.randn(ROWS, 24, generator=generator) + 5.0 * late[:, None]
    right = left @ torch.randn(24, 32, generator=generator) / 24**0.5
    right += torch.randn(ROWS, 32, generator=generator) * torch.where(late, 4.25**0.5, 0.5)[:, None]
    rows = {"left": left, "right": right}
    found = told(rows, halves("language", ("en", "zh")), halves("corpus", ("wiki", "chats")))

    early = cell(found, "right", "left", language="en")
    other = cell(found, "right", "left", language="zh")
    image = float((left @ torch.linalg.lstsq(left, right).solution)[~late].var(dim=0).mean())  # about 1
    assert early["r2"] == pytest.approx(image / (image + 0.25), abs=0.02)
    assert other["r2"] == pytest.approx(image / (image + 4.25), abs=0.02)
    assert cell(found, "right", "left", corpus="chats")["r2"] == pytest.approx(other["r2"])
    assert cell(found, "right", "left")["r2"] > 0.6, "the offset is variance of the whole, and is told"


def test_a_part_of_few_groups_is_left_out():
    few = (MIN_GROUPS - 1) / DOCUMENTS
    found = told(two_sources(), halves("language", ("zh", "en"), first=few))

    assert {row["language"] for row in found} == {None, "en"}


def test_of_three_sources_each_is_told_by_all_others_and_by_each():
    generator = torch.Generator().manual_seed(2)
    one, two = (torch.randn(ROWS, 16, generator=generator) for _ in range(2))
    found = told({"a": one, "b": two, "c": one + two})

    assert {(row["source"], row["given"]) for row in found} == {
        *(("a", "b+c"), ("a", "b"), ("a", "c")),
        *(("b", "a+c"), ("b", "a"), ("b", "c")),
        *(("c", "a+b"), ("c", "a"), ("c", "b")),
    }
    shares = {key: cell(found, *key)["r2"] for key in (("c", "a+b"), ("c", "a"), ("a", "c"), ("a", "b"), ("a", "b+c"))}
    assert list(shares.values()) == pytest.approx([1.0, 0.5, 0.5, 0.0, 1.0], abs=0.02)


def test_a_single_source_has_nothing_to_be_told_by():
    assert told({"left": torch.randn(ROWS, 24)}) == []


def test_copies_do_not_narrow_the_interval_and_it_is_the_same_every_time():
    rows = two_sources(noise=1.0)
    # Documents differ in how noisy they are, which is what an interval over them is about.
    rows["right"] += 2 * torch.rand(DOCUMENTS, 1).repeat_interleave(ROWS // DOCUMENTS, dim=0) * torch.randn(ROWS, 32)
    sample, _ = as_sample(rows)
    twice = {name: torch.cat([x, x]) for name, x in sample.rows.items()}
    fold, cluster = np.tile(sample.fold, 2), np.tile(sample.cluster, 2)
    moments = RowMoments({name: x.shape[1] for name, x in twice.items()})
    moments.add(twice, torch.from_numpy(fold))
    copied = RowSample(twice, fold, cluster, np.arange(len(fold)), len(fold), np.tile(sample.sequence, 2))

    once, again = (cell(told(rows), "right", "left") for _ in range(2))
    both = cell(list(predictability(copied, moments, ("left", "right"))), "right", "left")
    assert once == again
    assert both["high"] - both["low"] == pytest.approx(once["high"] - once["low"], rel=0.1)
    assert both["r2"] == pytest.approx(once["r2"], abs=0.01)
