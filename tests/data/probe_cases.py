"""Every probe in a small size, and with mixed difficulty."""

from typing import Any

import pytest

from data.probe_solvers import SOLVERS
from seqlab.data.probes.base import Probe
from seqlab.data.probes.compression import Compression
from seqlab.data.probes.copying import Copying, SelectiveCopying
from seqlab.data.probes.induction_heads import InductionHeads
from seqlab.data.probes.memorization import Memorization
from seqlab.data.probes.mqar import MQAR
from seqlab.data.probes.recall import FuzzyRecall, NoisyRecall

FRESH = {"n_train": None, "epoch_size": 40, "n_validation": 9, "n_test": 7, "seed": 0}
FIXED = FRESH | {"n_train": 40}

SMALL: dict[type[Probe], dict[str, Any]] = {
    Copying: {"length": 14, "vocab_size": 7, "data_tokens": 4},
    SelectiveCopying: {"length": 30, "vocab_size": 7, "data_tokens": 4},
    InductionHeads: {"length": 12, "vocab_size": 6},
    MQAR: {"length": 30, "pairs": 4, "vocab_size": 21, "alpha": 0.1},
    FuzzyRecall: {
        "length": 47,
        "pairs": 4,
        "vocab_size": 8,
        "noise_vocab_size": 2,
        "key_tokens": 2,
        "value_tokens": 3,
    },
    NoisyRecall: {"length": 33, "pairs": 4, "vocab_size": 12, "noise_vocab_size": 5},
    Compression: {"length": 12, "vocab_size": 7, "data_tokens": 6},
    Memorization: {"length": 12, "vocab_size": 21},
}
TASKS = [pytest.param(task, settings, id=task.name) for task, settings in SMALL.items()]
RECALLED = [p for p in TASKS if p.id in SOLVERS]

MIXED = [
    (Copying, {"mixture": [{"data_tokens": 1}, {"data_tokens": 7}, {"data_tokens": 3}]}),
    (MQAR, {"mixture": [{"pairs": 1}, {"pairs": 7}], "fillers": 3}),
    (NoisyRecall, {"mixture": [{"pairs": 2}, {"pairs": 3}, {"pairs": 2}]}),
    (
        FuzzyRecall,
        {"mixture": [{"key_tokens": 1, "pairs": 3}, {"key_tokens": 2}, {"key_tokens": 3, "value_tokens": 1}]},
    ),
]
MIXED = [pytest.param(task, SMALL[task] | mixture, id=task.name) for task, mixture in MIXED]


def many(data: Probe, count: int) -> Any:
    return next(data.evaluation_batches("test", count))
