"""A job that an earlier version began goes on as it was begun: settings that came later are not set for it."""

from omegaconf import OmegaConf

from seqlab.config.overrides import flatten
from seqlab.runs.resume import as_begun, keep
from support import compose_config


def settings(*overrides):
    cfg = compose_config("model=hybrid_jamba", *overrides)
    return OmegaConf.create(OmegaConf.to_container(cfg, resolve=True))


def test_settings_of_parts_that_came_later_are_left_out(tmp_path):
    now, then = settings(), settings()
    del then.optimizer.decay_lookups
    del then.model.feedforward[1].renormalise
    keep(then, tmp_path)
    assert as_begun(now, tmp_path) == then


def test_nothing_else_changes(tmp_path):
    now, then = settings("optimizer.lr=0.5"), settings()
    del then.threads  # no setting of a part that is built
    keep(then, tmp_path)
    assert as_begun(now, tmp_path) == now


def test_parts_in_a_list_have_keys():
    assert flatten(OmegaConf.to_container(settings()), into_lists=True)["model.feedforward.1.top_k"] == 2
    assert flatten({"a": [1, 2], "b": []}, into_lists=True) == {"a": [1, 2], "b": []}
