"""Several models that translate together: at each step the mean of their probabilities.

p(y | Y, X) = 1/n sum_k p_k(y | Y, X), as fairseq and Sockeye have it: a mean of probabilities, not of their
logarithms. Each model has its own encoder, memory and cache, so that sizes may differ; only the types of the
vocabulary must be the same.
"""

import copy
import logging
import math
from collections.abc import Sequence
from functools import reduce
from typing import Any, NoReturn

import torch
from torch import nn
from torch.nn import functional as F
from transformers import DynamicCache, EncoderDecoderCache, GenerationConfig, PreTrainedModel
from transformers.modeling_outputs import BaseModelOutput, Seq2SeqLMOutput

from ..base_vanilla_transformer import VanillaTransformerGenerationMixin
from ..errors import UserError
from ..integrity_vanilla_transformer import GENERATION_METHODS
from ..kernels_vanilla_transformer import is_unmodified
from ..step_decoder_vanilla_transformer import CachedDecoder, StepDecoder, select_decoder

logger = logging.getLogger(__name__)

# What the models of an ensemble must have in common beside the tokenizer.
_COMMON = ("vocab_size", "decoder_start_token_id", "eos_token_id", "pad_token_id")


def mean_log_probs(log_probs: Sequence[torch.Tensor]) -> torch.Tensor:
    """Compute log(1/n sum_k p_k), float32, [..., vocabulary], from tensors with log p_k, whose shapes may broadcast."""
    total = reduce(torch.logaddexp, log_probs)
    return total.sub_(math.log(len(log_probs))) if len(log_probs) > 1 else total


class Ensemble(PreTrainedModel, VanillaTransformerGenerationMixin):
    """Models that translate together, in the place of one: in `translate()`, in `generate()` with any search.

    What a call does not set is as the generation config of the first model says. The ensemble holds the models
    themselves, not copies. It can't be trained or saved.

    Args:
        models: Encoder-decoder models, on the same device; their sizes and dtypes may differ.

    Raises:
        UserError: The models don't fit together.
    """

    main_input_name = "input_ids"
    _supports_sdpa = True
    _supports_flash_attn = True
    _supports_flex_attn = True
    _supports_attention_backend = True

    def __init__(self, models: Sequence[PreTrainedModel]) -> None:
        _check_models(models)
        super().__init__(copy.deepcopy(models[0].config))
        self.generation_config = copy.deepcopy(models[0].generation_config)
        _warn_of_other_defaults(models)
        self.models: Any = nn.ModuleList(models)  # of `PreTrainedModel`s, which its own type does not say
        self.training = any(model.training for model in models)

    def get_encoder(self, modality: str | None = None) -> Any:
        """Return what encodes a source for all models."""
        return EnsembleEncoder(self.models)

    def forward(
        self,
        input_ids: torch.Tensor | None = None,
        attention_mask: torch.Tensor | None = None,
        decoder_input_ids: torch.Tensor | None = None,
        decoder_attention_mask: torch.Tensor | None = None,
        encoder_outputs: BaseModelOutput | tuple[torch.Tensor, ...] | None = None,
        past_key_values: "EnsembleCache | None" = None,
        use_cache: bool | None = None,
        **kwargs: Any,
    ) -> Seq2SeqLMOutput:
        """Predict the next target token at each position.

        Args:
            input_ids: Source ids, [batch, source length], int64.
            attention_mask: 1 for tokens and 0 for padding, [batch, source length]; None for no padding.
            decoder_input_ids: Right-shifted target ids, [batch, target length], int64; with a cache only the new ones.
            decoder_attention_mask: As `attention_mask`, for the target.
            encoder_outputs: What `get_encoder()` gives for the source, in place of `input_ids`.
            past_key_values: Keys and values of earlier steps.
            use_cache: Whether there is a cache.
            **kwargs: Refused if it asks for what only a single model has, such as `labels` or `output_attentions`.

        Returns:
            `logits`: log(1/n sum_k p_k), float32, [batch, target length, vocabulary], which softmax turns into the mean
            of the probabilities.
        """
        _refuse(kwargs)
        if encoder_outputs is None:
            encoder_outputs = self.get_encoder()(input_ids=input_ids, attention_mask=attention_mask)
        log_probs = []
        for model, inputs in self._split(encoder_outputs, past_key_values):
            outputs = model(
                attention_mask=attention_mask,
                decoder_input_ids=decoder_input_ids,
                decoder_attention_mask=decoder_attention_mask,
                use_cache=past_key_values is not None,
                return_dict=True,
                **inputs,
            )
            log_probs.append(F.log_softmax(outputs.logits.float(), dim=-1))
        return Seq2SeqLMOutput(logits=mean_log_probs(log_probs), past_key_values=past_key_values)

    def _split(self, encoder_outputs: Any, cache: "EnsembleCache | None") -> list[tuple[Any, dict[str, Any]]]:
        """Pair each model with its own memory and cache."""
        memories = encoder_outputs[0].split([model.config.d_model for model in self.models], dim=-1)
        caches = [None] * len(self.models) if cache is None else cache.caches
        return [
            (model, {"encoder_outputs": BaseModelOutput(memory.to(model.dtype)), "past_key_values": cache_of_model})
            for model, memory, cache_of_model in zip(self.models, memories, caches, strict=True)
        ]

    def select_decoder(
        self,
        model_kwargs: dict[str, Any],
        generation_config: GenerationConfig,
        prompt: torch.Tensor,
        beams: int,
        steps: int,
    ) -> StepDecoder:
        """Choose each model's decoder; see `step_decoder_vanilla_transformer.select_decoder`, which calls this."""
        _refuse(model_kwargs, generation_config)
        if type(self) is not Ensemble or not is_unmodified(self) or vars(self).keys() & set(GENERATION_METHODS):
            return CachedDecoder(self, model_kwargs, generation_config)
        return MeanDecoder(
            [
                select_decoder(model, {**model_kwargs, **inputs}, generation_config, prompt, beams, steps)
                for model, inputs in self._split(model_kwargs["encoder_outputs"], model_kwargs.get("past_key_values"))
            ]
        )

    def _prepare_cache_for_generation(  # type: ignore[override] # the rest is for other caches
        self, generation_config: GenerationConfig, model_kwargs: dict[str, Any], *args: Any, **kwargs: Any
    ) -> None:
        """Make a cache for each model."""
        _refuse(model_kwargs, generation_config)
        if generation_config.use_cache is not False and model_kwargs.get("past_key_values") is None:
            model_kwargs["past_key_values"] = EnsembleCache(self.models)

    def save_pretrained(self, *args: Any, **kwargs: Any) -> NoReturn:
        """Refuse to save: an ensemble is its models, which are saved already.

        Raises:
            UserError: Always.
        """
        raise UserError(
            "an ensemble can't be saved as one model; save each of its models, or the average of checkpoints"
        )


class EnsembleEncoder:
    """The encoders of several models, side by side.

    Args:
        models: The models.
    """

    def __init__(self, models: Any) -> None:
        self.models = models

    def forward(
        self, input_ids: torch.Tensor, attention_mask: torch.Tensor | None = None, **kwargs: Any
    ) -> BaseModelOutput:
        """Encode a source with each model.

        Returns:
            The models' memories one after the other, [batch, source length, sum of d_model]: as one tensor,
            `generate()` repeats them for its beams, and hands them on as those of a single model.
        """
        _refuse(kwargs)
        memories = [
            model.get_encoder()(input_ids=input_ids, attention_mask=attention_mask, return_dict=True)[0]
            for model in self.models
        ]
        return BaseModelOutput(torch.cat(memories, dim=-1))

    __call__ = forward


class EnsembleCache(EncoderDecoderCache):
    """A cache for each model, whose layers together are one cache for `generate()`, which reorders them all.

    Attributes:
        caches: The models' own caches; their layers are those of this cache too.
    """

    def __init__(self, models: Any) -> None:
        self.caches = []
        for model in models:
            config = model.config.get_text_config(decoder=True)
            own, cross = DynamicCache(config=config), DynamicCache(config=config)
            self.caches.append(EncoderDecoderCache(own, cross))
        own, cross = DynamicCache(), DynamicCache()
        own.layers = [layer for cache in self.caches for layer in cache.self_attention_cache.layers]
        cross.layers = [layer for cache in self.caches for layer in cache.cross_attention_cache.layers]
        super().__init__(own, cross)


class MeanDecoder:
    """A decoder for each model of an ensemble; see `StepDecoder`."""

    outputs: Seq2SeqLMOutput | None = None

    def __init__(self, decoders: list[StepDecoder]) -> None:
        self.decoders = decoders
        self.logits = torch.empty(0)  # of the mean: its logarithms

    def step(self, ids: torch.Tensor, parents: torch.Tensor) -> torch.Tensor:
        """Compute the logarithm of the mean of the probabilities of the next token."""
        log_probs = mean_log_probs([decoder.step(ids, parents) for decoder in self.decoders])
        self.logits = log_probs.flatten(0, 1)
        return log_probs

    def select(self, rows: torch.Tensor) -> bool:
        """Go on with the sentences at these batch indices, int64, [rows]; False if one decoder needs them all."""
        if any(isinstance(decoder, CachedDecoder) for decoder in self.decoders):
            return False
        return all([decoder.select(rows) for decoder in self.decoders])  # a list: each has to select


def as_one_model(models: PreTrainedModel | Sequence[PreTrainedModel]) -> PreTrainedModel:
    """Return a model as it is, and several as an ensemble; that of one model is the model.

    Raises:
        UserError: The models don't fit together.
    """
    if not isinstance(models, list | tuple):
        return models  # type: ignore[return-value]  # whatever has the methods of a model
    return models[0] if len(models) == 1 else Ensemble(models)


def _check_models(models: Sequence[Any]) -> None:
    """Refuse models that can't be an ensemble.

    Raises:
        UserError: With the first difference.
    """
    if not models:
        raise UserError("there are no models for an ensemble; give at least one")
    for model in models:
        if not (isinstance(model, PreTrainedModel) and model.config.is_encoder_decoder and model.can_generate()):
            raise UserError(
                f"a {type(model).__name__} can't be in an ensemble; give models that translate by themselves"
            )
    first = models[0]
    for number, model in enumerate(models[1:], start=2):
        of_both = {name: [getattr(each.config, name, None) for each in (first, model)] for name in _COMMON}
        of_both["device"] = [str(each.device) for each in (first, model)]
        for name, (one, other) in of_both.items():
            if one != other:
                raise UserError(
                    f"model {number} of the ensemble has {name} {other}, but model 1 has {one}; give models that were "
                    "trained with the same tokenizer, on one device"
                )


def _warn_of_other_defaults(models: Sequence[PreTrainedModel]) -> None:
    """Log what the generation configs of the models differ in."""
    configs = [model.generation_config.to_dict() for model in models]
    names = sorted({name for config in configs for name in config if config[name] != configs[0].get(name)})
    names = [name for name in names if name not in ("transformers_version", "_from_model_config")]
    if names:
        logger.warning(
            "the generation configs of the ensemble's models differ in %s; those of the first model count",
            ", ".join(names),
        )


def _refuse(given: dict[str, Any], generation_config: GenerationConfig | None = None) -> None:
    """Refuse what only a single model has.

    Raises:
        ValueError: With its name.
    """
    names = [name for name in ("labels", "inputs_embeds", "decoder_inputs_embeds") if given.get(name) is not None]
    for name in ("output_attentions", "output_hidden_states"):
        if given.get(name) or getattr(generation_config, name, None):
            names.append(name)
    implementation = getattr(generation_config, "cache_implementation", None)
    if implementation not in (None, "dynamic"):
        names.append(f"cache_implementation={implementation!r}")
    if names:
        raise ValueError(f"{names[0]} can't be given for an ensemble; give it for a single model")
