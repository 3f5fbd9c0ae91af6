"""Small models and batches that several test files share."""

from argparse import Namespace
from pathlib import Path

import torch

from vanilla_transformer import VanillaTransformerConfig, VanillaTransformerForConditionalGeneration
from vanilla_transformer.hub import hiding

PAD, EOS = 1, 2
# What the tests of inference translate, and into how many tokens at most; blank lines are among them.
SENTENCES = [
    "a dog runs",
    "two dogs run on the green grass",
    "",
    "a cat",
    "the cat sleeps all day long",
    "  \t",
    "a dog",
]
SHORT = {"max_new_tokens": 12}
NUMBERS = ["forty-two", "", "one thousand and one", "seven"]  # what the tests of commands translate
# The beginning of a program in which the package can't be imported.
HIDE_THE_PACKAGE = f"""
import runpy
import sys
runpy.run_path({hiding.__file__!r})["hide_package"]()
"""
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


def texts(results) -> list[list[str]]:
    """The texts of what `translate` gives, for each sentence best first."""
    return [[translation.text for translation in translations] for translations in results]


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


# A checkpoint of fairseq's transformer, from the format's definition.

FAIRSEQ_OPTIONS = {
    "encoder_attention_heads": 2,
    "decoder_attention_heads": 4,
    "encoder_normalize_before": False,
    "decoder_normalize_before": False,
    "encoder_learned_pos": False,
    "decoder_learned_pos": False,
    "share_decoder_input_output_embed": True,
    "share_all_embeddings": True,
    "adaptive_softmax_cutoff": None,
    "activation_fn": "relu",
    "no_scale_embedding": False,
    "dropout": 0.3,
    "attention_dropout": 0.1,
    "activation_dropout": 0.2,
}
FAIRSEQ_TYPES = [f"w{i}@@" if i % 3 else f"w{i}" for i in range(28)]


def fairseq_weights(shared: bool = True) -> dict[str, torch.Tensor]:
    """Random weights by fairseq's names: d_model 16, 2 + 3 layers, d_ff 24 and 40."""
    types, d_model = 4 + len(FAIRSEQ_TYPES), 16
    weights = {"encoder.version": torch.tensor([3.0]), "encoder.embed_positions._float_tensor": torch.zeros(1)}
    matrix = torch.randn(types, d_model) * 0.3
    for name in ("encoder.embed_tokens", "decoder.embed_tokens", "decoder.output_projection"):
        weights[f"{name}.weight"] = matrix if shared else torch.randn(types, d_model) * 0.3
    for stack, layers, ffn_dim in (("encoder", 2, 24), ("decoder", 3, 40)):
        for layer in (f"{stack}.layers.{i}" for i in range(layers)):
            linears = {"fc1": (ffn_dim, d_model), "fc2": (d_model, ffn_dim)}
            norms = ["self_attn_layer_norm", "final_layer_norm"]
            for attention in ("self_attn", "encoder_attn")[: 1 if stack == "encoder" else 2]:
                linears |= {f"{attention}.{x}_proj": (d_model, d_model) for x in ("q", "k", "v", "out")}
            if stack == "decoder":
                norms.append("encoder_attn_layer_norm")
            for name, shape in linears.items():
                weights[f"{layer}.{name}.weight"] = torch.randn(shape) * 0.3
                weights[f"{layer}.{name}.bias"] = torch.randn(shape[0]) * 0.3
            for name in norms:
                weights[f"{layer}.{name}.weight"] = 1 + torch.randn(d_model) * 0.3
                weights[f"{layer}.{name}.bias"] = torch.randn(d_model) * 0.3
    return weights


def write_fairseq_checkpoint(folder: Path, shared: bool = True, **options) -> dict[str, torch.Tensor]:
    """checkpoint_best.pt and dict.en.txt in the folder; returns the weights."""
    weights = fairseq_weights(shared)
    sharing = {"share_decoder_input_output_embed": shared, "share_all_embeddings": shared}
    args = Namespace(**(FAIRSEQ_OPTIONS | sharing | options))
    torch.save({"args": args, "model": weights}, folder / "checkpoint_best.pt")
    (folder / "dict.en.txt").write_text("".join(f"{word} {99 - i}\n" for i, word in enumerate(FAIRSEQ_TYPES)))
    return weights
