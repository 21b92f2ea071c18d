"""The command line: mistakes in a line or two, the table at a run's end, and what ``conf/`` interpolates."""

from seqlab.cli.main import importing, job, run
from seqlab.cli.resolvers import register

__all__ = ["importing", "job", "run"]

register()  # not in ``run``, for a launcher's worker composes its job before it calls anything of this package
