"""What training does to a model against overfitting, beside ``model.dropout``: the settings of a group of its own."""

import dataclasses
import warnings
from typing import Annotated

from pydantic import Field, NonNegativeFloat
from torch import nn

from seqlab.data import DataSet
from seqlab.errors import UserError
from seqlab.models.dropouts import Dropouts, LastOutput, WeightDropout, WordDropout
from seqlab.models.layer import Branch
from seqlab.models.mixture_of_softmaxes import MixtureOfSoftmaxes
from seqlab.models.protocols import parts
from seqlab.models.sequence_model import SequenceModel
from seqlab.training.freezing import matching

Fraction = Annotated[float, Field(ge=0, lt=1)]


@dataclasses.dataclass(kw_only=True)
class Regularisation:
    """Settings of regularisation, for any model of layers; those that are 0 cost nothing.

    A process, or a part of a batch with ``accumulate``, draws masks of its own.

    Args:
        words: of the vocabulary's words, left out of a batch's inputs (``WordDropout``).
        inputs: of the embedding's channels, left out of a sequence (variational dropout: ``Dropouts``).
        layers: the same on the output of each half layer but the last.
        output: the same on the last output, which the head reads, behind the norm.
        latents: the same on what the softmaxes of a mixture read (``MixtureOfSoftmaxes``).
        weights: of the numbers of weights in the layers, left out of a batch (``WeightDropout``).
        weights_on: which weights: names or patterns, as ``trainer.freeze`` has them; ``None`` is the recurrent ones of
            LSTM and GRU, ``[weight_hh_l0]``.
        depth: of the sequences, left out of the last half layer; of half layer i of n, depth i / n of them (stochastic
            depth: Huang et al. 2016, arXiv:1603.09382, equation 4).
        ar, tar: factors of two losses on the last output, its size and its change from one position to the next
            (``LastOutput``). They are logged as ``auxiliary_loss``, apart from the loss.
        label_smoothing: share of the target that goes to all words alike (Szegedy et al. 2016, arXiv:1512.00567,
            section 7), as in torch's ``CrossEntropyLoss``; the training loss is then that, and evaluation's is not.
    """

    words: Fraction = 0.0
    inputs: Fraction = 0.0
    layers: Fraction = 0.0
    output: Fraction = 0.0
    latents: Fraction = 0.0
    weights: Fraction = 0.0
    weights_on: list[str] | None = None
    depth: Fraction = 0.0
    ar: NonNegativeFloat = 0.0
    tar: NonNegativeFloat = 0.0
    label_smoothing: Fraction = 0.0

    @property
    def of_whole_sequences(self) -> dict[str, float]:
        """The settings by name, of those that are not 0, that a slice of a sequence cannot follow by itself."""
        names = "words", "inputs", "layers", "output", "latents", "weights", "depth", "tar"
        return {name: value for name in names if (value := getattr(self, name))}

    @property
    def of_model(self) -> dict[str, float]:
        """The settings by name, of those that are not 0, that change how the model computes."""
        return self.of_whole_sequences | ({"ar": self.ar} if self.ar else {})

    def check_data(self, data: DataSet) -> None:
        """Check that the data's loss can be smoothed.

        Raises:
            UserError: it is no cross-entropy of each position's logits.
        """
        if self.label_smoothing and not getattr(data.loss, "is_cross_entropy", False):
            rule = "is for a loss that is the cross-entropy of each position's logits, and this data has another"
            raise UserError("regularisation.label_smoothing", self.label_smoothing, rule, "Leave it out")

    def apply(self, model: nn.Module) -> None:
        """Let a model train so from now on; in evaluation mode it computes as before.

        Raises:
            UserError: the model lacks what a setting is of.
        """
        if not (asked := self.of_model):
            return
        key, value = next(iter(asked.items()))
        if not isinstance(model, SequenceModel):
            rule = f"is for seqlab's own SequenceModel, and this is {type(model).__name__}"
            raise UserError(f"regularisation.{key}", value, rule, "Leave it out")
        halves = parts(model, Branch)
        if self.words:
            if not model.tokens:
                rule = "leaves out words, and the inputs of this data are no tokens"
                raise UserError("regularisation.words", self.words, rule, "Set regularisation.inputs, or leave it out")
            model.words = WordDropout(self.words, model.embed.num_embeddings)
        if self.depth and not all(half.residual for half in halves):
            rule = "leaves out half layers, and in this model nothing goes around them (model.residual=false)"
            raise UserError("regularisation.depth", self.depth, rule, "Leave it out")
        if self.latents:
            if not isinstance(model.head, MixtureOfSoftmaxes):
                rule = "is of a mixture of softmaxes, and this model has one"
                raise UserError("regularisation.latents", self.latents, rule, "Set model.softmaxes, or leave it out")
            model.head.dropout = Dropouts(0.0, channels=self.latents)
        model.dropout = Dropouts(model.dropout.p, channels=self.inputs)
        for i, half in enumerate(halves, start=1):
            channels = self.layers if i < len(halves) else 0.0
            half.dropout = Dropouts(half.dropout.p, channels=channels, sequences=self.depth * i / len(halves))
        if self.output or self.ar or self.tar:
            model.last_output = LastOutput(self.output, self.ar, self.tar)
        if self.weights:
            self._drop_weights(model)
        model.train(model.training)  # the new parts too

    def _drop_weights(self, model: SequenceModel) -> None:
        """Let the layers drop the weights that ``weights_on`` is of.

        Raises:
            UserError: a pattern is of no parameter, or of one that is in no layer.
        """
        left = dict.fromkeys(matching(model, self.weights_on or ["weight_hh_l0"], "regularisation.weights_on"))
        for path, half in model.named_modules():
            start = f"{path}.inner."
            if isinstance(half, Branch) and (names := [name for name in left if name.startswith(start)]):
                half.weight_dropout = WeightDropout(self.weights, [name.removeprefix(start) for name in names])
                left = {name: None for name in left if name not in names}
        if left:
            rule = f"is of {next(iter(left))}, which is in no mixer or feed-forward of a layer"
            remedy = "Name weights of those, for example [weight_hh_l0] or [out_proj]"
            raise UserError("regularisation.weights_on", self.weights_on, rule, remedy)
        warnings.filterwarnings("ignore", "RNN module weights are not part of single contiguous chunk of memory")
