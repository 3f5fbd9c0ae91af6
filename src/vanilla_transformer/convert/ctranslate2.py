"""Export to CTranslate2, an inference engine in C++."""

from pathlib import Path

import torch
from transformers import PreTrainedModel, PreTrainedTokenizerBase

from ..data.files import check_not_in_use, new_folder
from ..errors import UserError, require
from ..modeling_vanilla_transformer import VanillaTransformerForConditionalGeneration
from .weight_layout import check_model_class, float32_copy

# Length of the table of positions. By default CTranslate2 cuts sources after as many tokens.
MAX_POSITIONS = 1024


def to_ctranslate2(
    model: PreTrainedModel,
    tokenizer: PreTrainedTokenizerBase,
    folder: str | Path,
    quantization: str | None = None,
) -> None:
    """Write the model for CTranslate2, a fast engine in C++: `ctranslate2.Translator(folder)`.

    It takes and gives tokens, with `</s>` at the source's end as the tokenizer puts it there:
    `tokenizer.convert_ids_to_tokens(tokenizer(sentence)["input_ids"])`. It has 1,024 positions and cuts longer
    sources.

    Nothing of the generation config goes with the model: CTranslate2's own defaults are beams of 2, a length penalty of
    1 and 256 tokens at most. It divides a log-probability by length^length_penalty, as transformers does and the paper
    does not, and stops after `beam_size * patience` hypotheses. With `patience=2` and `min_decoding_length=0` it writes
    what `generate()` writes, but for rare sentences where one of the two stops too early.

    Args:
        model: A `VanillaTransformerForConditionalGeneration`.
        tokenizer: Its tokenizer, which gives the tokens their names.
        folder: Where to write, new or empty.
        quantization: "int8" or another of CTranslate2's types; by default float32.

    Raises:
        UserError: CTranslate2 is not installed or can't represent the model, or the folder is in use.
    """
    check_model_class(model, VanillaTransformerForConditionalGeneration)
    if model.config.eos_token_id not in (tokenizer.eos_token_id, [tokenizer.eos_token_id]):
        raise UserError(
            f"CTranslate2 ends a sentence with the tokenizer's {tokenizer.eos_token_id}, but the model's config has "
            f"eos_token_id {model.config.eos_token_id}; it can't be converted"
        )
    check_not_in_use(folder, "export")
    check_quantization(quantization)
    from .ctranslate2_loader import VanillaTransformerLoader  # needs the extra [ct2]

    with torch.no_grad():
        spec = VanillaTransformerLoader()(float32_copy(model), tokenizer)  # a copy: quantization works in place
    spec.validate()
    spec.optimize(quantization)
    with new_folder(folder, "export") as partial:
        spec.save(str(partial))


def check_quantization(quantization: str | None) -> None:
    """Refuse a type of weights that CTranslate2 does not have.

    Raises:
        UserError: CTranslate2 is not installed, or does not have the type.
    """
    types = require("ctranslate2", extra="ct2").specs.model_spec.ACCEPTED_MODEL_TYPES
    if quantization is not None and quantization not in types:
        raise UserError(f"quantization is {quantization!r}; CTranslate2 has {', '.join(types)}")
