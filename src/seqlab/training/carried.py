"""The state that a model carries from each window of a text to the next, where the data's batches are such windows.

Row b of a batch goes on where row b of the one before ended, and so does the model: its state after a window, without
gradients, is that before the next (truncated backpropagation through time; with attention Transformer-XL, Dai et al.
2019, arXiv:1901.02860). With a stream's first window it begins anew.

Symbols: B batch, L length.
"""

from typing import Any

import torch
from torch import Tensor, nn

from seqlab.data import DataSet
from seqlab.errors import UserError
from seqlab.models.counting import tensors_of
from seqlab.models.sequence_model import ModelState, SequenceModel
from seqlab.training.parallel import World
from seqlab.training.settings import TrainerConfig


def carried_state(model: nn.Module, rows: int, data: DataSet) -> ModelState:
    """The state of so many streams before their first windows.

    Raises:
        UserError: the model cannot carry it on.
    """
    if not isinstance(model, SequenceModel):
        rule = f"{type(model).__name__} is no SequenceModel, which has a state"
        raise UserError("data.windows", "carried", rule, "Set data.windows=contiguous or sampled")
    return model.carried_state(rows, data.length)


class CarriedState:
    """The state before the next batch of training, of this process's streams.

    Its tensors stay where they are, as the kernels of a captured step need.

    Args:
        model: what is trained, on its device.
        data: with streams (``DataSet.carries``).
        config: how many there are, in how many parts.
        world: the processes, each of which has its rows.

    Attributes:
        parts: the state of each part of a batch.
        number: of the next batch.

    Raises:
        UserError: the model cannot carry its state on.
    """

    def __init__(self, model: nn.Module, data: DataSet, config: TrainerConfig, world: World):
        self.model, self.data, self.batch_size, self.world = model, data, config.batch_size, world
        rows = config.batch_size // (world.size * config.accumulate)
        self.parts = [carried_state(model, rows, data) for _ in range(config.accumulate)]
        self.rows, self.number = rows, 0

    def next(self) -> None:
        """What comes before each batch: where new streams begin with it, the state begins anew."""
        if self.data.begins(self.number, self.batch_size):
            for state in self.parts:
                self._put(state, tensors_of(carried_state(self.model, self.rows, self.data)))
        self.number += 1

    def keep(self, part: int, after: list[Tensor], loss: Tensor) -> None:
        """Keep the tensors of a part's state after its window, once nothing needs those of before.

        Not if its loss, a scalar, is not finite: the state then stays as it was, as the weights do.
        """
        sound = loss.detach().isfinite()
        before = tensors_of(self.parts[part])
        self._put(self.parts[part], [torch.where(sound, new, old) for new, old in zip(after, before, strict=True)])

    @staticmethod
    def _put(state: ModelState, tensors: list[Tensor]) -> None:
        for old, new in zip(tensors_of(state), tensors, strict=True):
            old.copy_(new)

    def state(self) -> dict[str, Any]:
        """What ``load_state`` takes, with the rows of all processes' streams, (B, ...) each, on the CPU."""
        own = [torch.cat(parts).cpu() for parts in zip(*map(tensors_of, self.parts), strict=True)]
        return {"number": self.number, "rows": [torch.cat(each) for each in zip(*self.world.gather(own), strict=True)]}

    def load_state(self, saved: dict[str, Any]) -> None:
        """Restore what ``state`` returned, perhaps to another number of processes."""
        self.number = saved["number"]
        shares = [
            every.tensor_split(self.world.size)[self.world.rank].chunk(len(self.parts)) for every in saved["rows"]
        ]
        for part, state in enumerate(self.parts):
            self._put(state, [share[part] for share in shares])


class OneStream:
    """A model in evaluation that reads the windows of a split as one text, each after all before it.

    Args:
        model: in evaluation mode.
        data: with streams (``DataSet.carries``).
    """

    def __init__(self, model: nn.Module, data: DataSet):
        self.model, self.state = model, carried_state(model, 1, data)

    def __call__(self, inputs: Tensor) -> Tensor:
        """The next windows in order, (B, L), to outputs (B, L, d_output)."""
        text = inputs.reshape(1, -1)  # (1, B L)
        outputs, self.state = self.model.prefill(text, self.state, every=True, chunk=text.shape[1])
        return outputs.view(*inputs.shape, -1)


def reader(model: nn.Module, data: DataSet) -> nn.Module | OneStream:
    """What an evaluation calls with the batches of a split, in order."""
    return OneStream(model, data) if data.carries else model
