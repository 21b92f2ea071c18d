"""Hyper-parameter search with Optuna. Nothing here is imported unless a search runs, but for ``pruning``."""
