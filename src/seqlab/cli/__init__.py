"""The command line: error messages, the table at a run's end, and the resolvers that ``conf/`` uses."""

from seqlab.cli.main import end, followed, importing, job, run
from seqlab.cli.resolvers import register

__all__ = ["end", "followed", "importing", "job", "run"]

register()  # not in ``run``, for a launcher's worker composes its job before it calls anything of this package
