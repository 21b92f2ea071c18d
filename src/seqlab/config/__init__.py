"""The configuration: what can be set, checks of what was set, and error messages about it."""

from pathlib import Path

CONFIG_FOLDER = Path(__file__).parents[1] / "conf"
"""The package's own configuration: data of the package, so that a wheel has it where a clone has it."""
