"""Load a saved model and its tokenizer."""

import logging
from collections.abc import Sequence
from pathlib import Path
from typing import Any

import torch
from torch.nn import functional as F
from transformers import AutoModelForSeq2SeqLM, PreTrainedModel, PreTrainedTokenizerBase

from ..data.tokenization import PreTrainedTokenizerFast, find_difference
from ..errors import UserError, first_line, hide_token
from .ensemble import as_one_model
from .model_files import (
    CONFIG,
    DTYPES,
    SavedModel,
    check_auto_map,
    check_finite,
    check_generation_config,
    check_weights,
    derived_class,
    describe,
    read_config,
    read_weight_headers,
)

logger = logging.getLogger(__name__)

TOKENIZER_CONFIG = "tokenizer_config.json"


def load(
    model_name_or_path: str,
    *,
    model_revision: str = "main",
    token: str | None = None,
    trust_remote_code: bool = False,
    device: str | None = None,
    dtype: str | torch.dtype = "auto",
) -> tuple[PreTrainedModel, PreTrainedTokenizerBase]:
    """Load a saved model and its tokenizer for inference.

    Every file is checked, so that a model is never silently another one than was saved. Weights are read from
    safetensors only.

    Args:
        model_name_or_path: A folder written by `save_pretrained` or by training, or the id of a Hub repository.
        model_revision: Branch, tag or commit of a Hub repository.
        token: Access token for a private repository. Defaults to the one stored by `hf auth login`.
        trust_remote_code: Allow the model's own code files to run.
        device: Device of the model, such as "cpu" or "cuda:1". Defaults to "cuda" if available, else "cpu".
        dtype: Dtype of the weights and of what is computed with them, such as "bfloat16", as in `from_pretrained`;
            "auto" for that of the saved weights. Scores are computed in float32 in any case.

    Returns:
        The model, in eval mode, and the tokenizer.

    Raises:
        UserError: The model does not exist, is incomplete, damaged or of another kind, its tokenizer does not fit, or
            the device or the dtype can't be used.
    """
    target = find_device(device)
    target_dtype = find_dtype(dtype, target)
    path = Path(model_name_or_path)
    if not model_name_or_path:
        raise UserError("the name of the model is empty; give a folder, or the id of a repository on the Hub")
    if path.is_file():
        raise UserError(f"{path} is a file; give the folder that holds the model")
    saved = SavedModel(model_name_or_path, model_revision, token)
    config = read_config(saved, trust_remote_code)
    saved.require(TOKENIZER_CONFIG)
    check_generation_config(saved, config.vocab_size)
    weights = read_weight_headers(saved)
    own_code = type(config).__module__.startswith("transformers_modules") or derived_class(vars(config)) is not None
    if not own_code:  # the model's own code runs only in `from_pretrained`
        check_weights(config, weights, saved.require(CONFIG))

    options: dict[str, Any] = {"revision": model_revision, "token": saved.token, "trust_remote_code": trust_remote_code}
    options["dtype"] = "auto" if target_dtype is None else target_dtype
    try:
        model, loaded = AutoModelForSeq2SeqLM.from_pretrained(
            model_name_or_path, config=config, use_safetensors=True, output_loading_info=True, **options
        )
    except Exception as error:  # whatever this raises, the files or the model's own code are the cause
        reason = hide_token(describe(error), saved.token)
        raise UserError(f"can't load the model {model_name_or_path} ({reason})") from error
    for kind in ("missing_keys", "unexpected_keys"):
        if loaded[kind]:
            raise UserError(
                f"can't load the model {model_name_or_path}: {kind.replace('_', ' ')} in its weight files, such as "
                f"{min(loaded[kind])}; save or download the model again"
            )
    check_finite(model.named_parameters(), model_name_or_path, target_dtype)

    tokenizer = load_tokenizer(model_name_or_path, model_revision=model_revision, token=saved.token)
    check_tokenizer(tokenizer, model, model_name_or_path)
    try:
        return model.to(target).eval(), tokenizer
    except RuntimeError as error:  # such as too little memory
        raise UserError(f"can't put the model on the device {target}: {first_line(error)}") from error


def load_ensemble(names_or_paths: Sequence[str], **options: Any) -> tuple[PreTrainedModel, PreTrainedTokenizerBase]:
    """Load several saved models that translate together, each as `load` does.

    Args:
        names_or_paths: Folders or ids of Hub repositories; with one it is `load`.
        **options: Keyword arguments of `load`, for each of them.

    Returns:
        An `Ensemble`, in eval mode, and the tokenizer that the models have in common.

    Raises:
        UserError: As in `load`, or the models or their tokenizers differ.
    """
    return combine([load(name, **options) for name in names_or_paths], names_or_paths)


def combine(
    loaded: Sequence[tuple[PreTrainedModel, PreTrainedTokenizerBase]], names: Sequence[str]
) -> tuple[PreTrainedModel, PreTrainedTokenizerBase]:
    """Make an ensemble of loaded models, each with its tokenizer and its name; one model stays as it is.

    Raises:
        UserError: There are none, or the models or their tokenizers differ.
    """
    for (_, tokenizer), name in zip(loaded[1:], names[1:], strict=True):
        if difference := find_difference(loaded[0][1], tokenizer):
            what, of_first, of_other = difference
            raise UserError(
                f"the tokenizers of {names[0]} and {name} differ: {what} is {of_first} in the first and {of_other} in "
                "the second; an ensemble needs models that were trained with the same tokenizer"
            )
    model = as_one_model([model for model, _ in loaded])
    return model, loaded[0][1]


def find_device(device: str | None = None) -> torch.device:
    """Return the device to run on, after a try.

    Args:
        device: Name of a device, such as "cpu" or "cuda:1". Defaults to "cuda" if available, else "cpu".

    Raises:
        UserError: There is no such device, or it can't compute.
    """
    if device is None:
        return torch.device("cuda" if torch.cuda.is_available() else "cpu")
    try:
        torch.ones(1, device=device).sum().item()
        return torch.device(device)
    except (RuntimeError, AssertionError, ImportError, ValueError) as error:  # as different devices raise
        available = ["cpu", *(f"cuda:{index}" for index in range(torch.cuda.device_count()))]
        if torch.backends.mps.is_available():
            available.append("mps")
        raise UserError(
            f"device is {device!r}, which can't be used ({first_line(error)[:100]}); there is {', '.join(available)}"
        ) from error


def find_dtype(dtype: str | torch.dtype, device: torch.device) -> torch.dtype | None:
    """Return the dtype to compute in, after a try.

    Args:
        dtype: A dtype or its name, such as "bfloat16"; "auto" for that of the saved weights.
        device: Where to compute.

    Returns:
        The dtype; None for "auto".

    Raises:
        UserError: There is no such dtype, or the device can't compute in it.
    """
    if dtype == "auto":
        return None
    name = str(dtype).removeprefix("torch.")
    if name not in DTYPES:
        raise UserError(f"dtype is {name!r}; it must be auto, {', '.join(DTYPES)}")
    found: torch.dtype = getattr(torch, name)
    try:
        x = torch.ones(1, 2, 2, dtype=found, device=device)
        x = F.layer_norm(F.linear(x, x[0]), (2,))
        F.scaled_dot_product_attention(x, x, x).sum().item()
    except (RuntimeError, TypeError) as error:  # as different devices raise
        raise UserError(
            f"dtype is {name!r}, in which the device {device} can't compute ({first_line(error)[:100]}); give float32, "
            "or another device"
        ) from error
    return found


def load_tokenizer(
    name_or_path: str, *, model_revision: str = "main", token: str | None = None
) -> PreTrainedTokenizerBase:
    """Load the tokenizer of a model. No code that comes with it runs.

    Args:
        name_or_path: A folder with tokenizer.json, or the id of a Hub repository.
        model_revision: Branch, tag or commit of a Hub repository.
        token: Access token for a private repository.

    Raises:
        UserError: The tokenizer does not exist or can't be read, or has no `<pad>` or `</s>`.
    """
    saved = SavedModel(name_or_path, model_revision, token)
    check_auto_map(saved.read_json(TOKENIZER_CONFIG), saved.require(TOKENIZER_CONFIG))
    tokenizer = read_tokenizer(name_or_path, revision=model_revision, token=saved.token)
    for name in ("pad_token", "eos_token"):
        if getattr(tokenizer, f"{name}_id") is None:
            raise UserError(f"the tokenizer {name_or_path} has no {name}; set one in {TOKENIZER_CONFIG}")
    return tokenizer


def read_tokenizer(name_or_path: str, **options: Any) -> PreTrainedTokenizerBase:
    """Read a tokenizer, that of a model or one alone. No code that comes with it runs.

    Args:
        name_or_path: A folder with tokenizer.json, or the id of a Hub repository.
        **options: What `from_pretrained` takes, such as `revision` and `token`.

    Raises:
        UserError: The tokenizer does not exist or can't be read.
    """
    try:
        tokenizer = PreTrainedTokenizerFast.from_pretrained(name_or_path, **options)
        tokenizer("")
    except BaseException as error:
        # The library tokenizers raises bare Exceptions, and from a panic a BaseException.
        if not isinstance(error, Exception) and type(error).__name__ != "PanicException":
            raise
        remedy = (
            "save or download it again"
            if Path(name_or_path).is_dir()
            else "there is no such folder, so check the name, or the connection to the Hub"
        )
        reason = hide_token(describe(error), options.get("token"))
        raise UserError(f"can't load the tokenizer {name_or_path} ({reason}); {remedy}") from error
    # A reference to another repository's code must not be saved on: `AutoTokenizer` would run it.
    tokenizer.init_kwargs.pop("auto_map", None)
    backend_model = tokenizer.backend_tokenizer.model
    if getattr(backend_model, "dropout", None):
        logger.warning(
            "The tokenizer %s drops merges at random (dropout %g), which is for training only; here it does not",
            name_or_path,
            backend_model.dropout,
        )
        backend_model.dropout = None
    return tokenizer


def check_tokenizer(tokenizer: PreTrainedTokenizerBase, model: PreTrainedModel, where: str | Path) -> None:
    """Refuse a tokenizer that does not fit a model.

    Args:
        tokenizer: The tokenizer.
        model: The model.
        where: Folder or repository of both, for errors.

    Raises:
        UserError: The tokenizer has ids that the model does not have, or other ids for `<pad>` or `</s>`.
    """
    vocab_size = model.config.vocab_size
    largest = max([*tokenizer.get_vocab().values(), *tokenizer("")["input_ids"]], default=0)
    if largest >= vocab_size:
        raise UserError(
            f"{where}: the tokenizer has ids up to {largest:,}, but the model's vocab_size is {vocab_size:,}; the "
            "tokenizer is that of another model"
        )
    for name in ("pad_token_id", "eos_token_id"):
        of_model = getattr(model.config, name)
        allowed = of_model if isinstance(of_model, list) else [of_model]
        if of_model is not None and getattr(tokenizer, name) not in allowed:
            raise UserError(
                f"{where}: {name} is {getattr(tokenizer, name)} in the tokenizer, but {of_model} in the model's "
                f"{CONFIG}; the tokenizer is that of another model"
            )
