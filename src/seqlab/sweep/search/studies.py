"""Hyper-parameter search with Optuna: every architecture has a study of its own and the same number of trials.

A trial is a job of the sweep, in a folder of its own; any launcher runs it. Its objective is the best validation loss
in its ``summary.json``. The studies are stored in ``search.db`` in the sweep's folder, to which running trials report
their validation losses for the pruner; or in ``hydra.sweeper.storage``, where searches of several machines share them.
Each search has its own folder, and goes on with the trials that it began.
"""

import uuid
from collections.abc import Sequence
from contextlib import nullcontext
from functools import partial
from pathlib import Path
from typing import Any

import numpy as np
import optuna
from hydra.core.override_parser.overrides_parser import OverridesParser
from hydra.core.utils import JobReturn
from hydra.plugins.sweeper import Sweeper
from hydra.utils import instantiate
from omegaconf import OmegaConf
from optuna.trial import FrozenTrial, TrialState

from seqlab.errors import UserError
from seqlab.jsonio import dump, load
from seqlab.runs.lock import only_process_in
from seqlab.sweep import watch
from seqlab.sweep.entries import SEARCH_RESULTS
from seqlab.sweep.search.pruning import storage_in, trial_id
from seqlab.sweep.search.space import Arm, arms
from seqlab.sweep.shared_mistakes import refuse_shared_mistake

STATUS, FOLDER, SPACE, TEST, SEARCH = "status", "folder", "space", "test", "search"
SEARCH_ID = ".search"
FINISHED = (TrialState.COMPLETE, TrialState.PRUNED)


class Study:
    """The trials of one architecture.

    Args:
        arm: what is searched.
        storage: Optuna's.
        settings: those of ``hydra.sweeper``.
        search: an id of this search, if others may share its storage.
    """

    def __init__(self, arm: Arm, storage: Any, settings: dict[str, Any], search: str | None = None):
        self.arm, self.storage, self.settings, self.search = arm, storage, settings, search
        self.optuna = optuna.create_study(storage=storage, study_name=arm.name, load_if_exists=True)
        if self.optuna.user_attrs.get(SPACE, arm.fingerprint) != arm.fingerprint:
            rule = f"it holds a search of {arm.name} over other settings"
            remedy = "Name another one, or give the same overrides"
            key, where = ("hydra.sweep.dir", "this folder") if search is None else ("hydra.sweeper.storage", "this one")
            raise UserError(key, where, rule, remedy)
        self.optuna.set_user_attr(SPACE, arm.fingerprint)
        self.failed = 0  # of this search's since it began; the same command again replaces them
        self.cut_off = [trial for trial in self.begun() if trial.user_attrs.get(SEARCH) == search]

    def begun(self) -> list[FrozenTrial]:
        """The trials that run or were cut off; one that was, or is, still being asked for has no job."""
        running = self.optuna.get_trials(deepcopy=False, states=[TrialState.RUNNING])
        asked = [trial for trial in running if trial.params.keys() >= self.arm.dimensions.keys()]
        return [trial for trial in asked if self.search is None or SEARCH in trial.user_attrs]

    @property
    def spent(self) -> int:
        """Trials that count: finished, running or cut off ones, of other searches too, and our failed ones."""
        return len(self.optuna.get_trials(deepcopy=False, states=FINISHED)) + len(self.begun()) + self.failed

    @property
    def left(self) -> int:
        """Trials that this search still has to start or continue."""
        return len(self.cut_off) + max(0, self.settings["trials"] - self.spent)

    def next(self) -> tuple["Study", int, list[str]]:
        """A trial that was cut off, or a new one: this study, the trial's number and its overrides."""
        if self.cut_off:
            trial = self.cut_off.pop(0)
        else:
            number = len(self.optuna.get_trials(deepcopy=False))
            apart = [] if self.search is None else [int(self.search, 16)]  # from a search that asks at this moment
            seed = int(np.random.SeedSequence([self.settings["seed"], number, *apart]).generate_state(1)[0])
            self.optuna.sampler = instantiate(self.settings["sampler"], seed=seed)
            trial = self.optuna.ask(self.arm.dimensions)
            if self.search is not None:
                trial.set_user_attr(SEARCH, self.search)
        own = [f"hydra.sweeper.study={self.arm.name}", f"hydra.sweeper.trial={trial.number}"]
        return self, trial.number, [*self.arm.overrides(trial.params), *own]

    def tell(self, number: int, folder: Path) -> None:
        """Store how a trial's job ended. A diverged one counts as pruned, and one that failed otherwise as failed."""
        summary = load(folder / "summary.json")
        status, loss = summary.get("status", "failed"), summary.get("best_validation_loss")
        where = folder.name if self.search is None else str(folder.resolve())  # for others, who have another folder
        for key, value in ((STATUS, status), (FOLDER, where), (TEST, summary.get("test"))):
            self.storage.set_trial_user_attr(trial_id(self.storage, self.arm.name, number), key, value)
        if status == "completed" and loss is not None:
            self.optuna.tell(number, loss)
        else:
            known = status in ("pruned", "diverged", "completed")
            self.failed += not known
            self.optuna.tell(number, state=TrialState.PRUNED if known else TrialState.FAIL)

    def results(self, folder: Path) -> dict[str, Any]:
        """The trials so far, and the one with the lowest validation loss, for ``search.json`` in the sweep's folder."""
        trials = [
            {
                "number": trial.number,
                "folder": trial.user_attrs.get(FOLDER),
                "status": trial.user_attrs.get(STATUS, "running"),
                "validation": trial.value if trial.user_attrs.get(STATUS) == "completed" else None,
                "validations": {str(number): loss for number, loss in sorted(trial.intermediate_values.items())},
                "settings": self.arm.settings(trial.params),
            }
            for trial in self.optuna.get_trials(deepcopy=False)
        ]
        completed = [trial for trial in trials if trial["validation"] is not None]
        best = min(completed, key=lambda trial: trial["validation"], default=None)
        if best is not None:
            test = self.optuna.get_trials(deepcopy=False)[best["number"]].user_attrs.get(TEST)
            best = best | {"test": test or load(folder / best["folder"] / "summary.json").get("test")}
        return {"name": self.arm.name, "overrides": self.arm.fixed, "best": best, "trials": trials}


def search(sweeper: Sweeper, arguments: Sequence[str]) -> None:
    """Run the trials of every architecture in turn, and keep ``search.json`` up to date.

    Raises:
        UserError: a setting of the search or of its space cannot be used, or the experiment is a list of sweeps.
    """
    optuna.logging.set_verbosity(optuna.logging.WARNING)
    config, settings = sweeper.config, sweeper.settings
    check(settings)
    if settings.get("points"):
        rule = "the experiment is a list of sweeps, hydra.sweeper.points, which have no space in common to search"
        raise UserError("search", "optuna", rule, "Take search=rates, or leave out the experiment")
    loader = sweeper.hydra_context.config_loader
    given = {argument.partition("=")[0] for argument in arguments}
    params = (settings["params"] or {}).items()
    typed = [*(f"{key}={value}" for key, value in params if key not in given), *arguments]
    overrides = OverridesParser.create(config_loader=loader).parse_overrides(typed)
    compose = partial(loader.load_sweep_config, config)
    found = arms(overrides, settings["each"], compose)
    refuse_shared_mistake(compose(job) for arm in found for job in arm.outermost())
    watch.expect(None)

    folder = Path(config.hydra.sweep.dir)
    folder.mkdir(parents=True, exist_ok=True)
    OmegaConf.save(config, folder / "multirun.yaml")
    storage, shared = storage_in(folder, settings["storage"]), settings["storage"] is not None
    with only_process_in(folder) if shared else nullcontext():
        own = id_of(folder) if shared else None
        run_trials(sweeper, folder, [Study(arm, storage, settings, own) for arm in found])


def run_trials(sweeper: Sweeper, folder: Path, studies: Sequence[Study]) -> None:
    """Launch trials, a batch at a time, until every study has its number."""
    settings, launcher = sweeper.settings, sweeper.launcher
    size = settings["max_batch_size"] or max(1, sweeper.config.hydra.launcher.get("n_jobs") or 1)
    begun = sum(study.spent - len(study.cut_off) for study in studies)
    while batch := next_batch(studies, size):
        jobs = [overrides for _, _, overrides in batch]
        returns: Sequence[JobReturn] = launcher.launch(jobs, initial_job_idx=begun)
        begun += len(batch)
        for (study, number, _), result in zip(batch, returns, strict=True):
            study.tell(number, Path(result.hydra_cfg.hydra.runtime.output_dir))
        write_results(folder, studies)
    write_results(folder, studies)


def id_of(folder: Path) -> str:
    """The id of a search that shares its studies with others, which its folder keeps."""
    file = folder / SEARCH_ID
    if not file.exists():
        file.write_text(f"{uuid.uuid4().hex}\n", encoding="utf-8")
    return file.read_text(encoding="utf-8").strip()


def write_results(folder: Path, studies: Sequence[Study]) -> None:
    """Write ``search.json`` to the sweep's folder."""
    trials = studies[0].settings["trials"]
    dump(folder / SEARCH_RESULTS, {"trials": trials, "studies": [study.results(folder) for study in studies]})


def check(settings: dict[str, Any]) -> None:
    """Refuse numbers with which nothing can be searched.

    Raises:
        UserError: names the first of them.
    """
    for key, smallest in (("trials", 1), ("seed", 0), ("max_batch_size", 1)):
        value = settings[key]
        if not isinstance(value, int) or value < smallest:
            if key == "max_batch_size" and value is None:
                continue
            rule = f"must be a whole number, {smallest} or more"
            raise UserError(f"hydra.sweeper.{key}", value, rule, "Give it one")


def next_batch(studies: Sequence[Study], size: int) -> list[tuple[Study, int, list[str]]]:
    """The next trials, each of the study that has the most left, so that all advance together."""
    batch = []
    while len(batch) < size and any(study.left for study in studies):
        batch.append(max(studies, key=lambda study: study.left).next())
    return batch
