"""Groups of runs that differ in the seed only."""

import json
import re
from collections import Counter, defaultdict
from collections.abc import Callable, Hashable, Iterable, Sequence
from dataclasses import dataclass
from functools import cache
from pathlib import Path
from statistics import fmean
from typing import Any, TypeVar

import yaml

from seqlab.config import CONFIG_FOLDER
from seqlab.config.influence import NOT_COMPARED
from seqlab.config.overrides import flatten
from seqlab.config.without_effect import mixers_in_pattern, unused_mixers
from seqlab.report.curves import is_number
from seqlab.report.runs import BySection, Run

SECTIONS = ("data", "model", "parametrisation", "trainer")
"""The sections of a configuration that a run is built from; the others only feed these by interpolation."""

WITHOUT_EFFECT_BELOW = ("data.download", "trainer.regularisation._target_")
NONE_IF_ZERO = "trainer.regularisation."
"""Settings of which 0 is none, as it was in runs before there were such."""

AS_BEFORE = {"softmaxes": 1, "negative_eigenvalues": False, "recompute": False, "freeze": []}
"""What later settings, by the end of their keys, are where they change nothing: so it was in runs before them."""

ALIASES = ("size", "optimizer", "schedule", "regularisation")
"""Sections that other sections repeat by interpolation; their keys are those that a user sets."""

FINGERPRINT = "fingerprint"
MOST_IN_LABEL = 4
SIZE_IN_NAME = re.compile(r"_(tiny|small|medium|large|wide|deep)$")
SIZES = CONFIG_FOLDER / "size"

FACTS = ("model", "data", "data_fingerprint", "precision", "device")
"""Entries of the summary that runs of one group share, besides the configuration; device is cpu or cuda."""

Flat = dict[str, Any]
Item = TypeVar("Item")


@dataclass(frozen=True)
class Group:
    """Runs of one configuration, one for each seed.

    Args:
        label: the model, with the settings in which it differs from other groups of the same model and data.
        model: the model's name.
        data: the data's name.
        settings: flat configuration keys that vary between the groups of the same model and data.
        runs: one for each seed, ascending.
        repeated: older runs of the same seeds, which do not count, each with the newer one that does.
    """

    label: str
    model: str
    data: str
    settings: dict[str, Any]
    runs: tuple[Run, ...]
    repeated: tuple[tuple[Run, Run], ...] = ()

    @property
    def seeds(self) -> tuple[int, ...]:
        """The runs' seeds, ascending."""
        return tuple(run.summary["seed"] for run in self.runs)

    @property
    def parameters(self) -> int:
        """The model's number of parameters."""
        return self.runs[0].summary["parameters"]

    @property
    def validation_loss(self) -> float:
        """The mean over seeds of the best validation loss, by which settings are selected."""
        return fmean(run.summary["best_validation"]["loss"] for run in self.runs)


def grouped(items: Iterable[Item], key: Callable[[Item], Hashable]) -> dict[Any, list[Item]]:
    """Items by their key, in the order in which the keys first occur."""
    found: dict[Any, list[Item]] = defaultdict(list)
    for item in items:
        found[key(item)].append(item)
    return dict(found)


def with_effect(config: dict[str, Any]) -> Flat:
    """The flat settings that determine what a run computes, without the seed, null and what was ``as_before``."""
    return {key: value for name in SECTIONS for key, value in section_with_effect(name, config.get(name)).items()}


def section_with_effect(name: str, section: Any) -> Flat:
    """These settings of one section; a mixer that a model's pattern leaves out has none."""
    below = WITHOUT_EFFECT_BELOW
    if isinstance(section, dict) and isinstance(section.get("pattern"), list):
        below += tuple(f"{name}.mixers.{mixer}." for mixer in unused_mixers(section))
    return {
        key: value
        for key, value in flatten(section, name).items()
        if value is not None and key not in NOT_COMPARED and not key.startswith(below)
        if value != 0 or not key.startswith(NONE_IF_ZERO)
        if value != as_before(key)
    }


def as_before(key: str) -> Any:
    """What a setting was in runs that do not have it."""
    return AS_BEFORE.get(key.rpartition(".")[2])


def group(runs: Sequence[Run]) -> list[Group]:
    """Groups in the order of data, model and settings. Of runs with the same group and seed the newest counts."""
    groups = []
    families = grouped(by_identity(runs), lambda seeds: (seeds[0][0].summary["data"], seeds[0][0].summary["model"]))
    for (data, model), family in families.items():
        examples = [seeds[0][0] for seeds in family]
        settings = settings_that_vary(examples)
        labels = labels_of(model, with_size_names(settings, examples))
        for label, own_settings, seeds in zip(labels, settings, family, strict=True):
            repeated = tuple((older, newest) for newest, *others in seeds for older in others)
            groups.append(Group(label, model, data, own_settings, tuple(same[0] for same in seeds), repeated))
    return sorted(groups, key=lambda one: (one.data, one.model, list(map(in_order, one.settings.values())), one.label))


def by_identity(runs: Sequence[Run]) -> list[list[list[Run]]]:
    """For each group a list for each of its seeds, ascending, of the runs with that seed, the newest first."""
    text_of = BySection(lambda name, section: in_json(sorted(section_with_effect(name, section).items())))
    found: dict[tuple[str, ...], dict[int, list[Run]]] = defaultdict(lambda: defaultdict(list))
    for run in runs:
        facts = in_json([run.summary.get(name) for name in FACTS])
        sections = (text_of(name, run.config.get(name)) for name in SECTIONS)
        found[facts, *sections][run.summary["seed"]].append(run)
    return [
        [sorted(same, key=time_written, reverse=True) if len(same) > 1 else same for _, same in sorted(seeds.items())]
        for seeds in found.values()
    ]


def time_written(run: Run) -> tuple[float, str]:
    """A sort key: when a run ended, then its folder."""
    try:
        return (run.folder / "summary.json").stat().st_mtime, str(run.folder)
    except OSError:
        return 0.0, str(run.folder)


def settings_that_vary(runs: Sequence[Run]) -> list[dict[str, Any]]:
    """For each run, the settings that are not the same in all.

    A setting that another section feeds is named by that section's key: ``optimizer.lr`` for ``trainer.optimizer.lr``.
    """
    flats = [with_effect(run.config) | {"device": run.summary.get("device")} for run in runs]
    if len({run.summary.get("data_fingerprint") for run in runs}) > 1:
        flats = [flat | {FINGERPRINT: run.summary["data_fingerprint"]} for flat, run in zip(flats, runs, strict=True)]
    feeding = [flatten({name: run.config[name] for name in ALIASES if name in run.config}) for run in runs]
    aliases = {(key.split(".")[-1], in_json(column)): key for key, column in reversed(columns(feeding))}
    varying = {
        aliases.get((key.split(".")[-1], in_json(column)), key): column
        for key, column in columns(flats)
        if len({in_json(value) for run, value in zip(runs, column, strict=True) if has_mixer_of(key, run)}) > 1
    }
    settings = [{key: column[i] for key, column in varying.items()} for i in range(len(runs))]
    without = [{key: value for key, value in one.items() if key != FINGERPRINT} for one in settings]
    distinct = len(set(map(in_json, without))) == len(settings)
    return without if distinct else settings  # the settings explain a different fingerprint


def has_mixer_of(key: str, run: Run) -> bool:
    """Whether a run has the mixer that a setting is of, or it is of none; its pattern says which it has."""
    model = run.config.get("model")
    if not key.startswith("model.mixers.") or not isinstance(model, dict) or "pattern" not in model:
        return True
    return key.split(".")[2] in mixers_in_pattern(model)


def columns(flats: Sequence[Flat]) -> list[tuple[str, list[Any]]]:
    """Each key of several flat configurations with its values, ``as_before`` where one lacks it."""
    keys = dict.fromkeys(key for flat in flats for key in flat)
    return [(key, [flat.get(key, as_before(key)) for flat in flats]) for key in keys]


def in_json(value: Any) -> str:
    """A value as a text that is equal for equal values, such as 1 and 1.0."""
    text = json.dumps(value, default=str, skipkeys=True)
    return json.dumps(json.loads(text, parse_int=lambda digits: float(digits) if len(digits) < 16 else digits))


def in_order(value: Any) -> tuple[int, float, str]:
    """A sort key: numbers by size, then everything else by its text."""
    return (0, value, "") if is_number(value) else (1, 0.0, str(value))


def architecture(model: str) -> str:
    """A model's name without its size: ``mamba_deep`` is a ``mamba``."""
    return SIZE_IN_NAME.sub("", model) or model


def size_name(run: Run) -> str | None:
    """The file in ``conf/size`` whose numbers a run has, overrides included; ``None`` if there is none."""
    return next((name for name, numbers in named_sizes(SIZES).items() if numbers == run.config.get("size")), None)


@cache
def named_sizes(folder: Path) -> dict[str, dict[str, Any]]:
    """Every size with its numbers; empty where the package is installed without its configuration."""
    return {path.stem: yaml.safe_load(path.read_text(encoding="utf-8")) for path in sorted(folder.glob("*.yaml"))}


def with_size_names(settings: Sequence[Flat], runs: Sequence[Run]) -> Sequence[Flat]:
    """Settings with the size's name in place of its numbers, if every run has a size by name; else unchanged."""

    def renamed(one: Flat, name: str) -> Flat:
        return dict(("size", name) if key.startswith("size.") else (key, value) for key, value in one.items())

    if not any(key.startswith("size.") for one in settings for key in one):
        return settings
    names = [size_name(run) for run in runs]
    return settings if None in names else list(map(renamed, settings, names))


def labels_of(model: str, settings: Sequence[dict[str, Any]]) -> list[str]:
    """Names for the groups of one model: with every setting that varies, if these are few.

    Else a label leaves out the settings that change together with one it names, and, if many are left, the values that
    most groups share. Three dots stand for what is left out. No two labels are equal.
    """
    keys = list(settings[0])
    names = short_names(keys)
    named = keys if len(keys) <= MOST_IN_LABEL else leaders(settings)
    usual = (
        {} if len(named) <= MOST_IN_LABEL else {key: shared_by_most([one[key] for one in settings]) for key in named}
    )
    labels = []
    for one in settings:
        shown = [key for key in named if key not in usual or in_json(one[key]) != usual[key]]
        rest = [] if len(shown) == len(keys) else ["..."]
        labels.append(", ".join([model, *(f"{names[key]}={in_short(one[key])}" for key in shown), *rest]))
    return labels


def leaders(settings: Sequence[dict[str, Any]]) -> list[str]:
    """The settings that vary, without those that change together with an earlier one.

    Settings with a different value in every group are all kept: they would all seem to change together.
    """
    kept = {
        key
        for pattern, keys in by_pattern(settings).items()
        for key in (keys if len(set(pattern)) == len(pattern) else keys[:1])
    }
    return [key for key in settings[0] if key in kept]


def by_pattern(settings: Sequence[dict[str, Any]]) -> dict[tuple[int, ...], list[str]]:
    """The keys of the groups' settings, those together whose values are equal in the same groups.

    A pattern has, for each group, the place of the first group with the same value.
    """

    def pattern(key: str) -> tuple[int, ...]:
        values = [in_json(one[key]) for one in settings]
        first = {value: place for place, value in reversed(list(enumerate(values)))}
        return tuple(first[value] for value in values)

    return grouped(settings[0], pattern)


def shared_by_most(values: Sequence[Any]) -> str | None:
    """The value, as JSON, that more than half of the groups have; ``None`` if there is none."""
    value, count = Counter(map(in_json, values)).most_common(1)[0]
    return value if 2 * count > len(values) else None


def short_names(keys: Sequence[str]) -> dict[str, str]:
    """For each dotted key its last name, or as many as distinguish it from the other keys and from the seed."""
    plain = {key: key.removesuffix("._target_") for key in keys}

    def end(key: str, size: int) -> str:
        return ".".join(plain[key].split(".")[-size:])

    names = {}
    for key in keys:
        sizes = range(1, plain[key].count(".") + 2)
        unique = (end(key, n) for n in sizes if [*(end(other, n) for other in keys), "seed"].count(end(key, n)) == 1)
        names[key] = next(unique, key)
    return names


def in_short(value: Any) -> str:
    """A setting's value in a label; of a ``_target_`` the last name, of a list its items with a plus sign between."""
    if isinstance(value, bool) or value is None:
        return {None: "none", True: "true", False: "false"}[value]
    if isinstance(value, float):
        return f"{value:g}"
    if isinstance(value, list):
        items = (f"({item})" if isinstance(item, str) and "+" in item else in_short(item) for item in value)
        return "+".join(items) or "none"
    if isinstance(value, str) and value.startswith(("seqlab.", "torch.")):
        return value.rpartition(".")[2]
    return str(value)
