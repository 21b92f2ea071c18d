"""The command line: mistakes in a line or two, the table at a run's end, and what ``conf/`` interpolates."""

from seqlab.cli.main import importing, job, run

__all__ = ["importing", "job", "run"]
