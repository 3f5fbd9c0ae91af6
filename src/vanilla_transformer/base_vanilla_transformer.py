"""What transformers needs of every part of the model: initialization, embeddings that are resized, length limits."""

import copy
import inspect
import os
from typing import Any

import torch
from torch import nn
from transformers import initialization as init
from transformers.cache_utils import EncoderDecoderCache
from transformers.dynamic_module_utils import get_class_from_dynamic_module
from transformers.generation import GenerationConfig, GenerationMixin
from transformers.modeling_utils import PreTrainedModel
from transformers.utils import logging

from .configuration_vanilla_transformer import VanillaTransformerConfig
from .kernels_vanilla_transformer import IGNORED_LABEL, is_transformed

logger = logging.get_logger(__name__)

_HUB_ARGUMENTS = ("cache_dir", "code_revision", "force_download", "local_files_only", "revision", "token")
# `max_length` of a generation config: no fixed limit, but the source's length plus 50. The stock Seq2SeqTrainer writes
# 20 where it is None, and keeps a number.
LIMIT_BY_SOURCE = -1
DROPPED = ("tokenizer", "streamer", "synced_gpus")  # arguments that generate() (5.23) hands to no function
TOKENS_BEYOND_SOURCE = 50  # section 6.1: "maximum output length during inference to input length + 50"

# Tensor parallelism: which linear layers are split by their outputs and which by their inputs. `*` is a layer's number.
ENCODER_TP_PLAN = {
    "embed_tokens": "embedding_rowwise",
    "layers.*.self_attn.q_proj": "colwise",
    "layers.*.self_attn.k_proj": "colwise",
    "layers.*.self_attn.v_proj": "colwise",
    "layers.*.self_attn.out_proj": "rowwise",
    "layers.*.fc1": "colwise",
    "layers.*.fc2": "rowwise",
}
DECODER_TP_PLAN = ENCODER_TP_PLAN | {
    key.replace("self_attn", "encoder_attn"): style for key, style in ENCODER_TP_PLAN.items() if "self_attn" in key
}


class VanillaTransformerPreTrainedModel(PreTrainedModel):
    """Initialization, and what transformers may do with the model."""

    config: VanillaTransformerConfig
    config_class = VanillaTransformerConfig
    base_model_prefix = "model"
    supports_gradient_checkpointing = True
    _no_split_modules = ["VanillaTransformerEncoderLayer", "VanillaTransformerDecoderLayer"]
    _skip_keys_device_placement = ["past_key_values"]
    _supports_sdpa = True
    _supports_flash_attn = True
    _supports_flex_attn = True
    _supports_attention_backend = True
    _can_compile_fullgraph = True

    def __init__(self, config: VanillaTransformerConfig, *args: Any, **kwargs: Any) -> None:
        # A save of the model does not bring the code of the pipeline, or the other config, that a config may name.
        for name in ("custom_pipelines", "configuration_files"):
            vars(config).pop(name, None)
        super().__init__(config, *args, **kwargs)

    @classmethod
    def from_pretrained(  # type: ignore[override] # the supertype names arguments that pass through kwargs here
        cls, pretrained_model_name_or_path: str | os.PathLike, *args: Any, config: Any = None, **kwargs: Any
    ) -> Any:
        """Load a model as `PreTrainedModel.from_pretrained` does, its arguments too.

        Auto classes prefer the classes of an imported package to the code beside a model. So where that code is
        trusted and the config names a class derived from this one, the derived class is loaded here, with its config.
        """
        derived = (getattr(config, "auto_map", None) or {}).get(cls._auto_class)
        if derived is not None and derived.rpartition(".")[2] != cls.__name__ and "trust_remote_code" in kwargs:
            if kwargs["trust_remote_code"]:
                hub = {name: kwargs[name] for name in _HUB_ARGUMENTS if name in kwargs}
                cls = get_class_from_dynamic_module(derived, pretrained_model_name_or_path, **hub)
                if not isinstance(config, cls.config_class):
                    attention = config._attn_implementation
                    config = cls.config_class.from_dict(config.to_dict())
                    config._attn_implementation = attention
                return cls.from_pretrained(pretrained_model_name_or_path, *args, config=config, **kwargs)
            logger.warning(
                "%s is made for the class %s; it is loaded as %s, as its code is not trusted (trust_remote_code)",
                pretrained_model_name_or_path,
                derived,
                cls.__name__,
            )
        return super().from_pretrained(pretrained_model_name_or_path, *args, config=config, **kwargs)

    def save_pretrained(
        self,
        save_directory: str | os.PathLike,
        is_main_process: bool = True,
        state_dict: dict | None = None,
        *args: Any,
        **kwargs: Any,
    ) -> None:
        """Save a model as `PreTrainedModel.save_pretrained` does, its arguments too.

        PEFT unties a model when it merges a new output layer: the config then says so, but the model still has
        `shared`. It is saved as an untied model, as which it will be loaded: with three matrices and without `shared`.
        """
        if getattr(self.base_model, "shared", None) is not None and not self.config.tie_word_embeddings:
            weights = self.state_dict() if state_dict is None else state_dict
            state_dict = {
                name: weight.clone() if name.endswith(("embed_tokens.weight", "lm_head.weight")) else weight
                for name, weight in weights.items()
                if not name.endswith("shared.weight")
            }
        super().save_pretrained(save_directory, is_main_process, state_dict, *args, **kwargs)

    @property
    def dummy_inputs(self) -> dict[str, torch.Tensor]:
        """Inputs that the model can read, as MarianMT has them: ids and mask, int64, [2, 4]."""
        input_ids = torch.arange(8, device=self.device).view(2, 4) % self.config.vocab_size
        return {
            "input_ids": input_ids,
            "attention_mask": torch.ones_like(input_ids),
            "decoder_input_ids": input_ids,
        }

    def warn_if_padding_and_no_attention_mask(
        self, input_ids: torch.Tensor | None, attention_mask: torch.Tensor | None
    ) -> None:
        """Warn as `PreTrainedModel` does, but not under `torch.func`, where ids can't be compared in Python."""
        if not is_transformed():
            super().warn_if_padding_and_no_attention_mask(input_ids, attention_mask)

    @torch.no_grad()
    def _init_weights(self, module: nn.Module) -> None:
        """Draw linear weights uniformly within +-fan_in^-0.5, and embeddings so that sqrt(d_model) gives variance 1.

        The paper is silent on initialization. With Glorot's bounds, which its authors' tensor2tensor has, small models
        take many more steps to learn where to attend; these are the bounds of a plain `nn.Linear`.
        """
        if isinstance(module, nn.Embedding) or module is self.get_output_embeddings():
            init.normal_(module.weight, std=self.config.d_model**-0.5)
            if getattr(module, "padding_idx", None) is not None:  # of an embedding that a derived class adds
                init.zeros_(module.weight[module.padding_idx])
        elif isinstance(module, nn.Linear):
            bound = module.in_features**-0.5
            init.uniform_(module.weight, -bound, bound)
            if module.bias is not None:  # None in an output layer that is being resized
                init.zeros_(module.bias)
        else:  # layer normalization, and whatever a derived class adds
            super()._init_weights(module)

    def _resize_token_embeddings(
        self, new_num_tokens: int | None, pad_to_multiple_of: int | None = None, mean_resizing: bool = True
    ) -> nn.Embedding:
        """Resize the target's embedding too where it is a matrix of its own; transformers knows the source's only."""
        resized = super()._resize_token_embeddings(new_num_tokens, pad_to_multiple_of, mean_resizing)
        decoder = getattr(self.base_model, "decoder", None)
        if decoder is not None and not self.config.tie_word_embeddings:
            decoder.embed_tokens = self._get_resized_embeddings(
                decoder.embed_tokens, resized.num_embeddings, mean_resizing=mean_resizing
            ).requires_grad_(decoder.embed_tokens.weight.requires_grad)
        return resized


def with_weight_of(embedding: Any) -> Any:
    """Make another embedding module with the same weight; a module of another kind is returned itself."""
    if type(embedding) is not nn.Embedding:
        return embedding
    # A small weight of its own, so that nothing is drawn: under DeepSpeed's zero.Init the other one has no shape.
    other = nn.Embedding(1, embedding.embedding_dim, _weight=embedding.weight.new_empty(1, embedding.embedding_dim))
    other.num_embeddings, other.weight = embedding.num_embeddings, embedding.weight
    vars(other)["_is_hf_initialized"] = True  # or transformers would draw the weight anew
    return other


def count_positions(inputs_embeds: torch.Tensor, attention_mask: torch.Tensor | None, past_length: int) -> torch.Tensor:
    """Number the positions from the first real token on, so that padding on the left shifts nothing.

    The mask [[0, 0, 1, 1, 1]] gives [[0, 0, 0, 1, 2]]; with two positions in the cache, its last three: [[0, 1, 2]].

    Args:
        inputs_embeds: [batch, length, d_model], for the length and the device.
        attention_mask: [batch, past_length + length] with 1 for tokens and 0 for padding, or None for no padding.
            Or 4-D, [batch, heads, length, keys], such as generate() makes for a static cache or a user for a window:
            booleans or 1 where a key is seen, or what is added to the scores. Padding on the left is then the keys
            before the first that any query sees. Or flex attention's BlockMask, for no padding.
        past_length: How many positions are in the cache.

    Returns:
        int64 of shape [batch, length], or [length] where all rows have the same positions.
    """
    length = inputs_embeds.shape[1]
    places = torch.arange(length, device=inputs_embeds.device) + past_length
    if not isinstance(attention_mask, torch.Tensor):
        return places
    attention_mask = attention_mask.to(inputs_embeds.device)
    if attention_mask.dim() == 4:
        hidden = torch.finfo(attention_mask.dtype).min / 2 if attention_mask.is_floating_point() else 0
        first = (attention_mask > hidden).flatten(1, 2).any(dim=1).int().argmax(dim=-1)  # [batch]
        return (places - first[:, None]).clamp(min=0)
    return (attention_mask.long().cumsum(dim=1) - 1)[:, -length:].clamp(min=0)


def check_decoder_inputs(
    input_ids: torch.Tensor | None,
    inputs_embeds: torch.Tensor | None,
    encoder_hidden_states: torch.Tensor | None,
    past_key_values: EncoderDecoderCache | None,
) -> None:
    """Refuse what the decoder can't read; the arguments are those of its `forward`.

    Raises:
        ValueError: Both or neither of `input_ids` and `inputs_embeds`, no `encoder_hidden_states` or those of another
            number of sources, or a cache that is not for an encoder and a decoder.
    """
    if (input_ids is None) == (inputs_embeds is None):
        raise ValueError(
            "The decoder takes either decoder_input_ids or decoder_inputs_embeds: give exactly one of them "
            "(or labels, from which decoder_input_ids follow)."
        )
    if encoder_hidden_states is None:
        raise ValueError("The decoder needs encoder_hidden_states, the encoder's output.")
    target: Any = inputs_embeds if input_ids is None else input_ids
    sources, targets = encoder_hidden_states.shape[0], target.shape[0]  # not len(), which fixes the size in an export
    if sources != targets:
        raise ValueError(
            f"There are {sources} sources and {targets} targets in the batch: give one target for each source."
        )
    if past_key_values is not None and not isinstance(past_key_values, EncoderDecoderCache):
        raise ValueError(f"past_key_values is a {type(past_key_values).__name__}; it must be an EncoderDecoderCache.")


def shift_right(labels: torch.Tensor, pad_token_id: int, decoder_start_token_id: int) -> torch.Tensor:
    """Make the decoder's input, the target "offset by one position".

    Args:
        labels: Target ids, [batch, length], int64; -100 where a position is ignored.
        pad_token_id: Id that replaces -100.
        decoder_start_token_id: Id of the first position.

    Returns:
        Ids of the same shape: [[5, 6, 2], [7, 2, -100]] becomes [[0, 5, 6], [0, 7, 2]] with start id 0.
    """
    start = labels.new_full((labels.shape[0], 1), decoder_start_token_id)
    shifted = torch.cat([start, labels[:, :-1]], dim=1)
    return shifted.masked_fill(shifted == IGNORED_LABEL, pad_token_id)


class VanillaTransformerGenerationMixin(GenerationMixin):
    """`generate()` with the paper's limit: a translation has at most 50 tokens more than its source (section 6.1)."""

    @property
    def generation_config(self) -> GenerationConfig:
        """The defaults of `generate()`. Without a length limit they are copied, and get `LIMIT_BY_SOURCE`."""
        return self._generation_config

    @generation_config.setter
    def generation_config(self, value: GenerationConfig) -> None:
        if value is not None and value.max_length is None and value.max_new_tokens is None:
            value = copy.deepcopy(value)
            value.max_length = LIMIT_BY_SOURCE
        self._generation_config = value

    def _extract_generation_mode_kwargs(
        self: Any,
        custom_generate: Any,
        kwargs: dict[str, Any],
        synced_gpus: Any,
        assistant_model: Any,
        streamer: Any,
    ) -> dict[str, Any]:
        """Hand over those of `DROPPED` that a function takes which searches."""
        extract = super()._extract_generation_mode_kwargs
        rest = synced_gpus, assistant_model, streamer
        if not callable(custom_generate):
            return extract(custom_generate, kwargs, *rest)
        usual = extract(None, dict(kwargs), *rest)  # what the library's own searches get
        parameters = inspect.signature(custom_generate).parameters
        dropped = {name: value for name, value in usual.items() if name in DROPPED and name in parameters}
        return extract(custom_generate, kwargs, *rest) | dropped

    def _prepare_generated_length(  # type: ignore[override] # the rest passes through kwargs
        self: Any,
        generation_config: GenerationConfig,
        has_default_max_length: bool,
        inputs_tensor: torch.Tensor,
        **kwargs: bool | int | str,
    ) -> GenerationConfig:
        """Limit the output to "input length + 50" tokens (section 6.1), where nobody sets another limit."""
        if has_default_max_length or generation_config.max_length == LIMIT_BY_SOURCE:
            generation_config.max_length = None
            if generation_config.max_new_tokens is None:
                generation_config.max_new_tokens = inputs_tensor.shape[1] + TOKENS_BEYOND_SOURCE
        return super()._prepare_generated_length(  # type: ignore[misc] # the mixin has a protocol for `self`
            generation_config=generation_config,
            has_default_max_length=has_default_max_length,
            inputs_tensor=inputs_tensor,
            **kwargs,
        )
