"""Load a saved model and its tokenizer."""

from pathlib import Path
from typing import Any

import torch
from safetensors import SafetensorError
from transformers import AutoModelForSeq2SeqLM, PreTrainedModel, PreTrainedTokenizerBase

from ..data.tokenization import PreTrainedTokenizerFast
from ..errors import UserError, first_line


def load(
    model_name_or_path: str,
    *,
    model_revision: str = "main",
    token: str | None = None,
    trust_remote_code: bool = False,
    device: str | None = None,
) -> tuple[PreTrainedModel, PreTrainedTokenizerBase]:
    """Load a saved model and its tokenizer for inference.

    Args:
        model_name_or_path: A folder written by `save_pretrained` or by training, or the id of a Hub repository.
        model_revision: Branch, tag or commit of a Hub repository.
        token: Access token for a private repository. Defaults to the one stored by `hf auth login`.
        trust_remote_code: Allow the model's own code files to run.
        device: Device of the model, such as "cpu" or "cuda:1". Defaults to "cuda" if available, else "cpu".

    Returns:
        The model, in eval mode, and the tokenizer.

    Raises:
        UserError: The model does not exist, is incomplete or of another kind, or the device does not exist.
    """
    path = Path(model_name_or_path)
    if path.is_dir():
        for name in ("config.json", "tokenizer_config.json"):
            if not (path / name).is_file():
                raise UserError(
                    f"the folder {path} has no {name}, so it does not hold a model with its tokenizer; give the folder "
                    "that training wrote"
                )
    elif path.exists():
        raise UserError(f"{path} is a file; give the folder that holds the model")

    options: dict[str, Any] = {"revision": model_revision, "token": token, "trust_remote_code": trust_remote_code}
    try:
        model = AutoModelForSeq2SeqLM.from_pretrained(model_name_or_path, **options)
        tokenizer = PreTrainedTokenizerFast.from_pretrained(model_name_or_path, **options)
    except (OSError, ValueError, RuntimeError, SafetensorError) as error:
        place = "" if path.is_dir() else "there is no such folder, and the Hugging Face Hub gave: "
        reason = first_line(error)
        if "trust_remote_code" in str(error):
            reason = "it brings model code of its own; read that code and, if you trust it, set trust_remote_code"
        raise UserError(f"can't load the model {model_name_or_path}: {place}{reason}") from error

    if device is None:
        device = "cuda" if torch.cuda.is_available() else "cpu"
    try:
        return model.to(device).eval(), tokenizer
    except (RuntimeError, AssertionError) as error:
        reason = first_line(error)
        raise UserError(f"can't put the model on the device {device}: {reason}") from error
