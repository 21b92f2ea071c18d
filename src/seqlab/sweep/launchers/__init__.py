"""Where the jobs of a sweep run: on this machine's GPUs, on a Ray cluster, on a SLURM cluster.

``hydra_plugins.seqlab_launchers`` imports each where it is chosen; their packages need not be here.
"""
