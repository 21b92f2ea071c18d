"""The one model: embed, layers of mixer and feed-forward, norm, head.

Symbols: B batch, L length, D model width.
"""

from collections.abc import Callable
from typing import Annotated, Any, Literal, NamedTuple

import torch
from pydantic import Field, NonNegativeFloat, NonNegativeInt, PositiveInt
from torch import Tensor, nn

from seqlab.errors import UserError

Factory = Callable[..., nn.Module]


CHUNK = 4096
"""Positions that ``prefill`` takes at a time, which bounds the memory for activations."""


class ModelState(NamedTuple):
    """What the model remembers between two calls of ``step`` or ``prefill``.

    A state is continued once: attention writes what follows into the room that its cache has.
    """

    position: int
    layers: list[Any]


class Branch(nn.Module):
    """Half a layer: x + dropout(inner(norm(x))), or inner(norm(x)) where there is no residual stream."""

    def __init__(self, inner: nn.Module, norm: nn.Module, *, residual: bool, dropout: float):
        super().__init__()
        self.norm, self.inner, self.residual = norm, inner, residual
        self.dropout = nn.Dropout(dropout)

    def _join(self, x: Tensor, y: Tensor) -> Tensor:
        return x + self.dropout(y) if self.residual else self.dropout(y)

    def forward(self, x: Tensor) -> Tensor:
        return self._join(x, self.inner(self.norm(x)))

    def step(self, x: Tensor, state: Any) -> tuple[Tensor, Any]:
        y, state = self.inner.step(self.norm(x), state)
        return self._join(x, y), state

    def prefill(self, x: Tensor, state: Any) -> tuple[Tensor, Any]:
        y, state = prefill_mixer(self.inner, self.norm(x), state)
        return self._join(x, y), state


def prefill_mixer(mixer: nn.Module, x: Tensor, state: Any) -> tuple[Tensor, Any]:
    """A mixer's outputs (B, L, D) for x (B, L, D) and the state after it, by steps where it has no ``prefill``."""
    if hasattr(mixer, "prefill"):
        return mixer.prefill(x, state)
    outputs = []
    for position in x.unbind(dim=1):
        y, state = mixer.step(position, state)
        outputs.append(y)
    return torch.stack(outputs, dim=1), state


class Layer(nn.Module):
    """A mixer, then a feed-forward if there is one."""

    def __init__(self, mixer: Branch, feedforward: Branch | None):
        super().__init__()
        self.mixer, self.feedforward = mixer, feedforward

    def forward(self, x: Tensor) -> Tensor:
        x = self.mixer(x)
        return x if self.feedforward is None else self.feedforward(x)

    def step(self, x: Tensor, state: Any) -> tuple[Tensor, Any]:
        x, state = self.mixer.step(x, state)
        return x if self.feedforward is None else self.feedforward(x), state

    def prefill(self, x: Tensor, state: Any) -> tuple[Tensor, Any]:
        x, state = self.mixer.prefill(x, state)
        return x if self.feedforward is None else self.feedforward(x), state


class SequenceModel(nn.Module):
    """Maps tokens (B, L) or features (B, L, d_input) to logits or values (B, L, d_output), causally.

    The data object gives the first four arguments, the configuration the rest.

    Args:
        tokens: inputs are token ids below ``d_input``; otherwise they are features of that width.
        d_input: vocabulary size or feature width.
        d_output: vocabulary size or output width.
        max_length: the longest window, which sizes learned positions.
        d_model: width D of the residual stream.
        n_layers: number of layers; 0 leaves embedding and head.
        pattern: names of the layers' mixers, repeated over the depth.
        mixers: how to build each name in ``pattern``, given D.
        feedforward: how to build the feed-forward after each mixer, given D.
        norm: how to build the norm before each half layer and before the head, given D.
        residual: add each half layer to its input.
        positions: ``learned`` adds a vector for each position; ``none`` leaves order to the mixers.
        tie_embeddings: the head uses the embedding's matrix (tokens only; features have none to share).
        embedding_std: standard deviation of the embedding at the start.
        dropout: on the embedding and on each half layer's output.
    """

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
        feedforward: Factory | None = None,
        norm: Factory | None = None,
        residual: bool = True,
        positions: Literal["none", "learned"] = "none",
        tie_embeddings: bool = False,
        embedding_std: NonNegativeFloat = 0.02,
        dropout: Annotated[float, Field(ge=0, lt=1)] = 0.0,
    ):
        super().__init__()
        check_pattern(pattern, n_layers, mixers)
        self.tokens, self.max_length = tokens, max_length
        self.embed = nn.Embedding(d_input, d_model) if tokens else nn.Linear(d_input, d_model)
        self.positions = nn.Embedding(max_length, d_model) if positions == "learned" else None
        self.dropout = nn.Dropout(dropout)

        def branch(inner: nn.Module) -> Branch:
            return Branch(inner, norm(d_model) if norm else nn.Identity(), residual=residual, dropout=dropout)

        self.layers = nn.ModuleList(
            Layer(
                branch(mixers[pattern[i % len(pattern)]](d_model)),
                branch(feedforward(d_model)) if feedforward else None,
            )
            for i in range(n_layers)
        )
        self.norm = norm(d_model) if norm else nn.Identity()
        tied = tokens and tie_embeddings
        self.head = nn.Linear(d_model, d_output, bias=not tied)
        if residual:
            self._rescale_residual_projections()
        self._initialise_embeddings(embedding_std)
        if tied:
            self.head.weight = self.embed.weight
        elif tokens:
            self.embed.weight.no_weight_decay = True

    def _rescale_residual_projections(self) -> None:
        """Divide what each half layer adds by the square root of how many add (GPT-2, section 2.3)."""
        branches = [b for layer in self.layers for b in (layer.mixer, layer.feedforward) if b is not None]
        with torch.no_grad():
            for branch in branches:
                if hasattr(branch.inner, "out_proj"):
                    branch.inner.out_proj.weight /= len(branches) ** 0.5

    def _initialise_embeddings(self, std: float) -> None:
        if self.tokens:
            nn.init.normal_(self.embed.weight, std=std)
        if self.positions is not None:
            nn.init.normal_(self.positions.weight, std=std)
            self.positions.weight.no_weight_decay = True

    def check_length(self, length: int) -> None:
        """Refuse a sequence that is longer than the learned positions, if those are what the model has."""
        if self.positions is not None and length > self.max_length:
            raise UserError(
                "model.positions",
                "learned",
                f"a sequence of {length} is past the {self.max_length} positions that this model has",
                "Shorten the sequence, raise data.length, or use rotary positions or a recurrent mixer",
            )

    def _embed(self, inputs: Tensor) -> Tensor:
        """The start of the residual stream, which keeps the parameters' precision under autocast too."""
        return self.embed(inputs).to(self.embed.weight.dtype)

    def forward(self, inputs: Tensor) -> Tensor:
        x = self._embed(inputs)  # (B, L, D)
        if self.positions is not None:
            self.check_length(x.shape[1])
            x = x + self.positions.weight[: x.shape[1]]
        x = self.dropout(x)
        for layer in self.layers:
            x = layer(x)
        return self.head(self.norm(x))

    def initial_state(self, batch_size: int) -> ModelState:
        """The state before the first position."""
        return ModelState(0, [layer.mixer.inner.initial_state(batch_size) for layer in self.layers])

    @torch.no_grad()
    def step(self, inputs: Tensor, state: ModelState) -> tuple[Tensor, ModelState]:
        """One position: tokens (B,) or features (B, d_input) to outputs (B, d_output), and the state after it."""
        x, state = self._advance(Layer.step, inputs, state, 1)  # (B, D)
        return self.head(self.norm(x)), state

    @torch.no_grad()
    def prefill(
        self, inputs: Tensor, state: ModelState, *, every: bool = False, chunk: int = CHUNK
    ) -> tuple[Tensor, ModelState]:
        """Many positions at once: what as many calls of ``step`` give, within rounding.

        Args:
            inputs: tokens (B, L) or features (B, L, d_input), at least one position.
            state: before the first of them.
            every: give the outputs of every position, not of the last alone.
            chunk: positions at a time.

        Returns:
            Outputs, (B, d_output) of the last position or (B, L, d_output) of every one, and the state after it.
        """
        outputs = []
        for piece in inputs.split(chunk, dim=1):
            x, state = self._advance(Layer.prefill, piece, state, piece.shape[1])  # (B, L, D)
            if every:
                outputs.append(self.head(self.norm(x)))
        return torch.cat(outputs, dim=1) if every else self.head(self.norm(x[:, -1])), state

    def _advance(
        self, take: Callable[..., tuple[Tensor, Any]], inputs: Tensor, state: ModelState, length: int
    ) -> tuple[Tensor, ModelState]:
        """The residual stream after all layers, and the state; ``take`` is what a layer does with the positions."""
        x = self._embed(inputs)  # (B, D) or (B, L, D)
        end = state.position + length
        if self.positions is not None:
            self.check_length(end)
            x = x + self.positions.weight[state.position : end]
        x = self.dropout(x)
        after = []
        for layer, before in zip(self.layers, state.layers, strict=True):
            x, layer_state = take(layer, x, before)
            after.append(layer_state)
        return x, ModelState(end, after)


def check_pattern(pattern: list[str], n_layers: int, mixers: dict[str, Factory]) -> None:
    """Refuse a pattern that names an unknown mixer or that the depth would cut."""
    unknown = [name for name in pattern if name not in mixers]
    if unknown:
        raise UserError(
            "model.pattern",
            list(pattern),
            f"{unknown[0]!r} is not under model.mixers",
            f"Use {', '.join(map(repr, mixers)) or 'a mixer'}, or describe {unknown[0]!r} there",
        )
    if n_layers < 0 or (n_layers > 0 and not pattern):
        raise UserError("model.n_layers", n_layers, "needs a pattern of mixers", "Name at least one in model.pattern")
    if len(pattern) > n_layers > 0:
        raise UserError(
            "model.pattern",
            list(pattern),
            f"{len(pattern)} mixers do not fit into n_layers={n_layers}, so the last would never be built",
            f"Set n_layers to {len(pattern)} or more, or shorten the pattern",
        )
