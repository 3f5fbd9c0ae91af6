"""The decoder for beam search, one position at a time: the sums of the modeling file, with less around them.

The beams of a source share one cache. At each position every beam writes its keys and values into a slot of its own,
and of earlier positions it sees the slots of its own ancestors. So nothing is moved when a beam is dropped and another
splits: only the mask changes. To the source's keys and values, which exist once, the beams attend as so many positions.
"""

import torch
from torch import nn
from torch.nn import functional as F
from transformers import PreTrainedModel

FIRST_POSITIONS = 32  # how many a cache has room for at the beginning
FEW_ROWS = 8  # Up to so many, BLAS multiplies by the output matrix faster the other way round, up to twice as fast.


class IncrementalDecoder:
    """Decoder and output layer for the newest token of each beam.

    Args:
        model: A `VanillaTransformerForConditionalGeneration` of which `is_plain` holds.
        memory: The encoder's output, [batch, source length, d_model].
        source_mask: 1 for tokens and 0 for padding, [batch, source length]; None for no padding.
        beams: How many beams each source has.
        steps: How many positions there will be at most.
    """

    def __init__(
        self, model: PreTrainedModel, memory: torch.Tensor, source_mask: torch.Tensor | None, beams: int, steps: int
    ) -> None:
        self.decoder = model.model.decoder
        self.output_matrix = aligned(model.lm_head.weight)  # [vocabulary, d_model]
        self.positions = self.decoder.positions(torch.arange(steps, device=memory.device))
        self.beams = beams
        self.source_mask = self.mask = None
        if source_mask is not None and not source_mask.all():
            self.source_mask = additive_mask(memory, source_mask[:, None, None] == 0)  # [batch, 1, 1, source length]
        if beams > 1:  # [batch, 1, beams, positions * slots]; of each position a beam sees its own slot, for a start
            others = ~torch.eye(beams, dtype=torch.bool, device=memory.device)
            self.mask = additive_mask(memory, others.repeat(memory.shape[0], 1, 1, steps))
        self.layers = [IncrementalLayer(layer, memory, beams) for layer in self.decoder.layers]
        # Memory of this size, given back and asked for anew at each step, would cost more than what is computed in it.
        self.logits = memory.new_empty(memory.shape[0] * beams, self.output_matrix.shape[0])
        self.log_probs = torch.empty_like(self.logits, dtype=torch.float32)

    def step(self, written: torch.Tensor, continued: torch.Tensor) -> torch.Tensor:
        """One position more.

        Args:
            written: The tokens of each beam so far, [batch, beams, positions].
            continued: Which row of the batch of all beams each of them but the first continues, [batch, beams,
                positions - 1]. It is also the slot of the position before.

        Returns:
            Log-probabilities of the next token, float32, [batch, beams, vocabulary]; at the first position, where all
            beams are alike, [batch, 1, vocabulary]. They hold until the next step.
        """
        position = continued.shape[2]
        ids, mask = written[:, :, -1], None
        if position == 0:
            ids = ids[:, :1]
        elif self.mask is not None:
            # Of the earlier positions a beam sees what the one that it continues saw.
            ancestors = self.mask[..., : position * self.beams]
            ancestors.copy_(ancestors.take_along_dim(continued[:, None, :, -1:] % self.beams, dim=2))
            mask = self.mask[..., : (position + 1) * self.beams]
        embedded = self.decoder.embed_tokens(ids)
        x = (embedded * self.decoder.embed_scale + self.positions[position]).to(embedded.dtype)
        for layer in self.layers:
            x = layer.step(x, position, mask, self.source_mask)
        x = x.flatten(0, 1)
        logits = self.logits[: len(x)]
        if len(x) <= FEW_ROWS:
            logits.copy_(torch.mm(self.output_matrix, x.t()).t())
        else:
            torch.mm(x, self.output_matrix.t(), out=logits)
        log_probs = torch.log_softmax(logits.float(), dim=-1, out=self.log_probs[: len(x)])
        return log_probs.view(*ids.shape, -1)

    def keep(self, sentences: torch.Tensor) -> None:
        """Go on with some of the sentences, by their places in the batch, [sentences]."""
        for name in ("source_mask", "mask"):
            if (mask := getattr(self, name)) is not None:
                setattr(self, name, mask[sentences])
        for layer in self.layers:
            layer.keep(sentences)


class IncrementalLayer:
    """A decoder layer with its keys and values.

    At batch 1 a step takes as long as the number of its operations says, so there are as few as will do: layers are
    called as functions of their weights, and queries, keys and values go through one product and one cache.
    """

    def __init__(self, layer: nn.Module, memory: torch.Tensor, beams: int) -> None:
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
        # [batch, heads, source length, d_head], so laid out that a head's are together
        self.source_keys = cross.split_heads(cross.k_proj(memory)).contiguous()
        self.source_values = cross.split_heads(cross.v_proj(memory)).contiguous()
        # Keys and then values, with room for more than there are: [batch, 2 * heads, positions * beams, d_head]
        batch, self.heads, _, d_head = self.source_keys.shape
        self.cache = memory.new_empty(batch, 2 * self.heads, FIRST_POSITIONS * beams, d_head)

    def step(
        self, x: torch.Tensor, position: int, mask: torch.Tensor | None, source_mask: torch.Tensor | None
    ) -> torch.Tensor:
        """[batch, beams, d_model] to the same shape."""
        query, new = self.split_heads(F.linear(x, *self.qkv)).split_with_sizes([self.heads, 2 * self.heads], dim=1)
        keys, values = self.extended(position, new).chunk(2, dim=1)
        attended = F.scaled_dot_product_attention(query, keys, values, attn_mask=mask)
        x = torch.layer_norm(F.linear(concatenated(attended), *self.out).add_(x), *self.norms[0])

        query = self.split_heads(F.linear(x, *self.cross_q))
        attended = F.scaled_dot_product_attention(query, self.source_keys, self.source_values, attn_mask=source_mask)
        x = torch.layer_norm(F.linear(concatenated(attended), *self.cross_out).add_(x), *self.norms[1])

        inner = self.activation(F.linear(x, *self.fc1))
        return torch.layer_norm(F.linear(inner, *self.fc2).add_(x), *self.norms[2])

    def extended(self, position: int, new: torch.Tensor) -> torch.Tensor:
        """Write a position's keys and values, [batch, 2 * heads, beams, d_head], and return all there are so far."""
        start = position * self.beams
        if start == self.cache.shape[2]:
            self.cache = torch.cat([self.cache, torch.empty_like(self.cache)], dim=2)
        self.cache[:, :, start : start + self.beams] = new  # at the first position one for all slots
        return self.cache[:, :, : start + new.shape[2]]

    def keep(self, sentences: torch.Tensor) -> None:
        """As `IncrementalDecoder.keep`."""
        for name in ("source_keys", "source_values", "cache"):
            setattr(self, name, getattr(self, name)[sentences])


def concatenated(attended: torch.Tensor) -> torch.Tensor:
    """Concat(head_1, ..., head_h) (section 3.2.2): [batch, heads, beams, d_head] to [batch, beams, d_model]."""
    return attended.transpose(1, 2).flatten(2)


def aligned(matrix: torch.Tensor) -> torch.Tensor:
    """A copy where the matrix begins at no multiple of 16 bytes, as a loaded one may: BLAS would round otherwise."""
    return matrix if matrix.data_ptr() % 16 == 0 else matrix.clone()


def additive_mask(memory: torch.Tensor, masked: torch.Tensor) -> torch.Tensor:
    """What attention adds to its scores, in the memory's dtype: minus infinity where masked, 0 elsewhere."""
    return memory.new_zeros(masked.shape).masked_fill_(masked, -torch.inf)


def is_plain(model: PreTrainedModel) -> bool:
    """Whether the decoder is what `IncrementalDecoder` computes: no dropout, adapter, hook, other dtype or split."""
    if model.config.model_type != "vanilla_transformer" or model.training or not model.output_layer_is_one_matrix():
        return False
    if torch.is_autocast_enabled(model.device.type):
        return False
    for module in model.model.decoder.modules():
        file = type(module).__module__
        known = file.startswith(("torch.nn.modules.", "transformers.activations"))
        known |= file.rpartition(".")[2] == "modeling_vanilla_transformer"
        hooked = module._forward_hooks or module._forward_pre_hooks or "forward" in vars(module)
        if not known or hooked or module._compiled_call_impl is not None:
            return False
    return True
