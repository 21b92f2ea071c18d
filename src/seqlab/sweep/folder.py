"""Which folder a sweep writes to when none is named: the newest of the same overrides, or a new one."""

import hashlib
import json
from collections.abc import Iterable, Mapping, Sequence
from pathlib import Path

from seqlab.config.influence import WITHOUT_INFLUENCE

SEARCH = ("hydra/sweeper", "hydra.sweeper")
"""Of Hydra's own settings, those that choose the jobs."""

HOW_FAR = ("hydra.sweeper.trials", "hydra.sweeper.max_batch_size")
"""Of these, those that say how far and how fast: a search may be taken further."""


def sweep_folder(resume: bool, overrides: Mapping[str, Sequence[str]], fresh: str) -> str:
    """The folder of a sweep.

    Args:
        resume: whether to go on with an earlier sweep of the same overrides.
        overrides: ``task`` and ``hydra``, as typed.
        fresh: what a new folder is called, without the mark of its overrides.
    """
    mark = mark_of(overrides)
    parent, name = Path(fresh).parent, Path(fresh).name.partition("_")[0]
    earlier = sorted(path for path in parent.glob(f"{name}_*_{mark}") if path.is_dir()) if resume else []
    return str(earlier[-1] if earlier else f"{fresh}_{mark}")


def mark_of(overrides: Mapping[str, Sequence[str]]) -> str:
    """Eight characters that two sweeps share if their overrides do, in whatever order."""
    jobs = [o for o in overrides["task"] if not begins(o, WITHOUT_INFLUENCE)]
    jobs += [o for o in overrides["hydra"] if begins(o, SEARCH) and not begins(o, HOW_FAR)]
    return hashlib.sha256(json.dumps(sorted(jobs)).encode()).hexdigest()[:8]


def begins(override: str, keys: Iterable[str]) -> bool:
    """Whether an override sets one of the keys, or something beneath it."""
    key = override.partition("=")[0].lstrip("+~").partition("@")[0]
    return any(key == other or key.startswith(f"{other}.") for other in keys)
