"""crosscode: the acausal crosscoder over models and hookpoints, with ReLU, JumpReLU, TopK or BatchTopK.

`model.pt` with `model_cfg.yaml`. A source is one model at one hookpoint, models outermost. Scaling factors are folded
into saved weights and stand beside them; they are taken out again, so that decoder norms of sources compare.
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
    rescaled,
    scores_per_activation,
    stretched,
    summed,
    thresholds,
    with_scores_as_activations,
    without_mean,
)
from trainer.interchange.layout import (
    Partition,
    Weights,
    assembled,
    common_width,
    disassembled,
    kept_per_row,
    need_one_group,
    refuse_differences,
    source_names,
)
from trainer.interchange.tensor_files import TensorFile, read_settings, read_tensors, write_tensors
from trainer.run.folder import published

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
    """The weights of this format in a folder, or the file itself; None when there are none."""
    file = path if path.is_file() else path / "model.pt"
    return file if file.is_file() and file.name == "model.pt" and file.with_name("model_cfg.yaml").is_file() else None


def read(path: Path, *, sources: Sequence[str] = (), threshold: float | None = None) -> Crosscoder:
    """Read a checkpoint: its folder or its weights file.

    `threshold` is on the activation, for checkpoints that keep k features and save none. Raises CrosscoderError for a
    damaged or unsafe file, or one that Crossdiff cannot hold.
    """
    file = read_tensors(find(path) or path)
    settings = read_settings(file.path.with_name("model_cfg.yaml"))
    file.only(ENTRIES)
    models, hookpoints, width, features = file.raw("_W_enc_XiDiL", ("models", "hookpoints", "width", "features")).shape
    count = models * hookpoints
    names = source_names(sources, settings, count, file.path)
    stacked, biases = (features, models, hookpoints, width), (models, hookpoints, width)
    own = Weights(
        [e.T.contiguous() for e in file.tensor("_W_enc_XiDiL", (*biases, features)).reshape(count, width, features)],
        list(file.tensor("_W_dec_LXoDo", stacked).reshape(features, count, width).unbind(1)),
        file.tensor("b_enc_L", (features,)) if "b_enc_L" in file else torch.zeros(features),
        list(
            (file.tensor("_b_dec_XoDo", biases) if "_b_dec_XoDo" in file else torch.zeros(biases)).reshape(count, width)
        ),
    )
    kind, options = _activation(settings, file.path)
    crosscoder = assembled(
        own,
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
    unfolded = stretched(crosscoder, {name: 1 / scale for name, scale in scales.items()})
    return replace(unfolded, normaliser=normaliser)


def write(crosscoder: Crosscoder, folder: Path, *, hookpoints: int = 1) -> None:
    """Write model.pt and model_cfg.yaml for raw activations.

    `hookpoints` is how many consecutive sources belong to one model. Raises CrosscoderError when widths differ or
    features are exclusive.
    """
    refuse_differences(crosscoder, TOOL)
    need_one_group(crosscoder, TOOL)
    width, count = common_width(crosscoder, TOOL), len(crosscoder.sources)
    if hookpoints < 1 or count % hookpoints:
        raise CrosscoderError(
            f"{count} sources are no whole number of models with {hookpoints} hookpoints each. Give 1."
        )
    kept = kept_per_row(crosscoder)
    plain = without_mean(summed(crosscoder))
    entries: dict[str, Tensor] = {}
    if kept is not None:
        plain = with_scores_as_activations(plain)
        activation = {"classname": TOPK, "cfg": {"k": kept}}
    elif fires_when_positive(plain):
        activation = {"classname": RELU, "cfg": {}}
    else:
        plain, entries[THRESHOLDS] = _with_thresholds(plain)
        activation = {"classname": JUMPRELU[0], "cfg": {"size": plain.features, "bandwidth": 1.0}}
    scales = {source: plain.normaliser[source].scale for source in plain.sources}
    own, place = disassembled(stretched(plain, scales)), (count // hookpoints, hookpoints)
    entries |= {
        "_W_enc_XiDiL": torch.stack([block.T for block in own.encoder]).reshape(*place, width, plain.features),
        "_W_dec_LXoDo": torch.stack(own.decoder, dim=1).reshape(plain.features, *place, width),
        "b_enc_L": own.encoder_bias,
        "_b_dec_XoDo": torch.stack(own.decoder_bias).reshape(*place, width),
        "is_folded": torch.tensor(True),
        FACTORS_IN: torch.tensor(list(scales.values()), dtype=torch.float64).reshape(place),
        FACTORS_OUT: torch.tensor(list(scales.values()), dtype=torch.float64).reshape(place),
    }
    settings = {
        "n_models": place[0],
        "n_hookpoints": place[1],
        "d_model": width,
        "n_latents": plain.features,
        "activation_fn": activation,
        "use_encoder_bias": True,
        "use_decoder_bias": True,
        "dtype": "float32",
        "crossdiff": {"sources": list(plain.sources)},
    }
    write_tensors(folder / "model.pt", entries)
    with published(folder / "model_cfg.yaml") as draft:
        draft.write_text(yaml.safe_dump(settings, sort_keys=False), encoding="utf-8")


def _activation(settings: dict[str, Any], origin: Path) -> tuple[str, dict[str, Any]]:
    """Name and settings of the activation function. Raises CrosscoderError when there is none that fits."""
    described = settings.get("activation_fn")
    kind = described.get("classname") if isinstance(described, dict) else None
    if kind not in (RELU, TOPK, BATCH_TOPK, *JUMPRELU) or not isinstance(described, dict):
        raise CrosscoderError(
            f"{origin}: model_cfg.yaml beside it gives the activation function as {kind}; Crossdiff reads {RELU}, "
            f"{TOPK}, {BATCH_TOPK} and {JUMPRELU[0]}. Copy the settings of an acausal crosscoder."
        )
    options = described.get("cfg") or {}
    if kind == TOPK and not isinstance(options.get("k"), int):
        raise CrosscoderError(f"{origin}: model_cfg.yaml beside it does not say k. Copy it again.")
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
    """Scaling factors in the weights [models, hookpoints] fp64; 1 when none were folded in."""
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
    """The crosscoder and the logarithm of the activation above which each feature is active [F].

    A feature whose score is always 0 never exceeds its threshold, so its encoder can go.
    """
    norms, every = scores_per_activation(crosscoder), thresholds(crosscoder)
    bound = every / torch.where(norms > 0, norms, 1.0)
    fires = (norms > 0) | (every == 0)
    return rescaled(crosscoder, fires.float()), bound.log()
