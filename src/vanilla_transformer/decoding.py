"""From sentences to translations: loading a saved model, and running it over any number of sentences."""

import copy
import io
import logging
import math
import os
import queue
import re
import threading
from collections.abc import Callable, Iterable, Iterator, Sized
from contextlib import contextmanager, nullcontext
from dataclasses import dataclass, field
from itertools import islice
from pathlib import Path
from typing import IO, Any, NamedTuple, TextIO

import numpy as np
import torch
from safetensors import SafetensorError
from torch.nn.utils.rnn import pad_sequence
from tqdm import tqdm
from transformers import AutoModelForSeq2SeqLM, PreTrainedModel, PreTrainedTokenizerBase

from .beam_search import completed, gnmt_beam_search
from .errors import UserError, first_line
from .tokenization import PreTrainedTokenizerFast

logger = logging.getLogger(__name__)

WINDOW = 4096  # sentences read ahead, so that enough of like length come together
BATCH_TOKENS = 1024
MIN_LENGTH = 8  # as which a shorter sentence counts in a batch, so that a thousand words do not come together
MAX_SOURCE_LENGTH = 1024


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
    batch_tokens: int = field(
        default=BATCH_TOKENS, metadata={"help": "Source tokens translated together; a GPU takes many more."}
    )
    max_source_length: int = field(
        default=MAX_SOURCE_LENGTH, metadata={"help": "The most tokens of a sentence; what to do with more: --too_long."}
    )
    too_long: str = field(default="cut", metadata={"help": "Cut too long a sentence, with a warning, or refuse it."})

    def settings(self) -> dict[str, int | float]:
        """What to pass on to `translate`: only what was given."""
        names = ("num_beams", "length_penalty", "max_new_tokens", "batch_tokens", "max_source_length", "too_long")
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


def reopen_output(path: str, lines_per_sentence: int, sentences: int) -> tuple[TextIO, int]:
    """Open a file of translations to go on with it; lines at its end that are not those of a whole sentence go.

    Args:
        path: The file.
        lines_per_sentence: How many lines a sentence has.
        sentences: How many sentences there are in all.

    Returns:
        The file, and how many sentences are done.

    Raises:
        UserError: It is longer than the translation of all sentences would be, or cannot be written.
    """
    try:
        file = open(path, "r+b")
        done = end = 0
        for number, line in enumerate(file, start=1):
            if line.endswith(b"\n") and number % lines_per_sentence == 0:
                done, end = done + 1, file.tell()
    except OSError as error:
        raise UserError(f"can't write the output file {path}: {error.strerror}; check the path") from error
    if done > sentences:
        file.close()
        raise UserError(
            f"the output file {path} has lines for {done:,} sentences, but there are {sentences:,}; it is not a "
            "translation of this input"
        )
    file.truncate(end)
    file.seek(end)
    return io.TextIOWrapper(file, encoding="utf-8", newline="\n"), done


class Translation(NamedTuple):
    """One translation of a sentence.

    Attributes:
        text: The translation.
        score: log P(Y|X) / ((5 + |Y|) / 6)^alpha in the paper's search, which with one beam is greedy and has alpha 0.
            0 for a blank sentence's empty translation; NaN where another search gives no score.
    """

    text: str
    score: float


def translate(
    model: PreTrainedModel,
    tokenizer: PreTrainedTokenizerBase,
    sentences: Iterable[str],
    *,
    progress: bool = False,
    **settings: Any,
) -> Iterator[list[Translation]]:
    """Translate any number of sentences, in order; reads `WINDOW` sentences ahead.

    Args:
        model: The model, on any device, in any dtype and mode; its mode is the same afterwards.
        tokenizer: The model's tokenizer.
        sentences: One string per sentence, in a list or as an iterator. A blank one has empty translations.
        progress: Whether to show a progress bar on standard error, if that is a terminal.
        **settings: As in `translate_windows`, with the same errors.

    Returns:
        An iterator with a list of `num_return_sequences` translations for each sentence, best first.

    Raises:
        TypeError: One string in place of several.
    """
    if isinstance(sentences, str):
        raise TypeError("translate() takes a list of sentences; this is a single string")
    total = len(sentences) if isinstance(sentences, Sized) else None
    bar = tqdm(total=total, unit=" sentences", disable=None if progress else True)
    return translate_windows(model, tokenizer, windows_of(sentences), bar=bar, **settings)


def windows_of(sentences: Iterable[str]) -> Iterator[list[str]]:
    """Lists of `WINDOW` sentences each, the last perhaps of fewer."""
    iterator = iter(sentences)
    return iter(lambda: list(islice(iterator, WINDOW)), [])


def translate_windows(
    model: PreTrainedModel,
    tokenizer: PreTrainedTokenizerBase,
    windows: Iterable[list[str]],
    *,
    num_beams: int | None = None,
    num_return_sequences: int = 1,
    batch_tokens: int = BATCH_TOKENS,
    max_source_length: int = MAX_SOURCE_LENGTH,
    too_long: str = "cut",
    search: Callable | None = gnmt_beam_search,
    first_sentence: int = 1,
    bar: tqdm | None = None,
    **generate_kwargs: Any,
) -> Iterator[list[Translation]]:
    """Translate sentences that come in windows, each of which is translated before the next is read.

    A window is sorted by length and cut into batches by token budget. Neighbours in a batch change nothing.

    Args:
        model: The model, on any device, in any dtype and mode; its mode is the same afterwards.
        tokenizer: The model's tokenizer.
        windows: Lists of sentences.
        num_beams: Beam size, 1 for greedy search; by default the model's own setting, or else the paper's 4.
        num_return_sequences: Translations per sentence, best first; at most `num_beams`.
        batch_tokens: The most source tokens of a batch, padding counted; short sentences count as `MIN_LENGTH`.
        max_source_length: The most tokens of a sentence, `</s>` counted.
        too_long: What to do with a sentence of more: "cut" it, with a warning that names it, or "refuse" it.
        search: What `generate()` gets as `custom_generate`; None for its own searches.
        first_sentence: The number that a warning gives the first sentence.
        bar: A progress bar that counts sentences.
        **generate_kwargs: All else that `generate()` takes, such as `length_penalty` or `max_new_tokens`. What is not
            given is as the model's generation config says, the length penalty or else the paper's 0.6.

    Returns:
        An iterator with a list of `num_return_sequences` translations for each sentence, best first.

    Raises:
        UserError: A setting that cannot be, or that does not go with another; while iterating also a sentence that is
            too long, if these are refused.
    """
    for name, value in (
        ("num_beams", num_beams),
        ("num_return_sequences", num_return_sequences),
        ("batch_tokens", batch_tokens),
    ):
        if value is not None and value < 1:
            raise UserError(f"{name} is {value}; it must be at least 1")
    if max_source_length < 2:
        raise UserError(f"max_source_length is {max_source_length}; it must be at least 2, a token and </s>")
    if too_long not in ("cut", "refuse"):
        raise UserError(f'too_long is {too_long!r}; it must be "cut" or "refuse"')
    settings = {"num_return_sequences": num_return_sequences, **generate_kwargs}
    own = model.generation_config
    settings |= completed(num_beams or own.num_beams, settings.get("length_penalty", own.length_penalty))
    if search is not None and not settings.get("do_sample", own.do_sample):
        settings["custom_generate"] = search
    try:
        copy.deepcopy(model.generation_config).update(**settings)
    except ValueError as error:
        raise UserError(str(error)) from error
    sources = _Sources(tokenizer, batch_tokens, max_source_length, too_long, first_sentence)
    return _translate(model, tokenizer, iter(windows), sources, bar, settings)


def _translate(
    model: PreTrainedModel,
    tokenizer: PreTrainedTokenizerBase,
    windows: Iterator[list[str]],
    sources: "_Sources",
    bar: tqdm | None,
    settings: dict[str, Any],
) -> Iterator[list[Translation]]:
    """`translate_windows`, once its arguments are checked."""
    per_sentence = settings["num_return_sequences"]
    with nullcontext() if bar is None else bar:
        for window in windows:
            translations = [[Translation("", 0.0)] * per_sentence for _ in window]
            blank = len(window)
            for batch in sources.batches(window):
                found = _generate(model, tokenizer, [ids for _, ids in batch], settings)
                for row, (index, _) in enumerate(batch):
                    translations[index] = found[row * per_sentence : (row + 1) * per_sentence]
                blank -= len(batch)
                if bar is not None:
                    bar.update(len(batch))
            if bar is not None:
                bar.update(blank)
            yield from translations


class _Sources:
    """Turns windows of sentences into batches, and counts the sentences, so as to name one that is too long."""

    def __init__(
        self,
        tokenizer: PreTrainedTokenizerBase,
        batch_tokens: int,
        max_source_length: int,
        too_long: str,
        first_sentence: int,
    ) -> None:
        self.tokenizer, self.batch_tokens = tokenizer, batch_tokens
        self.max_source_length, self.too_long = max_source_length, too_long
        self.first_sentence = first_sentence  # the number of the next window's first

    def batches(self, window: list[str]) -> Iterator[list[tuple[int, list[int]]]]:
        """The sentences that are not blank as (index, token ids), in batches of like length, longest first."""
        indices = [index for index, sentence in enumerate(window) if sentence.strip()]
        token_ids = self.tokenizer([window[index] for index in indices], verbose=False)["input_ids"] if indices else []
        pairs = list(zip(indices, map(self.within_limit, indices, token_ids), strict=True))
        self.first_sentence += len(window)
        batch: list[tuple[int, list[int]]] = []
        for index, ids in sorted(pairs, key=lambda pair: len(pair[1]), reverse=True):
            if batch and (len(batch) + 1) * max(len(batch[0][1]), MIN_LENGTH) > self.batch_tokens:
                yield batch
                batch = []
            batch.append((index, ids))
        if batch:
            yield batch

    def within_limit(self, index: int, ids: list[int]) -> list[int]:
        """The ids of the window's sentence `index`, cut if they are too many and are not to be refused."""
        if len(ids) <= self.max_source_length:
            return ids
        fault = (
            f"sentence {self.first_sentence + index:,} has {len(ids):,} tokens, more than max_source_length "
            f"{self.max_source_length:,}"
        )
        if self.too_long == "refuse":
            raise UserError(f"{fault}; split it into sentences, or raise max_source_length")
        logger.warning("%s; what is beyond is cut off and not translated", fault)
        return [*ids[: self.max_source_length - 1], ids[-1]]


def _generate(
    model: PreTrainedModel, tokenizer: PreTrainedTokenizerBase, token_ids: list[list[int]], settings: dict[str, Any]
) -> list[Translation]:
    """Run `generate()` in eval mode, on a batch that is padded on the right."""
    with evaluating(model), torch.inference_mode():
        rows = [torch.tensor(ids) for ids in token_ids]
        input_ids = pad_sequence(rows, batch_first=True, padding_value=tokenizer.pad_token_id).to(model.device)
        lengths = torch.tensor([len(ids) for ids in token_ids])
        attention_mask = (torch.arange(input_ids.shape[1]) < lengths[:, None]).long().to(model.device)
        output = model.generate(
            input_ids=input_ids, attention_mask=attention_mask, return_dict_in_generate=True, **settings
        )
    texts = decode(tokenizer, output.sequences)
    scores = output.get("sequences_scores")
    return list(map(Translation, texts, [math.nan] * len(texts) if scores is None else scores.tolist()))


@contextmanager
def evaluating(model: PreTrainedModel) -> Iterator[None]:
    """Eval mode, and afterwards the mode that was."""
    was_training = model.training
    model.eval()
    try:
        yield
    finally:
        model.train(was_training)


def as_they_arrive(lines: Iterable[str]) -> Iterator[list[str]]:
    """Windows of at most `WINDOW` lines: what has come by the time that the next window is asked for, at least one.

    So who writes a line and waits gets an answer, and who writes many gets them translated together. Reading begins at
    once, in a thread of its own, which is never more than a window ahead.
    """
    end = object()
    arrived: queue.Queue = queue.Queue(WINDOW)

    def read() -> None:
        try:
            for line in lines:
                arrived.put(line)
            arrived.put(end)
        except Exception as error:
            arrived.put(error)

    threading.Thread(target=read, daemon=True).start()

    def windows() -> Iterator[list[str]]:
        while True:
            window = [arrived.get()]
            while not arrived.empty() and isinstance(window[-1], str) and len(window) < WINDOW:
                window.append(arrived.get())
            last = window[-1] if isinstance(window[-1], str) else window.pop()
            if window:
                yield window
            if isinstance(last, Exception):
                raise last
            if last is end:
                return

    return windows()
