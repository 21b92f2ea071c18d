"""Runs that differ in nothing but the seed belong together."""

import json
from collections import Counter, defaultdict
from collections.abc import Sequence
from dataclasses import dataclass
from itertools import repeat
from typing import Any

from seqlab.config.influence import NOT_COMPARED
from seqlab.report.configs import BySection
from seqlab.report.runs import Run
from seqlab.report.size_names import by_size_name
from seqlab.report.statistics import Estimate, estimate

__all__ = ["Estimate", "Group", "estimate", "flatten", "group", "repeated"]

SECTIONS = ("data", "model", "trainer")
"""Of a configuration: what a run is built from. Everything else there only feeds these by interpolation."""

WITHOUT_EFFECT_BELOW = ("data.download",)

ALIASES = ("size", "optimizer", "schedule")
"""Sections whose settings others repeat, under the names that a person would set."""

FINGERPRINT = "fingerprint"
MOST_IN_LABEL = 4

FACTS = ("model", "data", "data_fingerprint", "precision", "device")
"""What runs of one group share in their summaries besides the configuration; device is cpu or cuda."""

Flat = dict[str, Any]


@dataclass(frozen=True)
class Group:
    """Runs of one configuration, one for each seed.

    Args:
        label: the model, with the settings in which it differs from other groups of the same model and data.
        model: the model's name, the key of its colour.
        data: the data's name.
        settings: flat configuration keys that vary between the groups of the same model and data.
        runs: in the order of their seeds.
    """

    label: str
    model: str
    data: str
    settings: dict[str, Any]
    runs: tuple[Run, ...]

    @property
    def seeds(self) -> tuple[int, ...]:
        return tuple(run.summary["seed"] for run in self.runs)


def flatten(node: Any, prefix: str = "") -> Flat:
    """A configuration with one entry for each leaf, by dotted key; lists and empty mappings are leaves."""
    if not isinstance(node, dict) or not node:
        return {prefix: node}
    flat: Flat = {}
    for name, value in node.items():
        flat |= flatten(value, f"{prefix}.{name}" if prefix else str(name))
    return flat


def with_effect(config: dict[str, Any]) -> Flat:
    """The flat settings that say what a run does, its seed aside; one that is null counts as absent."""
    return {key: value for name in SECTIONS for key, value in section_with_effect(name, config.get(name)).items()}


def section_with_effect(name: str, section: Any) -> Flat:
    """Those of one section."""
    return {
        key: value
        for key, value in flatten(section, name).items()
        if value is not None and key not in NOT_COMPARED and not key.startswith(WITHOUT_EFFECT_BELOW)
    }


def assign(runs: Sequence[Run]) -> dict[tuple[str, ...], dict[int, list[Run]]]:
    """Runs by group and seed, those of the same group and seed with the newest first."""
    said = BySection(lambda name, section: in_json(sorted(section_with_effect(name, section).items())))

    def identity(run: Run) -> tuple[str, ...]:
        """Equal for runs of one group."""
        facts = in_json([run.summary.get(name) for name in FACTS])
        return facts, *(said(name, run.config.get(name)) for name in SECTIONS)

    assigned: dict[tuple[str, ...], dict[int, list[Run]]] = defaultdict(lambda: defaultdict(list))
    for run in runs:
        assigned[identity(run)][run.summary["seed"]].append(run)
    for seeds in assigned.values():
        for same in seeds.values():
            if len(same) > 1:
                same.sort(key=written, reverse=True)
    return assigned


def written(run: Run) -> tuple[float, str]:
    """When a run ended; its folder settles a tie."""
    try:
        return (run.folder / "summary.json").stat().st_mtime, str(run.folder)
    except OSError:
        return 0.0, str(run.folder)


def repeated(runs: Sequence[Run]) -> list[tuple[Run, Run]]:
    """Runs whose group and seed a newer one has too, each with that newer one."""
    return [(older, same[0]) for seeds in assign(runs).values() for same in seeds.values() for older in same[1:]]


def group(runs: Sequence[Run]) -> list[Group]:
    """Groups in the order of data, model and settings; of runs with the same group and seed the newest counts."""
    members = [tuple(seeds[seed][0] for seed in sorted(seeds)) for seeds in assign(runs).values()]
    families: dict[tuple[str, str], list[tuple[Run, ...]]] = defaultdict(list)
    for same in members:
        families[same[0].summary["data"], same[0].summary["model"]].append(same)
    groups = []
    for (data, model), family in families.items():
        settings = settings_that_vary([same[0] for same in family])
        labels = labels_of(model, by_size_name(settings, [same[0] for same in family]))
        groups += [Group(*one) for one in zip(labels, repeat(model), repeat(data), settings, family)]
    return sorted(groups, key=order)


def settings_that_vary(runs: Sequence[Run]) -> list[dict[str, Any]]:
    """For each of several runs, the settings that are not the same in all.

    A setting that another section feeds (``trainer.optimizer.lr`` is ``optimizer.lr``) is named by that one's key.
    """
    flats = [with_effect(run.config) | {"device": run.summary.get("device")} for run in runs]
    if len({run.summary.get("data_fingerprint") for run in runs}) > 1:
        flats = [flat | {FINGERPRINT: run.summary["data_fingerprint"]} for flat, run in zip(flats, runs, strict=True)]
    fed = [flatten({name: run.config[name] for name in ALIASES if name in run.config}) for run in runs]
    aliases = {(key.split(".")[-1], in_json(column)): key for key, column in reversed(columns(fed))}
    varying = {
        aliases.get((key.split(".")[-1], in_json(column)), key): column
        for key, column in columns(flats)
        if any(value != column[0] for value in column)
    }
    settings = [{key: column[i] for key, column in varying.items()} for i in range(len(runs))]
    without = [{key: value for key, value in one.items() if key != FINGERPRINT} for one in settings]
    if len(set(map(in_json, without))) == len(settings):  # what was changed tells more than the mark that it left
        return without
    return settings


def columns(flats: Sequence[Flat]) -> list[tuple[str, list[Any]]]:
    """Each key of several flat configurations with its values, ``None`` where one lacks it."""
    return [(key, [flat.get(key) for flat in flats]) for key in dict.fromkeys(key for flat in flats for key in flat)]


def in_json(value: Any) -> str:
    """A value as a key: equal for equal values, 1 and 1.0 among them."""
    return json.dumps(plain(value))


def plain(value: Any) -> Any:
    """A value of a configuration with every number as a float and what JSON does not know as text."""
    if isinstance(value, dict):
        return {str(key): plain(item) for key, item in value.items()}
    if isinstance(value, list | tuple):
        return [plain(item) for item in value]
    if isinstance(value, int) and not isinstance(value, bool):
        return float(value) if abs(value) < 2**53 else str(value)
    return value if value is None or isinstance(value, bool | float | str) else str(value)


def labels_of(model: str, settings: Sequence[dict[str, Any]]) -> list[str]:
    """Names for the groups of one model: with every setting that varies, as far as those are few.

    Of many, a label leaves out what is common: settings that only go along with one that it names, and, if those are
    still many, the values that most groups share. Three dots stand for these, so no two labels are alike.
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
    """The settings that vary, without those that go along with an earlier one from group to group.

    One that is different in every group tells of no other: all of them would seem to go along with it.
    """
    patterns: dict[tuple[int, ...], list[str]] = defaultdict(list)
    for key in settings[0]:
        values = [in_json(one[key]) for one in settings]
        first = {value: place for place, value in reversed(list(enumerate(values)))}
        patterns[tuple(first[value] for value in values)].append(key)
    kept = {
        key for pattern, keys in patterns.items() for key in (keys if len(set(pattern)) == len(pattern) else keys[:1])
    }
    return [key for key in settings[0] if key in kept]


def shared_by_most(values: Sequence[Any]) -> str | None:
    """The value, as JSON, that more than half of the groups have; ``None`` without one."""
    value, count = Counter(map(in_json, values)).most_common(1)[0]
    return value if 2 * count > len(values) else None


def short_names(keys: Sequence[str]) -> dict[str, str]:
    """For each dotted key its last name, or as many more as tell it from the others and from the run's seed."""
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
    """A setting's value in a label: of a ``_target_`` its last name."""
    if isinstance(value, bool) or value is None:
        return {None: "none", True: "true", False: "false"}[value]
    if isinstance(value, float):
        return f"{value:g}"
    if isinstance(value, list):
        return "+".join(map(in_short, value)) or "none"
    if isinstance(value, str) and value.startswith(("seqlab.", "torch.")):
        return value.rpartition(".")[2]
    return str(value)


def order(one: Group) -> tuple[Any, ...]:
    """Numbers among the settings by size, everything else by name."""
    values = [(0, v, "") if isinstance(v, int | float) else (1, 0, str(v)) for v in one.settings.values()]
    return one.data, one.model, values, one.label
