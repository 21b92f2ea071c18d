"""Run folders: what a run leaves, continuing one, and loading its model again."""
