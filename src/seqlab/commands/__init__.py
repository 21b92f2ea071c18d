"""The commands of ``seqlab``, a module each; scripts of a clone call the same. ``options`` is what they share."""
