"""The search as a running trial sees it: somewhere to report validation losses, and word that it is behind."""

from collections.abc import Callable
from pathlib import Path
from typing import Any

from hydra.core.hydra_config import HydraConfig
from hydra.types import RunMode
from hydra.utils import instantiate

from seqlab.errors import Pruned

Report = Callable[[dict[str, Any]], None]


def storage_in(folder: Path, url: str | None, *, new: bool = False) -> Any:
    """Optuna's storage of the search in a sweep's folder; several processes may have it open.

    Args:
        folder: the sweep's.
        url: of another place, ``None`` for ``search.db`` in the folder.
        new: make the tables if there are none.
    """
    from optuna.storages import RDBStorage

    waiting = {"connect_args": {"timeout": 120}} if url is None else None  # seconds, while another process writes
    url = url or f"sqlite:///{folder.resolve() / 'search.db'}"
    return RDBStorage(url, engine_kwargs=waiting, skip_table_creation=not new, skip_compatibility_check=not new)


def reporter(evaluate_every: int, total: int) -> Report:
    """What a job gives its metrics to: outside of a search nothing happens.

    The returned function raises ``Pruned`` once the pruner gives the trial up. Trials are compared after the same
    number of validations.

    Args:
        evaluate_every: steps between validations.
        total: the last step; a trial that has come there is not pruned any more.
    """
    hydra = HydraConfig.get()
    number = hydra.sweeper.get("trial")
    if hydra.mode is not RunMode.MULTIRUN or number is None:
        return lambda record: None

    import optuna

    optuna.logging.set_verbosity(optuna.logging.WARNING)
    storage = storage_in(Path(hydra.sweep.dir), hydra.sweeper.storage)
    pruner = instantiate(hydra.sweeper.pruner)
    study = optuna.load_study(study_name=hydra.sweeper.study, storage=storage, pruner=pruner)
    frozen = study.trials[number]
    trial = optuna.trial.Trial(study, frozen._trial_id)

    def report(record: dict[str, Any]) -> None:
        if record["split"] != "validation":
            return
        validations = -(-record["step"] // evaluate_every)
        if validations not in frozen.intermediate_values:  # a trial that goes on repeats none
            trial.report(record["loss"], validations)
        if record["step"] < total and trial.should_prune():
            raise Pruned(record["step"], record["loss"])

    return report
