"""Overlays that make architectures comparable: equal parameters by the width, equal training FLOPs by the steps.

The reference is ``model=<reference>`` with the overrides of the same command except those under ``model.``, which are
the candidate's alone. All jobs of a sweep are therefore matched with the same number, whatever each changes in its own
model. What was adjusted is recorded in ``config.yaml`` and ``summary.json`` under ``matched``.
"""
