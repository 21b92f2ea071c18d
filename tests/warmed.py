"""Imported by the process that runs are forked from: composes once what most of them compose."""

from quick_composition import quick_composition
from support import SMALL, compose_config

quick = quick_composition()
quick.__enter__()
compose_config(*SMALL)
