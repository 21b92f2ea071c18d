"""Which settings change what: the one place that lists those without effect on a result, a run's steps or its name."""

MOVABLE = ("device", "threads", "debug", "data.dir", "data.cache_dir")
"""Settings of the place where a run is, which another machine may have differently."""

CHANGEABLE = frozenset(
    {
        *MOVABLE,
        *(f"trainer.{name}" for name in ("steps", "epochs", "tokens", "patience", "stop_above", "max_skipped")),
        *(f"trainer.{name}" for name in ("evaluate_every", "checkpoint_every", "log_every", "evaluation_batch_size")),
        *("data.tests", "data.n_further", "trainer.further_tests", "target", "trainer.cuda_graph"),
    }
)
"""Settings that leave the mathematics of the steps alone: the budget, how their kernels are launched, and what is
measured when training is over. A resumed run may have them otherwise."""

OF_STEPS = tuple(
    f"trainer.{name}"
    for name in (
        "patience",
        "stop_above",
        "max_skipped",
        "cuda_graph",
        "evaluate_every",
        "checkpoint_every",
        "log_every",
    )
)
"""The changeable settings that say how steps were made; changed with no step left, they would tell of none."""

WITHOUT_INFLUENCE = ("data.dir", "data.cache_dir", "debug", "threads", "launcher", "sweep", "trust")
"""Settings that change no result of a sweep's job."""

UNNAMED = (*WITHOUT_INFLUENCE, "device")
"""Settings that name no job's folder, unless its sweep varies them (``exclude_keys`` in config.yaml)."""

NOT_COMPARED = frozenset(
    {"data.dir", "data.cache_dir", "trainer.log_every", "trainer.checkpoint_every", "trainer.evaluation_batch_size"}
    | {"data.tests", "data.n_further", "trainer.further_tests"}
)
"""Settings of a run's parts that tell where it was, how it was watched and what was measured besides."""
