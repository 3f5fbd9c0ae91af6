"""Target prefixes: texts that translations must begin with.

A prefix is cut into tokens as the tokenizer cuts it alone, and each translation is forced to begin with these tokens.
This works in every search and with prefixes of different length in a batch, since a search continues each hypothesis by
one token a step and asks the logits processors each time.
"""

import logging
from collections.abc import Iterable, Iterator
from itertools import islice, repeat
from typing import NamedTuple

import torch
from torch.nn.utils.rnn import pad_sequence
from transformers import GenerationConfig, LogitsProcessor, PreTrainedTokenizerBase

from ..base_vanilla_transformer import LIMIT_BY_SOURCE, TOKENS_BEYOND_SOURCE
from ..data.normal_form import missed_form
from ..errors import UserError
from .settings import new_tokens_limit

logger = logging.getLogger(__name__)

_NO_TOKEN = -1  # after the last token of a prefix that is shorter than others of its batch


class TargetPrefix(NamedTuple):
    """What the translation of a sentence must begin with.

    Attributes:
        text: The text; empty for no prefix. Segmented text is joined, as translations are: "do@@ g" is "dog" here.
        ids: The text's token ids, without special tokens.
        sentence: Number of the sentence, for errors.
    """

    text: str
    ids: tuple[int, ...]
    sentence: int

    def __str__(self) -> str:
        """Name the prefix in an error."""
        shown = self.text if len(self.text) <= 40 else f"{self.text[:40]}..."
        return f"the target prefix of sentence {self.sentence:,}, {shown!r},"

    def check_length(self, limit: int | None) -> None:
        """Refuse a prefix that, with `</s>` after it, has more tokens than a translation may have.

        Raises:
            UserError: It has.
        """
        if limit is not None and len(self.ids) + 1 > limit:
            raise UserError(
                f"{self} has {len(self.ids):,} tokens and needs one more for the end, but a translation has at most "
                f"{limit:,}; give a shorter one"
            )

    def check_beginning(self, text: str) -> None:
        """Refuse a translation that does not begin with the prefix.

        Raises:
            UserError: It ended before, or its search did not ask the logits processors.
        """
        if not text.startswith(self.text):
            raise UserError(
                f"{self} is not the beginning of what the search found, {text[:80]!r}; a stopping criterion may have "
                "ended it too early, or the search is one that asks no logits processor"
            )


class TargetPrefixes:
    """The target prefixes of sentences, in their order; each is read when it is needed.

    Args:
        tokenizer: The model's tokenizer.
        given: A text for all sentences, or an iterable with one text for each, empty where there is none; None for no
            prefixes.
        first_sentence: Number of the first sentence, for errors.
    """

    def __init__(
        self, tokenizer: PreTrainedTokenizerBase, given: str | Iterable[str] | None, first_sentence: int = 1
    ) -> None:
        self._tokenizer = tokenizer
        self._sentence = first_sentence
        self._for_all = given if isinstance(given, str) else "" if given is None else None
        self._texts: Iterator[str] = iter(given or ()) if self._for_all is None else repeat(self._for_all)
        if self._for_all:
            self._encode([self._for_all])

    def take(self, count: int) -> list[TargetPrefix]:
        """Return the prefixes of the next sentences.

        Raises:
            UserError: There are too few, or one can't be tokenized or has special tokens.
        """
        texts = list(islice(self._texts, count))
        if len(texts) < count:
            raise UserError(
                f"there is no target prefix for sentence {self._sentence + len(texts):,}; give one for each sentence, "
                "empty where a translation may begin as it likes"
            )
        prefixes = self._encode(texts)
        self._sentence += count
        return prefixes

    def check_end(self) -> None:
        """Refuse prefixes that are left when there are no more sentences.

        Raises:
            UserError: There are some.
        """
        if self._for_all is None and next(self._texts, None) is not None:
            raise UserError(
                f"there are more target prefixes than sentences, {self._sentence - 1:,}; give one for each sentence"
            )

    def _encode(self, texts: list[str]) -> list[TargetPrefix]:
        """Cut prefixes into tokens and check them, each text once."""
        encoded = {"": TargetPrefix("", (), 0)}
        for sentence, text in enumerate(texts, start=self._sentence):
            if not isinstance(text, str):
                raise TypeError(f"a target prefix must be a string, not a {type(text).__name__}")
            if text not in encoded:
                ids = self._tokenizer(text, add_special_tokens=False, verbose=False)["input_ids"]
                encoded[text] = _check_tokens(self._tokenizer, TargetPrefix(text, tuple(ids), sentence))
        return [encoded[text]._replace(sentence=n) for n, text in enumerate(texts, start=self._sentence)]


def _check_tokens(tokenizer: PreTrainedTokenizerBase, prefix: TargetPrefix) -> TargetPrefix:
    """Return the prefix as it will stand in a translation.

    Raises:
        UserError: Its tokens do not stand for its text.
    """
    special = set(prefix.ids).intersection(tokenizer.all_special_ids)
    if tokenizer.unk_token_id in special:
        raise UserError(f"{prefix} can't be tokenized: a part of it becomes {tokenizer.unk_token}; change it")
    if special:
        token = tokenizer.convert_ids_to_tokens(min(special))
        raise UserError(f"{prefix} has the special token {token!r}, which is no text of a translation; leave it out")
    decoded = tokenizer.decode(list(prefix.ids), skip_special_tokens=True)
    if decoded not in (prefix.text, prefix.text.replace("@@ ", "")):
        raise UserError(f"{prefix} can't be tokenized: the tokenizer restores it as {decoded[:80]!r}; write it so")
    if (form := missed_form(tokenizer, prefix.text)) is not None:
        logger.warning("%s is not in Unicode normal form %s, which the model was trained on", prefix, form)
    return prefix._replace(text=decoded)


def longest_translation(config: GenerationConfig, source_length: int, tokens_beyond_source: int | None) -> int | None:
    """Compute how many tokens a translation may have, `</s>` included; None if that is not known.

    Args:
        config: The model's generation config with the settings of this call.
        source_length: Tokens of the source, `</s>` included.
        tokens_beyond_source: How much longer than its source a translation may be, beside the limits of the config;
            None if only these count.
    """
    limits = []
    if (limit := new_tokens_limit(config)) is not None:
        limits.append(limit)
    elif config.max_length == LIMIT_BY_SOURCE and tokens_beyond_source is None:
        limits.append(source_length + TOKENS_BEYOND_SOURCE)
    if tokens_beyond_source is not None:
        limits.append(source_length + tokens_beyond_source)
    return min(limits, default=None)


class TargetPrefixLogitsProcessor(LogitsProcessor):
    """Forces the first tokens of each translation.

    A forced token keeps its score, so that the score of a translation is that of the whole: only the others get minus
    infinity. A forced token that another setting has forbidden, such as `suppress_tokens`, gets 0, as if it were
    certain.

    Args:
        prefixes: Of the sentences of a batch, in order.
    """

    def __init__(self, prefixes: list[TargetPrefix]) -> None:
        rows = [torch.tensor(prefix.ids, dtype=torch.long) for prefix in prefixes]
        # [sentences, longest prefix]: [[17, 4, 9], [8, -1, -1], [-1, -1, -1]]
        self.ids = pad_sequence(rows, batch_first=True, padding_value=_NO_TOKEN)
        self.prompt_length: int | None = None

    def __call__(self, input_ids: torch.LongTensor, scores: torch.FloatTensor) -> torch.FloatTensor:
        """Force the next token where a prefix has one.

        Args:
            input_ids: Prompt and tokens so far, [sentences * n, length]; a sentence's rows lie side by side.
            scores: Scores of the next token, [sentences * n, vocabulary].
        """
        if self.prompt_length is None:
            self.prompt_length, self.ids = input_ids.shape[1], self.ids.to(scores.device)
        step = input_ids.shape[1] - self.prompt_length
        if step >= self.ids.shape[1]:
            return scores
        tokens = self.ids[:, step].repeat_interleave(scores.shape[0] // len(self.ids))[:, None]
        is_forced, tokens = tokens != _NO_TOKEN, tokens.clamp(min=0)
        kept = scores.gather(1, tokens)
        kept = kept.masked_fill(kept == -torch.inf, 0.0)
        forced = torch.full_like(scores, -torch.inf).scatter(1, tokens, kept)
        return torch.where(is_forced, forced, scores)  # type: ignore[return-value]  # torch.where names no dtype
