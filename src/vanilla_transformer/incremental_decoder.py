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
        self.output_matrix = model.lm_head.weight.t()  # [d_model, vocabulary]
        self.positions = self.decoder.positions(torch.arange(steps, device=memory.device))
        self.slots = torch.arange(beams, device=memory.device)
        self.source_mask = None
        if source_mask is not None and not source_mask.all():
            self.source_mask = source_mask[:, None, None].bool()  # [batch, 1, 1, source length]
        self.layers = [IncrementalLayer(layer, memory, beams) for layer in self.decoder.layers]
        # Memory of this size, given back and asked for anew at each step, would cost more than what is computed in it.
        self.logits = memory.new_empty(memory.shape[0] * beams, self.output_matrix.shape[1])
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
        batch, beams, position = continued.shape
        ids, mask = written[:, :, -1], None
        if position == 0:
            ids = ids[:, :1]
        else:
            own = self.slots[:, None].expand(batch, -1, 1)
            slots = torch.cat([continued % beams, own], dim=2)  # [batch, beams, positions]
            mask = (slots[..., None] == self.slots).flatten(2)[:, None]  # [batch, 1, beams, positions * slots]
        embedded = self.decoder.embed_tokens(ids)
        x = (embedded * self.decoder.embed_scale + self.positions[position]).to(embedded.dtype)
        for layer in self.layers:
            x = layer.step(x, position, mask, self.source_mask)
        rows = slice(ids.numel())
        logits = torch.mm(x.flatten(0, 1), self.output_matrix, out=self.logits[rows])
        log_probs = torch.log_softmax(logits.float(), dim=-1, out=self.log_probs[rows])
        return log_probs.view(*ids.shape, -1)

    def keep(self, sentences: torch.Tensor) -> None:
        """Go on with some of the sentences, by their places in the batch, [sentences]."""
        if self.source_mask is not None:
            self.source_mask = self.source_mask[sentences]
        for layer in self.layers:
            layer.keep(sentences)


class IncrementalLayer:
    """A decoder layer with its keys and values."""

    def __init__(self, layer: nn.Module, memory: torch.Tensor, beams: int) -> None:
        self.layer, self.beams = layer, beams
        own, cross = layer.self_attn, layer.encoder_attn
        # One matrix product in the place of three.
        self.weight = torch.cat([own.q_proj.weight, own.k_proj.weight, own.v_proj.weight])
        self.bias = torch.cat([own.q_proj.bias, own.k_proj.bias, own.v_proj.bias])
        # [batch, heads, source length, d_head], so laid out that a head's are together
        self.source_keys = cross.split_heads(cross.k_proj(memory)).contiguous()
        self.source_values = cross.split_heads(cross.v_proj(memory)).contiguous()
        # [batch, heads, positions * beams, d_head], with room for more than there are
        batch, heads, _, d_head = self.source_keys.shape
        self.keys, self.values = memory.new_empty(2, batch, heads, FIRST_POSITIONS * beams, d_head)

    def step(
        self, x: torch.Tensor, position: int, mask: torch.Tensor | None, source_mask: torch.Tensor | None
    ) -> torch.Tensor:
        """[batch, beams, d_model] to the same shape."""
        layer, attention = self.layer, self.layer.self_attn
        query, key, value = map(attention.split_heads, F.linear(x, self.weight, self.bias).chunk(3, dim=2))
        attended = F.scaled_dot_product_attention(query, *self.extended(position, key, value), attn_mask=mask)
        x = layer.add_and_norm(x, attention.out_proj(concatenated(attended)), layer.self_attn_layer_norm)

        attention = layer.encoder_attn
        query = attention.split_heads(attention.q_proj(x))
        attended = F.scaled_dot_product_attention(query, self.source_keys, self.source_values, attn_mask=source_mask)
        x = layer.add_and_norm(x, attention.out_proj(concatenated(attended)), layer.encoder_attn_layer_norm)
        return layer.add_and_norm(x, layer.feed_forward(x), layer.final_layer_norm)

    def keep(self, sentences: torch.Tensor) -> None:
        """As `IncrementalDecoder.keep`."""
        for name in ("source_keys", "source_values", "keys", "values"):
            setattr(self, name, getattr(self, name)[sentences])

    def extended(self, position: int, key: torch.Tensor, value: torch.Tensor) -> tuple[torch.Tensor, torch.Tensor]:
        """Write a position's keys and values, [batch, heads, beams, d_head], and return all there are so far."""
        start = position * self.beams
        if start == self.keys.shape[2]:
            self.keys, self.values = (torch.cat([old, torch.empty_like(old)], 2) for old in (self.keys, self.values))
        self.keys[:, :, start : start + self.beams] = key  # at the first position one for all slots
        self.values[:, :, start : start + self.beams] = value
        end = start + key.shape[2]
        return self.keys[:, :, :end], self.values[:, :, :end]


def concatenated(attended: torch.Tensor) -> torch.Tensor:
    """Concat(head_1, ..., head_h) (section 3.2.2): [batch, heads, beams, d_head] to [batch, beams, d_model]."""
    return attended.transpose(1, 2).flatten(2)


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
