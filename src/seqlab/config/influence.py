"""Lists of settings by what they have an effect on: a result, the steps of a run, the name of its folder."""

MOVABLE = ("device", "threads", "debug", "data.dir", "data.cache_dir")
"""Settings of the machine that a run is on; another one may have other values."""

CHANGEABLE = frozenset(
    {
        *MOVABLE,
        *(f"trainer.{name}" for name in ("steps", "epochs", "tokens", "patience", "stop_above", "max_skipped")),
        *(f"trainer.{name}" for name in ("evaluate_every", "checkpoint_every", "log_every", "evaluation_batch_size")),
        *("data.files", "data.tests", "data.n_further"),
        *("trainer.further_tests", "target", "trainer.cuda_graph", "trainer.parallel", "trainer.context_parallel"),
        *("trainer.checkpoint_layers", "trainer.offload", "trainer.timeout"),
    }
)
"""Settings that a resumed run may change: the budget, how kernels are launched and weights held, where its text is, and
what is measured after training."""

OF_STEPS = tuple(
    f"trainer.{name}"
    for name in (
        "patience",
        "stop_above",
        "max_skipped",
        "cuda_graph",
        "parallel",
        "context_parallel",
        "checkpoint_layers",
        "offload",
        "timeout",
        "evaluate_every",
        "checkpoint_every",
        "log_every",
    )
)
"""The changeable settings that act on steps; with no step left, a change would have no effect."""

WITHOUT_INFLUENCE = ("data.dir", "data.cache_dir", "debug", "threads", "launcher", "sweep", "trust")
"""Settings that do not change the result of a sweep's job."""

UNNAMED = (*WITHOUT_INFLUENCE, "device")
"""Settings left out of the names of jobs' folders unless the sweep varies them (``exclude_keys`` in config.yaml)."""

NOT_COMPARED = frozenset(
    {"data.dir", "data.cache_dir", "trainer.log_every", "trainer.checkpoint_every", "trainer.evaluation_batch_size"}
    | {"data.tests", "data.n_further", "trainer.further_tests", "trainer.parallel", "trainer.context_parallel"}
    | {"trainer.checkpoint_layers", "trainer.offload", "trainer.timeout"}
)
"""Settings by which the runs of a report are not told apart: places, intervals of logging, further tests."""
