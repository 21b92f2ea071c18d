"""A run that starts from a checkpoint (``init_from``) in place of fresh weights."""

from omegaconf import DictConfig, OmegaConf, open_dict

from seqlab.config.options import model_name
from seqlab.data.protocol import Widths
from seqlab.errors import UserError
from seqlab.pretrained.checkpoint import Checkpoint
from seqlab.pretrained.files import TOKENIZER

UNITS = ("character", "byte", "word", "bpe")
"""Tokens of text that are made here."""


def with_architecture(cfg: DictConfig) -> DictConfig:
    """The configuration with the checkpoint's model in place of the chosen one; unchanged without ``init_from``.

    The dropout is the run's own (``model.dropout``), and ``size`` holds what the checkpoint's sizes are.

    Args:
        cfg: a job's, with its interpolations.

    Raises:
        UserError: the checkpoint cannot be used, or weights or widths are to be scaled.
    """
    if (name := OmegaConf.select(cfg, "init_from")) is None:
        return cfg
    for group in ("match", "parametrisation"):
        if OmegaConf.select(cfg, group) is not None:
            rule = f"chooses widths or scales weights, and those of init_from={name} are given"
            raise UserError(group, "set", rule, f"Leave {group} out, or init_from")
    checkpoint = Checkpoint.read(name)
    cfg = cfg.copy()
    with open_dict(cfg):
        if OmegaConf.is_interpolation(cfg, "name"):  # of the model's choice, which is not what is trained
            cfg.name = model_name(cfg.name, cfg.name, name)
        cfg.model = checkpoint.model | {"dropout": cfg.model.get("dropout", 0.0)}
        cfg.size = {key: checkpoint.model[key] for key in ("d_model", "n_layers")}
        take_tokenizer(cfg.data, checkpoint)
    return cfg


def take_tokenizer(data: DictConfig, checkpoint: Checkpoint) -> None:
    """Give data that choose their tokens (``tokens: auto``) the checkpoint's, with as many ids as it has embeddings.

    Raises:
        UserError: the checkpoint has no ``tokenizer.json``.
    """
    tokens = data.get("tokens")
    if tokens == "auto":
        path = checkpoint.folder / TOKENIZER
        if not path.is_file():
            rule = f"there is no {TOKENIZER} in {checkpoint.folder}"
            raise UserError("data.tokens", tokens, rule, "Name the one that the model was trained with")
        data.tokens = str(path)
    if isinstance(tokens, str) and tokens not in UNITS and data.vocab_size is None:
        data.vocab_size = checkpoint.vocabulary


def checkpoint_for(cfg: DictConfig, data: Widths) -> Checkpoint | None:
    """The checkpoint that ``init_from`` names, whose weights the model starts with; ``None`` without it.

    Raises:
        UserError: it cannot be used, or not with these data.
    """
    if (name := OmegaConf.select(cfg, "init_from")) is None:
        return None
    checkpoint = Checkpoint.read(name)
    refuse_other_data(checkpoint, data)
    return checkpoint


def refuse_other_data(checkpoint: Checkpoint, data: Widths) -> None:
    """Refuse data that a checkpoint's model does not take.

    Raises:
        UserError: they are no tokens, of another vocabulary, or longer than the checkpoint's learned positions.
    """
    if not data.tokens or {data.d_input, data.d_output} != {checkpoint.vocabulary}:
        has = f"have {data.d_input:,}" if data.tokens else f"are {data.d_input} features a position and no tokens"
        rule = f"its vocabulary has {checkpoint.vocabulary:,} tokens, and the data {has}"
        remedy = "Take data=text; its tokens are the checkpoint's unless data.tokens or data.vocab_size is set"
        raise UserError("init_from", checkpoint.folder, rule, remedy)
    longest = checkpoint.model.get("max_length")
    if longest is not None and data.length > longest:
        rule = f"the model in {checkpoint.folder} has learned {longest} positions"
        raise UserError("data.length", data.length, rule, f"Set data.length={longest} or less")
