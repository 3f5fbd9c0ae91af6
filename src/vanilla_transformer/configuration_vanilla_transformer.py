"""Configuration of the Transformer of "Attention Is All You Need" (Vaswani et al. 2017, arXiv 1706.03762)."""

import os
from typing import Any

from huggingface_hub.dataclasses import strict
from transformers.activations import ACT2FN
from transformers.configuration_utils import PreTrainedConfig

# Table 3 of the paper has base and big. Tiny is the size that Wu et al. (2021) train on Multi30k.
PRESETS: dict[str, dict[str, int | float]] = {
    "tiny": {"d_model": 128, "ffn_dim": 256, "attention_heads": 4, "layers": 4, "dropout": 0.3},
    "base": {"d_model": 512, "ffn_dim": 2048, "attention_heads": 8, "layers": 6, "dropout": 0.1},
    "big": {"d_model": 1024, "ffn_dim": 4096, "attention_heads": 16, "layers": 6, "dropout": 0.3},
}

# Written into every config, so that a saved model loads by each of the three classes from the code beside it.
AUTO_MAP = {
    "AutoConfig": "configuration_vanilla_transformer.VanillaTransformerConfig",
    "AutoModel": "modeling_vanilla_transformer.VanillaTransformerModel",
    "AutoModelForSeq2SeqLM": "modeling_vanilla_transformer.VanillaTransformerForConditionalGeneration",
}


@strict
class VanillaTransformerConfig(PreTrainedConfig):
    """Shape and token ids of a model; the defaults are the paper's base model (table 3).

    Args:
        vocab_size: Size of the joint source and target vocabulary (section 5.1: about 37,000).
        d_model: Width of the embeddings and of each sub-layer's output; even, and divisible by the numbers of heads.
        encoder_layers: Number of encoder layers, N.
        decoder_layers: Number of decoder layers, N.
        encoder_attention_heads: Number of attention heads h in the encoder.
        decoder_attention_heads: Number of attention heads h in the decoder.
        encoder_ffn_dim: Inner width d_ff of the encoder's feed-forward networks.
        decoder_ffn_dim: Inner width d_ff of the decoder's feed-forward networks.
        dropout: Probability on each sub-layer's output and on embeddings plus positions (section 5.4).
        attention_dropout: Probability on the attention weights; not in the paper, hence 0.
        activation_dropout: Probability on the feed-forward activation; not in the paper, hence 0.
        activation_function: Name in `transformers.activations.ACT2FN`; the paper's is "relu".
        scale_embedding: Whether embeddings are multiplied by sqrt(d_model), as section 3.4 says.
        position_convention: "paper" for section 3.5 to the letter. "fairseq" for weights that were trained there:
            positions count from pad_token_id + 1, and 10000^(2i/(d_model - 2)) takes the place of 10000^(2i/d_model).
        use_cache: Whether decoding keeps keys and values of earlier steps.
        tie_word_embeddings: Whether both embeddings and the output layer are one matrix, as section 3.4 says.
            Otherwise they are three.
        pad_token_id: Id of `<pad>`.
        bos_token_id: Id of `<s>`; None if the tokenizer has none. The model reads `decoder_start_token_id` instead.
        eos_token_id: Id of `</s>`; a list where several tokens end a sentence, None where none does.
        decoder_start_token_id: Id that the right-shifted target starts with; `<s>`.
        is_encoder_decoder: Always true.

    Raises:
        ValueError: A field, or a combination of two, that no model can have; the sentence names it.
    """

    model_type = "vanilla_transformer"
    keys_to_ignore_at_inference = ["past_key_values"]
    attribute_map = {
        "hidden_size": "d_model",
        "num_attention_heads": "encoder_attention_heads",
        "num_hidden_layers": "encoder_layers",
    }

    vocab_size: int = 37_000
    d_model: int = 512
    encoder_layers: int = 6
    decoder_layers: int = 6
    encoder_attention_heads: int = 8
    decoder_attention_heads: int = 8
    encoder_ffn_dim: int = 2048
    decoder_ffn_dim: int = 2048
    dropout: float | int = 0.1
    attention_dropout: float | int = 0.0
    activation_dropout: float | int = 0.0
    activation_function: str = "relu"
    scale_embedding: bool = True
    position_convention: str = "paper"
    use_cache: bool = True
    tie_word_embeddings: bool = True
    pad_token_id: int = 1
    bos_token_id: int | None = 0
    eos_token_id: int | list[int] | None = 2
    decoder_start_token_id: int = 0
    is_encoder_decoder: bool = True

    def __post_init__(self, **kwargs: Any) -> None:
        self.validate_architecture()
        if type(self).__module__ == __name__:  # a derived class has entries of its own, written when it is saved
            kwargs["auto_map"] = AUTO_MAP | (kwargs.get("auto_map") or {})
        super().__post_init__(**kwargs)

    def save_pretrained(  # type: ignore[override] # the rest passes through kwargs
        self, save_directory: str | os.PathLike, **kwargs: Any
    ) -> None:
        """Save the config, without references to code in other repositories: each save carries its own code."""
        auto_map = getattr(self, "auto_map", None) or {}
        self.auto_map = {name: where for name, where in auto_map.items() if "--" not in str(where)}
        super().save_pretrained(save_directory, **kwargs)

    def validate_architecture(self) -> None:
        """Refuse what can't be a model; transformers calls this again at every save.

        Raises:
            ValueError: With the field, its value and what is allowed.
        """
        for field in (
            "vocab_size",
            "d_model",
            "encoder_layers",
            "decoder_layers",
            "encoder_attention_heads",
            "decoder_attention_heads",
            "encoder_ffn_dim",
            "decoder_ffn_dim",
        ):
            if getattr(self, field) < 1:
                raise ValueError(f"{field} is {getattr(self, field)}; it must be at least 1.")
        if self.d_model % 2:
            raise ValueError(
                f"d_model is {self.d_model}; it must be even, because positions are pairs of a sine and a cosine."
            )
        for field in ("encoder_attention_heads", "decoder_attention_heads"):
            heads = getattr(self, field)
            if self.d_model % heads:
                raise ValueError(
                    f"d_model is {self.d_model} and {field} is {heads}; "
                    "d_model must be divisible by the number of heads."
                )
        for field in ("dropout", "attention_dropout", "activation_dropout"):
            if not 0 <= getattr(self, field) < 1:
                raise ValueError(f"{field} is {getattr(self, field)}; it must be at least 0 and below 1.")
        if self.activation_function not in ACT2FN:
            raise ValueError(
                f"activation_function is {self.activation_function!r}; it must be a name in transformers' ACT2FN, "
                'such as "relu".'
            )
        if self.position_convention not in ("paper", "fairseq"):
            raise ValueError(f'position_convention is {self.position_convention!r}; it must be "paper" or "fairseq".')
        if self.position_convention == "fairseq" and self.d_model < 4:
            raise ValueError(f'd_model is {self.d_model}; it must be at least 4 with position_convention "fairseq".')
        for field in ("pad_token_id", "bos_token_id", "eos_token_id", "decoder_start_token_id"):
            self._validate_token_ids(field)
        ends = self.eos_token_id if isinstance(self.eos_token_id, list) else [self.eos_token_id]
        if self.pad_token_id in ends:
            raise ValueError(
                f"pad_token_id and eos_token_id are both {self.pad_token_id}; they must differ, or the end of a "
                "sentence would be ignored as padding."
            )
        if not self.is_encoder_decoder:
            raise ValueError("is_encoder_decoder is False; the model has an encoder and a decoder, so it must be True.")

    def _validate_token_ids(self, field: str) -> None:
        """Refuse ids that are not in the vocabulary.

        Raises:
            ValueError: With the field, its value and what is allowed.
        """
        value = getattr(self, field)
        if value == []:
            raise ValueError(f"{field} is []; it must be an id, a list of ids, or None where no token ends a sentence.")
        for token_id in value if isinstance(value, list) else [value]:
            if token_id is not None and not 0 <= token_id < self.vocab_size:
                raise ValueError(
                    f"{field} is {token_id}; it must be in the vocabulary, from 0 to {self.vocab_size - 1}."
                )

    @classmethod
    def preset(cls, name: str, **overrides: Any) -> "VanillaTransformerConfig":
        """Make a config by the name of its size.

        Args:
            name: "tiny" (2.6M parameters with 10,000 types), "base" (63M with 37,000; the paper
                says 65M) or "big" (214M; 213M).
            overrides: Fields that replace those of the preset, `vocab_size` first of all.

        Raises:
            ValueError: An unknown name.
        """
        if name not in PRESETS:
            raise ValueError(f"There is no preset {name!r}; there are {', '.join(PRESETS)}.")
        size = PRESETS[name]
        fields = {"d_model": size["d_model"], "dropout": size["dropout"]}
        for stack in ("encoder", "decoder"):
            fields |= {f"{stack}_{field}": size[field] for field in ("layers", "attention_heads", "ffn_dim")}
        return cls(**(fields | overrides))


__all__ = ["VanillaTransformerConfig"]
