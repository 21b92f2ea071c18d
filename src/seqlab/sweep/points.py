"""The jobs of a sweep: a union of products of settings, and the few jobs that show every mistake in them."""

from collections.abc import Callable, Iterable, Sequence
from functools import cache

from hydra._internal.core_plugins.basic_sweeper import BasicSweeper
from hydra.core.override_parser.overrides_parser import OverridesParser
from hydra.core.override_parser.types import Glob, Override

from seqlab.config.overrides import parse
from seqlab.errors import UserError
from seqlab.invocation import program


def refuse_empty(overrides: Iterable[Override]) -> None:
    """Refuse an empty range: the product with it has no jobs.

    Raises:
        UserError: names the setting.
    """
    for override in overrides:
        if override.is_discrete_sweep() and not any(True for _ in override.sweep_string_iterator()):
            key, typed = parse(override.input_line)
            remedy = "A range ends before its stop: range(1,4) is 1, 2 and 3"
            if isinstance(override.value(), Glob):
                remedy = f"No option of {key} is called so: {program()} --help lists all"
            raise UserError(override.get_key_element(), typed, "holds no value, so there is nothing to run", remedy)


def representatives(jobs: Iterable[Sequence[str]], is_group: Callable[[str], bool]) -> list[Sequence[str]]:
    """The first jobs that between them have every pair of a chosen option and an override that can be wrong together.

    Whether a setting exists depends on the options that are chosen, and not on its value, as long as that is of the
    same kind.

    Args:
        jobs: the overrides of each.
        is_group: whether a key chooses an option of a group.
    """
    kind = cache(lambda override: kind_of(override, is_group))
    seen: set[tuple[str, str]] = set()
    found = []
    for job in jobs:
        kinds = [kind(override) for override in job]
        options = [name for name, is_option in kinds if is_option] or [""]
        new = {(option, name) for option in options for name, _ in kinds} - seen
        if new or not found:
            found.append(job)
            seen |= new
    return found


def kind_of(override: str, is_group: Callable[[str], bool]) -> tuple[str, bool]:
    """A key that is equal for overrides which are wrong in the same way, and whether it is the choice of an option."""
    key, _, value = override.partition("=")
    if is_group(key.lstrip("+~").partition("@")[0]):
        return override, True
    return (override if value == "null" or "$" in value else f"{key}={value[:1] if value[:1] in '[{' else ''}"), False


def union(points: Sequence[str] | None, overrides: list[Override]) -> list[list[str]]:
    """The overrides of every job, each job once, as ``PointsSweeper`` describes them.

    Raises:
        UserError: ``points`` is no list of texts.
    """
    if not isinstance(points, Sequence | None) or any(not isinstance(point, str) for point in points or ()):
        rule = "is a list of products of settings, each in quotes"
        remedy = "For example hydra.sweeper.points=['model=mamba,lstm seed=1,2','model=mlp']"
        raise UserError("hydra.sweeper.points", points, rule, remedy)
    given = {override.get_key_element() for override in overrides}
    parser = OverridesParser.create()
    parsed = [parser.parse_overrides(point.split()) for point in points or [""]]
    wanted = models_of(overrides)
    named = set().union(*map(models_of, parsed))
    about = [point for point in parsed if not (wanted and models_of(point)) or wanted & models_of(point)]
    jobs: dict[frozenset[str], list[str]] = {}
    for point in about or parsed:
        own = [o for o in point if o.get_key_element() not in given]
        of_others = {f"model={model}" for model in named - mine} if (mine := models_of(point)) else set()
        for job in BasicSweeper.split_arguments([*own, *overrides], None)[0]:
            if of_others.isdisjoint(job):
                jobs.setdefault(frozenset(job), job)
    return list(jobs.values())


def models_of(overrides: list[Override]) -> set[str]:
    """The models that overrides choose, if they do."""
    chosen = [override for override in overrides if override.get_key_element() == "model"]
    return {parse(job[0])[1] for job in BasicSweeper.split_arguments(chosen, None)[0] if job}
