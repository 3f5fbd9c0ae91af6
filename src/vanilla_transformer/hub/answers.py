"""What a config, a tokenizer and a model compute, as JSON values that two processes can compare bit for bit."""

import hashlib
import json
from collections.abc import Sequence
from typing import Any

import torch
from transformers import PreTrainedConfig, PreTrainedModel, PreTrainedTokenizerBase

from .weights import tensor_digest, weights_digest

NUM_BEAMS = 4


def config_answers(config: PreTrainedConfig) -> dict[str, Any]:
    """Return the fields that define the model."""
    return {name: getattr(config, name) for name in type(config).__annotations__}


def tokenizer_answers(tokenizer: PreTrainedTokenizerBase, sentences: Sequence[str]) -> dict[str, Any]:
    """Encode the sentences, and decode the ids again; digest the vocabulary, and name the special tokens."""
    ids = tokenizer(list(sentences))["input_ids"]
    vocabulary = json.dumps(sorted(tokenizer.get_vocab().items()))
    return {
        "token ids": ids,
        "decoded text": tokenizer.batch_decode(ids, skip_special_tokens=True),
        "vocabulary": hashlib.sha256(vocabulary.encode()).hexdigest(),
        "special tokens": dict(sorted(tokenizer.special_tokens_map.items())),
    }


@torch.inference_mode()
def base_answers(model: PreTrainedModel, token_ids: Sequence[int]) -> dict[str, Any]:
    """Digest the decoder's output, with one sentence as source and target."""
    ids = torch.tensor([token_ids])  # int64, [1, length]
    return {"last hidden state": tensor_digest(model(input_ids=ids, decoder_input_ids=ids).last_hidden_state)}


@torch.inference_mode()
def model_answers(model: PreTrainedModel, token_ids: Sequence[int]) -> dict[str, Any]:
    """Digest weights and logits; return the generation config and a beam translation of the sentence."""
    ids = torch.tensor([token_ids])  # int64, [1, length]
    defaults = model.generation_config.to_diff_dict()
    mask = torch.ones_like(ids)
    translation = model.generate(ids, attention_mask=mask, num_beams=NUM_BEAMS)  # type: ignore[operator] # GenerationMixin
    return {
        "weights": weights_digest(model),
        "logits": tensor_digest(model(input_ids=ids, decoder_input_ids=ids).logits),
        "generation config": {name: defaults[name] for name in sorted(defaults) if name != "transformers_version"},
        "beam translation": translation[0].tolist(),
    }
