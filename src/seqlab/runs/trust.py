"""The targets that the configuration in a run folder may name, since a folder may come from anyone (docs/security.md).

A configuration is code: its ``_target_`` names what is imported and called. What a user composes is the user's own
code; what is read from a run folder is not trusted until all its targets are known.
"""

import logging
import os
import re
import sys
from collections.abc import Iterable, Iterator, Sequence
from pathlib import Path
from typing import Any, NoReturn

from hydra.utils import get_object
from omegaconf import DictConfig, ListConfig, OmegaConf
from omegaconf.errors import OmegaConfBaseException

from seqlab.config import CONFIG_FOLDER
from seqlab.errors import UserError

log = logging.getLogger(__name__)

TARGETS = frozenset(
    {
        "seqlab.models.mixers.attention.Attention",
        "seqlab.models.mixers.delta_net.DeltaNet",
        "seqlab.models.mixers.dense.Dense",
        "seqlab.models.mixers.mamba.Mamba",
        "seqlab.models.mixers.mamba2.Mamba2",
        "seqlab.models.mixers.min_gru.MinGRU",
        "seqlab.models.mixers.recurrent.GRU",
        "seqlab.models.mixers.recurrent.LSTM",
        "seqlab.models.sequence_model.SequenceModel",
        "seqlab.training.metrics.ExactSequences",
        "seqlab.training.settings.TrainerConfig",
        "torch.nn.RMSNorm",
        "torchmetrics.MeanAbsoluteError",
        "torchmetrics.MeanSquaredError",
        "torchmetrics.R2Score",
    }
)
"""Parts that a run folder may name though no file of ``conf/`` does: other names of the same parts, older ones."""

GROUPS = (
    *("model", "size", "data", "optimizer", "schedule", "regularisation"),
    *("trainer", "logger", "match", "experiment"),
)
"""Folders of conf/ from which a run is composed; the others set how Hydra starts it."""

NEVER = frozenset({*sys.stdlib_module_names, "hydra", "omegaconf", "seqlab"})
"""Packages that are not a user's own, whose functions write files, run programs or import by name."""

REFERENCE = re.compile(r"\$\{[\w.\[\]-]+\}")
"""An interpolation that is another setting's value; one with a colon calls a function, such as ``oc.env``."""


def trusted(cfg: DictConfig, own: Sequence[str] = ()) -> DictConfig:
    """A configuration that was read from a run folder, resolved, if it names only targets that are known.

    Nothing that it names is imported before every target is known; no value of the environment goes into it.

    Args:
        cfg: as it was read, with nothing resolved.
        own: packages or modules of the user's own (``trust=my_package``), whose parts it may name too.

    Raises:
        UserError: it names another target, or calls a function in an interpolation.
    """
    for package in own:
        check_package(package)
    if not OmegaConf.is_dict(cfg):
        raise UserError("config.yaml", "a list", "describes no run", "Name a folder that a training run left")
    refuse_functions(OmegaConf.to_container(cfg, resolve=False))
    try:
        resolved = OmegaConf.to_container(cfg, resolve=True)
    except (OmegaConfBaseException, RecursionError) as error:
        rule = f"its references lead nowhere ({type(error).__name__})"
        raise UserError("config.yaml", "this folder's", rule, "Name a folder that a training run left") from error
    refuse_functions(resolved)  # put together from pieces
    known = known_targets()
    targets = [(key, value) for key, name, value in entries(resolved) if name == "_target_"]
    foreign = [(key, target) for key, target in targets if not (isinstance(target, str) and target in known)]
    for key, target in foreign:
        if not within(target, own):
            refuse_target(key, target)
    for key, target in foreign:
        refuse_another_under_that_name(key, target, own)
    forget_foreign_cache(resolved)
    return OmegaConf.create(resolved)


def known_targets(configurations: Path = CONFIG_FOLDER) -> set[str]:
    """Every part that a run folder may name, by the exact names under which configurations know them.

    They are those of ``conf/``, so that a new part is one file and one YAML, and ``TARGETS``. Whole names, as Hydra's
    whitelist for ``instantiate`` takes them too: none stands for a module with all that it holds.
    """
    files = [path for group in GROUPS for path in (configurations / group).glob("*.yaml")]
    texts = [path.read_text(encoding="utf-8") for path in files]
    return TARGETS.union(*(re.findall(r"\b_target_: *([\w.]+)", text) for text in texts))


def entries(node: Any, key: str = "") -> Iterator[tuple[str, Any, Any]]:
    """The whole key, the last part of it and the value of everything beneath a node of plain containers."""
    named = node.items() if isinstance(node, dict) else enumerate(node) if isinstance(node, list) else ()
    for name, value in named:
        full = f"{key}[{name}]" if isinstance(node, list) else f"{key}.{name}".lstrip(".")
        yield full, name, value
        yield from entries(value, full)


def refuse_functions(node: Any) -> None:
    """Refuse interpolations that are more than references to other settings.

    Raises:
        UserError: one calls a function.
    """
    for key, _, value in entries(node):
        if isinstance(value, str) and "${" in REFERENCE.sub("", value):
            rule = "a run folder holds values and references to its own settings, and this calls a function"
            raise UserError(key, value, rule, "Write the value there, if the folder is yours")


def within(target: Any, packages: Iterable[str]) -> bool:
    """Whether a name is in one of the packages, by whole parts: ``mine.x`` is in ``mine``, ``mines.x`` is not."""
    return isinstance(target, str) and any(target.startswith(f"{package}.") for package in packages)


def refuse_another_under_that_name(key: str, target: str, own: Sequence[str]) -> None:
    """Refuse a target that a user's own module merely imports, such as ``my_package.os.system``."""
    try:
        found = get_object(target)
    except Exception:
        return  # the check of settings says why it cannot be used
    name = f"{getattr(found, '__module__', '')}.{getattr(found, '__qualname__', '')}"
    if name not in known_targets() and not within(name, own):
        refuse_target(key, target, f"{name}, which is not of {' or '.join(own)}")


def refuse_target(key: str, target: Any, what: str = "other code") -> NoReturn:
    """Refuse a target that is not trusted.

    Raises:
        UserError: says what the target is, and how the user may trust it.
    """
    rule = f"a run folder may have seqlab's own parts built, and this is {what}"
    package = target.partition(".")[0] if isinstance(target, str) and re.fullmatch(r"\w+(\.\w+)+", target) else None
    remedy = f"If that code is yours and so is the folder, add trust={package}"
    if package == "seqlab":
        remedy = "If it is a part that you added, name it in a YAML of conf/, and if not, leave that folder alone"
    elif package is None or package in NEVER:
        remedy = "No run of yours names it, so leave that folder alone"
    raise UserError(key, target, rule, remedy)


def check_package(name: str) -> None:
    """Refuse to trust a name that is no package's, and the packages whose functions could run anything.

    Raises:
        UserError: it is one of these.
    """
    if not re.fullmatch(r"[^\W\d]\w*(\.[^\W\d]\w*)*", name):
        raise UserError("trust", name, "is no name of a package", "Write trust=my_package, the name that you import")
    if name.partition(".")[0] in NEVER:
        rule = "opens functions that read, write and run anything"
        raise UserError("trust", name, rule, "Name a package of your own, for example trust=my_package")


def named_packages(cfg: DictConfig) -> list[str]:
    """The packages of a user's own whose parts a configuration names, which was composed and not read from a folder."""
    targets = [value for _, name, value in entries(OmegaConf.to_container(cfg, resolve=True)) if name == "_target_"]
    foreign = {str(target).partition(".")[0] for target in set(targets) - known_targets()}
    return sorted(foreign - NEVER)


def packages(trust: str | Sequence[str] | None) -> list[str]:
    """The packages of a setting ``trust``: one name, several with commas between them, or a list."""
    if trust is None:
        return []
    names = trust if isinstance(trust, list | ListConfig) else str(trust).strip("[]").split(",")
    return [str(name).strip() for name in names]


def forget_foreign_cache(config: dict[str, Any]) -> None:
    """Remove a ``cache_dir`` that holds no cache of seqlab's: a run folder does not decide where downloads go."""
    for node in [config, *(value for _, _, value in entries(config) if isinstance(value, dict))]:
        named = node.get("cache_dir")
        if named is not None and not is_cache(Path(str(named)).expanduser()):
            log.warning("data.cache_dir=%s holds no cache, so the usual one is taken; name one to take another.", named)
            node["cache_dir"] = None


def is_cache(folder: Path) -> bool:
    """Whether a folder holds encoded text, and no links."""
    return any(path for made in ("tokens", "text/*") for path in folder.glob(f"{made}/*.tokens")) and not any(
        path.is_symlink() for path in folder.rglob("*")
    )


def refuse_tracker(cfg: DictConfig) -> None:
    """Refuse a tracker that neither the environment nor the command line names.

    It would get, with the metrics, the credentials that the environment holds for another one.

    Raises:
        UserError: names the tracker.
    """
    logger = cfg.get("logger")
    uri = logger.get("tracking_uri") if isinstance(logger, DictConfig) else None
    if uri not in (None, os.environ.get("MLFLOW_TRACKING_URI")):
        rule = "a run folder does not decide where figures and credentials are sent"
        remedy = f"Repeat it as logger=mlflow logger.tracking_uri={uri} if it is yours, or add logger=none"
        raise UserError("logger.tracking_uri", uri, rule, remedy)


def refuse_links(folder: Path) -> None:
    """Refuse to write in a folder that holds symbolic links; checkpoints may be elsewhere, if they are no other run's.

    Raises:
        UserError: names the first link.
    """
    kept = folder / "checkpoints"
    links = [path for path in sorted(folder.glob("*")) if path.is_symlink() and path != kept]
    if kept.is_symlink() and (kept.resolve().parent / "config.yaml").exists():
        links.append(kept)
    if links:
        rule = f"what is written there would be written to {links[0].resolve()}"
        remedy = "Put the thing itself there, if the folder is yours"
        raise UserError("run folder", links[0], rule, remedy)
