"""Checkpoints of crosscode's acausal crosscoder over models and hookpoints.

Activation functions are ReLU, JumpReLU, TopK and BatchTopK. The files are `model.pt` and `model_cfg.yaml`. A source is
one model at one hookpoint, models outermost. The saved weights include the scaling factors, which are stored beside
them; reading divides them out, so that decoder norms of sources are comparable.
"""

from collections.abc import Sequence
from dataclasses import replace
from pathlib import Path
from typing import Any

import torch
import yaml
from torch import Tensor

from trainer.crosscoder.crosscoder import Crosscoder
from trainer.crosscoder.normalisation import Normaliser
from trainer.errors import CrosscoderError
from trainer.interchange.folding import (
    fires_when_positive,
    scores_per_activation,
    thresholds,
    with_rescaled_activations,
    with_rescaled_sources,
    with_scores_as_activations,
    with_summed_inputs,
    without_mean,
)
from trainer.interchange.layout import (
    Partition,
    Weights,
    assemble_crosscoder,
    common_width,
    k_per_row,
    refuse_differences,
    require_one_group,
    source_names,
    stack_weights,
)
from trainer.interchange.tensor_files import TensorFile, read_settings, read_tensors, write_tensors
from trainer.run.folder import atomic_write

TOOL = "crosscode"
READ_LOSSES = (
    "BatchTopK saves no threshold: one has to be given. TopK keeps only positive activations here. No GroupMax."
)
WRITE_LOSSES = "Normalisation is folded into the weights; a threshold becomes one for each feature."

THRESHOLDS = "_activation_fn.log_threshold_L"
FACTORS_IN, FACTORS_OUT = "folded_scaling_factors_in_Xi", "folded_scaling_factors_out_Xo"
ENTRIES = ("_W_enc_XiDiL", "_W_dec_LXoDo", "b_enc_L", "_b_dec_XoDo", "is_folded", FACTORS_IN, FACTORS_OUT, THRESHOLDS)
RELU, TOPK, BATCH_TOPK = "ReLUActivation", "TopkActivation", "BatchTopkActivation"
JUMPRELU = ("AnthropicSTEJumpReLUActivation", "JumpReLUActivationFunction")


def find(path: Path) -> Path | None:
    """The weights file of this format at a path to a folder or file, or None."""
    file = path if path.is_file() else path / "model.pt"
    return file if file.is_file() and file.name == "model.pt" and file.with_name("model_cfg.yaml").is_file() else None


def read(path: Path, *, sources: Sequence[str] = (), threshold: float | None = None) -> Crosscoder:
    """Read a checkpoint: its folder or its weights file.

    `threshold` applies to the activation, for checkpoints that keep k features and store no threshold. Raises
    CrosscoderError for a damaged or unsafe file, or one that Crossdiff cannot hold.
    """
    file = read_tensors(find(path) or path)
    settings = read_settings(file.path.with_name("model_cfg.yaml"))
    file.require_known(ENTRIES)
    models, hookpoints, width, features = file.raw("_W_enc_XiDiL", ("models", "hookpoints", "width", "features")).shape
    count = models * hookpoints
    names = source_names(sources, settings, count, file.path)
    stacked, biases = (features, models, hookpoints, width), (models, hookpoints, width)
    weights = Weights(
        [e.T.contiguous() for e in file.tensor("_W_enc_XiDiL", (*biases, features)).reshape(count, width, features)],
        list(file.tensor("_W_dec_LXoDo", stacked).reshape(features, count, width).unbind(1)),
        file.tensor("b_enc_L", (features,)) if "b_enc_L" in file else torch.zeros(features),
        list(
            (file.tensor("_b_dec_XoDo", biases) if "_b_dec_XoDo" in file else torch.zeros(biases)).reshape(count, width)
        ),
    )
    kind, options = _activation(settings, file.path)
    crosscoder = assemble_crosscoder(
        weights,
        Partition(0, 0, features).groups(names),
        {name: Normaliser(torch.zeros(width), 1.0) for name in names},
        threshold=_threshold(file, kind, features, threshold),
        rank_by="sum_of_norms" if kind == RELU else "activation",
        origin=file.path,
    )
    if kind == TOPK and threshold is None:
        crosscoder = replace(crosscoder, row_k={"shared": int(options["k"])})
    scales = dict(zip(names, _factors(file, models, hookpoints).reshape(-1).tolist(), strict=True))
    normaliser = {name: Normaliser(torch.zeros(width), scale) for name, scale in scales.items()}
    unfolded = with_rescaled_sources(crosscoder, {name: 1 / scale for name, scale in scales.items()})
    return replace(unfolded, normaliser=normaliser)


def write(crosscoder: Crosscoder, folder: Path, *, hookpoints: int = 1) -> None:
    """Write model.pt and model_cfg.yaml for raw activations.

    `hookpoints` is the number of consecutive sources of one model. Raises CrosscoderError when widths differ or
    features are exclusive.
    """
    refuse_differences(crosscoder, TOOL)
    require_one_group(crosscoder, TOOL)
    width, count = common_width(crosscoder, TOOL), len(crosscoder.sources)
    if hookpoints < 1 or count % hookpoints:
        raise CrosscoderError(
            f"{count} sources are no whole number of models with {hookpoints} hookpoints each. Give 1."
        )
    row_k = k_per_row(crosscoder)
    folded = without_mean(with_summed_inputs(crosscoder))
    entries: dict[str, Tensor] = {}
    if row_k is not None:
        folded = with_scores_as_activations(folded)
        activation = {"classname": TOPK, "cfg": {"k": row_k}}
    elif fires_when_positive(folded):
        activation = {"classname": RELU, "cfg": {}}
    else:
        folded, entries[THRESHOLDS] = _with_thresholds(folded)
        activation = {"classname": JUMPRELU[0], "cfg": {"size": folded.features, "bandwidth": 1.0}}
    scales = {source: folded.normaliser[source].scale for source in folded.sources}
    weights, shape = stack_weights(with_rescaled_sources(folded, scales)), (count // hookpoints, hookpoints)
    entries |= {
        "_W_enc_XiDiL": torch.stack([block.T for block in weights.encoder]).reshape(*shape, width, folded.features),
        "_W_dec_LXoDo": torch.stack(weights.decoder, dim=1).reshape(folded.features, *shape, width),
        "b_enc_L": weights.encoder_bias,
        "_b_dec_XoDo": torch.stack(weights.decoder_bias).reshape(*shape, width),
        "is_folded": torch.tensor(True),
        FACTORS_IN: torch.tensor(list(scales.values()), dtype=torch.float64).reshape(shape),
        FACTORS_OUT: torch.tensor(list(scales.values()), dtype=torch.float64).reshape(shape),
    }
    settings = {
        "n_models": shape[0],
        "n_hookpoints": shape[1],
        "d_model": width,
        "n_latents": folded.features,
        "activation_fn": activation,
        "use_encoder_bias": True,
        "use_decoder_bias": True,
        "dtype": "float32",
        "crossdiff": {"sources": list(folded.sources)},
    }
    write_tensors(folder / "model.pt", entries)
    with atomic_write(folder / "model_cfg.yaml") as draft:
        draft.write_text(yaml.safe_dump(settings, sort_keys=False), encoding="utf-8")


def _activation(settings: dict[str, Any], origin: Path) -> tuple[str, dict[str, Any]]:
    """Class name and settings of the activation function. Raises CrosscoderError for one that is not supported."""
    activation = settings.get("activation_fn")
    kind = activation.get("classname") if isinstance(activation, dict) else None
    if kind not in (RELU, TOPK, BATCH_TOPK, *JUMPRELU) or not isinstance(activation, dict):
        raise CrosscoderError(
            f"{origin}: model_cfg.yaml beside it gives the activation function as {str(kind)[:100]}; Crossdiff reads "
            f"{RELU}, {TOPK}, {BATCH_TOPK} and {JUMPRELU[0]}. Copy the settings of an acausal crosscoder."
        )
    options = activation.get("cfg") or {}
    if not isinstance(options, dict) or (kind == TOPK and not isinstance(options.get("k"), int)):
        raise CrosscoderError(f"{origin}: the model_cfg.yaml beside it has no k. Copy it again.")
    return kind, options


def _threshold(file: TensorFile, kind: str, features: int, given: float | None) -> float | Tensor:
    """The activation above which a feature is active: one for all, or one each [F]."""
    if kind in JUMPRELU:
        return file.raw(THRESHOLDS, (features,)).float().exp()
    if kind == BATCH_TOPK and given is None:
        raise CrosscoderError(
            f"{file.path} keeps the strongest features of a whole batch and saves no threshold. Give one on the "
            "activation; 0 keeps every positive one."
        )
    return given or 0.0


def _factors(file: TensorFile, models: int, hookpoints: int) -> Tensor:
    """Scaling factors folded into the weights, fp64 [models, hookpoints]; ones when there are none."""
    if "is_folded" not in file or not bool(file.raw("is_folded", ())):
        return torch.ones(models, hookpoints, dtype=torch.float64)
    inwards, outwards = (file.raw(name, (models, hookpoints)).double() for name in (FACTORS_IN, FACTORS_OUT))
    if not torch.equal(inwards, outwards) or bool((inwards <= 0).any()):
        raise CrosscoderError(
            f"{file.path}: scaling factors differ between inputs and outputs or are not above 0, so it does not "
            "reconstruct what it reads. Only acausal crosscoders can be read."
        )
    return inwards


def _with_thresholds(crosscoder: Crosscoder) -> tuple[Crosscoder, Tensor]:
    """The crosscoder, and the logarithm of each feature's threshold on the activation [F].

    A feature whose score is always 0 never exceeds its threshold, so its encoder is set to zero.
    """
    norms, score_thresholds = scores_per_activation(crosscoder), thresholds(crosscoder)
    activation_thresholds = score_thresholds / torch.where(norms > 0, norms, 1.0)
    fires = (norms > 0) | (score_thresholds == 0)
    return with_rescaled_activations(crosscoder, fires.float()), activation_thresholds.log()
