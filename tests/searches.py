"""The paper's search and the library's, which give the same without a length penalty, on one model and batch."""

import torch
from helpers import PAD, padded, random_ids, small_config
from transformers import set_seed

from vanilla_transformer import (
    VanillaTransformerForConditionalGeneration,
    gnmt_beam_search,
)

SETTINGS = {"num_beams": 3, "length_penalty": 0.0, "max_new_tokens": 9}


def sharp_model(model_class: type = VanillaTransformerForConditionalGeneration, **overrides):
    """The same one each time; what it writes depends on all of its weights."""
    set_seed(5)
    model = model_class(small_config(tie_word_embeddings=False, **overrides)).eval()
    with torch.no_grad():
        for parameter in model.parameters():
            parameter.add_(torch.randn_like(parameter) * 0.1)
            if parameter.dim() == 2:
                parameter.mul_(3)
    model.generation_config.no_repeat_ngram_size = 1  # a model that isn't trained repeats itself
    return model


def inputs() -> dict[str, torch.Tensor]:
    set_seed(6)
    input_ids, attention_mask = padded([random_ids(n) for n in (7, 3)], 7)
    return {"input_ids": input_ids, "attention_mask": attention_mask}


def rows(sequences: torch.Tensor) -> list[list[int]]:
    return [[token for token in row if token != PAD] for row in sequences.tolist()]


def paper(model, **settings) -> list[list[int]]:
    return rows(model.generate(**inputs(), custom_generate=gnmt_beam_search, **(SETTINGS | settings)))


def library(model, **settings) -> list[list[int]]:
    return rows(model.generate(**inputs(), early_stopping="never", **(SETTINGS | settings)))
