"""The Transformer of "Attention Is All You Need" (Vaswani et al. 2017, arXiv 1706.03762), in the order of the paper.

Section and equation numbers are the paper's. Shapes are written [batch, length, d_model]; `source` is what the
encoder reads, `memory` its output, and `target` what the decoder writes. Where transformers offers more than the paper
(attention dropout, other activations, untied embeddings), the configuration's defaults are the paper's choice.
"""

import math
from collections.abc import Callable
from typing import Any

import torch
from torch import nn
from torch.nn import functional as F
from transformers.activations import ACT2FN
from transformers.cache_utils import DynamicCache, EncoderDecoderCache
from transformers.masking_utils import create_bidirectional_mask, create_causal_mask
from transformers.modeling_layers import GradientCheckpointingLayer
from transformers.modeling_outputs import (
    BaseModelOutput,
    BaseModelOutputWithPastAndCrossAttentions,
    Seq2SeqLMOutput,
    Seq2SeqModelOutput,
)
from transformers.modeling_utils import ALL_ATTENTION_FUNCTIONS
from transformers.processing_utils import Unpack
from transformers.utils import TransformersKwargs, can_return_tuple
from transformers.utils.generic import merge_with_config_defaults
from transformers.utils.output_capturing import OutputRecorder, capture_outputs

from .base_vanilla_transformer import (
    DECODER_TP_PLAN,
    ENCODER_TP_PLAN,
    VanillaTransformerGenerationMixin,
    VanillaTransformerPreTrainedModel,
    check_decoder_inputs,
    count_positions,
    shift_right,
    with_weight_of,
)
from .configuration_vanilla_transformer import VanillaTransformerConfig
from .kernels_vanilla_transformer import (
    IGNORED_LABEL,
    check_labels,
    dropout,
    is_transformed,
    is_unmodified,
    linear_cross_entropy,
    number_of_labels,
    with_fast_gradients,
)

# 3.1 Encoder and decoder stacks


class VanillaTransformerEncoderLayer(GradientCheckpointingLayer):
    """Self-attention, then feed-forward; each sub-layer gives LayerNorm(x + Dropout(Sublayer(x))), post-norm."""

    def __init__(self, config: VanillaTransformerConfig, layer_idx: int) -> None:
        super().__init__()
        self.dropout, self.activation_dropout = config.dropout, config.activation_dropout
        self.activation = ACT2FN[config.activation_function]
        self.fc1 = nn.Linear(config.d_model, config.encoder_ffn_dim)
        self.fc2 = nn.Linear(config.encoder_ffn_dim, config.d_model)
        self.final_layer_norm = nn.LayerNorm(config.d_model)
        self.self_attn = VanillaTransformerAttention(config, config.encoder_attention_heads, layer_idx)
        self.self_attn_layer_norm = nn.LayerNorm(config.d_model)

    def forward(
        self, x: torch.Tensor, attention_mask: torch.Tensor | None, **kwargs: Unpack[TransformersKwargs]
    ) -> torch.Tensor:
        """Map [batch, source length, d_model] to the same shape."""
        attended, _ = self.self_attn(x, attention_mask=attention_mask, **kwargs)
        x = self.self_attn_layer_norm(x + dropout(attended, self.dropout, self.training))
        return self.final_layer_norm(x + dropout(feed_forward(self, x), self.dropout, self.training))


class VanillaTransformerDecoderLayer(GradientCheckpointingLayer):
    """Masked self-attention, attention over the encoder's output, then feed-forward; post-norm."""

    def __init__(self, config: VanillaTransformerConfig, layer_idx: int) -> None:
        super().__init__()
        self.dropout, self.activation_dropout = config.dropout, config.activation_dropout
        self.activation = ACT2FN[config.activation_function]
        self.fc1 = nn.Linear(config.d_model, config.decoder_ffn_dim)
        self.fc2 = nn.Linear(config.decoder_ffn_dim, config.d_model)
        self.final_layer_norm = nn.LayerNorm(config.d_model)
        heads = config.decoder_attention_heads
        self.self_attn = VanillaTransformerAttention(config, heads, layer_idx, is_causal=True)
        self.self_attn_layer_norm = nn.LayerNorm(config.d_model)
        self.encoder_attn = VanillaTransformerAttention(config, heads, layer_idx)
        self.encoder_attn_layer_norm = nn.LayerNorm(config.d_model)

    def forward(
        self,
        x: torch.Tensor,
        memory: torch.Tensor,
        attention_mask: torch.Tensor | None,
        memory_mask: torch.Tensor | None,
        past_key_values: EncoderDecoderCache | None = None,
        **kwargs: Unpack[TransformersKwargs],
    ) -> torch.Tensor:
        """Map [batch, target length, d_model] to the same shape, given the memory [batch, source length, d_model]."""
        attended, _ = self.self_attn(x, attention_mask=attention_mask, past_key_values=past_key_values, **kwargs)
        x = self.self_attn_layer_norm(x + dropout(attended, self.dropout, self.training))
        attended, _ = self.encoder_attn(x, memory, memory_mask, past_key_values, **kwargs)
        x = self.encoder_attn_layer_norm(x + dropout(attended, self.dropout, self.training))
        return self.final_layer_norm(x + dropout(feed_forward(self, x), self.dropout, self.training))


# 3.2 Attention


def scaled_dot_product_attention(
    module: nn.Module,
    query: torch.Tensor,
    key: torch.Tensor,
    value: torch.Tensor,
    attention_mask: torch.Tensor | None,
    scaling: float,
    dropout: float = 0.0,
    **kwargs: Unpack[TransformersKwargs],
) -> tuple[torch.Tensor, torch.Tensor]:
    """Compute softmax(Q K^T / sqrt(d_k)) V, equation 1 (section 3.2.1): "eager" in transformers' attention interface.

    `query` is [batch, heads, target length, d_head], `key` and `value` are [batch, heads, source length, d_head], and
    `scaling` is 1 / sqrt(d_k). `attention_mask` is added to the scores: 0 where attention is allowed, the dtype's
    minimum where not. `dropout` on the weights, in training, is not in the paper, and 0 unless the config has it.

    Returns:
        The output [batch, target length, heads, d_head] and the weights [batch, heads, target length, source length].
    """
    scores = torch.matmul(query, key.transpose(2, 3)) * scaling
    if attention_mask is not None:
        scores = scores + attention_mask
    weights = F.softmax(scores, dim=-1, dtype=torch.promote_types(scores.dtype, torch.float32)).to(query.dtype)
    weights = F.dropout(weights, p=dropout, training=module.training)
    return torch.matmul(weights, value).transpose(1, 2).contiguous(), weights


class VanillaTransformerAttention(nn.Module):
    """Multi-head attention (section 3.2.2) in its three uses (section 3.2.3).

    Args:
        config: The model's configuration.
        heads: Number of heads h; d_k = d_v = d_model / h.
        layer_idx: The layer's place in its stack, by which the cache knows it.
        is_causal: Whether a position sees none after it: true in the decoder's self-attention only.
    """

    def __init__(self, config: VanillaTransformerConfig, heads: int, layer_idx: int, is_causal: bool = False) -> None:
        super().__init__()
        self.config = config
        self.d_head = config.d_model // heads
        self.scaling = self.d_head**-0.5
        self.dropout = config.attention_dropout
        self.layer_idx = layer_idx
        self.is_causal = is_causal

        self.q_proj = nn.Linear(config.d_model, config.d_model)  # with a bias, which section 3.2.2 does not have
        self.k_proj = nn.Linear(config.d_model, config.d_model)
        self.v_proj = nn.Linear(config.d_model, config.d_model)
        self.out_proj = nn.Linear(config.d_model, config.d_model)

    def forward(
        self,
        x: torch.Tensor,
        memory: torch.Tensor | None = None,
        attention_mask: torch.Tensor | None = None,
        past_key_values: EncoderDecoderCache | None = None,
        **kwargs: Unpack[TransformersKwargs],
    ) -> tuple[torch.Tensor, torch.Tensor | None]:
        """Attend from each position of `x` to `memory`, or to `x` itself where there is no memory.

        Args:
            x: Gives the queries, [batch, target length, d_model].
            memory: The encoder's output [batch, source length, d_model], in encoder-decoder attention.
            attention_mask: In the form that the attention implementation in use takes.
            past_key_values: Keys and values of earlier steps; those of this step are added.
            **kwargs: For the attention implementation.

        Returns:
            [batch, target length, d_model], and the weights [batch, heads, target length, source length] where the
            implementation gives them.
        """
        query = self.split_heads(self.q_proj(x))
        key, value = self.keys_and_values(x, memory, past_key_values)
        implementation = self.config._attn_implementation
        attend: Callable = ALL_ATTENTION_FUNCTIONS.get_interface(implementation, scaled_dot_product_attention)
        attend = with_fast_gradients(attend, query, self.training)
        p = self.dropout if self.training else 0.0
        heads, weights = attend(self, query, key, value, attention_mask, dropout=p, scaling=self.scaling, **kwargs)
        return self.out_proj(heads.flatten(2)), weights  # Concat(head_1, ..., head_h) W^O

    def split_heads(self, states: torch.Tensor) -> torch.Tensor:
        """Turn [batch, length, d_model] into [batch, heads, length, d_head]."""
        return states.view(*states.shape[:-1], -1, self.d_head).transpose(1, 2)

    def keys_and_values(
        self, x: torch.Tensor, memory: torch.Tensor | None, past_key_values: EncoderDecoderCache | None
    ) -> tuple[torch.Tensor, torch.Tensor]:
        """Project keys and values, each [batch, heads, source length, d_head], together with those of the cache.

        The memory is the same at every step, so its keys and values are projected at the first.
        """
        if past_key_values is not None and memory is not None and past_key_values.is_updated.get(self.layer_idx):
            cached: Any = past_key_values.cross_attention_cache.layers[self.layer_idx]
            return cached.keys, cached.values
        states = x if memory is None else memory
        key, value = self.split_heads(self.k_proj(states)), self.split_heads(self.v_proj(states))
        if past_key_values is None:
            return key, value
        if memory is None:
            return past_key_values.self_attention_cache.update(key, value, self.layer_idx)
        past_key_values.is_updated[self.layer_idx] = True
        return past_key_values.cross_attention_cache.update(key, value, self.layer_idx)


# 3.3 Position-wise feed-forward networks


def feed_forward(layer: Any, x: torch.Tensor) -> torch.Tensor:
    """Compute max(0, x W_1 + b_1) W_2 + b_2, equation 2, of a layer: [batch, length, d_model] to the same shape."""
    inner = layer.activation(layer.fc1(x))  # [batch, length, d_ff]
    return layer.fc2(F.dropout(inner, p=layer.activation_dropout, training=layer.training))


# 3.4 Embeddings and softmax


def embed(stack: "VanillaTransformerStack", inputs_embeds: torch.Tensor, position_ids: torch.Tensor) -> torch.Tensor:
    """Compute Dropout(embedding * sqrt(d_model) + positions) (sections 3.4, 3.5 and 5.4).

    The sum is taken in float32 and rounded once, so that half precision loses no position. The matrix before the
    softmax is `lm_head`; the softmax itself is in the loss and in the search.

    Args:
        stack: The encoder or the decoder.
        inputs_embeds: Rows of the embedding matrix, [batch, length, d_model].
        position_ids: [batch, length] or [length], int64.
    """
    embedded = (inputs_embeds * stack.embedding_scale + stack.positions(position_ids)).to(inputs_embeds.dtype)
    return dropout(embedded, stack.dropout, stack.training)


# 3.5 Positional encoding


def sinusoidal_positions(position_ids: torch.Tensor, d_model: int, convention: str = "paper") -> torch.Tensor:
    """Compute PE(pos, 2i) = sin(pos / 10000^(2i/d_model)), PE(pos, 2i+1) = cos(pos / 10000^(2i/d_model)).

    There is no table, hence no longest sentence, and nothing to save or to load.

    Args:
        position_ids: Positions of any shape [...], int64.
        d_model: Width, even.
        convention: With "fairseq" the exponent is 2i / (d_model - 2), so that the last one is 1.

    Returns:
        float32 of shape [..., d_model], sines and cosines interleaved: position 0 is [0, 1, 0, 1, ...].
    """
    even = torch.arange(0, d_model, 2, device=position_ids.device, dtype=torch.float32)  # 2i: [d_model / 2]
    width = d_model if convention == "paper" else d_model - 2
    angles = position_ids[..., None].float() * torch.exp(even * (-math.log(10_000) / width))
    return torch.stack([angles.sin(), angles.cos()], dim=-1).flatten(-2)


# 5.4 Regularization: `dropout` is imported, label smoothing is part of the loss


def cross_entropy(
    logits: torch.Tensor,
    labels: torch.Tensor,
    smoothing: float = 0.0,
    num_items_in_batch: int | torch.Tensor | None = None,
) -> torch.Tensor:
    """Compute the mean cross-entropy over the labels that are not ignored, with label smoothing.

    With smoothing e the target distribution is 1 - e on the label plus e / vocab_size on every type.

    Args:
        logits: [batch, length, vocab_size]; the sum is taken in float32, or float64 if they are.
        labels: [batch, length], int64, each the target of the logits in its own place; -100 where ignored.
        smoothing: e, at least 0 and below 1.
        num_items_in_batch: The divisor; by default the number of labels that are not ignored.

    Returns:
        A scalar in nats per label, float32 (float64 for such logits); 0 where all labels are ignored.
    """
    check_labels(labels, logits)
    logits = logits.flatten(0, 1).to(torch.promote_types(logits.dtype, torch.float32))
    labels = labels.flatten().to(logits.device)
    total = F.cross_entropy(logits, labels, ignore_index=IGNORED_LABEL, label_smoothing=smoothing, reduction="sum")
    return total / number_of_labels(labels, num_items_in_batch)


# Required by transformers


class VanillaTransformerStack(VanillaTransformerPreTrainedModel):
    """Embedding and positions of an encoder or a decoder."""

    def __init__(self, config: VanillaTransformerConfig, embed_tokens: nn.Embedding | None = None) -> None:
        super().__init__(config)
        self.dropout = config.dropout
        self.embed_tokens: nn.Module = embed_tokens or nn.Embedding(config.vocab_size, config.d_model)
        # Not `embed_scale`: where a stack has that, attribution libraries scale `inputs_embeds` themselves.
        self.embedding_scale = math.sqrt(config.d_model) if config.scale_embedding else 1.0
        self.gradient_checkpointing = False

    def positions(self, position_ids: torch.Tensor) -> torch.Tensor:
        """Compute what the config's `position_convention` adds at these positions, float32, [..., d_model]."""
        convention = self.config.position_convention
        if convention == "fairseq":
            position_ids = position_ids + self.config.pad_token_id + 1
        return sinusoidal_positions(position_ids, self.config.d_model, convention)


class VanillaTransformerEncoder(VanillaTransformerStack):
    """N encoder layers over embeddings plus positions (section 3.1)."""

    _tp_plan = ENCODER_TP_PLAN
    _can_record_outputs = {"hidden_states": VanillaTransformerEncoderLayer, "attentions": VanillaTransformerAttention}

    def __init__(self, config: VanillaTransformerConfig, embed_tokens: nn.Embedding | None = None) -> None:
        super().__init__(config, embed_tokens)
        self.layers = nn.ModuleList(VanillaTransformerEncoderLayer(config, idx) for idx in range(config.encoder_layers))
        self.post_init()

    @merge_with_config_defaults
    @capture_outputs
    def forward(
        self,
        input_ids: torch.Tensor | None = None,
        attention_mask: torch.Tensor | None = None,
        inputs_embeds: torch.Tensor | None = None,
        **kwargs: Unpack[TransformersKwargs],
    ) -> BaseModelOutput:
        """Encode a source.

        Args:
            input_ids: Source ids, [batch, source length], int64.
            attention_mask: 1 for tokens and 0 for padding, [batch, source length]; None for no padding.
            inputs_embeds: Rows of the embedding, not yet times sqrt(d_model), in place of `input_ids`.
            **kwargs: For the attention implementation.
        """
        if (input_ids is None) == (inputs_embeds is None):
            raise ValueError("The encoder takes either input_ids or inputs_embeds: give exactly one of them.")
        if inputs_embeds is None:
            self.warn_if_padding_and_no_attention_mask(input_ids, attention_mask)
            inputs_embeds = self.embed_tokens(input_ids)
        x = embed(self, inputs_embeds, count_positions(inputs_embeds, attention_mask, past_length=0))
        mask: Any = create_bidirectional_mask(self.config, inputs_embeds, attention_mask)
        for layer in self.layers:
            x = layer(x, mask, **kwargs)
        return BaseModelOutput(last_hidden_state=x)


class VanillaTransformerDecoder(VanillaTransformerStack):
    """N decoder layers over embeddings plus positions and the encoder's output (section 3.1)."""

    _tp_plan = DECODER_TP_PLAN
    _can_record_outputs = {
        "hidden_states": VanillaTransformerDecoderLayer,
        "attentions": OutputRecorder(VanillaTransformerAttention, index=1, layer_name="self_attn"),
        "cross_attentions": OutputRecorder(VanillaTransformerAttention, index=1, layer_name="encoder_attn"),
    }

    def __init__(self, config: VanillaTransformerConfig, embed_tokens: nn.Embedding | None = None) -> None:
        super().__init__(config, embed_tokens)
        self.layers = nn.ModuleList(VanillaTransformerDecoderLayer(config, idx) for idx in range(config.decoder_layers))
        self.post_init()

    @merge_with_config_defaults
    @capture_outputs
    def forward(
        self,
        input_ids: torch.Tensor | None = None,
        attention_mask: torch.Tensor | None = None,
        encoder_hidden_states: torch.Tensor | None = None,
        encoder_attention_mask: torch.Tensor | None = None,
        past_key_values: EncoderDecoderCache | None = None,
        inputs_embeds: torch.Tensor | None = None,
        use_cache: bool | None = None,
        **kwargs: Unpack[TransformersKwargs],
    ) -> BaseModelOutputWithPastAndCrossAttentions:
        """Decode given the encoder's output.

        Args:
            input_ids: Right-shifted target ids, [batch, target length], int64; with a cache only the new ones.
            attention_mask: 1 for tokens and 0 for padding, [batch, cached + target length]; None for no padding.
                No position sees a later one in any case.
            encoder_hidden_states: The encoder's output, [batch, source length, d_model].
            encoder_attention_mask: The encoder's attention mask, [batch, source length].
            past_key_values: Keys and values of earlier steps.
            inputs_embeds: Rows of the embedding in place of `input_ids`, [batch, target length, d_model].
            use_cache: Whether to return keys and values for the next step.
            **kwargs: For the attention implementation.

        Raises:
            ValueError: Both or neither of `input_ids` and `inputs_embeds`, no `encoder_hidden_states` or those of
                another number of sources, or a cache that is not for an encoder and a decoder.
        """
        check_decoder_inputs(input_ids, inputs_embeds, encoder_hidden_states, past_key_values)
        if inputs_embeds is None:
            inputs_embeds = self.embed_tokens(input_ids)
        if use_cache and past_key_values is None:
            past_key_values = EncoderDecoderCache(DynamicCache(config=self.config), DynamicCache(config=self.config))

        past_length = past_key_values.get_seq_length() if past_key_values is not None else 0
        x = embed(self, inputs_embeds, count_positions(inputs_embeds, attention_mask, past_length))
        cache = past_key_values.self_attention_cache if past_key_values is not None else None
        mask: Any = create_causal_mask(self.config, inputs_embeds, attention_mask, past_key_values=cache)
        seen_mask = create_bidirectional_mask(self.config, inputs_embeds, encoder_attention_mask, encoder_hidden_states)
        for layer in self.layers:
            x = layer(x, encoder_hidden_states, mask, seen_mask, past_key_values=past_key_values, **kwargs)
        return BaseModelOutputWithPastAndCrossAttentions(last_hidden_state=x, past_key_values=past_key_values)


class VanillaTransformerModel(VanillaTransformerPreTrainedModel):
    """Encoder and decoder (figure 1), without the output layer.

    Each stack has an embedding module of its own, so that a hook on it sees that stack only. With tied embeddings (the
    default, section 3.4) they have the weight of `shared`; otherwise there is no `shared`.
    """

    _tied_weights_keys = {f"{stack}.embed_tokens.weight": "shared.weight" for stack in ("encoder", "decoder")}
    _tp_plan = {"shared": "embedding_rowwise"}

    def __init__(self, config: VanillaTransformerConfig) -> None:
        super().__init__(config)
        self.shared = nn.Embedding(config.vocab_size, config.d_model) if config.tie_word_embeddings else None
        # The matrix is drawn once. On the meta device each name needs a parameter, and transformers ties them later.
        drawn = None if self.shared is None or self.shared.weight.is_meta else self.shared
        self.encoder = VanillaTransformerEncoder(config, drawn)
        self.decoder = VanillaTransformerDecoder(config, drawn)
        self.post_init()
        if drawn is not None:
            self.set_input_embeddings(drawn)

    def get_input_embeddings(self) -> nn.Module:
        """Return the source's embedding, whose weight with tied embeddings is the target's too."""
        return self.encoder.embed_tokens

    def set_input_embeddings(self, value: nn.Module) -> None:
        """Replace the source's embedding; with tied embeddings the other places get its weight too."""
        self.encoder.embed_tokens = value
        if self.shared is not None:
            self.shared, self.decoder.embed_tokens = (with_weight_of(value) for _ in range(2))

    @can_return_tuple
    def forward(
        self,
        input_ids: torch.Tensor | None = None,
        attention_mask: torch.Tensor | None = None,
        decoder_input_ids: torch.Tensor | None = None,
        decoder_attention_mask: torch.Tensor | None = None,
        encoder_outputs: BaseModelOutput | tuple[torch.Tensor, ...] | None = None,
        past_key_values: EncoderDecoderCache | None = None,
        inputs_embeds: torch.Tensor | None = None,
        decoder_inputs_embeds: torch.Tensor | None = None,
        use_cache: bool | None = None,
        **kwargs: Unpack[TransformersKwargs],
    ) -> Seq2SeqModelOutput:
        """Encode the source and decode the right-shifted target.

        The arguments are those of the encoder's and the decoder's `forward`, the latter's with `decoder_` before.
        With `encoder_outputs`, what the encoder gave for this source, it does not run again.
        """
        further = kwargs if self.config.return_dict else {**kwargs, "return_dict": True}
        encoded: Any = encoder_outputs
        if encoded is None:
            encoded = self.encoder(
                input_ids=input_ids, attention_mask=attention_mask, inputs_embeds=inputs_embeds, **further
            )
        elif not isinstance(encoded, BaseModelOutput):
            encoded = BaseModelOutput(*encoded[:3])
        decoder_outputs = self.decoder(
            input_ids=decoder_input_ids,
            attention_mask=decoder_attention_mask,
            encoder_hidden_states=encoded.last_hidden_state,
            encoder_attention_mask=attention_mask,
            past_key_values=past_key_values,
            inputs_embeds=decoder_inputs_embeds,
            use_cache=use_cache,
            **further,
        )
        return Seq2SeqModelOutput(
            last_hidden_state=decoder_outputs.last_hidden_state,
            past_key_values=decoder_outputs.past_key_values,
            decoder_hidden_states=decoder_outputs.hidden_states,
            decoder_attentions=decoder_outputs.attentions,
            cross_attentions=decoder_outputs.cross_attentions,
            encoder_last_hidden_state=encoded.last_hidden_state,
            encoder_hidden_states=encoded.hidden_states,
            encoder_attentions=encoded.attentions,
        )


class VanillaTransformerForConditionalGeneration(VanillaTransformerPreTrainedModel, VanillaTransformerGenerationMixin):
    """Encoder, decoder and the output layer (section 3.4), to train with labels and to decode with `generate()`.

    With tied embeddings the output layer is the embedding matrix; it has no bias.
    """

    _tied_weights_keys = {"lm_head.weight": "model.shared.weight"}
    _tp_plan = {"lm_head": "colwise_gather_output"}

    def __init__(self, config: VanillaTransformerConfig) -> None:
        super().__init__(config)
        self.model = VanillaTransformerModel(config)
        self.lm_head = nn.Linear(config.d_model, config.vocab_size, bias=False)
        self.post_init()

    @can_return_tuple
    def forward(  # type: ignore[misc] # TransformersKwargs has num_items_in_batch too
        self,
        input_ids: torch.Tensor | None = None,
        attention_mask: torch.Tensor | None = None,
        decoder_input_ids: torch.Tensor | None = None,
        decoder_attention_mask: torch.Tensor | None = None,
        encoder_outputs: BaseModelOutput | tuple[torch.Tensor, ...] | None = None,
        past_key_values: EncoderDecoderCache | None = None,
        inputs_embeds: torch.Tensor | None = None,
        decoder_inputs_embeds: torch.Tensor | None = None,
        labels: torch.Tensor | None = None,
        use_cache: bool | None = None,
        logits_to_keep: int | torch.Tensor = 0,
        smoothing: float = 0.0,
        num_items_in_batch: int | torch.Tensor | None = None,
        return_logits: bool = True,
        **kwargs: Unpack[TransformersKwargs],
    ) -> Seq2SeqLMOutput:
        """Predict the next target token at each position.

        All arguments not named here are those of `VanillaTransformerModel.forward`.

        Args:
            labels: Target ids, not shifted, [batch, target length], int64; -100 where a position is ignored. The
                decoder's input follows from them unless it is given.
            logits_to_keep: How many of the last positions get logits, 0 for all, or the positions' indices.
            smoothing: Label smoothing (section 5.4) of the loss; the Trainer takes a name with "label" for a label.
            num_items_in_batch: The divisor of the loss: the number of labels in all accumulated batches.
            return_logits: Whether to return logits beside the loss; without, less memory is needed (in the kernels).

        Returns:
            `logits` of shape [batch, positions kept, vocab_size], or None; with labels also `loss`, the cross-entropy
            in nats per label, which without smoothing is the negative log-likelihood.

        Raises:
            ValueError: `return_logits` is False without labels, or labels have another shape than the logits.
        """
        if labels is not None:
            use_cache = False
            if decoder_input_ids is None and decoder_inputs_embeds is None:
                decoder_input_ids = self.prepare_decoder_input_ids_from_labels(labels)
        elif not return_logits:
            raise ValueError("return_logits is False, but without labels there is no loss to return instead.")

        outputs = self.model(
            input_ids=input_ids,
            attention_mask=attention_mask,
            decoder_input_ids=decoder_input_ids,
            decoder_attention_mask=decoder_attention_mask,
            encoder_outputs=encoder_outputs,
            past_key_values=past_key_values,
            inputs_embeds=inputs_embeds,
            decoder_inputs_embeds=decoder_inputs_embeds,
            use_cache=use_cache,
            return_dict=True,
            **kwargs,
        )
        hidden_states, loss, logits = outputs.last_hidden_state, None, None
        if return_logits or not self._logits_are_a_plain_product():
            kept = slice(-logits_to_keep, None) if isinstance(logits_to_keep, int) else logits_to_keep
            logits = self.lm_head(hidden_states[:, kept])
            if labels is not None:
                loss = cross_entropy(logits, labels, smoothing, num_items_in_batch)
        elif labels is not None:
            loss = linear_cross_entropy(hidden_states, self.lm_head.weight, labels, smoothing, num_items_in_batch)
        rest = {name: value for name, value in outputs.items() if name != "last_hidden_state"}
        return Seq2SeqLMOutput(loss=loss, logits=logits if return_logits else None, **rest)

    def _logits_are_a_plain_product(self) -> bool:
        """Check that logits are `hidden_states @ lm_head.weight.T`, with nothing hooked, adapted, split or traced."""
        plain = type(self.lm_head) is nn.Linear and [*dict(self.lm_head.named_parameters())] == ["weight"]
        return plain and self.tp_size is None and is_unmodified(self.lm_head) and not is_transformed()

    def prepare_decoder_input_ids_from_labels(self, labels: torch.Tensor) -> torch.Tensor:
        """Make the decoder's input for these labels, both [batch, target length]; transformers' collators call this."""
        return shift_right(labels, self.config.pad_token_id, self.config.decoder_start_token_id)


__all__ = [
    "VanillaTransformerDecoder",
    "VanillaTransformerEncoder",
    "VanillaTransformerForConditionalGeneration",
    "VanillaTransformerModel",
    "VanillaTransformerPreTrainedModel",
]
