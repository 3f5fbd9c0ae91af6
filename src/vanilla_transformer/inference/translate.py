"""Translate any number of sentences in batches of similar length."""

import copy
import logging
import math
from collections.abc import Callable, Iterable, Iterator, Sequence, Sized
from contextlib import AbstractContextManager, contextmanager, nullcontext
from functools import cache, partial
from itertools import chain, islice
from typing import Any, NamedTuple, Protocol, TypeVar

import torch
from tqdm import tqdm
from transformers import GenerationConfig, LogitsProcessorList, PreTrainedModel, PreTrainedTokenizerBase

from ..base_vanilla_transformer import TOKENS_BEYOND_SOURCE
from ..data.sources import check_target_lang, check_texts, pad_sources, prepare_sources
from ..data.tokenization import check_added_tokens, decode_batch
from ..errors import UserError
from ..eval_mode_vanilla_transformer import eval_mode
from ..generation_vanilla_transformer import gnmt_beam_search, search_settings
from ..language_tags_vanilla_transformer import is_blank, language_tag, leading_language, tagged_languages
from .alignments import Alignment, align
from .ensemble import Ensemble, as_one_model
from .paragraphs import SentenceSplitter, join_translations
from .prefixes import TargetPrefix, TargetPrefixes, TargetPrefixLogitsProcessor, longest_translation
from .settings import BATCH_TOKENS, MAX_SOURCE_LENGTH, check_settings, new_tokens_limit

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
        alignment: Pairs of a source word and a target word, counted from 0, in the order of the target, if alignments
            are asked for; words are those of `alignments.split_into_words`.
    """

    text: str
    score: float
    alignment: Alignment | None = None


class Sentence(NamedTuple):
    """A sentence of a batch: its text, its token ids, and what its translation must begin with."""

    text: str
    ids: list[int]
    prefix: TargetPrefix


Generate = Callable[[list[Sentence]], list[Translation]]  # `num_return_sequences` for each sentence, best first


class Engine(Protocol):
    """Another program that translates in place of a model."""

    def check(self, config: GenerationConfig, settings: dict[str, Any], max_source_length: int) -> None:
        """Raise UserError for what it can't do; `config` is the model's generation config with the `settings`."""

    def generate(self, token_ids: list[list[int]], config: GenerationConfig) -> list[Translation]:
        """Translate a batch of token ids: `num_return_sequences` translations for each source, best first."""


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
    alignments: bool = False,
    split_sentences: str | None = None,
    engine: Engine | None = None,
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
        alignments: Whether to align the words of each translation to those of its source.
        split_sentences: Language by whose rules each text is split into sentences, such as "en". They are translated
            one by one and joined, see `paragraphs.join_translations`; all limits are those of a sentence. Needs the
            extra `sentences`. None to translate each text as one sentence.
        engine: Translates in place of the model, such as a `CTranslate2Engine` made from it; what it can't do is
            refused. None for the model itself.
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
    splitter = None if split_sentences is None else SentenceSplitter(split_sentences)
    if splitter is not None and num_return_sequences > 1:
        raise UserError(
            f"num_return_sequences is {num_return_sequences}, but the best translations of a text's sentences do not "
            "make its best ones; with split_sentences it must be 1"
        )
    if splitter is not None and target_prefix is not None:
        raise UserError("target_prefix goes with sentences, not with texts that are split; leave out split_sentences")
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
    if isinstance(model, Ensemble) and (alignments or engine is not None):
        raise UserError(f"{'alignments' if alignments else 'an engine'} can't be had of an ensemble; give one model")
    if settings.get("custom_generate") is gnmt_beam_search and new_tokens_limit(config) is not None:
        settings.setdefault("tokens_beyond_source", None)  # a limit that is set counts alone, as in the pipeline
    generate: Generate = partial(_generate, model, tokenizer, settings)
    if engine is not None:
        if alignments or target_prefix is not None:
            raise UserError(
                f"an engine can't do {'alignments' if alignments else 'target_prefix'}; leave out one of the two"
            )
        engine.check(config, settings, max_source_length)
        generate = partial(_generate_by_engine, engine, config)
    if alignments:
        generate = partial(_generate_aligned, model, tokenizer, settings, target_lang)
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
    longest = partial(_longest_translation, config, settings)
    blank = Translation("", 0.0, () if alignments else None)
    return _translate(generate, iter(windows), batcher, prefixes, splitter, bar, longest, blank, num_return_sequences)


def _check_beams(num_beams: int, num_return_sequences: int, vocab_size: int) -> None:
    """Refuse more translations than beams, and more beams than there are first tokens."""
    if num_return_sequences > num_beams:
        raise UserError(f"num_return_sequences is {num_return_sequences}; it can be at most num_beams, {num_beams}")
    if num_beams >= vocab_size:
        raise UserError(f"num_beams is {num_beams}; it must be below the model's vocab_size, {vocab_size}")


def _translate(
    generate: Generate,
    windows: Iterator[list[str]],
    batcher: "_SourceBatcher",
    target_prefixes: TargetPrefixes,
    splitter: SentenceSplitter | None,
    bar: tqdm | None,
    longest: Callable[[int], int | None],
    blank: Translation,
    per_sentence: int,
) -> Iterator[list[Translation]]:
    """Translate with checked arguments; a generator, so nothing runs before the first translation is asked for.

    Args:
        generate: Gives the translations of a batch.
        windows: Lists of texts.
        batcher: Makes batches of sentences.
        target_prefixes: What each sentence's translation begins with.
        splitter: Splits texts into sentences; None for texts of one sentence.
        bar: A progress bar that counts texts.
        longest: Gives how many tokens the translation of a source of so many tokens may have; None if not known.
        blank: The translation of a blank sentence.
        per_sentence: Translations for each sentence.
    """
    with nullcontext() if bar is None else bar:
        for window in windows:
            check_texts(window, "sentence", batcher.first_sentence)
            texts = [[text] if splitter is None else splitter.split(text) for text in window]
            if splitter is not None:
                batcher.check_tags(texts)
            sentences = list(chain.from_iterable(texts))
            numbers = [number for number, text in enumerate(texts) for _ in text]
            prefixes = target_prefixes.take(len(sentences))
            translations = [[blank._replace(text=prefix.text)] * per_sentence for prefix in prefixes]
            batches = list(batcher.make_batches(sentences, numbers))
            for index, ids in chain.from_iterable(batches):
                prefixes[index].check_length(longest(len(ids)))
            waiting = len(window)
            for batch in batches:
                generated = generate([Sentence(sentences[index], ids, prefixes[index]) for index, ids in batch])
                for row, (index, _) in enumerate(batch):
                    # Two per sentence: generated = [row 0 best, row 0 second, row 1 best, row 1 second, ...]
                    translations[index] = generated[row * per_sentence : (row + 1) * per_sentence]
                    for translation in translations[index]:
                        prefixes[index].check_beginning(translation.text)
                # A text counts with its last sentence.
                ended = sum(numbers[index] not in numbers[index + 1 : index + 2] for index, _ in batch)
                waiting -= ended
                if bar is not None:
                    bar.update(ended)
            if bar is not None:
                bar.update(waiting)
            if splitter is None:
                yield from translations
                continue
            found = iter(translations)
            for text, parts in zip(window, texts, strict=True):
                yield [join_translations(text, parts, [best for (best,) in islice(found, len(parts))])]
        target_prefixes.check_end()


def _longest_translation(config: GenerationConfig, settings: dict[str, Any], source_length: int) -> int | None:
    """Compute how many tokens a translation may have; only the paper's search has a limit beside that of the config."""
    beyond = None
    if settings.get("custom_generate") is gnmt_beam_search:
        beyond = settings.get("tokens_beyond_source", TOKENS_BEYOND_SOURCE)
    return longest_translation(config, source_length, beyond)


def cut_into_batches(items: Iterable[T], length: Callable[[T], int], batch_tokens: int) -> Iterator[list[T]]:
    """Cut items into batches by token budget, padding counted.

    Args:
        items: What is batched, the longest first.
        length: Gives the tokens that an item counts as.
        batch_tokens: Most tokens of a batch; an item above it is a batch of its own.
    """
    batch: list[T] = []
    for item in items:
        if batch and (len(batch) + 1) * length(batch[0]) > batch_tokens:
            yield batch
            batch = []
        batch.append(item)
    if batch:
        yield batch


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
        self.has_warned = False  # of an unknown character

    def check_tags(self, texts: list[list[str]]) -> None:
        """Refuse a text of several sentences that begins with a tag, which would be that of its first sentence only."""
        languages = tagged_languages(self.tokenizer)
        for number, sentences in enumerate(texts, start=self.first_sentence):
            language = leading_language(sentences[0], languages) if len(sentences) > 1 else None
            if language not in (None, self.target_lang):
                raise UserError(
                    f"sentence {number:,} is split into {len(sentences)}, and its tag {language_tag(str(language))} "
                    "would be that of the first only; give the target language in place of the tag, or leave out "
                    "split_sentences"
                )

    def make_batches(self, window: list[str], numbers: list[int]) -> Iterator[list[tuple[int, list[int]]]]:
        """Make batches of (index in the window, token ids), longest sentences first; blank sentences are left out.

        Args:
            window: The sentences.
            numbers: For each the number of the text that it is from, from 0.
        """
        indices = [index for index, sentence in enumerate(window) if not is_blank(sentence)]
        sources = prepare_sources(self.tokenizer, [window[index] for index in indices], self.target_lang)
        token_ids = self.tokenizer(sources, verbose=False)["input_ids"] if sources else []
        self._report_unknown([numbers[index] for index in indices], token_ids)
        limited = map(self._limit_length, [numbers[index] for index in indices], token_ids)
        pairs = list(zip(indices, limited, strict=True))
        self.first_sentence += numbers[-1] + 1 if numbers else 0
        pairs.sort(key=lambda pair: len(pair[1]), reverse=True)
        return cut_into_batches(pairs, lambda pair: max(len(pair[1]), self.min_counted_length), self.batch_tokens)

    def _report_unknown(self, numbers: list[int], token_ids: list[list[int]]) -> None:
        """Warn of the first sentence with a part that a tokenizer without bytes does not know."""
        unknown = self.tokenizer.unk_token_id
        number = next((number for number, ids in zip(numbers, token_ids, strict=True) if unknown in ids), None)
        if number is not None and not self.has_warned:
            self.has_warned = True
            logger.warning(
                "sentence %s: the tokenizer does not know a part of it, which becomes %s; later ones are not named",
                f"{self.first_sentence + number:,}",
                self.tokenizer.unk_token,
            )

    def _limit_length(self, number: int, ids: list[int]) -> list[int]:
        """Return the ids of a sentence of text `number`, truncated to `max_source_length` with `</s>` kept."""
        if len(ids) <= self.max_source_length:
            return ids
        fault = (
            f"sentence {self.first_sentence + number:,} has {len(ids):,} tokens, more than max_source_length "
            f"{self.max_source_length:,}"
        )
        if self.too_long == "refuse":
            raise UserError(f"{fault}; split it into sentences, or raise max_source_length")
        logger.warning("%s; the rest is cut off and not translated", fault)
        return [*ids[: self.max_source_length - 1], ids[-1]]


def _generate(
    model: PreTrainedModel, tokenizer: PreTrainedTokenizerBase, settings: dict[str, Any], batch: list[Sentence]
) -> list[Translation]:
    """Translate a batch by `generate()`."""
    return _run_generate(model, tokenizer, settings, batch)[0]


def _generate_by_engine(engine: Engine, config: GenerationConfig, batch: list[Sentence]) -> list[Translation]:
    """Translate a batch by an engine."""
    with _explain_memory(len(batch), config.num_beams or 1):
        return engine.generate([sentence.ids for sentence in batch], config)


def _generate_aligned(
    model: PreTrainedModel,
    tokenizer: PreTrainedTokenizerBase,
    settings: dict[str, Any],
    target_lang: str | None,
    batch: list[Sentence],
) -> list[Translation]:
    """Translate a batch by `generate()`, and align the words."""
    translations, sequences = _run_generate(model, tokenizer, settings, batch)
    sources, source_ids = [sentence.text for sentence in batch], [sentence.ids for sentence in batch]
    with _explain_memory(len(batch), settings["num_beams"]), eval_mode(model):
        aligned = align(model, tokenizer, sources, source_ids, sequences, target_lang)
    return [each._replace(alignment=own) for each, own in zip(translations, aligned, strict=True)]


def _run_generate(
    model: PreTrainedModel, tokenizer: PreTrainedTokenizerBase, settings: dict[str, Any], batch: list[Sentence]
) -> tuple[list[Translation], torch.Tensor]:
    """Run `generate()` in eval mode on a batch of token ids, padded on the right, with a target prefix for each.

    Returns:
        The translations, and their ids with the start token, int64, [translations, length].

    Raises:
        UserError: There is too little memory.
    """
    token_ids, prefixes = [sentence.ids for sentence in batch], [sentence.prefix for sentence in batch]
    if any(prefix.ids for prefix in prefixes):
        processors = [*(settings.get("logits_processor") or ()), TargetPrefixLogitsProcessor(prefixes)]
        settings = {**settings, "logits_processor": LogitsProcessorList(processors)}
    with _explain_memory(len(token_ids), settings["num_beams"]), eval_mode(model), torch.inference_mode():
        output = model.generate(  # type: ignore[operator]  # from GenerationMixin, which PreTrainedModel does not name
            **pad_sources(token_ids, tokenizer.pad_token_id, model.device),
            return_dict_in_generate=True,
            tokenizer=tokenizer,  # for stop strings
            **settings,
        )
    if tokenizer.unk_token_id is not None and (output.sequences == tokenizer.unk_token_id).any():
        _log_unknown_once(str(tokenizer.unk_token))
    texts = decode_batch(tokenizer, output.sequences)
    scores = output.get("sequences_scores")
    scores = [math.nan] * len(texts) if scores is None else scores.tolist()
    return list(map(Translation, texts, scores)), output.sequences


@cache
def _log_unknown_once(token: str) -> None:
    logger.warning("the model wrote %s, for what its tokenizer has no text; it is left out of the translations", token)


def _explain_memory(sentences: int, num_beams: int) -> AbstractContextManager[None]:
    """Do what `explain_memory` does, for a search."""
    return explain_memory(
        f"a batch of {sentences} sentences with num_beams {num_beams}",
        "lower batch_tokens, num_beams or max_new_tokens",
    )


@contextmanager
def explain_memory(batch: str, remedy: str) -> Iterator[None]:
    """Turn an error of too little memory into one that says what to change.

    Args:
        batch: What needs the memory, such as "a batch of 3 pairs".
        remedy: What to do, such as "lower batch_tokens".
    """
    try:
        yield
    except (MemoryError, RuntimeError) as error:  # on a CPU torch raises a RuntimeError
        words = ("out of memory", "can't allocate memory", "not enough memory")
        if isinstance(error, MemoryError | torch.OutOfMemoryError) or any(word in str(error) for word in words):
            raise UserError(f"there is too little memory for {batch}; {remedy}") from error
        raise
