"""Decoders for beam search that compute one position at a time.

`CachedDecoder` calls the `forward` of any encoder-decoder model. `IncrementalDecoder` computes the same as the
`forward` of our models with fewer operations, and is used where nothing has been modified.
"""

from typing import Any, Protocol

import torch
from torch.nn import functional as F
from transformers import (
    DynamicCache,
    EncoderDecoderCache,
    GenerationConfig,
    PreTrainedModel,
)
from transformers.modeling_outputs import Seq2SeqLMOutput

from .integrity_vanilla_transformer import decodes_as_written

INITIAL_POSITIONS = 32  # A cache begins with room for so many positions, which doubles when it is used up.
FEW_ROWS = 8  # Up to so many rows, BLAS computes (W x^T)^T up to twice as fast as x W^T, for the output matrix W.


# Arguments of the model that the incremental decoder knows.
USUAL_INPUTS = {"encoder_outputs", "attention_mask", "past_key_values", "use_cache", "logits_to_keep"}


class StepDecoder(Protocol):
    """What beam search needs of a decoder.

    Attributes:
        outputs: The model's output at the last step; None if the decoder does not call the model's `forward`.
        logits: The logits of the last step, [rows, vocabulary], perhaps with more rows after those of the step.
    """

    outputs: Seq2SeqLMOutput | None
    logits: torch.Tensor

    def step(self, ids: torch.Tensor, parents: torch.Tensor) -> torch.Tensor:
        """Compute the log-probabilities of the next token.

        Args:
            ids: Prompt and tokens of each beam so far, int64, [batch, beams, length].
            parents: For each generated token the beam that it continued, as a row of [batch * beams], int64,
                [batch, beams, steps].

        Returns:
            float32, [batch, beams, vocabulary]; at the first step, where all beams are alike, perhaps
            [batch, 1, vocabulary]. The memory may be reused at the next step.
        """

    def select(self, rows: torch.Tensor) -> bool:
        """Go on with the sentences at these batch indices, int64, [rows]; return False if all have to stay."""


def select_decoder(
    model: PreTrainedModel,
    model_kwargs: dict[str, Any],
    generation_config: GenerationConfig,
    prompt: torch.Tensor,
    beams: int,
    steps: int,
) -> StepDecoder:
    """Choose the incremental decoder, unless the model or what is asked for needs `forward` and its cache.

    A model that consists of several, an ensemble, chooses a decoder itself: it has a method of this name.
    """
    if (select := getattr(type(model), "select_decoder", None)) is not None:
        return select(model, model_kwargs, generation_config, prompt, beams, steps)
    memory, mask = model_kwargs["encoder_outputs"][0], model_kwargs.get("attention_mask")
    if (
        prompt.shape[1] == 1
        and not any(getattr(generation_config, f"output_{name}") for name in ("logits", "attentions", "hidden_states"))
        and all(value is None or name in USUAL_INPUTS for name, value in model_kwargs.items())
        and _is_new_cache(model_kwargs.get("past_key_values"))
        and _are_plain(memory, mask)
        and IncrementalDecoder.supports(model)
        and (memory.dtype, memory.device) == (model.lm_head.weight.dtype, model.lm_head.weight.device)
    ):
        # generate() repeated each source for its beams, which share it here: the first row of each is enough.
        return IncrementalDecoder(model, memory[::beams], mask if mask is None else mask[::beams], beams, steps)
    return CachedDecoder(model, model_kwargs, generation_config)


def _is_new_cache(cache: Any) -> bool:
    """Check that a cache is the one that `generate()` makes, and that nothing is in it, such as a prefix."""
    return (
        type(cache) is EncoderDecoderCache
        and type(cache.self_attention_cache) is DynamicCache
        and type(cache.cross_attention_cache) is DynamicCache
        and cache.get_seq_length() == 0
        and not any(cache.is_updated.values())
    )


def _are_plain(memory: Any, mask: Any) -> bool:
    """Check that both are plain tensors on the same device, of the usual shapes; the mask may be None."""
    return (
        type(memory) is torch.Tensor
        and memory.dim() == 3
        and (mask is None or (type(mask) is torch.Tensor and mask.dim() == 2 and mask.device == memory.device))
    )


class CachedDecoder:
    """Any encoder-decoder model, through its `forward` and the cache that `generate()` prepared for it."""

    def __init__(
        self, model: PreTrainedModel, model_kwargs: dict[str, Any], generation_config: GenerationConfig
    ) -> None:
        # Without types: generation methods are those of a mixin, which a model has or has not.
        self.model: Any = model
        self.model_kwargs, self.generation_config = model_kwargs, generation_config
        self.outputs: Seq2SeqLMOutput | None = None

    def step(self, ids: torch.Tensor, parents: torch.Tensor) -> torch.Tensor:
        """Compute the log-probabilities of the next token, see `StepDecoder`."""
        batch, beams, steps = parents.shape
        rows = ids.flatten(0, 1)
        if steps == 0:
            outputs = self.model._prefill(rows, self.generation_config, self.model_kwargs)
        else:
            self._reorder_cache(parents[:, :, -1].flatten())
            newest = 1 if self.model_kwargs["use_cache"] else None
            inputs = self.model.prepare_inputs_for_generation(rows, next_sequence_length=newest, **self.model_kwargs)
            outputs = self.model(**inputs, return_dict=True)
        self.outputs = outputs
        self.model_kwargs = self.model._update_model_kwargs_for_generation(
            outputs, self.model_kwargs, is_encoder_decoder=True
        )
        self.logits = outputs.logits[:, -1].to(ids.device, torch.float32)
        return F.log_softmax(self.logits, dim=-1).unflatten(0, (batch, beams))

    def _reorder_cache(self, rows: torch.Tensor) -> None:
        """Give each beam the keys and values of the beam that it continues, int64, [batch * beams]."""
        cache = self.model_kwargs.get("past_key_values")
        if cache is None:
            return
        if hasattr(self.model, "_reorder_cache"):
            self.model_kwargs["past_key_values"] = self.model._reorder_cache(cache, rows)
        else:
            cache.reorder_cache(rows)

    def select(self, rows: torch.Tensor) -> bool:
        """Keep all sentences: what else the model is given may depend on the rows of the batch."""
        return False


class IncrementalDecoder:
    """Decoder and output layer of our models, for the newest token of each beam.

    The beams of a source share one cache. At each position every beam writes its keys and values into its own slot, and
    attends to its ancestors' slots at the positions before. When a beam is dropped and another one is continued twice,
    nothing is copied: only the mask changes. The source's keys and values exist once; the beams attend to them like
    consecutive positions of one target.

    Args:
        model: A `VanillaTransformerForConditionalGeneration` for which `supports` holds.
        memory: The encoder's output, [batch, source length, d_model].
        source_mask: 1 for tokens and 0 for padding, [batch, source length]; None for no padding.
        beams: Number of beams of each source.
        steps: Greatest number of positions.
    """

    outputs: Seq2SeqLMOutput | None = None

    def __init__(
        self, model: Any, memory: torch.Tensor, source_mask: torch.Tensor | None, beams: int, steps: int
    ) -> None:
        self.decoder: Any = model.model.decoder
        self.output_matrix = aligned(model.lm_head.weight)  # [vocabulary, d_model]
        self.beams, self.steps = beams, steps
        self.positions = memory.new_empty(0)  # of so many steps as there is room for, [room, d_model]
        self.ancestor_mask: torch.Tensor | None = None  # [batch, 1, beams, room * beams], with several beams
        self.source_mask: torch.Tensor | None = None
        if source_mask is not None and not source_mask.all():
            self.source_mask = additive_mask(memory, source_mask[:, None, None] == 0)  # [batch, 1, 1, source length]
        self.layers = [IncrementalLayer(layer, memory, beams) for layer in self.decoder.layers]
        # Allocating memory of this size at each step would cost more than the computation in it.
        self.logits = memory.new_empty(memory.shape[0] * beams, self.output_matrix.shape[0])
        self.log_probs = torch.empty_like(self.logits, dtype=torch.float32)

    @classmethod
    def supports(cls, model: PreTrainedModel) -> bool:
        """Check that the model's decoder computes what this class does: that nobody has modified anything."""
        return decodes_as_written(model)

    def step(self, ids: torch.Tensor, parents: torch.Tensor) -> torch.Tensor:
        """Compute the log-probabilities of the next token, see `StepDecoder`.

        A parent modulo `beams` is also the slot of the position before.
        """
        position = parents.shape[2]
        if position == len(self.positions):
            self._make_room(len(ids))
        newest, mask = ids[:, :, -1], None
        if position == 0:
            newest = newest[:, :1]
        elif self.ancestor_mask is not None:
            # Each beam takes over the row of the beam that it continues, for all positions before this one.
            # parents[:, :, -1] = [[0, 0, 1, 2]]: beam 0 was continued twice, beam 3 was dropped.
            ancestors = self.ancestor_mask[..., : position * self.beams]
            ancestors.copy_(ancestors.take_along_dim(parents[:, None, :, -1:] % self.beams, dim=2))
            mask = self.ancestor_mask[..., : (position + 1) * self.beams]
        embedded = self.decoder.embed_tokens(newest)
        x = (embedded * self.decoder.embedding_scale + self.positions[position]).to(embedded.dtype)
        for layer in self.layers:
            x = layer.step(x, position, mask, self.source_mask)
        x = x.flatten(0, 1)  # [batch * beams, d_model]
        logits = self.logits[: len(x)]
        if len(x) <= FEW_ROWS:
            logits.copy_(torch.mm(self.output_matrix, x.t()).t())
        else:
            torch.mm(x, self.output_matrix.t(), out=logits)
        log_probs = torch.log_softmax(logits.float(), dim=-1, out=self.log_probs[: len(x)])
        return log_probs.view(*newest.shape, -1)

    def _make_room(self, batch: int) -> None:
        """Make room for twice as many positions, or for all."""
        before = len(self.positions)
        room = min(max(INITIAL_POSITIONS, 2 * before), self.steps)
        self.positions = self.decoder.positions(torch.arange(room, device=self.logits.device))
        if self.beams > 1:  # at first a beam sees its own slot at each position
            other_slots = ~torch.eye(self.beams, dtype=torch.bool, device=self.logits.device)
            more = additive_mask(self.logits, other_slots.repeat(batch, 1, 1, room - before))
            self.ancestor_mask = more if self.ancestor_mask is None else torch.cat([self.ancestor_mask, more], dim=3)

    def select(self, rows: torch.Tensor) -> bool:
        """Go on with the sentences at these batch indices, int64, [rows]."""
        if self.source_mask is not None:
            self.source_mask = self.source_mask[rows]
        if self.ancestor_mask is not None:
            self.ancestor_mask = self.ancestor_mask[rows]
        for layer in self.layers:
            layer.select(rows)
        return True


class IncrementalLayer:
    """A decoder layer with its keys and values.

    The time of a step at batch 1 is bound by the number of operations, so there are as few as possible: linear layers
    and norms are called as functions of their weights, and the projections to queries, keys and values are one product.
    """

    def __init__(self, layer: Any, memory: torch.Tensor, beams: int) -> None:
        own, cross = layer.self_attn, layer.encoder_attn
        projections = (own.q_proj, own.k_proj, own.v_proj)
        self.qkv = torch.cat([part.weight for part in projections]), torch.cat([part.bias for part in projections])
        self.out, self.cross_q, self.cross_out, self.fc1, self.fc2 = (
            (part.weight, part.bias) for part in (own.out_proj, cross.q_proj, cross.out_proj, layer.fc1, layer.fc2)
        )
        norms = (layer.self_attn_layer_norm, layer.encoder_attn_layer_norm, layer.final_layer_norm)
        self.norms = [(norm.normalized_shape, norm.weight, norm.bias, norm.eps) for norm in norms]
        self.activation = layer.activation
        self.beams, self.split_heads = beams, own.split_heads
        # [batch, heads, source length, d_head], contiguous within a head
        self.source_keys = cross.split_heads(cross.k_proj(memory)).contiguous()
        self.source_values = cross.split_heads(cross.v_proj(memory)).contiguous()
        # Keys and then values, with room for later positions: [batch, 2 * heads, positions * beams, d_head]
        self.heads = own.q_proj.out_features // own.d_head  # fewer than in the config where heads were pruned
        self.cache = memory.new_empty(len(memory), 2 * self.heads, INITIAL_POSITIONS * beams, own.d_head)

    def step(
        self, x: torch.Tensor, position: int, mask: torch.Tensor | None, source_mask: torch.Tensor | None
    ) -> torch.Tensor:
        """Apply the layer to one position, [batch, beams, d_model] to the same shape."""
        query, new = self.split_heads(F.linear(x, *self.qkv)).split_with_sizes([self.heads, 2 * self.heads], dim=1)
        keys, values = self.extend_cache(position, new).chunk(2, dim=1)
        attended = F.scaled_dot_product_attention(query, keys, values, attn_mask=mask)
        x = torch.layer_norm(F.linear(concat_heads(attended), *self.out).add_(x), *self.norms[0])

        query = self.split_heads(F.linear(x, *self.cross_q))
        attended = F.scaled_dot_product_attention(query, self.source_keys, self.source_values, attn_mask=source_mask)
        x = torch.layer_norm(F.linear(concat_heads(attended), *self.cross_out).add_(x), *self.norms[1])

        inner = self.activation(F.linear(x, *self.fc1))
        return torch.layer_norm(F.linear(inner, *self.fc2).add_(x), *self.norms[2])

    def extend_cache(self, position: int, new: torch.Tensor) -> torch.Tensor:
        """Store a position's keys and values, [batch, 2 * heads, beams, d_head], and return those of all positions.

        Returns:
            A view of the cache, [batch, 2 * heads, (position + 1) * beams, d_head]; at the first position
            [batch, 2 * heads, 1, d_head], as all beams are alike and `new` has one for all.
        """
        start = position * self.beams
        if start == self.cache.shape[2]:
            self.cache = torch.cat([self.cache, torch.empty_like(self.cache)], dim=2)
        self.cache[:, :, start : start + self.beams] = new
        return self.cache[:, :, : start + new.shape[2]]

    def select(self, rows: torch.Tensor) -> None:
        """Go on with the sentences at these batch indices, int64, [rows]."""
        self.source_keys, self.source_values = self.source_keys[rows], self.source_values[rows]
        self.cache = self.cache[rows]


def concat_heads(attended: torch.Tensor) -> torch.Tensor:
    """Concat(head_1, ..., head_h) (section 3.2.2): [batch, heads, beams, d_head] to [batch, beams, d_model]."""
    return attended.transpose(1, 2).flatten(2)


def aligned(matrix: torch.Tensor) -> torch.Tensor:
    """Copy the matrix if its memory is not aligned to 16 bytes; BLAS would round differently.

    The memory of a matrix that safetensors has loaded can begin anywhere.
    """
    return matrix if matrix.data_ptr() % 16 == 0 else matrix.clone()


def additive_mask(like: torch.Tensor, masked: torch.Tensor) -> torch.Tensor:
    """Convert a boolean mask to one that is added to attention scores: minus infinity if masked, otherwise 0."""
    return like.new_zeros(masked.shape).masked_fill_(masked, -torch.inf)
