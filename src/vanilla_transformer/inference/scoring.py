"""Log-probabilities of given translations: of sentence pairs, and of n-best lists to put them into a new order."""

import logging
import math
from collections.abc import Iterable, Iterator, Sequence, Sized
from itertools import tee
from typing import Any, NamedTuple

import torch
from torch.nn import functional as F
from tqdm import tqdm
from transformers import PreTrainedModel, PreTrainedTokenizerBase

from ..data.batching import TranslationCollator
from ..data.normal_form import missed_form
from ..data.sources import check_target_lang, check_texts, prepare_sources
from ..data.tokenization import check_added_tokens, check_appends_eos
from ..errors import UserError
from ..eval_mode_vanilla_transformer import eval_mode
from ..generation_vanilla_transformer import gnmt_length_penalty, search_settings
from .settings import BATCH_TOKENS, check_settings
from .translate import MIN_COUNTED_LENGTH, Translation, cut_into_batches, explain_memory, split_into_windows

logger = logging.getLogger(__name__)

MAX_LENGTH = 1024  # tokens of a side, unless more are asked for

Pair = tuple[str, str | Sequence[int]]  # a source, and its translation as text or as token ids


class PairScore(NamedTuple):
    """What a model gives a translation Y of a source X. All logarithms are natural.

    Attributes:
        log_prob: log P(Y|X), the sum over the tokens of Y and `</s>`.
        tokens: |Y|, the number of these tokens, `</s>` included.
        score: log P(Y|X) / ((5 + |Y|) / 6)^alpha, which the paper's search gives as `sequences_scores`.
        token_ids: The tokens.
        token_log_probs: The log-probability of each token, given the source and the tokens before it.
    """

    log_prob: float
    tokens: int
    score: float
    token_ids: list[int]
    token_log_probs: list[float]

    @property
    def log_prob_per_token(self) -> float:
        """The mean of the tokens' log-probabilities; over a whole corpus, summed by tokens, minus the loss."""
        return self.log_prob / self.tokens


class _EncodedPair(NamedTuple):
    """A pair as token ids, with its place in its window."""

    place: int
    source_ids: list[int]
    target_ids: list[int]

    @property
    def length(self) -> int:
        return max(len(self.source_ids), len(self.target_ids), MIN_COUNTED_LENGTH)


def score(
    model: PreTrainedModel,
    tokenizer: PreTrainedTokenizerBase,
    pairs: Iterable[Pair],
    *,
    length_penalty: float | None = None,
    batch_tokens: int = BATCH_TOKENS,
    max_length: int = MAX_LENGTH,
    target_lang: str | None = None,
    progress: bool = False,
) -> Iterator[PairScore]:
    """Score any number of sentence pairs, in order: log P(Y|X) with teacher forcing.

    Pairs are read in windows of `WINDOW_SIZE`, sorted by length there and cut into batches by token budget. A pair's
    score does not depend on its neighbours. The model's `forward` is called, so that hooks and adapters count.

    Args:
        model: The model, on any device, in any dtype, in training or eval mode; its mode is restored.
        tokenizer: The model's tokenizer.
        pairs: Sources and translations. A translation as token ids is taken as it is, with the `</s>` that it has and
            without the start token; one as text is cut into tokens as the tokenizer cuts it, which need not be the
            tokens that a search has put it together from. A blank side is scored as an empty sentence.
        length_penalty: alpha. Defaults to that of the model's own search: its generation config's, else the paper's
            0.6, and 0 if the config says greedy search.
        batch_tokens: Most tokens of a batch on either side, padding included. A longer pair is a batch of its own.
        max_length: Most tokens of either side, `</s>` included. Nothing is cut: a longer pair is refused.
        target_lang: As in `translate_windows`.
        progress: Show a progress bar on standard error if that is a terminal.

    Returns:
        An iterator over the scores.

    Raises:
        UserError: A setting is out of range, the model has no tag for the target language, or the tokenizer can't be
            used; while iterating, a pair is too long or has impossible ids, the model's output is not finite, or there
            is too little memory.
    """
    check_settings(length_penalty=length_penalty, batch_tokens=batch_tokens)
    check_max_length(max_length)
    check_appends_eos(tokenizer)
    check_added_tokens(tokenizer)
    check_target_lang(tokenizer, target_lang)
    if length_penalty is None:
        defaults = model.generation_config
        length_penalty = search_settings(defaults.num_beams, defaults.length_penalty)["length_penalty"] or 0.0
    encoder = _PairEncoder(tokenizer, max_length, target_lang, model.config.vocab_size)
    collator = TranslationCollator(tokenizer, model.config.decoder_start_token_id)
    total = len(pairs) if isinstance(pairs, Sized) else None
    bar = tqdm(total=total, unit=" pairs", disable=None if progress else True)
    windows = split_into_windows(pairs)
    return _score(model, collator, windows, encoder, batch_tokens, length_penalty, bar)


def rerank(
    model: PreTrainedModel,
    tokenizer: PreTrainedTokenizerBase,
    nbest: Iterable[tuple[str, Sequence[Translation]]],
    *,
    weight: float = 1.0,
    **settings: Any,
) -> Iterator[list[Translation]]:
    """Score n-best lists with a model, and put each into the order of the new scores.

    Args:
        model: As in `score`.
        tokenizer: As in `score`.
        nbest: Sources with their translations, as `translate` gives them, any number each.
        weight: Weight w of this model. A new score is w times this model's penalized score plus (1 - w) times the
            score that the translation has.
        **settings: Keyword arguments of `score`.

    Returns:
        An iterator over the lists, best first. Of equal scores the order stays.

    Raises:
        UserError: The weight is not from 0 to 1, or as in `score`; while iterating, a translation has no score and
            `weight` is below 1.
    """
    check_weight(weight)
    for_scores, lists = tee(nbest)
    pairs = ((source, translation.text) for source, translations in for_scores for translation in translations)
    scores = score(model, tokenizer, pairs, **settings)
    return (_rerank_list(number, *item, scores, weight) for number, item in enumerate(lists, start=1))


def check_max_length(value: int) -> None:
    """Refuse a greatest length that leaves no room for a token and `</s>`.

    Raises:
        UserError: With its name and value.
    """
    if value < 2:
        raise UserError(f"max_length is {value}; it must be at least 2, a token and </s>")


def check_weight(value: float) -> None:
    """Refuse a weight that is not from 0 to 1.

    Raises:
        UserError: With its name and value.
    """
    if not 0 <= value <= 1:  # NaN too
        raise UserError(f"weight is {value}; it must be from 0, the old scores alone, to 1, the new ones alone")


def _rerank_list(
    number: int, source: str, translations: Sequence[Translation], scores: Iterator[PairScore], weight: float
) -> list[Translation]:
    """Sort the translations of a source by the next of the scores, mixed with their own."""
    reranked = []
    for translation in translations:
        mixed = next(scores).score
        if weight < 1:
            if math.isnan(translation.score):
                raise UserError(
                    f"list {number:,}: a translation has no score to mix with; make the list by a search that gives "
                    "scores, or leave out the weight"
                )
            mixed = weight * mixed + (1 - weight) * translation.score
        reranked.append(translation._replace(score=mixed))
    return sorted(reranked, key=lambda translation: translation.score, reverse=True)


class _PairEncoder:
    """Cuts windows of pairs into tokens. Counts the pairs of all windows, to name one that can't be scored."""

    def __init__(
        self, tokenizer: PreTrainedTokenizerBase, max_length: int, target_lang: str | None, vocab_size: int
    ) -> None:
        self.tokenizer, self.max_length, self.target_lang = tokenizer, max_length, target_lang
        self.vocab_size = vocab_size
        self._has_warned = False
        self.first_pair = 1  # number of the first pair of the next window

    def encode(self, window: Sequence[Pair]) -> list[_EncodedPair]:
        """Return the pairs as ids, the longest first."""
        sources = [source for source, _ in window]
        check_texts(sources, "the source of pair", self.first_pair)
        prepared = prepare_sources(self.tokenizer, sources, self.target_lang)
        source_ids = self.tokenizer(prepared, verbose=False)["input_ids"]
        texts = [target if isinstance(target, str) else "" for _, target in window]
        check_texts(texts, "the target of pair", self.first_pair)
        self._check_form(texts)
        text_ids = self.tokenizer(texts, verbose=False)["input_ids"]
        encoded = []
        for index, (_, target) in enumerate(window):
            target_ids = text_ids[index] if isinstance(target, str) else self._check_ids(index, target)
            pair = _EncodedPair(index, source_ids[index], target_ids)
            self._check_length(index, "source", len(pair.source_ids))
            self._check_length(index, "target", len(pair.target_ids))
            encoded.append(pair)
        self.first_pair += len(window)
        return sorted(encoded, key=lambda pair: pair.length, reverse=True)

    def _check_form(self, targets: Sequence[str]) -> None:
        """Warn of the first target in another normal form than the model's; it is scored as it is."""
        for index, text in enumerate(targets):
            if not self._has_warned and (form := missed_form(self.tokenizer, text)) is not None:
                self._has_warned = True
                logger.warning(
                    "pair %s: the target is not in Unicode normal form %s, which the model was trained on; convert it "
                    "for a better score",
                    f"{self.first_pair + index:,}",
                    form,
                )

    def _check_ids(self, index: int, target: Sequence[int]) -> list[int]:
        ids = [int(token) for token in target]
        if not ids or not all(0 <= token < self.vocab_size for token in ids):
            raise UserError(
                f"pair {self.first_pair + index:,}: the target's ids must be at least one, and from 0 to "
                f"{self.vocab_size - 1:,}; leave out padding with -100"
            )
        return ids

    def _check_length(self, index: int, side: str, length: int) -> None:
        if length > self.max_length:
            raise UserError(
                f"pair {self.first_pair + index:,}: the {side} has {length:,} tokens, more than max_length "
                f"{self.max_length:,}; leave the pair out, or raise max_length to score it whole"
            )


def _score(
    model: PreTrainedModel,
    collator: TranslationCollator,
    windows: Iterator[list[Pair]],
    encoder: _PairEncoder,
    batch_tokens: int,
    alpha: float,
    bar: tqdm,
) -> Iterator[PairScore]:
    """Score with checked arguments; a generator, so nothing runs before the first score is asked for."""
    with bar:
        for window in windows:
            scores: dict[int, PairScore] = {}
            for batch in cut_into_batches(encoder.encode(window), lambda pair: pair.length, batch_tokens):
                rows = _token_log_probs(model, collator, batch)
                for pair, row in zip(batch, rows, strict=True):
                    scores[pair.place] = _summarize(pair.target_ids, row, alpha)
                bar.update(len(batch))
            yield from (scores[index] for index in range(len(window)))


def _token_log_probs(
    model: PreTrainedModel, collator: TranslationCollator, batch: Sequence[_EncodedPair]
) -> list[list[float]]:
    """Compute the log-probability of each target token of a batch.

    Raises:
        UserError: The model's output is not finite, or there is too little memory.
    """
    needs = f"a batch of {len(batch)} pairs with up to {batch[0].length:,} tokens"
    with explain_memory(needs, "lower batch_tokens or max_length"), eval_mode(model), torch.inference_mode():
        inputs = collator([{"input_ids": pair.source_ids, "labels": pair.target_ids} for pair in batch])
        inputs = {name: tensor.to(model.device) for name, tensor in inputs.items()}
        labels = inputs.pop("labels")  # [pairs, target length], -100 for padding
        logits = model(**inputs, use_cache=False).logits  # [pairs, target length, vocabulary]
        losses = F.cross_entropy(logits.transpose(1, 2).float(), labels, reduction="none")
    if losses.isnan().any():
        raise UserError("the model's output is not finite; check the model's weights for NaN and infinity")
    return [(-row[: len(pair.target_ids)]).tolist() for pair, row in zip(batch, losses, strict=True)]


def _summarize(token_ids: list[int], token_log_probs: list[float], alpha: float) -> PairScore:
    log_prob, tokens = math.fsum(token_log_probs), len(token_ids)
    return PairScore(log_prob, tokens, log_prob / gnmt_length_penalty(tokens, alpha), token_ids, token_log_probs)
