"""Small models and batches that several test files share."""

import torch

from vanilla_transformer import VanillaTransformerConfig, VanillaTransformerForConditionalGeneration

PAD, EOS = 1, 2
# Numbers of layers, heads and widths all differ between encoder and decoder, so that none can stand in for another.
SIZES = {
    "vocab_size": 61,
    "d_model": 16,
    "encoder_layers": 2,
    "decoder_layers": 3,
    "encoder_attention_heads": 2,
    "decoder_attention_heads": 4,
    "encoder_ffn_dim": 24,
    "decoder_ffn_dim": 40,
    "dropout": 0.0,
}


def small_config(**overrides) -> VanillaTransformerConfig:
    return VanillaTransformerConfig(**(SIZES | overrides))


def small_model(
    attn_implementation: str | None = None, dtype: torch.dtype = torch.float32, **overrides
) -> VanillaTransformerForConditionalGeneration:
    """A model in evaluation mode, every parameter away from the value it is initialized with."""
    config = small_config(**overrides)
    config._attn_implementation = attn_implementation
    return randomized(VanillaTransformerForConditionalGeneration(config)).to(dtype).eval()


def one_layer_config(tokenizer, **overrides) -> VanillaTransformerConfig:
    """The smallest config for a tokenizer, where speed counts and not the shape."""
    sizes = {
        "d_model": 16,
        "encoder_layers": 1,
        "decoder_layers": 1,
        "encoder_attention_heads": 2,
        "decoder_attention_heads": 2,
        "encoder_ffn_dim": 32,
        "decoder_ffn_dim": 32,
    }
    return VanillaTransformerConfig(vocab_size=len(tokenizer), **(sizes | overrides))


def wordy_model(tokenizer, **overrides) -> VanillaTransformerForConditionalGeneration:
    """A model of one layer that translates each sentence differently, though it was never trained."""
    torch.manual_seed(0)
    config = one_layer_config(tokenizer, tie_word_embeddings=False, **overrides)  # tied, it repeats one token
    model = VanillaTransformerForConditionalGeneration(config).eval()
    with torch.no_grad():
        for parameter in model.parameters():
            if parameter.dim() == 2:
                parameter.mul_(5)
    return model


def randomized(model: torch.nn.Module) -> torch.nn.Module:
    """Add noise to all parameters: zero biases and unit norms would hide that two of them are mixed up."""
    with torch.no_grad():
        for parameter in model.parameters():
            parameter.add_(torch.randn_like(parameter) * 0.2)
    return model


def random_ids(*shape: int, vocab_size: int = SIZES["vocab_size"]) -> torch.Tensor:
    """Ids that are not special tokens."""
    return torch.randint(4, vocab_size, shape)


def padded(rows: list[torch.Tensor], length: int, side: str = "right") -> tuple[torch.Tensor, torch.Tensor]:
    """Ids and attention mask, both [rows, length]."""
    ids = torch.full((len(rows), length), PAD)
    mask = torch.zeros(len(rows), length, dtype=torch.long)
    for i, row in enumerate(rows):
        place = slice(0, len(row)) if side == "right" else slice(length - len(row), length)
        ids[i, place], mask[i, place] = row, 1
    return ids, mask


def ragged_batch() -> dict[str, torch.Tensor]:
    """Three sources of 9, 6 and 2 tokens, three targets of 7, 4 and 1, padded on the right."""
    input_ids, attention_mask = padded([random_ids(n) for n in (9, 6, 2)], 9)
    decoder_input_ids, decoder_attention_mask = padded([random_ids(n) for n in (7, 4, 1)], 7)
    return {
        "input_ids": input_ids,
        "attention_mask": attention_mask,
        "decoder_input_ids": decoder_input_ids,
        "decoder_attention_mask": decoder_attention_mask,
    }


def labels_of(decoder_input_ids: torch.Tensor) -> torch.Tensor:
    """Random labels of the same shape, -100 where the input is padding."""
    return random_ids(*decoder_input_ids.shape).masked_fill(decoder_input_ids == PAD, -100)


def gradients(model: torch.nn.Module) -> dict[str, torch.Tensor]:
    return {name: parameter.grad.clone() for name, parameter in model.named_parameters()}
