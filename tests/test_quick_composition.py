"""The tests' quick composition against Hydra's own."""

import pytest
from omegaconf import OmegaConf

from quick_composition import REPLACED
from support import compose_config

CHOICES = [
    ["model=mamba", "data=tiny_shakespeare", "optimizer.lr=0.1"],
    ["experiment=mqar", "model.pattern=[mamba,attention]"],
]


@pytest.mark.parametrize("overrides", CHOICES, ids=" ".join)
def test_configurations_are_those_of_hydra(overrides):
    for value in ("seed=1", "seed=2"):  # the second of the same choices is a copy
        quick = compose_config(*overrides, value)
        with REPLACED.not_now():
            assert OmegaConf.to_yaml(quick) == OmegaConf.to_yaml(compose_config(*overrides, value))
    quick.seed = 0
    assert compose_config(*overrides, "seed=1").seed == 1
