"""Source sentences on their way to the tokenizer: their Unicode normal form, and the tag of the target language."""

from collections.abc import Sequence

from transformers import PreTrainedTokenizerBase

from ..errors import UserError
from ..language_tags_vanilla_transformer import check_target_language, tag_sources
from .normal_form import normalize_sources


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


def check_target_lang(tokenizer: PreTrainedTokenizerBase, target_lang: str | None) -> None:
    """Refuse a target language that the tokenizer has no tag for; None is none.

    Raises:
        UserError: With the languages that there are.
    """
    try:
        check_target_language(tokenizer, target_lang)
    except ValueError as error:
        raise UserError(str(error)) from error
