"""Parts that were renamed or moved, whose old names stand in run folders and in users' configurations."""

from typing import TYPE_CHECKING, Any

if TYPE_CHECKING:
    from omegaconf import DictConfig

RENAMED = {
    "seqlab.matching.EqualFlops": "seqlab.match.flops.EqualFlops",
    "seqlab.matching.EqualParameters": "seqlab.match.parameters.EqualParameters",
    "seqlab.models.mixers.gru.GRU": "seqlab.models.mixers.recurrent.GRU",
    "seqlab.models.mixers.lstm.LSTM": "seqlab.models.mixers.recurrent.LSTM",
    "seqlab.training.Trainer": "seqlab.training.TrainerConfig",
    "seqlab.training.settings.Trainer": "seqlab.training.settings.TrainerConfig",
    "torch.nn.RMSNorm": "seqlab.models.norms.RMSNorm",
    "torchmetrics.MeanAbsoluteError": "seqlab.training.metrics.MeanAbsoluteError",
    "torchmetrics.MeanSquaredError": "seqlab.training.metrics.MeanSquaredError",
    "torchmetrics.R2Score": "seqlab.training.metrics.R2Score",
}
"""Old names of targets, each with its present one."""

SHARED = {"_target_", "squared"}
"""Settings that our metrics have of those of torchmetrics; with others, the class is still theirs."""


def with_present_names(node: Any) -> Any:
    """A configuration of plain containers in which every ``_target_`` has its present name."""
    if isinstance(node, list):
        return [with_present_names(item) for item in node]
    if not isinstance(node, dict):
        return node
    present = {name: with_present_names(item) for name, item in node.items()}
    target = present.get("_target_")
    if not isinstance(target, str) or (target.startswith("torchmetrics.") and not present.keys() <= SHARED):
        return present
    return present | {"_target_": RENAMED.get(target, target)}


def up_to_date(cfg: "DictConfig") -> "DictConfig":
    """The configuration in which every ``_target_`` has its present name; the same object if they all have already."""
    from omegaconf import OmegaConf  # which readers of plain containers need not wait for

    settings = OmegaConf.to_container(cfg, resolve=False)
    present = with_present_names(settings)
    return cfg if present == settings else OmegaConf.create(present, flags={"struct": OmegaConf.is_struct(cfg)})
