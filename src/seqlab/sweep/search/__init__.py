"""Hyper-parameter search with Optuna. Only ``pruning`` is imported where no search runs."""
