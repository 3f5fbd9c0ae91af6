"""Source sentences on their way to the tokenizer: their Unicode normal form, and the tag of the target language."""

from collections.abc import Sequence

import torch
from torch.nn.utils.rnn import pad_sequence
from transformers import PreTrainedTokenizerBase

from ..errors import UserError
from ..language_tags_vanilla_transformer import check_target_language, tag_sources
from .normal_form import normalize_sources
from .text_files import is_text


def prepare_sources(
    tokenizer: PreTrainedTokenizerBase, sources: Sequence[str], target_lang: str | None = None
) -> list[str]:
    """Bring sources into the form that the model knows, see `normalize_sources` and `tag_sources`.

    Args:
        tokenizer: The model's tokenizer.
        sources: The source sentences.
        target_lang: The language whose tag is put before each source that has none; None for sources as they are.

    Raises:
        UserError: The tokenizer has no tag for the language, or not the tag that a source begins with.
    """
    try:
        return tag_sources(tokenizer, normalize_sources(tokenizer, sources), target_lang)
    except ValueError as error:
        raise UserError(str(error)) from error


def check_texts(texts: Sequence[str], what: str, first: int = 1) -> None:
    """Refuse what is no text, before the tokenizer does it with a sentence about its own types.

    Args:
        texts: Strings.
        what: What one of them is, such as "sentence".
        first: Number of the first.

    Raises:
        TypeError: One is no string.
        UserError: One has half of a surrogate pair.
    """
    for number, text in enumerate(texts, start=first):
        if not isinstance(text, str):
            raise TypeError(f"{what} {number:,} must be a string, not a {type(text).__name__}")
        if not is_text(text):
            raise UserError(f"{what} {number:,} has half of a surrogate pair; write the character whole")


def check_target_lang(tokenizer: PreTrainedTokenizerBase, target_lang: str | None) -> None:
    """Refuse a target language that the tokenizer has no tag for; None is none.

    Raises:
        UserError: With the languages that there are.
    """
    try:
        check_target_language(tokenizer, target_lang)
    except ValueError as error:
        raise UserError(str(error)) from error


def pad_sources(token_ids: Sequence[list[int]], pad_token_id: int, device: torch.device) -> dict[str, torch.Tensor]:
    """Pad a batch of sources on the right.

    Returns:
        "input_ids" and "attention_mask", int64, [batch, source length].
    """
    input_ids = pad_sequence(list(map(torch.tensor, token_ids)), batch_first=True, padding_value=pad_token_id)
    lengths = torch.tensor(list(map(len, token_ids)))
    attention_mask = (torch.arange(input_ids.shape[1]) < lengths[:, None]).long()
    return {"input_ids": input_ids.to(device), "attention_mask": attention_mask.to(device)}
