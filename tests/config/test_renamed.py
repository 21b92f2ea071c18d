"""Names of parts that stand in older run folders and in users' own configurations."""

import pytest
from hydra.utils import get_object
from omegaconf import OmegaConf

from seqlab.config.renamed import RENAMED, up_to_date, with_present_names
from seqlab.report.runs import parse_config
from seqlab.runs.trust import known_targets
from support import SMALL


@pytest.mark.parametrize("name", sorted(set(RENAMED.values())))
def test_present_names_are_parts_that_a_folder_may_name(name):
    assert callable(get_object(name))
    assert name in known_targets()


def test_names_change_at_any_depth_and_nothing_else_does():
    old = {"a": [{"_target_": "seqlab.training.Trainer", "x": "seqlab.training.Trainer"}], "_target_": 3}
    new = {"a": [{"_target_": "seqlab.training.TrainerConfig", "x": "seqlab.training.Trainer"}], "_target_": 3}
    assert with_present_names(old) == new
    assert with_present_names(new) == new


def test_a_metric_with_settings_that_ours_lacks_stays_that_of_torchmetrics():
    for settings, target in (
        ({}, "seqlab.training.metrics.R2Score"),
        ({"multioutput": "raw_values"}, "torchmetrics.R2Score"),
    ):
        assert with_present_names({"_target_": "torchmetrics.R2Score", **settings})["_target_"] == target


def test_a_configuration_keeps_its_references_and_its_structure():
    cfg = OmegaConf.create({"n": 1, "trainer": {"_target_": "seqlab.training.Trainer", "steps": "${n}"}})
    OmegaConf.set_struct(cfg, True)
    new = up_to_date(cfg)
    assert new.trainer == {"_target_": "seqlab.training.TrainerConfig", "steps": 1}
    assert OmegaConf.is_struct(new)
    assert up_to_date(new) is new


def test_a_users_own_configuration_may_have_the_old_name(train):
    assert train(*SMALL, "trainer._target_=seqlab.training.Trainer", small=False).status == 0


def test_runs_of_both_names_are_compared_as_equal():
    old, new = (f"trainer:\n  _target_: {name}\n  steps: 3\n".encode() for name in ("seqlab.training.Trainer", ""))
    new = new.replace(b"_target_: ", b"_target_: seqlab.training.TrainerConfig")
    assert parse_config(old) == parse_config(new)
