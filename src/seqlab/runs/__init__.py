"""Run folders: their content, continuing a run, and loading its model again."""
