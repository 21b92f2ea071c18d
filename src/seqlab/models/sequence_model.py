"""The one model: embedding, layers of mixer and feed-forward, norm, head.

Symbols: B batch, L length, D model width, d_input and d_output widths of the data, P chosen positions of the flattened
batch.
"""

import inspect
from collections.abc import Callable
from typing import Annotated, Any, Literal, NamedTuple

import torch
from pydantic import Field, NonNegativeFloat, NonNegativeInt, PositiveInt
from torch import Tensor, nn

from seqlab.errors import UserError, under
from seqlab.models.dropouts import LastOutput, WordDropout
from seqlab.models.hooks import has_hooks
from seqlab.models.layer import Branch, Layer, Read, prefill_mixer, step_mixer
from seqlab.models.linear import Linear
from seqlab.models.mixers.parallel import Parallel, side_by_side
from seqlab.models.mixture_of_softmaxes import MixtureOfSoftmaxes
from seqlab.models.norms import RMSNorm, add_norm
from seqlab.models.pattern import check_mixer, check_pattern, check_widths, feedforward_pattern, names_in
from seqlab.models.positions import LearnedPositions, SinusoidalPositions
from seqlab.models.protocols import Carries, Factory, packs, share_positions
from seqlab.ops import decoding
from seqlab.ops.context import ContextGroup

CHUNK = 4096
"""Positions that ``prefill`` takes at a time on a CPU, which bounds the memory for activations."""

TOKENS = 2**15
"""Tokens that it takes at a time on a GPU, in all sequences together: enough that kernels take longer than Python does
to launch them. For each of the D in the residual stream, a token's activations in a layer are 12 numbers (Mamba) to 28
(experts, two a token): in bf16, at a width of 768, 0.6 to 1.4 GB."""


def chunk_length(batch: int, device: torch.device) -> int:
    """Positions of B sequences that ``prefill`` takes at a time."""
    return max(1, TOKENS // batch) if device.type == "cuda" else CHUNK


class ModelState(NamedTuple):
    """The model's state between two calls of ``step`` or ``prefill``.

    Use each state once: attention extends its cache in place.
    """

    position: int  # positions so far
    layers: list[Any]  # the state of each layer's mixer


def cut(state: Any) -> Any:
    """A mixer's state, as ``Carries`` has it, without gradients."""
    if isinstance(state, Tensor):
        return state.detach()
    if isinstance(state, tuple | list):
        parts = map(cut, state)
        return type(state)(*parts) if hasattr(state, "_fields") else type(state)(parts)
    return state


class SequenceModel(nn.Module):
    """Maps tokens (B, L) or features (B, L, d_input) to logits or values (B, L, d_output), causally.

    The data object gives the first four arguments, the configuration the rest.

    Args:
        tokens: inputs are token ids below ``d_input``; otherwise features of that width.
        d_input: vocabulary size or feature width.
        d_output: vocabulary size or output width.
        max_length: the longest window, which is the number of learned positions.
        d_model: width D of the residual stream.
        n_layers: number of layers; 0, with an empty pattern, leaves embedding and head.
        pattern: names of the layers' mixers, repeated over the depth; ``mamba2+attention`` are two side by side, whose
            outputs are added.
        mixers: how to build each name in ``pattern``, given D.
        feedforward: how to build the feed-forward after each mixer, given D; a list of these, null for none, repeats
            over the depth as ``pattern`` does.
        norm: how to build the norm before each half layer and before the head, given D.
        residual: add each half layer to its input.
        positions: ``learned`` adds a vector for each position, ``sinusoidal`` a fixed one, at any length; ``none``
            leaves order to the mixers.
        head_bias: a head that shares no matrix has a bias.
        tie_embeddings: the head uses the embedding's matrix (tokens of one vocabulary only).
        softmaxes: above 1, the outputs are log p of a mixture of so many softmaxes (``MixtureOfSoftmaxes``), and the
            last of layers that are a mixer alone may be of any width.
        embedding_std: initial standard deviation of the embedding.
        dropout: on the embedding and on each half layer's output.

    Raises:
        UserError: ``pattern`` or ``feedforward`` does not fit, or a part refuses its arguments.
    """

    separator: int | None = None
    context: ContextGroup | None = None

    def __init__(
        self,
        *,
        tokens: bool,
        d_input: PositiveInt,
        d_output: PositiveInt,
        max_length: PositiveInt,
        d_model: PositiveInt,
        n_layers: NonNegativeInt,
        pattern: list[str],
        mixers: dict[str, Factory],
        feedforward: Factory | list[Factory | None] | None = None,
        norm: Factory | None = None,
        residual: bool = True,
        positions: Literal["none", "learned", "sinusoidal"] = "none",
        tie_embeddings: bool = False,
        softmaxes: PositiveInt = 1,
        head_bias: bool = True,
        embedding_std: NonNegativeFloat = 0.02,
        dropout: Annotated[float, Field(ge=0, lt=1)] = 0.0,
    ):
        super().__init__()
        check_pattern(pattern, n_layers, mixers)
        feedforwards = feedforward_pattern(feedforward, n_layers)
        self.tokens, self.max_length = tokens, max_length
        self.embed = nn.Embedding(d_input, d_model) if tokens else Linear(d_input, d_model)
        self.positions = None
        if positions == "learned":
            self.positions = LearnedPositions(max_length, d_model)
        elif positions == "sinusoidal":
            self.positions = SinusoidalPositions(d_model)
        self.dropout = nn.Dropout(dropout)
        self.words: WordDropout | None = None  # as the next: of ``seqlab.training.regularisation``
        self.last_output: LastOutput | None = None

        def built(path: str, factory: Factory) -> nn.Module:
            with under(path, inspect.signature(factory).parameters):
                part = factory(d_model)
            part.settings_key = path  # in those of the model, for what is wrong with them
            return part

        def branch(inner: nn.Module) -> Branch:
            return Branch(inner, norm(d_model) if norm else nn.Identity(), residual=residual, dropout=dropout)

        def mixer(names: list[str]) -> nn.Module:
            parts = [built(f"mixers.{name}", mixers[name]) for name in names]
            for name, part in zip(names, parts, strict=True):
                check_mixer(name, part)
            return parts[0] if len(parts) == 1 else Parallel(parts)

        def layer(i: int) -> Layer:
            number = i % len(feedforwards)
            path = f"feedforward.{number}" if isinstance(feedforward, list) else "feedforward"
            first = branch(mixer(names_in(pattern[i % len(pattern)])))
            return Layer(first, branch(built(path, feedforwards[number])) if feedforwards[number] else None)

        self.layers = nn.ModuleList(map(layer, range(n_layers)))
        alone = norm is None and not residual and not any(feedforwards)
        mixers_of = [side_by_side(layer.mixer.inner) for layer in self.layers]
        width = check_widths(mixers_of, d_model, alone=alone, ends_so=softmaxes == 1)
        self.norm = norm(d_model) if norm else nn.Identity()
        if isinstance(self.norm, RMSNorm):
            self.norm.rounds = True  # linear maps alone read it
        tied = tokens and tie_embeddings and d_input == d_output
        bias = head_bias and not tied
        if softmaxes == 1:
            self.head = Linear(d_model, d_output, bias=bias)
        else:
            self.head = MixtureOfSoftmaxes(width, d_model, d_output, softmaxes, bias=bias)
        if residual:
            self._rescale_residual_projections()
        self._initialise_embedding(embedding_std, tied=tied)

    def _initialise_embedding(self, std: float, *, tied: bool) -> None:
        """Draw the embeddings of tokens and positions; if ``tied``, the head's weight is the tokens'."""
        if self.tokens:
            nn.init.normal_(self.embed.weight, std=std)
        if self.positions is not None:
            self.positions.initialise(std)
        if tied:
            self.head.weight = self.embed.weight
        elif self.tokens:
            self.embed.weight.lookup = True

    def _rescale_residual_projections(self) -> None:
        """Divide the half layers' output projections by the square root of their number (GPT-2, section 2.3).

        Mixers side by side are as many.
        """
        branches = [b for layer in self.layers for b in (layer.mixer, layer.feedforward) if b is not None]
        parts = [part for branch in branches for part in side_by_side(branch.inner)]
        with torch.no_grad():
            for part in parts:
                projection = getattr(part, "out_proj", None)
                if projection is not None:
                    projection.weight /= len(parts) ** 0.5

    def separate(self, token: int) -> None:
        """Let nothing flow over this token: with each one a new sequence begins, whose first token it is.

        So ``forward`` and ``hidden`` see it. ``step`` and ``prefill`` do not: they are given one sequence.

        Raises:
            UserError: a mixer cannot take packed sequences.
        """
        unable = [part for layer in self.layers for part in side_by_side(layer.mixer.inner) if not packs(part)]
        if unable:
            rule = f"{type(unable[0]).__name__} in this model carries its state from one document to the next"
            remedy = "Choose a model of other mixers (Mamba, attention, the delta rules), or leave it out"
            raise UserError("data.separate_documents", True, rule, remedy)
        self.separator = token

    def share_positions(self, context: ContextGroup) -> None:
        """From now on ``forward`` and ``hidden`` get, in training mode, a slice of the positions of each sequence.

        All slices are equally long, and the loss and gradients of this process are those of its slice: their sums over
        the processes are those of whole sequences. In evaluation mode every process is given whole sequences.

        Raises:
            UserError: a mixer cannot be shared so, or documents are to be kept apart.
        """
        mixers = [part for layer in self.layers for part in side_by_side(layer.mixer.inner)]
        if self.separator is not None:
            rule = "processes that share a sequence do not keep its documents apart"
            remedy = "Set context_parallel=1, or data.separate_documents=false"
            raise UserError("context_parallel", context.size, rule, remedy)
        for mixer in mixers:
            share_positions(mixer, context)
        self.context = context

    def check_length(self, length: int) -> None:
        """Check that the model has positions for a sequence of ``length``.

        Raises:
            UserError: it has fewer learned positions.
        """
        if self.positions is not None:
            self.positions.check_length(length)

    def _embed(self, inputs: Tensor, start: int, end: int) -> Tensor:
        """The residual stream at positions ``start`` to ``end``, in the parameters' precision under autocast too."""
        x = self.embed(inputs).to(self.embed.weight.dtype)  # (B, L, D), or (B, D) of one position
        if self.words is not None:
            x = self.words(x, inputs)
        if self.positions is not None:
            x = x + self.positions.at(start, end, x)
        return self.dropout(x)

    def forward(
        self, inputs: Tensor, places: Tensor | None = None, head: Callable[[Tensor], Tensor] | None = None
    ) -> Tensor:
        """Tokens (B, L) or features (B, L, d_input) to outputs (B, L, d_output).

        With ``places`` (...), indices into the flattened batch, to (..., d_output): a large head at all positions would
        be most of the work where few are needed. Or to what ``head`` makes of ``hidden``, in place of the model's head,
        whose weights it may use: here several processes have put them together.
        """
        return (head or self.head)(self.hidden(inputs, places))

    def hidden(self, inputs: Tensor, places: Tensor | None = None) -> Tensor:
        """What ``forward`` gives to the head: (B, L, D), or (..., D) with ``places``."""
        length = inputs.shape[1]
        start = self.context.rank * length if self.context is not None and self.training else 0
        x, update = self._embed(inputs, start, start + length), None  # (B, L, D)
        seq_idx = None if self.separator is None else (inputs == self.separator).cumsum(dim=1)  # (B, L)
        for layer in self.layers:
            x, update = layer(x, update, seq_idx)
        return self._normed(x, update, places)

    def _normed(self, x: Tensor, update: Tensor | None = None, places: Tensor | None = None) -> Tensor:
        if places is not None:
            x, update = (x if update is None else x + update).flatten(0, 1)[places], None
        x = add_norm(self.norm, x, update)[1]
        return x if self.last_output is None or places is not None else self.last_output(x)

    def initial_state(self, batch_size: int) -> ModelState:
        """The state before the first position."""
        return ModelState(0, [layer.mixer.inner.initial_state(batch_size) for layer in self.layers])

    def carried_state(self, batch_size: int, length: int) -> ModelState:
        """The state of ``batch_size`` texts before the first of their windows of ``length`` positions.

        With it ``carry`` and ``prefill`` read a text window by window, and attention the window before too. A state's
        tensors are as ``Carries`` has them.

        Raises:
            UserError: a mixer cannot carry its state on, positions are counted from the start of a window, or documents
                are to be kept apart.
        """
        mixers = [part for layer in self.layers for part in side_by_side(layer.mixer.inner)]
        unable = next((type(part).__name__ for part in mixers if not isinstance(part, Carries)), None)
        rule, remedy = None, "Set data.windows=contiguous or sampled, or choose a model of other mixers"
        if self.separator is not None:
            rule = "a state that is carried on would flow from one document to the next"
            remedy = "Set data.windows=contiguous or sampled, or data.separate_documents=false"
        elif self.positions is not None:
            rule = f"{type(self.positions).__name__} in this model begin anew with each window"
            remedy = "Take rotary positions or none (model.positions=none), or data.windows=contiguous or sampled"
        elif unable is not None:
            rule = f"{unable} in this model cannot be trained from the state of the window before"
        if rule is not None:
            raise UserError("data.windows", "carried", rule, remedy)
        return ModelState(0, [layer.mixer.inner.carried_state(batch_size, length) for layer in self.layers])

    def carry(self, inputs: Tensor, state: ModelState) -> tuple[Tensor, ModelState]:
        """What ``hidden`` gives, (B, L, D), after the windows that left ``state``, which stays as it is.

        And the state after this one, without gradients.
        """
        x, update, after = self._embed(inputs, 0, inputs.shape[1]), None, []
        for layer, before in zip(self.layers, state.layers, strict=True):
            x, update, layer_state = layer.carry(x, update, before)
            after.append(cut(layer_state))
        return self._normed(x, update), ModelState(state.position + inputs.shape[1], after)

    @torch.no_grad()
    def step(self, inputs: Tensor, state: ModelState) -> tuple[Tensor, ModelState]:
        """One position: tokens (B,) or features (B, d_input) to outputs (B, d_output), and the state after it."""
        x, state = self._advance(step_mixer, inputs, state, 1)  # (B, D)
        called = type(self.head) is not Linear or has_hooks(self.norm) or has_hooks(self.head)
        norm = None if called else decoding.norm_of(self.norm)
        if norm is not None and decoding.can_run(x, norm.weight, norm.bias, self.head.weight, self.head.bias):
            return decoding.norm_linear(x, norm, self.head.weight, self.head.bias), state
        return self.head(self._normed(x)), state

    @torch.no_grad()
    def prefill(
        self,
        inputs: Tensor,
        state: ModelState,
        *,
        every: bool = False,
        places: Tensor | None = None,
        chunk: int | None = None,
    ) -> tuple[Tensor, ModelState]:
        """Many positions at once, equal to as many calls of ``step`` within rounding.

        Args:
            inputs: tokens (B, L) or features (B, L, d_input), at least one position.
            state: the state before them.
            every: return the outputs of every position, not of the last alone.
            places: return the outputs at these indices (P,) into the flattened batch.
            chunk: number of positions processed at a time; ``chunk_length`` unless given.

        Returns:
            Outputs, (B, d_output) of the last position, (B, L, d_output) of every one or (P, d_output) at ``places``,
            and the state after it.
        """
        seen = []
        for piece in inputs.split(chunk or chunk_length(len(inputs), inputs.device), dim=1):
            x, state = self._advance(prefill_mixer, piece, state, piece.shape[1])  # (B, L, D)
            if every or places is not None:
                seen.append(x)
        x = torch.cat(seen, dim=1) if seen else x[:, -1]
        return self.head(self._normed(x, places=places)), state

    def _advance(self, read: Read, inputs: Tensor, state: ModelState, length: int) -> tuple[Tensor, ModelState]:
        """The residual stream after all layers for ``length`` positions, and the state after them."""
        end = state.position + length
        x = self._embed(inputs, state.position, end)  # (B, D) or (B, L, D)
        after = []
        for layer, before in zip(self.layers, state.layers, strict=True):
            x, layer_state = layer.advance(x, before, read)
            after.append(layer_state)
        return x, ModelState(end, after)
