"""Translate any number of sentences in batches of similar length."""

import copy
import logging
import math
from collections.abc import Callable, Iterable, Iterator, Sequence, Sized
from contextlib import contextmanager, nullcontext
from itertools import chain, islice
from typing import Any, NamedTuple, TypeVar

import torch
from torch.nn.utils.rnn import pad_sequence
from tqdm import tqdm
from transformers import GenerationConfig, LogitsProcessorList, PreTrainedModel, PreTrainedTokenizerBase

from ..base_vanilla_transformer import TOKENS_BEYOND_SOURCE
from ..data.sources import check_target_lang, prepare_sources
from ..data.tokenization import check_added_tokens, decode_batch
from ..errors import UserError
from ..eval_mode_vanilla_transformer import eval_mode
from ..generation_vanilla_transformer import gnmt_beam_search, search_settings
from .ensemble import as_one_model
from .prefixes import TargetPrefix, TargetPrefixes, TargetPrefixLogitsProcessor, longest_translation
from .settings import BATCH_TOKENS, MAX_SOURCE_LENGTH, check_settings

T = TypeVar("T")

logger = logging.getLogger(__name__)


WINDOW_SIZE = 4096  # sentences that are sorted by length together
MIN_COUNTED_LENGTH = 8  # a shorter sentence counts as this many tokens, which bounds the batch size for one-word inputs


class Translation(NamedTuple):
    """One translation of a sentence.

    Attributes:
        text: The translation.
        score: log P(Y|X) / ((5 + |Y|) / 6)^alpha with the paper's search; alpha is 0 with one beam (greedy search).
            Y is the whole translation, a target prefix included. 0 for the translation of a blank sentence, which is
            not searched for, NaN if another search returns no scores.
    """

    text: str
    score: float


def translate(
    model: PreTrainedModel | Sequence[PreTrainedModel],
    tokenizer: PreTrainedTokenizerBase,
    sentences: Iterable[str],
    *,
    progress: bool = False,
    **settings: Any,
) -> Iterator[list[Translation]]:
    """Translate any number of sentences, in order.

    Sentences are read in windows of `WINDOW_SIZE`; the next window is read when its first translation is asked for.

    Args:
        model: The model, on any device, in any dtype, in training or eval mode; its mode is restored. A list of models
            is an `Ensemble` of them.
        tokenizer: The model's tokenizer.
        sentences: One string per sentence, as a list or an iterator. A blank sentence has an empty translation, or
            its target prefix.
        progress: Show a progress bar on standard error if that is a terminal.
        **settings: Keyword arguments of `translate_windows`.

    Returns:
        An iterator over lists of `num_return_sequences` translations, one list per sentence, best first.

    Raises:
        TypeError: `sentences` is a single string.
        UserError: As in `translate_windows`.
    """
    if isinstance(sentences, str):
        raise TypeError("translate() takes a list of sentences; this is a single string")
    total = len(sentences) if isinstance(sentences, Sized) else None
    bar = tqdm(total=total, unit=" sentences", disable=None if progress else True)
    return translate_windows(model, tokenizer, split_into_windows(sentences), bar=bar, **settings)


def split_into_windows(sentences: Iterable[T]) -> Iterator[list[T]]:
    """Split sentences, or what belongs to each, into lists of `WINDOW_SIZE`; the last list may be shorter."""
    iterator = iter(sentences)
    return iter(lambda: list(islice(iterator, WINDOW_SIZE)), [])


def translate_windows(
    model: PreTrainedModel | Sequence[PreTrainedModel],
    tokenizer: PreTrainedTokenizerBase,
    windows: Iterable[list[str]],
    *,
    num_beams: int | None = None,
    num_return_sequences: int = 1,
    batch_tokens: int = BATCH_TOKENS,
    max_source_length: int = MAX_SOURCE_LENGTH,
    too_long: str = "cut",
    target_lang: str | None = None,
    search: Callable | None = gnmt_beam_search,
    target_prefix: str | Iterable[str] | None = None,
    first_sentence: int = 1,
    bar: tqdm | None = None,
    **generate_kwargs: Any,
) -> Iterator[list[Translation]]:
    """Translate windows of sentences; each window is translated before the next is read.

    A window is sorted by length and cut into batches by token budget. A translation does not depend on the other
    sentences of its batch.

    Args:
        model: The model, on any device, in any dtype, in training or eval mode; its mode is restored. A list of models
            is an `Ensemble` of them.
        tokenizer: The model's tokenizer.
        windows: Lists of sentences.
        num_beams: Beam size, 1 for greedy search. Defaults to the model's generation config, else to the paper's 4.
        num_return_sequences: Translations per sentence, best first; at most `num_beams`.
        batch_tokens: Most source tokens in a batch, padding included, and most hypotheses; a shorter sentence counts
            as `MIN_COUNTED_LENGTH` tokens. A sentence above the budget is a batch of its own.
        max_source_length: Most tokens of a sentence, `</s>` included.
        too_long: For a longer sentence: "cut" truncates it with a warning that names it, "refuse" raises.
        target_lang: The language to translate into, by a model of several: its tag is put before each sentence that
            begins with none. None for sentences that have their tags.
        search: Passed to `generate()` as `custom_generate`; None for the searches of transformers.
        target_prefix: A text that every translation must begin with, or an iterable with one text per sentence, empty
            where there is none. A prefix is cut into tokens as the tokenizer cuts it alone.
        first_sentence: Number of the first sentence in warnings and errors.
        bar: A progress bar that counts sentences.
        **generate_kwargs: Other arguments of `generate()`, such as `length_penalty` or `max_new_tokens`. Defaults come
            from the model's generation config; the length penalty is 0.6 (the paper's) if that has none.

    Returns:
        An iterator over lists of `num_return_sequences` translations, one list per sentence, best first.

    Raises:
        UserError: A setting is out of range or contradicts another, the models differ, the model has no tag for the
            target language, the tokenizer splits a token that was added to it, or the target prefix of all sentences
            can't be forced; while iterating, a sentence begins with an unknown tag and there is no `target_lang`, is
            too long and `too_long` is "refuse", or its target prefix can't be tokenized, has special tokens, is longer
            than a translation may be, or is missing.
    """
    check_settings(
        num_beams=num_beams,
        num_return_sequences=num_return_sequences,
        length_penalty=generate_kwargs.get("length_penalty"),
        max_new_tokens=generate_kwargs.get("max_new_tokens"),
        batch_tokens=batch_tokens,
        max_source_length=max_source_length,
        too_long=too_long,
    )
    check_added_tokens(tokenizer)
    check_target_lang(tokenizer, target_lang)
    model = as_one_model(model)
    settings = {"num_return_sequences": num_return_sequences, **generate_kwargs}
    defaults = model.generation_config
    settings |= search_settings(
        num_beams or defaults.num_beams, settings.get("length_penalty", defaults.length_penalty)
    )
    samples = settings.get("do_sample", defaults.do_sample)
    if not samples:
        _check_beams(settings["num_beams"], num_return_sequences, model.config.vocab_size)
    if search is not None and not samples:
        settings["custom_generate"] = search
    config = copy.deepcopy(defaults)
    try:
        config.update(**settings)
    except ValueError as error:
        raise UserError(str(error)) from error
    batcher = _SourceBatcher(
        tokenizer,
        batch_tokens,
        max_source_length,
        too_long,
        first_sentence,
        hypotheses=settings["num_beams"],
        target_lang=target_lang,
    )
    prefixes = TargetPrefixes(tokenizer, target_prefix, first_sentence)
    return _translate(model, tokenizer, iter(windows), batcher, prefixes, bar, settings, config)


def _check_beams(num_beams: int, num_return_sequences: int, vocab_size: int) -> None:
    """Refuse more translations than beams, and more beams than there are first tokens."""
    if num_return_sequences > num_beams:
        raise UserError(f"num_return_sequences is {num_return_sequences}; it can be at most num_beams, {num_beams}")
    if num_beams >= vocab_size:
        raise UserError(f"num_beams is {num_beams}; it must be below the model's vocab_size, {vocab_size}")


def _translate(
    model: PreTrainedModel,
    tokenizer: PreTrainedTokenizerBase,
    windows: Iterator[list[str]],
    batcher: "_SourceBatcher",
    target_prefixes: TargetPrefixes,
    bar: tqdm | None,
    settings: dict[str, Any],
    config: GenerationConfig,
) -> Iterator[list[Translation]]:
    """Translate with checked arguments; a generator, so nothing runs before the first translation is asked for."""
    per_sentence = settings["num_return_sequences"]
    with nullcontext() if bar is None else bar:
        for window in windows:
            prefixes = target_prefixes.take(len(window))
            translations = [[Translation(prefix.text, 0.0)] * per_sentence for prefix in prefixes]
            batches = list(batcher.make_batches(window))
            for index, ids in chain.from_iterable(batches):
                prefixes[index].check_length(_longest_translation(config, settings, len(ids)))
            blank = len(window)
            for batch in batches:
                forced = [prefixes[index] for index, _ in batch]
                generated = _generate(model, tokenizer, [ids for _, ids in batch], forced, settings)
                for row, (index, _) in enumerate(batch):
                    # Two per sentence: generated = [row 0 best, row 0 second, row 1 best, row 1 second, ...]
                    translations[index] = generated[row * per_sentence : (row + 1) * per_sentence]
                    for translation in translations[index]:
                        prefixes[index].check_beginning(translation.text)
                blank -= len(batch)
                if bar is not None:
                    bar.update(len(batch))
            if bar is not None:
                bar.update(blank)
            yield from translations
        target_prefixes.check_end()


def _longest_translation(config: GenerationConfig, settings: dict[str, Any], source_length: int) -> int | None:
    """Compute how many tokens a translation may have; only the paper's search has a limit beside that of the config."""
    beyond = None
    if settings.get("custom_generate") is gnmt_beam_search:
        beyond = settings.get("tokens_beyond_source", TOKENS_BEYOND_SOURCE)
    return longest_translation(config, source_length, beyond)


class _SourceBatcher:
    """Tokenizes windows of sentences and groups them into batches.

    Counts the sentences of all windows, to name one that is too long.
    """

    def __init__(
        self,
        tokenizer: PreTrainedTokenizerBase,
        batch_tokens: int,
        max_source_length: int,
        too_long: str,
        first_sentence: int,
        hypotheses: int,
        target_lang: str | None,
    ) -> None:
        self.tokenizer, self.batch_tokens, self.target_lang = tokenizer, batch_tokens, target_lang
        self.min_counted_length = max(MIN_COUNTED_LENGTH, hypotheses)
        self.max_source_length, self.too_long = max_source_length, too_long
        self.first_sentence = first_sentence  # number of the first sentence of the next window

    def make_batches(self, window: list[str]) -> Iterator[list[tuple[int, list[int]]]]:
        """Yield batches of (index in the window, token ids), longest sentences first; blank sentences are left out."""
        indices = [index for index, sentence in enumerate(window) if sentence.strip()]
        sources = prepare_sources(self.tokenizer, [window[index] for index in indices], self.target_lang)
        token_ids = self.tokenizer(sources, verbose=False)["input_ids"] if sources else []
        pairs = list(zip(indices, map(self._limit_length, indices, token_ids), strict=True))
        self.first_sentence += len(window)
        batch: list[tuple[int, list[int]]] = []
        for index, ids in sorted(pairs, key=lambda pair: len(pair[1]), reverse=True):
            if batch and (len(batch) + 1) * max(len(batch[0][1]), self.min_counted_length) > self.batch_tokens:
                yield batch
                batch = []
            batch.append((index, ids))
        if batch:
            yield batch

    def _limit_length(self, index: int, ids: list[int]) -> list[int]:
        """Return the ids of sentence `index` of the window, truncated to `max_source_length` with `</s>` kept."""
        if len(ids) <= self.max_source_length:
            return ids
        fault = (
            f"sentence {self.first_sentence + index:,} has {len(ids):,} tokens, more than max_source_length "
            f"{self.max_source_length:,}"
        )
        if self.too_long == "refuse":
            raise UserError(f"{fault}; split it into sentences, or raise max_source_length")
        logger.warning("%s; the rest is cut off and not translated", fault)
        return [*ids[: self.max_source_length - 1], ids[-1]]


def _generate(
    model: PreTrainedModel,
    tokenizer: PreTrainedTokenizerBase,
    token_ids: list[list[int]],
    prefixes: list[TargetPrefix],
    settings: dict[str, Any],
) -> list[Translation]:
    """Run `generate()` in eval mode on a batch of token ids, padded on the right, with a target prefix for each.

    Raises:
        UserError: There is too little memory.
    """
    if any(prefix.ids for prefix in prefixes):
        processors = [*(settings.get("logits_processor") or ()), TargetPrefixLogitsProcessor(prefixes)]
        settings = {**settings, "logits_processor": LogitsProcessorList(processors)}
    with _explain_memory(len(token_ids), settings["num_beams"]), eval_mode(model), torch.inference_mode():
        rows = [torch.tensor(ids) for ids in token_ids]
        input_ids = pad_sequence(rows, batch_first=True, padding_value=tokenizer.pad_token_id).to(model.device)
        lengths = torch.tensor([len(ids) for ids in token_ids])
        attention_mask = (torch.arange(input_ids.shape[1]) < lengths[:, None]).long().to(model.device)
        output = model.generate(  # type: ignore[operator]  # from GenerationMixin, which PreTrainedModel does not name
            input_ids=input_ids,
            attention_mask=attention_mask,
            return_dict_in_generate=True,
            tokenizer=tokenizer,  # for stop strings
            **settings,
        )
    texts = decode_batch(tokenizer, output.sequences)
    scores = output.get("sequences_scores")
    return list(map(Translation, texts, [math.nan] * len(texts) if scores is None else scores.tolist()))


@contextmanager
def _explain_memory(sentences: int, num_beams: int) -> Iterator[None]:
    """Turn an error of too little memory into one that says what to change."""
    try:
        yield
    except (MemoryError, RuntimeError) as error:  # on a CPU torch raises a RuntimeError
        words = ("out of memory", "can't allocate memory", "not enough memory")
        if isinstance(error, MemoryError | torch.OutOfMemoryError) or any(word in str(error) for word in words):
            raise UserError(
                f"there is too little memory for a batch of {sentences} sentences with num_beams {num_beams}; lower "
                "batch_tokens, num_beams or max_new_tokens"
            ) from error
        raise
