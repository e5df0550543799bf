"""Encode pass: the one time that analysis reads activations; everything that needs them is summed on the way."""

from typing import NamedTuple

from trainer.analysis.claims.latent_scaling import LatentScaling, Scaling
from trainer.analysis.claims.spaces import Spaces
from trainer.analysis.per_feature.firings import RowMetadata
from trainer.analysis.rows.codes import CodeSpool
from trainer.analysis.rows.cross_fit import TwoFold
from trainer.analysis.rows.moments import Moments
from trainer.analysis.rows.row_order import RowOrder, RowOrderCollector
from trainer.analysis.rows.texts import check_places, read_texts
from trainer.crosscoder.crosscoder import Crosscoder
from trainer.run.progress import Progress
from trainer.store.store import ActivationStore


class Encoded(NamedTuple):
    """What one pass leaves behind, beside the codes it spooled."""

    metadata: RowMetadata
    moments: Moments
    scaling: Scaling


def encode_rows(
    store: ActivationStore, crosscoder: Crosscoder, codes: CodeSpool, spaces: Spaces, *, progress: Progress
) -> Encoded:
    """Encode every row of a store into `codes`, and sum what readouts and latent scaling need.

    Raises StoreError for a store that does not fit together.
    """
    halves, collector = TwoFold.of(store), RowOrderCollector()
    moments = Moments(crosscoder.widths, crosscoder.features, device=crosscoder.device)
    scaling = LatentScaling(crosscoder, spaces)
    with progress.task("Encoding", total=store.manifest.rows):
        for block in store.blocks():
            half = halves.of_block(block, codes.rows)
            rows = crosscoder.normalise(block.rows)
            found = crosscoder.encode_normalised(rows)
            codes.append(found)
            collector.add(block)
            moments.add(rows, found, half)
            scaling.add(rows, found)
            progress.advance(found.rows)
    codes.flush()
    return Encoded(_ground(store, codes.rows, collector.finish()), moments, scaling.finish())


def _ground(store: ActivationStore, rows: int, places: RowOrder | None) -> RowMetadata:
    table = store.sequences()
    if places is None or table is None:
        return RowMetadata.of(rows, places, None)
    texts = read_texts(table, len(store.sources))
    check_places(texts, places)
    return RowMetadata.of(rows, places, texts)
