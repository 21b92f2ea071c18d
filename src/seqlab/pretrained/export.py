"""A run's model as a folder that ``transformers`` loads: ``config.json``, safetensors, tokenizer and model card."""

import logging
import os
import shutil
from collections.abc import Iterator
from contextlib import contextmanager
from pathlib import Path

from seqlab import jsonio
from seqlab.data.protocol import DataSet
from seqlab.errors import UserError
from seqlab.models import SequenceModel
from seqlab.places import check_place
from seqlab.pretrained.card import Exported, card
from seqlab.pretrained.counterpart import Counterpart, counterpart
from seqlab.pretrained.files import CONFIG
from seqlab.pretrained.tokenizer import tokenizer_of
from seqlab.runs.load import Trained

log = logging.getLogger(__name__)

SHARD = "5GB"
"""The most that one file of weights holds, as ``transformers`` has it; a larger tensor has a file of its own."""


def export(trained: Trained, run: Path, folder: Path) -> Counterpart:
    """Write the model of a run.

    Args:
        trained: what was loaded from it.
        run: its folder.
        folder: where to; it must not exist, or be empty. Nothing is left there if anything fails.

    Returns:
        What of ``transformers`` the folder is for.

    Raises:
        UserError: no class of ``transformers`` computes what the model does, or the folder cannot be used.
        OSError: it cannot be written.
    """
    found, end = counterpart(trained.model), getattr(trained.data, "end_of_document", None)
    found = found._replace(fields=found.fields | {"bos_token_id": end, "eos_token_id": end})
    with new_folder(folder) as temporary:
        write_model(trained.model, found, temporary)
        tokenizer = write_tokenizer(trained.data, trained.model, found, temporary)
        apart = trained.model.separator is not None
        exported = Exported(found.architecture, trained.step, trained.cfg.get("init_from"), tokenizer, apart)
        text = card(exported, jsonio.load(run / "summary.json"))
        (temporary / "README.md").write_text(text, encoding="utf-8")
    if apart:
        log.warning("Documents were apart in training: give the model one at a time, after the token that ends one.")
    return found


def check_new(folder: Path) -> None:
    """Check that a folder does not exist, or is empty, and can be made.

    Raises:
        UserError: it cannot.
    """
    if folder.is_symlink() or (folder.exists() and not (folder.is_dir() and not any(folder.iterdir()))):
        remedy = "Name a folder that does not exist, or is empty"
        raise UserError("to", folder, "something is there already", remedy)
    check_place("to", folder.absolute().parent if folder.exists() else folder)  # it is replaced


@contextmanager
def new_folder(folder: Path) -> Iterator[Path]:
    """A folder that becomes ``folder`` once all is written, and is removed if anything fails.

    Raises:
        UserError: there is something already.
    """
    check_new(folder)
    temporary = folder.with_name(f".{folder.name}.{os.getpid()}.tmp")
    temporary.mkdir(parents=True)
    try:
        yield temporary
        temporary.replace(folder)
    except BaseException:
        shutil.rmtree(temporary, ignore_errors=True)
        raise


def write_model(model: SequenceModel, found: Counterpart, folder: Path) -> None:
    """Write a model's weights, in the dtype that they have, and its ``config.json``."""
    from huggingface_hub import save_torch_state_dict

    jsonio.dump(folder / CONFIG, found.fields)
    save_torch_state_dict(found.tensors(model), folder, max_shard_size=SHARD)
    for path in folder.glob("*.safetensors"):  # which safetensors lets nobody else read
        shutil.copymode(folder / CONFIG, path)


def write_tokenizer(data: DataSet, model: SequenceModel, found: Counterpart, folder: Path) -> str | None:
    """Write the tokenizer of the data: a copy of the file that they have, or their vocabulary as one.

    Returns:
        The class of ``transformers`` that loads it; None if there is none.
    """
    end = found.fields["eos_token_id"]
    if (given := getattr(data, "tokenizer_file", None)) is not None:
        shutil.copyfile(given, folder / "tokenizer.json")
    elif (made := tokenizer_of(getattr(data, "vocabulary", []), getattr(data, "unit", ""), end)) is not None:
        made.save(str(folder / "tokenizer.json"))
    else:
        log.warning("There is no tokenizer in it: %s is no text whose tokens tokenizers has.", data.description)
        return None
    settings = {"tokenizer_class": "PreTrainedTokenizerFast", "clean_up_tokenization_spaces": False}
    if end is not None:
        settings["eos_token"] = data.vocabulary[end]
    if model.positions is not None:
        settings["model_max_length"] = model.max_length
    jsonio.dump(folder / "tokenizer_config.json", settings)
    if not found.family.own_tokenizer:
        return "AutoTokenizer"
    rule = "AutoTokenizer takes another tokenizer for %s, whatever a folder says: load it by PreTrainedTokenizerFast."
    log.warning(rule, found.architecture)
    return "PreTrainedTokenizerFast"
