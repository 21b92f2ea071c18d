"""Overlays that make architectures comparable: equal parameters by the width, equal training FLOPs by the steps.

The reference is ``model=<reference>`` in the same command without the overrides under ``model.``, which are the
candidate's alone; so all jobs of a sweep are matched with the same number, whatever each changes in its own model.
What was adjusted is in ``config.yaml`` and ``summary.json`` under ``matched``.
"""
