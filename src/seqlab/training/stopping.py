"""When a run may end before its budget: no gain for long, or good enough."""

import math
from typing import Any

from seqlab.errors import UserError, nearest
from seqlab.training.counters import Counters


def check_stop_above(rule: dict[str, str | float] | None, data: Any) -> None:
    """Refuse a rule that names no metric of the data's, or no number."""
    if rule is None:
        return
    metric, value = rule.get("metric"), rule.get("value")
    if set(rule) != {"metric", "value"} or isinstance(value, str):
        wanted = "must name a metric of the validation split and a number"
        remedy = "For example trainer.stop_above={metric:accuracy,value:0.99}"
        raise UserError("trainer.stop_above", rule, wanted, remedy)
    if metric not in data.metrics:
        raise UserError("trainer.stop_above.metric", metric, "is no metric of this data", nearest(metric, data.metrics))


def stop_reason(counters: Counters, *, patience: int | None, stop_above: dict[str, str | float] | None) -> str | None:
    """Why a run that stands here ends early; ``None`` if it goes on.

    Args:
        counters: where it stands.
        patience: evaluations without a better validation loss that are too many.
        stop_above: ``metric`` of the validation split, and ``value`` above which it is good enough.
    """
    if stop_above is not None:
        metric, value = stop_above["metric"], stop_above["value"]
        reached = counters.last_metrics.get(metric, -math.inf)
        if reached > value:
            return f"validation {metric} {reached:.4g} is above {value:g}"
    if patience is not None and counters.evaluations_without_gain >= patience:
        return f"no better validation loss in {patience} evaluations"
    return None
