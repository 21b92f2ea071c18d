"""A mistake that all jobs share is refused before the first of them; one of some jobs is theirs alone."""

import pytest

from seqlab.config.overrides import compose
from seqlab.errors import UserError
from seqlab.sweep import shared_mistakes
from seqlab.sweep.shared_mistakes import mistake_in, refuse_shared_mistake


@pytest.mark.parametrize(
    ("typed", "said"),
    [
        (("seed=0,1", "trainer.steps=-1"), "trainer.steps=-1: input should be greater than 0."),
        (("model=mamba,transformer", "optimizer.lr=high"), "optimizer.lr=high: input should be a valid number."),
        (("seed=0,1", "+model.mixers.mamba.d_stat=1"), "model.mixers.mamba.d_stat=1: seqlab.models.mixers.Mamba"),
        (("seed=0,1", "+mine.depth=1"), "+mine.depth=1: is a new setting that nothing reads."),
        (
            ("seed=0,1", "model=hybrid", "model.pattern=[mamba]", "model.mixers.attention.window=8"),
            "model.mixers.attention.window=8: changes nothing, as model.pattern=['mamba'] has no 'attention'.",
        ),
        (("model=mamba,lstm", "device=gpu"), "device=gpu: input should be 'auto', 'cpu' or 'cuda'."),
        (("seed=0,1", "trainer.accumulate=3"), "trainer.accumulate=3: must divide batch_size=8"),
        (("seed=0,1", "trainer.steps=1", "trainer.epochs=5"), "trainer.steps, trainer.epochs=1, 5: the budget is"),
        (("seed=0,1", "+target.test.loss=1"), "target.test="),
        (("seed=0,1", "resume=outputs/a"), "resume=outputs/a: continues one run and cannot be swept."),
        (("seed=0,1", "init_from=/nowhere"), "init_from=/nowhere: there is no such folder."),
        (("seed=range(0,150)", "optimizer.lr=-1", "launcher=joblib"), "optimizer.lr=-1: "),
    ],
)
def test_is_refused_once(sweep, tmp_path, typed, said):
    status, out, error = sweep(*typed)
    assert (status, out) == (2, "")
    assert error.startswith(said)
    assert len(error.strip().splitlines()) == 2
    assert not list(tmp_path.iterdir())


def test_is_refused_in_a_search(sweep, tmp_path):
    pytest.importorskip("optuna")
    searched = ("search=optuna", "hydra.sweeper.trials=2", "model=linear")
    status, out, error = sweep(*searched, "optimizer.lr=interval(1e-3,1e-2)", "trainer.clip_norm=-1")
    assert (status, out) == (2, "")
    assert error.startswith("trainer.clip_norm=-1: ")
    assert not list(tmp_path.iterdir())


def test_leaves_an_earlier_sweep_as_it_was(sweep, tmp_path):
    assert sweep("model=linear", "seed=1,2")[0] == 0
    before = {path: path.stat().st_mtime_ns for path in tmp_path.rglob("*")}
    assert sweep("model=linear", "seed=1,2", "data.length=0")[0] == 2
    assert {path: path.stat().st_mtime_ns for path in tmp_path.rglob("*")}.keys() == before.keys()


@pytest.fixture
def of_jobs(monkeypatch):
    """Check jobs with these mistakes; returns how many are left unchecked."""

    def check(*mistakes):
        monkeypatch.setattr(shared_mistakes, "mistake_in", lambda job: job)
        jobs = iter(mistakes)
        refuse_shared_mistake(jobs)
        return len(list(jobs))

    return check


def test_jobs_are_checked_until_one_has_another_mistake_or_none(of_jobs):
    first, second = (UserError("seed", value, "no", "Yes") for value in (-1, -2))
    assert of_jobs() == 0
    assert of_jobs(None, first, first) == 2
    assert of_jobs(first, first, None, first) == 1
    assert of_jobs(first, second, first) == 1
    with pytest.raises(UserError, match="seed=-1"):
        of_jobs(first, first)


@pytest.mark.parametrize(
    ("override", "here", "on_a_cluster"),
    [
        ("threads=100000", True, False),
        ("trainer._target_=nobody.Trainer", True, False),
        ("seed=-1", True, True),
        ("data=text data.files=/nowhere", True, False),
        (f"data=text data.files={__file__} data.tokens=/nowhere", True, False),
        (f"data=text data.files={__file__}", False, False),
        ("data=ptb data.dir=/nowhere data.download=null", True, False),
    ],
)
def test_what_depends_on_the_machine_is_left_to_the_jobs_of_a_cluster(override, here, on_a_cluster):
    cluster = "hydra.launcher._target_=hydra_plugins.hydra_submitit_launcher.submitit_launcher.SlurmLauncher"
    jobs = [
        compose("hydra.mode=MULTIRUN", *override.split(), *launcher, with_hydra=True) for launcher in ((), (cluster,))
    ]
    assert [mistake_in(job) is not None for job in jobs] == [here, on_a_cluster]


def test_what_resolves_only_within_a_job_is_no_mistake():
    for seed in ("${hydra:job.num}", "${nobody:1}"):  # the second one is for the job to report
        assert mistake_in(compose("hydra.mode=MULTIRUN", f"seed={seed}", with_hydra=True)) is None
