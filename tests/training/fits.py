"""Small trainers for the tests of training."""

import signal

import torch

from seqlab.training.optim import adamw
from seqlab.training.schedule import constant
from seqlab.training.signals import StopRequest
from seqlab.training.trainer import Trainer, TrainerConfig
from support import Echo, built_model


def transformer(*overrides):
    return built_model("model=transformer", "size.d_model=16", "size.n_heads=2", "size.d_ff=32", *overrides)


def config_of(*, optimizer=adamw, schedule=constant, batch_size=4, **settings):
    if not {"steps", "epochs", "tokens"} & settings.keys():
        settings["steps"] = 1
    return TrainerConfig(optimizer=optimizer, schedule=schedule, batch_size=batch_size, **settings)


def build(tmp_path, *, model=None, data=None, **settings):
    settings = {"steps": 6, "evaluate_every": 3, "log_every": 1} | settings
    return Trainer(
        config_of(**settings),
        model or transformer(),
        data or Echo(),
        device=torch.device("cpu"),
        seed=1,
        folder=tmp_path,
    )


def run(trainer, record=lambda values: None, stop=None):
    trainer.run(record, stop or StopRequest())


def weights(model):
    return torch.cat([p.detach().flatten() for p in model.parameters()])


def stop_at(trainer, step, number=signal.SIGTERM):
    original, launched = trainer.update.launch, trainer.counters.step

    def launch(batch, rate):
        nonlocal launched
        launched += 1
        if launched == step:
            trainer.stop.signal = number
        return original(batch, rate)

    trainer.update.launch = launch
