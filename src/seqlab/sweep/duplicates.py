"""Jobs of a sweep that would be the same run, since they differ only in settings without effect."""

from collections import Counter, defaultdict
from collections.abc import Callable, Sequence

from omegaconf import DictConfig

from seqlab.config.without_effect import reaches_nothing
from seqlab.sweep.jobs import key_of, varying

MODEL_SPECIFIC = ("size.", "model.mixers.")
"""Prefixes of the keys that some models read and others do not."""


def without_duplicates(
    jobs: Sequence[list[str]], compose: Callable[[list[str]], DictConfig], is_group: Callable[[str], bool]
) -> tuple[list[list[str]], list[str]]:
    """Keep the first of the jobs whose models and training would be equal: the others would repeat it.

    Args:
        jobs: the overrides of each.
        compose: a job's configuration, with its interpolations.
        is_group: whether a key chooses an option of a group.

    Returns:
        The jobs to run, in their order, and a line on each setting for which others are left out.
    """
    keys = [key for key in varying(jobs) if key.startswith(MODEL_SPECIFIC)]
    if not keys:
        return list(jobs), []
    idle: dict[tuple[str, ...], set[str]] = {}
    first: dict[frozenset[str], list[str]] = {}
    dropped: defaultdict[str, Counter[str]] = defaultdict(Counter)
    for job in jobs:
        wiring = tuple(o for o in job if "$" in o or (key_of(o) not in keys and decides(o, is_group)))
        if wiring not in idle:
            cfg = compose(list(wiring))
            idle[wiring] = {key for key in keys if reaches_nothing(cfg, key)}
        same = frozenset(override for override in job if key_of(override) not in idle[wiring])
        if first.setdefault(same, job) is job:
            continue
        model = " ".join(o for o in wiring if key_of(o) in ("model", "model.pattern")) or "this model"
        for key in idle[wiring] & set(map(key_of, set(job) ^ set(first[same]))):
            dropped[key][model] += 1
    return list(first.values()), [left_out_in_words(key, models) for key, models in dropped.items()]


def decides(override: str, is_group: Callable[[str], bool]) -> bool:
    """Whether an override may change which settings are read: a choice, a part of the model, a new setting."""
    return is_group(key_of(override)) or override.startswith(("model.", "+", "~"))


def left_out_in_words(key: str, models: Counter[str]) -> str:
    """The line to print on a setting, given how many jobs of each model are left out for it."""
    number = models.total()
    jobs = "1 job that would repeat another is" if number == 1 else f"{number} jobs that would repeat others are"
    return f"{key} changes nothing for {', '.join(models)}: {jobs} left out."
