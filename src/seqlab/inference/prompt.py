"""Reading a prompt; on a GPU a short one as a CUDA graph, once its shape comes again.

Symbols: B batch, L length, V width of the outputs.
"""

from functools import partial

from torch import Tensor, nn

from seqlab.inference.captured import Captured, copied, graphs_of
from seqlab.models.sequence_model import ModelState

MOST_TOKENS = 2**13
"""Of a prompt that is captured, in all sequences together. To launch the kernels of 24 Mamba layers, Python takes some
12 ms beside an H200, whatever the length; at a width of 768 they run as long for some 10,000 tokens, and beyond these a
graph gains nothing. It holds the activations of a layer: some 160 MB for so many tokens in bf16."""

ONCE = "read once"
"""Stands among a model's graphs for a shape that has come once: a capture costs more than it saves the next time."""


def prefill(model: nn.Module, prompt: Tensor) -> tuple[Tensor, ModelState]:
    """Read a prompt from its beginning.

    On a GPU, the second short prompt of a shape is captured if the model can be, and replayed from then on; outputs are
    the same bit for bit, and nothing overwrites them later.

    Args:
        model: a ``SequenceModel``, in evaluation mode.
        prompt: (B, L) tokens or (B, L, d_input) features, L at least 1, on any device.

    Returns:
        The outputs (B, V) of the last position and the state after it, on the model's device.

    Raises:
        UserError: the model has too few learned positions.
    """
    prompt = prompt.to(model.embed.weight.device)
    graphs = graphs_of(model) if prompt.shape[:2].numel() <= MOST_TOKENS else None
    if graphs is None:
        return _read(model, prompt)
    key = "prompt", prompt.shape, prompt.dtype
    graph = graphs.take(key)
    if graph is None:
        graphs.keep(key, ONCE)
        return _read(model, prompt)
    if graph is ONCE:
        graph = Captured(partial(_read, model), prompt)
    graph.inputs[0].copy_(prompt)
    graph.replay()
    outputs = copied(graph.outputs)
    graphs.keep(key, graph)
    return outputs


def _read(model: nn.Module, prompt: Tensor) -> tuple[Tensor, ModelState]:
    return model.prefill(prompt, model.initial_state(len(prompt)))
