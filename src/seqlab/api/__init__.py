"""seqlab from Python, as in a notebook: its names are those of ``seqlab`` itself."""
