"""Filter and tokenize sentence pairs."""

from dataclasses import dataclass

import numpy as np
from datasets import Dataset, Features, Value
from transformers import PreTrainedTokenizerFast

from ..errors import UserError
from ..language_tags_vanilla_transformer import is_blank
from .bpe_dropout import SYMBOL_COLUMNS, BpeDropout
from .caching import cache_errors, cache_key
from .limits import LengthLimits, check_count
from .normal_form import normal_form
from .reading import no_pairs_message
from .sources import check_target_lang, prepare_sources
from .tokenization import check_added_tokens, check_appends_eos

RATIO_FREE_LENGTH = 10  # tokens; pairs whose longer side is no longer than this may have any ratio of lengths


@dataclass(frozen=True)
class DropReport:
    """Number of pairs that were kept, and that were dropped for each reason.

    Attributes:
        kept: Pairs that are left.
        empty: Dropped because source or target is blank.
        too_long: Dropped because source or target has more tokens than allowed.
        length_ratio: Dropped because one side has too many times the tokens of the other.
    """

    kept: int
    empty: int
    too_long: int
    length_ratio: int

    def __str__(self) -> str:
        """Return the report as one sentence."""
        total = self.kept + self.empty + self.too_long + self.length_ratio
        return (
            f"kept {self.kept:,} of {total:,} pairs; dropped {self.empty:,} with an empty side, {self.too_long:,} over "
            f"the length limit, {self.length_ratio:,} over the length ratio"
        )

    def check(self) -> None:
        """Refuse data of which nothing is left.

        Raises:
            UserError: No pair was kept.
        """
        if self.kept == 0:
            raise UserError(f"no sentence pair is left: {self}; raise the limits, or check the data")


# What `encode_batch` decides on a pair: the index of the field of `DropReport` that counts it.
KEPT, _EMPTY, _TOO_LONG, _LENGTH_RATIO = range(4)


def encode_pairs(
    pairs: Dataset,
    tokenizer: PreTrainedTokenizerFast,
    *,
    max_source_length: int,
    max_target_length: int,
    max_length_ratio: float,
    num_proc: int | None = None,
    dropout: BpeDropout | None = None,
    target_lang: str | None = None,
) -> tuple[Dataset, DropReport]:
    """Tokenize sentence pairs, and drop those that can't be trained on. No sentence is ever cut short.

    A pair is dropped if either side is blank, if either side is too long, or if the longer side has more than
    `max_length_ratio` times the tokens of the shorter. Lengths are in tokens and include `</s>`. The ratio says nothing
    about very short sentences ("No." may be three words elsewhere), so it is not applied where the longer side has at
    most `RATIO_FREE_LENGTH` tokens. Sources are brought into the tokenizer's Unicode normal form, as in translation;
    targets are left as they are.

    Args:
        pairs: Columns "source" and "target".
        tokenizer: A tokenizer that appends its end-of-sentence token, such as `train_tokenizer` gives.
        max_source_length: As in `LengthLimits`.
        max_target_length: As in `LengthLimits`.
        max_length_ratio: As in `LengthLimits`.
        num_proc: Processes to tokenize in. None for this one only, with the tokenizer's own threads.
        dropout: To add the columns "source_symbols" and "target_symbols" for `BpeDropoutPairs`. Which pairs are dropped
            does not depend on it.
        target_lang: The language whose tag is put before each source that has none, see `tag_sources`. The tag counts
            as a token of the source.

    Returns:
        The pairs that are left, in their order, as columns "input_ids" and "labels", and what was dropped.

    Raises:
        UserError: No pair is left, the tokenizer appends no end-of-sentence token or splits an added one, a limit or
            `num_proc` is out of range, or the cache can't be written.
    """
    limits = LengthLimits(max_source_length, max_target_length, max_length_ratio).check()
    if num_proc is not None:
        check_count("num_proc", num_proc)
    if missing := {"source", "target"} - set(pairs.column_names):
        raise UserError(f"the data set has no column {min(missing)!r}; name the columns source and target")
    if len(pairs) == 0:
        raise UserError(no_pairs_message("the data set"))
    check_appends_eos(tokenizer)
    check_added_tokens(tokenizer)
    check_target_lang(tokenizer, target_lang)
    # What decides the ids, and no more: the tokenizer's pickle, which `datasets` would hash, also holds where it came
    # from. The call above has undone any padding and truncation that were left switched on.
    backend = tokenizer.backend_tokenizer.to_str()
    settings = (
        tokenizer.split_special_tokens,
        normal_form(tokenizer),
        *(["symbols"] if dropout else []),
        *([target_lang] if target_lang else []),
    )
    columns = ["input_ids", "labels", *(SYMBOL_COLUMNS.values() if dropout else [])]
    with cache_errors():
        encoded = pairs.map(
            encode_batch,
            batched=True,
            fn_kwargs={"tokenizer": tokenizer, "limits": limits, "dropout": dropout, "target_lang": target_lang},
            remove_columns=pairs.column_names,
            features=Features({name: [Value("int32")] for name in columns} | {"dropped": Value("int8")}),
            num_proc=None if num_proc is None else min(num_proc, len(pairs)),
            new_fingerprint=cache_key(pairs._fingerprint, backend, settings, tuple(limits)),
            desc="Tokenizing",
        )
    dropped = encoded.data.column("dropped").to_numpy()
    report = DropReport(*np.bincount(dropped, minlength=4).tolist())
    report.check()
    return encoded.select(np.flatnonzero(dropped == KEPT)).remove_columns("dropped"), report


def encode_batch(
    batch: dict[str, list[str]],
    tokenizer: PreTrainedTokenizerFast,
    limits: LengthLimits,
    dropout: BpeDropout | None = None,
    target_lang: str | None = None,
) -> dict[str, list]:
    """Tokenize some pairs, and decide which to drop.

    Args:
        batch: Columns "source" and "target".
        tokenizer: As in `encode_pairs`.
        limits: As in `encode_pairs`.
        dropout: As in `encode_pairs`.
        target_lang: As in `encode_pairs`.

    Returns:
        Columns "input_ids" and "labels", empty where the pair is dropped, and "dropped", which is `KEPT` or the index
        of the reason among `DropReport`'s fields. With `dropout` also the columns of the symbols.
    """
    columns: dict[str, list] = {"input_ids": [], "labels": [], "dropped": []}
    sources = prepare_sources(tokenizer, batch["source"], target_lang)
    for source, target, source_ids, target_ids in zip(
        sources,
        batch["target"],
        tokenizer(sources, return_attention_mask=False, verbose=False)["input_ids"],
        tokenizer(batch["target"], return_attention_mask=False, verbose=False)["input_ids"],
        strict=True,
    ):
        blank = is_blank(source) or is_blank(target)
        dropped = _EMPTY if blank else _check_lengths(len(source_ids), len(target_ids), limits)
        columns["input_ids"].append(source_ids if dropped == KEPT else [])
        columns["labels"].append(target_ids if dropped == KEPT else [])
        columns["dropped"].append(dropped)
    if dropout is not None:
        is_kept = [reason == KEPT for reason in columns["dropped"]]
        for name, texts in zip(SYMBOL_COLUMNS.values(), (sources, batch["target"]), strict=True):
            symbols = iter(dropout.split([text for text, kept in zip(texts, is_kept, strict=True) if kept]))
            columns[name] = [next(symbols) if kept else [] for kept in is_kept]
    return columns


def _check_lengths(source_length: int, target_length: int, limits: LengthLimits) -> int:
    """Return `KEPT`, `_TOO_LONG` or `_LENGTH_RATIO` for a pair of so many tokens."""
    if source_length > limits.max_source_length or target_length > limits.max_target_length:
        return _TOO_LONG
    shorter, longer = sorted((source_length, target_length))
    over_ratio = longer > RATIO_FREE_LENGTH and longer > limits.max_length_ratio * shorter
    return _LENGTH_RATIO if over_ratio else KEPT
