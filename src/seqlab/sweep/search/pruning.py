"""The search in the process of a trial: its validation losses are reported, and the pruner may stop it."""

import re
import time
from collections.abc import Callable
from pathlib import Path
from typing import Any

from hydra.core.hydra_config import HydraConfig
from hydra.types import RunMode
from hydra.utils import instantiate

from seqlab.errors import Pruned, UserError

Report = Callable[[dict[str, Any]], None]


def storage_in(folder: Path, place: str | None) -> Any:
    """Optuna's storage of the search in a sweep's folder, which several processes may have open.

    Args:
        folder: the sweep's.
        place: of a storage that several searches share, as ``hydra.sweeper.storage``: the URL of a database or the path
            of a journal; ``None`` for ``search.db`` in the folder.

    Raises:
        UserError: the database cannot be reached, or the journal not be written.
    """
    from optuna.storages import JournalStorage, RDBStorage
    from optuna.storages.journal import JournalFileBackend

    if place is None:
        waiting = {"connect_args": {"timeout": 120}}  # seconds, while another process writes
        return RDBStorage(f"sqlite:///{folder.resolve() / 'search.db'}", engine_kwargs=waiting)
    try:
        return database(place) if "://" in place else JournalStorage(JournalFileBackend(place))
    except Exception as error:  # each database has errors of its own
        shown = re.sub(r"(?<=:)[^:/@]+(?=@)", "***", place)  # without the password
        said = str(error.__cause__ or error).strip().splitlines()[0].replace(place, shown)
        remedy = (
            "Name a file on a shared file system, or a database: postgresql+psycopg://user@host/name (docs/clusters.md)"
        )
        raise UserError("hydra.sweeper.storage", shown, said, remedy) from error


def database(url: str) -> Any:
    """Optuna's storage in a database. The second try finds the tables that another search has made during the first."""
    from optuna.storages import RDBStorage
    from sqlalchemy.exc import SQLAlchemyError

    try:
        return RDBStorage(url)
    except SQLAlchemyError:
        time.sleep(1)
        return RDBStorage(url)


def reporter(evaluate_every: int, total: int) -> Report:
    """The pruning callback, which a job calls with each record of its metrics; outside of a search it does nothing.

    It raises ``Pruned`` if the pruner stops the trial. Trials are compared after the same number of validations.

    Args:
        evaluate_every: steps between validations.
        total: the last step, after which a trial is not pruned any more.
    """
    hydra = HydraConfig.get()
    name, number = hydra.sweeper.get("study"), hydra.sweeper.get("trial")
    if hydra.mode is not RunMode.MULTIRUN or number is None:
        return lambda record: None

    import optuna

    optuna.logging.set_verbosity(optuna.logging.WARNING)
    storage = storage_in(Path(hydra.sweep.dir), hydra.sweeper.storage)
    study = optuna.load_study(study_name=name, storage=storage, pruner=instantiate(hydra.sweeper.pruner))
    trial = optuna.trial.Trial(study, trial_id(storage, name, number))
    earlier = study.trials[number].intermediate_values

    def report(record: dict[str, Any]) -> None:
        if record["split"] != "validation":
            return
        validations = -(-record["step"] // evaluate_every)
        if validations not in earlier:  # a resumed trial reports none twice
            trial.report(record["loss"], validations)
        if record["step"] < total and trial.should_prune():
            raise Pruned(record["step"], record["loss"])

    return report


def trial_id(storage: Any, study: str, number: int) -> int:
    """Optuna's id of a trial in a whole storage, from its number in its study."""
    return storage.get_trial_id_from_study_id_trial_number(storage.get_study_id_from_name(study), number)
