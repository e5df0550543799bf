"""Encodes every row of the store in one pass, and sums the moments on the way."""

from typing import NamedTuple

from trainer.analysis.claims.latent_scaling import LatentScaling, ScalingFactors
from trainer.analysis.claims.spaces import Spaces
from trainer.analysis.per_feature.firings import RowMetadata
from trainer.analysis.rows.codes import CodeSpool
from trainer.analysis.rows.cross_fit import TwoFold
from trainer.analysis.rows.moments import Moments
from trainer.analysis.rows.row_order import RowOrder, RowOrderCollector
from trainer.analysis.rows.texts import check_row_order, read_texts
from trainer.crosscoder.crosscoder import Crosscoder
from trainer.run.progress import Progress
from trainer.store.store import ActivationStore


class EncodePassResult(NamedTuple):
    """Result of the encode pass, beside the spooled codes."""

    metadata: RowMetadata
    moments: Moments
    scaling: ScalingFactors


def encode_rows(
    store: ActivationStore, crosscoder: Crosscoder, codes: CodeSpool, spaces: Spaces, *, progress: Progress
) -> EncodePassResult:
    """Encode every row of a store into `codes`, and sum moments for readouts and latent scaling.

    Raises StoreError for an inconsistent store.
    """
    folds, collector = TwoFold.from_store(store), RowOrderCollector()
    moments = Moments(crosscoder.widths, crosscoder.features, device=crosscoder.device)
    scaling = LatentScaling(crosscoder, spaces)
    with progress.task("Encoding", total=store.manifest.rows):
        for block in store.blocks():
            fold = folds.folds_of_block(block, codes.rows)
            rows = crosscoder.normalise(block.rows)
            encoded = crosscoder.encode_normalised(rows)
            codes.append(encoded)
            collector.add(block)
            moments.add(rows, encoded, fold)
            scaling.add(rows, encoded)
            progress.advance(encoded.rows)
    codes.flush()
    return EncodePassResult(_row_metadata(store, codes.rows, collector.finish()), moments, scaling.finish())


def _row_metadata(store: ActivationStore, rows: int, row_order: RowOrder | None) -> RowMetadata:
    table = store.sequences()
    if row_order is None or table is None:
        return RowMetadata.from_texts(rows, row_order, None)
    texts = read_texts(table, len(store.sources))
    check_row_order(texts, row_order)
    return RowMetadata.from_texts(rows, row_order, texts)
