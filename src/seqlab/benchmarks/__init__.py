"""Benchmarks of the selective scan, training steps, mixtures of experts and inference.

They share ``timing`` and ``memory`` of one call, ``session`` (several calls side by side), ``results`` (what is kept)
and ``report`` (how it is shown).
"""
