"""Takes from sources what the others tell linearly, and folds this into the weights after training.

A residual dictionary is trained on r = n_t(x_t) - P(n(x_others)): a target's normalised activations less their affine
prediction. The saved crosscoder works on the sources themselves and needs no residual: with n_r(r) = (r - m) s, an
encoder e becomes s e on the target and -s e W' on what is given, a decoder d becomes d / s on the target. The features
and what they write stay the same; the prediction is kept beside them for reconstructions.
"""

from dataclasses import dataclass, field, replace

from torch import Tensor

from trainer.crosscoder.crosscoder import Crosscoder, Rows
from trainer.crosscoder.groups import Group
from trainer.crosscoder.normalisation import Normaliser
from trainer.crosscoder.prediction import Prediction
from trainer.device import to_device


@dataclass
class Residuals:
    """What of some targets the other sources do not tell."""

    normaliser: dict[str, Normaliser]
    """Of every source."""
    predictions: dict[str, Prediction]
    """By target."""
    own: dict[str, Normaliser] = field(default_factory=dict)
    """Of every residual, as it is trained on."""
    _last: tuple[Rows, Rows] | None = None

    def of(self, rows: Rows, target: str) -> Tensor:
        """Residual of one target [R, W], fp32, in the unit of normalised activations, for raw activations."""
        predict = self.predictions[target]
        return self._normal(rows, target) - predict({name: self._normal(rows, name) for name in predict.given})

    def __call__(self, rows: Rows) -> Rows:
        """Residuals by target; computed once for the same batch, which several trainings may read."""
        if self._last is None or self._last[0] is not rows:
            self._last = rows, {target: self.of(rows, target) for target in self.predictions}
        return self._last[1]

    def _normal(self, rows: Rows, source: str) -> Tensor:
        normaliser = self.normaliser[source]
        return normaliser(to_device(rows[source], normaliser.mean.device))

    def fold(self, trained: Crosscoder) -> Crosscoder:
        """The same features on the sources themselves, to rounding, for a crosscoder trained on the residuals."""
        folded = replace(
            trained,
            widths={name: len(one.mean) for name, one in self.normaliser.items()},
            groups=tuple(self._reading_all(group) for group in trained.groups),
            weights={},
            normaliser=self.normaliser,
            threshold={},
            aggregation="sum",
            predictions=self.predictions,
        )
        for before in trained.groups:
            folded.weights |= self._folded_weights(trained, before)
            # Scores are activations times a decoder norm, which is divided by the scale.
            scale = 1.0 if trained.rank_by == "activation" else trained.normaliser[before.writes[0]].scale
            folded.threshold[before.name] = trained.threshold[before.name] / scale
        return folded

    def _reading_all(self, group: Group) -> Group:
        (target,) = group.writes
        reads = {target, *self.predictions[target].given}
        return replace(group, reads=tuple(name for name in self.normaliser if name in reads))

    def _folded_weights(self, trained: Crosscoder, group: Group) -> dict[str, Tensor]:
        (target,) = group.writes
        prediction, own = self.predictions[target], trained.normaliser[target]
        mean, scale = own.mean.double(), own.scale

        def weight(name: str) -> Tensor:
            return trained.weights[name].detach().double()

        encoder = scale * weight(f"encoder.{target}.{group.name}")
        widths = [len(self.normaliser[name].mean) for name in prediction.given]
        given = (-encoder @ prediction.weight.double().T).split(widths, dim=1)
        folded = {f"encoder.{name}.{group.name}": part for name, part in zip(prediction.given, given, strict=True)}
        folded[f"encoder.{target}.{group.name}"] = encoder
        offset = encoder @ (prediction.offset.double() + mean)
        folded[f"encoder_bias.{group.name}"] = weight(f"encoder_bias.{group.name}") - offset
        folded[f"decoder.{target}.{group.name}"] = weight(f"decoder.{target}.{group.name}") / scale
        folded[f"decoder_bias.{target}"] = weight(f"decoder_bias.{target}") / scale + mean
        return {name: tensor.float().contiguous() for name, tensor in folded.items()}
