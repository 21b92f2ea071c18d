"""Where options are looked for."""

import sys

from seqlab.config import CONFIG_FOLDER
from seqlab.config.options import config_folders
from seqlab.invocation import TYPED


def test_a_users_folder_is_that_of_the_command_and_not_of_another_programs_arguments(monkeypatch, tmp_path):
    monkeypatch.setattr(sys, "argv", ["pytest", "-rA", f"--config-dir={tmp_path}"])  # Hydra has -r, and refuses this
    monkeypatch.delenv(TYPED, raising=False)
    assert config_folders() == [CONFIG_FOLDER]
    monkeypatch.setenv(TYPED, f"seqlab train --config-dir={tmp_path}")
    assert config_folders() == [CONFIG_FOLDER, tmp_path]
