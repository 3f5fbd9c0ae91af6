"""A loader for CTranslate2's converter for transformers; importing this module registers it.

import vanilla_transformer.convert.ctranslate2_loader
from ctranslate2.converters import TransformersConverter

TransformersConverter("runs/en-de").convert("runs/en-de-ct2", quantization="int8")
"""

from typing import Any

import torch
from transformers import PreTrainedModel, PreTrainedTokenizerBase

from ..errors import UserError, require
from ..modeling_vanilla_transformer import VanillaTransformerStack
from .ctranslate2 import MAX_POSITIONS

_ctranslate2 = require("ctranslate2", extra="ct2")


_converters = _ctranslate2.converters.transformers


_specs = _ctranslate2.specs.transformer_spec


@_converters.register_loader("VanillaTransformerConfig")
class VanillaTransformerLoader(_converters.BartLoader):  # type: ignore[name-defined] # an untyped library
    """Read the model as BART, whose layers have the same names, with other positions and embeddings.

    CTranslate2 is given tokens and adds none to the source, where the tokenizer has appended `</s>` already. It starts
    the target with `<s>`, as the model does.
    """

    architecture_name = "AutoModelForSeq2SeqLM"

    def get_model_spec(self, model: PreTrainedModel) -> Any:
        """Convert the weights to CTranslate2's layout.

        Raises:
            UserError: CTranslate2 does not have the activation function.
        """
        config = model.config
        activations = _converters._SUPPORTED_ACTIVATIONS
        if config.activation_function not in activations:
            raise UserError(
                f"activation_function is {config.activation_function!r}, which CTranslate2 does not have; it has "
                f"{', '.join(activations)}"
            )
        kind = {"pre_norm": False, "activation": activations[config.activation_function]}
        spec = _specs.TransformerSpec(
            _specs.TransformerEncoderSpec(config.encoder_layers, config.encoder_attention_heads, **kind),
            _specs.TransformerDecoderSpec(config.decoder_layers, config.decoder_attention_heads, **kind),
        )
        self.set_encoder(spec.encoder, model.model.encoder)
        self.set_decoder(spec.decoder, model.model.decoder)
        self.set_linear(spec.decoder.projection, model.lm_head)
        return spec

    def set_common_layers(
        self,
        spec: Any,
        module: VanillaTransformerStack,
    ) -> None:
        """Set a stack's embedding, its scale, and the positions (section 3.5) as a table."""
        embeddings = spec.embeddings[0] if isinstance(spec.embeddings, list) else spec.embeddings
        self.set_embeddings(embeddings, module.embed_tokens)
        spec.scale_embeddings = module.embedding_scale
        spec.position_encodings.encodings = module.positions(torch.arange(MAX_POSITIONS))

    def get_vocabulary(self, model: PreTrainedModel, tokenizer: PreTrainedTokenizerBase) -> list[str]:
        """List all tokens in the order of their ids.

        Raises:
            UserError: The tokenizer and the model have different numbers of types.
        """
        if len(tokenizer) != model.config.vocab_size:
            raise UserError(
                f"the tokenizer has {len(tokenizer):,} types, but the model's vocab_size is "
                f"{model.config.vocab_size:,}; CTranslate2 needs the token of each id: give the model's own tokenizer"
            )
        return super().get_vocabulary(model, tokenizer)
