"""Jobs of a sweep that would be the same run."""

import json

import pytest
from omegaconf import OmegaConf

from seqlab.sweep.duplicates import without_duplicates
from support import compose_config

GROUPS = {"model", "size", "data", "match"}


def left(*jobs):
    """The jobs that are run, and what is said of the others."""
    return without_duplicates([job.split() for job in jobs], lambda o: compose_config(*o), GROUPS.__contains__)


def test_a_size_that_a_model_has_not_makes_no_second_job():
    jobs, said = left("model=mamba size.n_heads=4", "model=mamba size.n_heads=8", "model=mamba size.n_heads=2")
    assert jobs == [["model=mamba", "size.n_heads=4"]]
    assert said == ["size.n_heads changes nothing for model=mamba: 2 jobs that would repeat others are left out."]


def test_models_that_have_it_keep_all_of_theirs():
    each = [f"model={m} seed={s} size.n_heads={h}" for m in ("mamba", "transformer") for s in (1, 2) for h in (4, 8)]
    jobs, said = left(*each)
    assert [" ".join(job) for job in jobs] == [each[i] for i in (0, 2, 4, 5, 6, 7)]
    assert said == ["size.n_heads changes nothing for model=mamba: 2 jobs that would repeat others are left out."]


def test_so_does_a_pattern_that_has_the_mixer():
    patterns = [
        f"model=hybrid model.pattern=[{p}] model.mixers.mamba.d_state={n}"
        for p in ("attention", "mamba")
        for n in (4, 8)
    ]
    jobs, (said,) = left(*patterns)
    assert [" ".join(job) for job in jobs] == [patterns[i] for i in (0, 2, 3)]
    assert said.startswith(
        "model.mixers.mamba.d_state changes nothing for model=hybrid model.pattern=[attention]: 1 job"
    )


def test_a_size_that_the_command_line_takes_the_use_from():
    own = "model=transformer model.mixers.attention.n_heads=4 size.n_heads={}"
    assert len(left(own.format(2), own.format(4))[0]) == 1


def test_a_size_that_the_reference_of_a_match_reads_makes_a_job():
    jobs, said = left(*(f"match=params match.reference=transformer model=mamba size.d_ff={d}" for d in (128, 512)))
    assert (len(jobs), said) == (2, [])


@pytest.mark.parametrize("key", ["seed", "optimizer.lr", "trainer.steps", "size.d_model", "size.n_headss"])
def test_everything_else_makes_a_job(key):
    """Composed is only where a setting may be idle, and a key that is none is left to be refused."""
    jobs = [["model=mamba", f"{key}=1"], ["model=mamba", f"{key}=2"]]
    compose = (lambda o: compose_config(*o)) if key.startswith("size.") else lambda o: pytest.fail("composed")
    assert without_duplicates(jobs, compose, GROUPS.__contains__) == (jobs, [])


def test_a_size_is_idle_only_where_a_model_built_without_it_is_the_same():
    """What it is built from with one size and with another: of one mixer, of several, with and without experts."""
    for model in ("mlp", "mamba_moe", "transformer", "hybrid", "hybrid_jamba"):
        for key, values in {"size.n_heads": (2, 4), "size.d_ff": (48, 96)}.items():
            resolved = [
                OmegaConf.to_container(compose_config(f"model={model}", f"{key}={value}").model, resolve=True)
                for value in values
            ]
            pattern = resolved[0]["pattern"]
            for one in resolved:
                one["mixers"] = {name: one["mixers"][name] for name in pattern}
            jobs, _ = left(*(f"model={model} {key}={value}" for value in values))
            assert (len(jobs) == 1) is (resolved[0] == resolved[1]), (model, key)


def test_a_sweep_runs_one_of_equals_and_says_so(sweep, tmp_path):
    status, _, error = sweep("model=linear,transformer", "size.n_heads=2,4", "trainer.steps=1")
    assert status == 0, error
    assert "size.n_heads changes nothing for model=linear: 1 job that would repeat another is left out." in error
    assert "[3 of 3]" in error
    models = [json.loads(path.read_text())["model"] for path in (tmp_path / "sweep").glob("*/summary.json")]
    assert sorted(models) == ["linear", "transformer", "transformer"]
