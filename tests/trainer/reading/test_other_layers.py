"""Rows are read again as they were harvested, and at other layers as those layers compute them."""

import numpy as np
import pytest
import torch

from tests.worlds.tiny_diff import tiny_diff
from trainer.models.hookpoint import locate, read, read_each
from trainer.models.source import Source, load_source
from trainer.pipeline.commands import runs_of
from trainer.reading.other_layers import read_rows
from trainer.store.store import ActivationStore


@pytest.fixture(scope="module")
def harvested(tmp_path_factory) -> tuple[ActivationStore, list[Source]]:
    """The store of a real harvest, and the sources of its recipe."""
    folder = tmp_path_factory.mktemp("diff")
    with pytest.MonkeyPatch.context() as patch:
        patch.setenv("CROSSDIFF_HOME", str(folder / "home"))
        (run,) = runs_of(tiny_diff(folder))
        run.execute(("harvest",))
        return ActivationStore.open(run.store_path()), [load_source(one) for one in run.recipe.sources]


def stored(store: ActivationStore) -> tuple[dict[str, torch.Tensor], np.ndarray, np.ndarray]:
    blocks = list(store.blocks("held_out")) + list(store.blocks("train"))
    rows = {name: torch.cat([block.rows[name] for block in blocks]) for name in store.widths}
    sequence = torch.cat([block.sequence for block in blocks]).long().numpy()
    return rows, sequence, torch.cat([block.byte_end for block in blocks]).long().numpy()


@pytest.mark.parametrize("batch_tokens", [64, 4096])
def test_at_its_own_layer_a_row_is_what_was_harvested_in_any_order(harvested, batch_tokens):
    store, sources = harvested
    rows, sequence, byte_end = stored(store)
    order = np.random.default_rng(0).permutation(len(sequence))[:700]
    for source in sources:
        own = source.recipe.layer
        found = read_rows(store, source, [0, own], sequence[order], byte_end[order], batch_tokens=batch_tokens)
        torch.testing.assert_close(found[1], rows[source.name][torch.from_numpy(order)], rtol=0.02, atol=0.01)
        assert not torch.allclose(found[0].float(), found[1].float(), atol=0.1)


def test_several_hookpoints_in_one_pass_are_those_of_one_pass_each(harvested):
    _, sources = harvested
    for source in sources:
        points = [locate(source, "resid_post", layer) for layer in range(source.layers)]
        ids = torch.tensor([[5, 9, 12, 7], [8, 6, 11, 10]])
        together = read_each(source, points, ids)
        for point, activation in zip(points, together, strict=True):
            assert torch.equal(activation, read(source, point, ids))
