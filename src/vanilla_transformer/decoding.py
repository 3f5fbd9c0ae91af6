"""From sentences to translations: loading a saved model, and running it over any number of sentences."""

import copy
import os
import re
from collections.abc import Iterable, Iterator
from contextlib import contextmanager
from dataclasses import dataclass, field
from itertools import groupby, islice
from pathlib import Path
from typing import IO, Any

import numpy as np
import torch
from safetensors import SafetensorError
from transformers import AutoModelForSeq2SeqLM, PreTrainedModel, PreTrainedTokenizerBase

from .errors import UserError, first_line
from .tokenization import PreTrainedTokenizerFast

WINDOW = 4096  # sentences read ahead, so that enough of the same length come together


@dataclass
class LoadingArguments:
    """The flags that the scripts which use a trained model have in common."""

    model_revision: str = field(default="main", metadata={"help": "Branch, tag or commit of a model on the Hub."})
    token: str | None = field(default=None, metadata={"help": "Token for a private model on the Hub."})
    trust_remote_code: bool = field(default=False, metadata={"help": "Run model code that comes with the model."})
    device: str | None = field(
        default=None, metadata={"help": "cpu, cuda, cuda:1, ...; by default cuda if it is there."}
    )

    def load(self, model_name_or_path: str) -> tuple[PreTrainedModel, PreTrainedTokenizerBase]:
        """`load` with these arguments."""
        return load(
            model_name_or_path,
            model_revision=self.model_revision,
            token=self.token,
            trust_remote_code=self.trust_remote_code,
            device=self.device,
        )


@dataclass
class DecodingArguments(LoadingArguments):
    """These, and how to search."""

    num_beams: int | None = field(
        default=None, metadata={"help": "Beam size, 1 is greedy; by default the model's own."}
    )
    length_penalty: float | None = field(
        default=None, metadata={"help": "Above 0 prefers long translations in beam search; by default the model's own."}
    )
    max_new_tokens: int | None = field(
        default=None, metadata={"help": "Longest translation, in tokens; by default the source's length plus 50."}
    )
    batch_size: int = field(default=64, metadata={"help": "Sentences translated together."})

    def settings(self) -> dict[str, int | float]:
        """What to pass on to `translate`: only what was given."""
        names = ("num_beams", "length_penalty", "max_new_tokens", "batch_size")
        return {name: getattr(self, name) for name in names if getattr(self, name) is not None}


def load(
    model_name_or_path: str,
    *,
    model_revision: str = "main",
    token: str | None = None,
    trust_remote_code: bool = False,
    device: str | None = None,
) -> tuple[PreTrainedModel, PreTrainedTokenizerBase]:
    """Load a model and its tokenizer to decode with.

    Args:
        model_name_or_path: A folder that `save_pretrained` or training wrote, or the id of a repository on the Hub.
        model_revision: Branch, tag or commit of a repository on the Hub.
        token: Token for a private repository; by default the one stored by `hf auth login`.
        trust_remote_code: Whether to run model code that the repository brings.
        device: Where to put the model, such as "cpu" or "cuda:1"; by default "cuda" where there is one, else "cpu".

    Returns:
        The model, in eval mode, and the tokenizer.

    Raises:
        UserError: There is no such model, it is incomplete or of another kind, or there is no such device.
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

    options = {"revision": model_revision, "token": token, "trust_remote_code": trust_remote_code}
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


def decode(tokenizer: PreTrainedTokenizerBase, token_ids: np.ndarray | torch.Tensor) -> list[str]:
    """Turn rows of ids into text, without special tokens.

    Args:
        tokenizer: The model's tokenizer.
        token_ids: Integers of shape [rows, length]; -100, with which the Trainer pads, counts as padding.
    """
    ids = np.asarray(token_ids.cpu() if isinstance(token_ids, torch.Tensor) else token_ids)
    return tokenizer.batch_decode(np.where(ids < 0, tokenizer.pad_token_id, ids), skip_special_tokens=True)


def decoded(sentences: list[str]) -> list[str]:
    """Sentences from the command line, in UTF-8 whatever the locale.

    Raises:
        UserError: A sentence that is not valid UTF-8.
    """
    try:
        return [os.fsencode(sentence).decode("utf-8") for sentence in sentences]
    except UnicodeDecodeError as error:
        raise UserError("a sentence on the command line is not valid UTF-8; convert it, as with iconv") from error


def one_line(text: str) -> str:
    """The text with each line break in it replaced by a space, for files and pipes with one translation per line."""
    return re.sub(r"\r\n|\r|\n", " ", text)


def open_output(path: str, binary: bool = False) -> IO:
    """Open a new file to write to, translations unless it is binary.

    Raises:
        UserError: The file exists already, or cannot be made.
    """
    try:
        return open(path, "xb") if binary else open(path, "x", encoding="utf-8", newline="\n")
    except FileExistsError as error:
        raise UserError(f"the output file {path} exists already; name a new one, or remove it first") from error
    except OSError as error:
        raise UserError(f"can't write the output file {path}: {error.strerror}; check the path") from error


def translate(
    model: PreTrainedModel,
    tokenizer: PreTrainedTokenizerBase,
    sentences: Iterable[str],
    *,
    num_beams: int | None = None,
    num_return_sequences: int = 1,
    batch_size: int = 64,
    **generate_kwargs: Any,
) -> Iterator[list[str]]:
    """Translate sentences, in order and as they come.

    Reads `WINDOW` sentences ahead, and batches those of the same length in tokens. A batch therefore has no padding,
    and "input length + 50" (section 6.1) is the limit of each of its sentences: neighbours change nothing.

    Args:
        model: The model, on any device, in any dtype and mode; its mode is the same afterwards.
        tokenizer: The model's tokenizer.
        sentences: One string per sentence. An empty or blank one has empty translations.
        num_beams: Beam size, 1 for greedy search; by default what the model's generation config says.
        num_return_sequences: Translations per sentence, best first; at most `num_beams`.
        batch_size: Sentences per batch at most.
        **generate_kwargs: All else that `generate()` takes, such as `length_penalty` or `max_new_tokens`; what is not
            given is as the model's generation config says.

    Returns:
        An iterator with `num_return_sequences` strings for each sentence.

    Raises:
        UserError: A setting that cannot be, or that does not go with another.
        TypeError: One string in place of several.
    """
    if isinstance(sentences, str):
        raise TypeError("translate() takes a list of sentences; this is a single string")
    for name, value in (
        ("num_beams", num_beams),
        ("num_return_sequences", num_return_sequences),
        ("batch_size", batch_size),
    ):
        if value is not None and value < 1:
            raise UserError(f"{name} is {value}; it must be at least 1")
    settings = {"num_return_sequences": num_return_sequences, **generate_kwargs}
    if num_beams is not None:
        settings["num_beams"] = num_beams
    try:
        copy.deepcopy(model.generation_config).update(**settings)
    except ValueError as error:
        raise UserError(str(error)) from error
    return _translate(model, tokenizer, iter(sentences), batch_size, settings)


def _translate(
    model: PreTrainedModel,
    tokenizer: PreTrainedTokenizerBase,
    sentences: Iterator[str],
    batch_size: int,
    settings: dict[str, Any],
) -> Iterator[list[str]]:
    """`translate`, once its arguments are checked."""
    per_sentence = settings["num_return_sequences"]
    while window := list(islice(sentences, WINDOW)):
        translations = [[""] * per_sentence for _ in window]
        for batch in _batches(tokenizer, window, batch_size):
            texts = decode(tokenizer, _generate(model, [ids for _, ids in batch], settings))
            for row, (index, _) in enumerate(batch):
                translations[index] = texts[row * per_sentence : (row + 1) * per_sentence]
        yield from translations


def _batches(
    tokenizer: PreTrainedTokenizerBase, sentences: list[str], batch_size: int
) -> Iterator[list[tuple[int, list[int]]]]:
    """The sentences that are not blank as (index, token ids), in batches of one length, longest first."""
    indices = [index for index, sentence in enumerate(sentences) if sentence.strip()]
    if not indices:
        return
    token_ids = tokenizer([sentences[index] for index in indices], verbose=False)["input_ids"]
    by_length = sorted(zip(indices, token_ids, strict=True), key=lambda sentence: len(sentence[1]), reverse=True)
    for _, same_length in groupby(by_length, key=lambda sentence: len(sentence[1])):
        while batch := list(islice(same_length, batch_size)):
            yield batch


def _generate(model: PreTrainedModel, token_ids: list[list[int]], settings: dict[str, Any]) -> torch.Tensor:
    """Run `generate()` in eval mode; int64 of shape [sentences * translations per sentence, length]."""
    with evaluating(model), torch.inference_mode():
        input_ids = torch.tensor(token_ids, device=model.device)
        return model.generate(input_ids=input_ids, attention_mask=torch.ones_like(input_ids), **settings)


@contextmanager
def evaluating(model: PreTrainedModel) -> Iterator[None]:
    """Eval mode, and afterwards the mode that was."""
    was_training = model.training
    model.eval()
    try:
        yield
    finally:
        model.train(was_training)
