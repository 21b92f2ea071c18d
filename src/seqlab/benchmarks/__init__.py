"""Benchmarks: ``scan``, ``step``, ``experts`` and ``inference`` state what they compare, at which sizes, and in what.

They share ``timing`` and ``memory`` of one call, ``session`` (several calls side by side), ``results`` (what is kept)
and ``report`` (how it is shown).
"""
