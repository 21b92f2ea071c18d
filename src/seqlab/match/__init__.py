"""Overlays that make architectures meet: equal parameters by the width, equal training FLOPs by the steps.

The reference is what ``model=<reference>`` would be in the same command without the overrides under ``model.``, which
are the candidate's alone; so all jobs of a sweep have one target, whatever each changes in its own model.
What was adjusted stands in ``config.yaml`` and ``summary.json`` under ``matched``.
"""
