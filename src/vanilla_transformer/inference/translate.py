"""Translate any number of sentences, in batches of similar length."""

import copy
import logging
import math
from collections.abc import Callable, Iterable, Iterator, Sized
from contextlib import contextmanager, nullcontext
from itertools import islice
from typing import Any, NamedTuple

import torch
from torch.nn.utils.rnn import pad_sequence
from tqdm import tqdm
from transformers import PreTrainedModel, PreTrainedTokenizerBase

from ..data.tokenization import decode
from ..errors import UserError
from ..generation_vanilla_transformer import completed, gnmt_beam_search

logger = logging.getLogger(__name__)


WINDOW = 4096  # sentences read ahead, so that enough of like length come together


BATCH_TOKENS = 1024


MIN_LENGTH = 8  # as which a shorter sentence counts in a batch, so that a thousand words do not come together


MAX_SOURCE_LENGTH = 1024


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
