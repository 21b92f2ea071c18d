"""Generated tasks that each probe one ability: to copy, to recall, to compress, to memorise."""
