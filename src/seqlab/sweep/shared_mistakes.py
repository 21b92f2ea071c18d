"""A mistake that all jobs of a sweep share is refused once, before the first of them starts."""

from collections.abc import Iterable

from omegaconf import DictConfig, OmegaConf, open_dict

from seqlab.config.influence import MOVABLE
from seqlab.config.overrides import hydra_of
from seqlab.config.renamed import up_to_date
from seqlab.config.schema import check_all
from seqlab.config.without_effect import refuse_without_effect
from seqlab.errors import UserError
from seqlab.pretrained.start import with_architecture
from seqlab.runs.build import built, choose_device, find_data
from seqlab.runs.process import SEQUENTIAL
from seqlab.runs.targets import check_targets, targets_of
from seqlab.sweep.orphans import JOBLIB, LOCAL_GPUS, LOCAL_PROCESSES

OF_THIS_MACHINE = (SEQUENTIAL, JOBLIB, LOCAL_PROCESSES, LOCAL_GPUS)
"""Launchers whose jobs run on the machine that starts the sweep."""


def refuse_shared_mistake(jobs: Iterable[DictConfig]) -> None:
    """Refuse a sweep whose jobs all have the same mistake in their configuration.

    Jobs are checked until one has no mistake or another one: of a sweep without mistakes, the first job alone.

    Args:
        jobs: their composed configurations, with ``hydra``.

    Raises:
        UserError: the mistake.
    """
    mistakes = map(mistake_in, jobs)
    first = next(mistakes, None)
    if first is not None and all(str(mistake) == str(first) for mistake in mistakes):
        raise first


def mistake_in(job: DictConfig) -> UserError | None:
    """The mistake in a job's composed configuration that shows without running it, ``None`` if there is none.

    A job on another machine checks for itself what depends on the machine: its devices, cores, packages and files.
    """
    here = job.hydra.launcher._target_ in OF_THIS_MACHINE
    with open_dict(job):
        job.hydra.job.num = 0  # which the launcher sets
    cfg = up_to_date(OmegaConf.masked_copy(job, [key for key in job if key != "hydra"]))
    try:
        with hydra_of(job):
            check_all(cfg)
            check_targets(targets_of(cfg), cfg.name)
            refuse_without_effect(cfg)
            choose_device(cfg.device)
            built(cfg, "trainer")
            if here:
                find_data(with_architecture(cfg))
    except UserError as error:
        of_a_machine = error.key in MOVABLE or error.key.endswith("_target_")
        return None if of_a_machine and not here else error
    except Exception:  # what resolves only within the job, such as its folder
        return None
    return None
