"""The configuration: defaults, presets, refusals and the way through JSON."""

import json
import math
import re

import pytest
import torch
from helpers import small_config
from transformers import AutoConfig

from vanilla_transformer import VanillaTransformerConfig, VanillaTransformerForConditionalGeneration


def test_defaults_are_the_papers_base_model():
    config = VanillaTransformerConfig()
    base = VanillaTransformerConfig.preset("base")
    assert config.to_dict() == base.to_dict()
    assert (config.d_model, config.encoder_ffn_dim, config.decoder_ffn_dim) == (512, 2048, 2048)
    assert (config.encoder_layers, config.decoder_layers) == (6, 6)
    assert (config.encoder_attention_heads, config.decoder_attention_heads) == (8, 8)
    assert (config.dropout, config.attention_dropout, config.activation_dropout) == (0.1, 0.0, 0.0)
    assert (config.activation_function, config.scale_embedding, config.tie_word_embeddings) == ("relu", True, True)
    assert (config.bos_token_id, config.pad_token_id, config.eos_token_id) == (0, 1, 2)
    assert config.decoder_start_token_id == config.bos_token_id


@pytest.mark.parametrize(
    "name, d_model, ffn_dim, heads, layers, dropout",
    [("tiny", 128, 256, 4, 4, 0.3), ("base", 512, 2048, 8, 6, 0.1), ("big", 1024, 4096, 16, 6, 0.3)],
)
def test_presets(name, d_model, ffn_dim, heads, layers, dropout):
    config = VanillaTransformerConfig.preset(name, vocab_size=1234)
    assert (config.vocab_size, config.d_model, config.dropout) == (1234, d_model, dropout)
    assert config.encoder_ffn_dim == config.decoder_ffn_dim == ffn_dim
    assert config.encoder_attention_heads == config.decoder_attention_heads == heads
    assert config.encoder_layers == config.decoder_layers == layers


def test_a_preset_takes_overrides_of_its_own_fields():
    config = VanillaTransformerConfig.preset("tiny", dropout=0.0, decoder_layers=1)
    assert (config.dropout, config.encoder_layers, config.decoder_layers) == (0.0, 4, 1)


def test_an_unknown_preset_is_refused_with_the_known_names():
    with pytest.raises(ValueError, match="'huge'.*tiny, base, big"):
        VanillaTransformerConfig.preset("huge")


def parameter_count(config: VanillaTransformerConfig) -> int:
    """Counted by the equations, not by looking at a model."""
    d = config.d_model
    attention = 4 * (d * d + d)
    norm = 2 * d

    def feed_forward(ffn_dim: int) -> int:
        return d * ffn_dim + ffn_dim + ffn_dim * d + d

    encoder_layer = attention + feed_forward(config.encoder_ffn_dim) + 2 * norm
    decoder_layer = 2 * attention + feed_forward(config.decoder_ffn_dim) + 3 * norm
    matrices = 1 if config.tie_word_embeddings else 3
    layers = config.encoder_layers * encoder_layer + config.decoder_layers * decoder_layer
    return layers + matrices * config.vocab_size * d


@pytest.mark.parametrize("tied", [True, False])
@pytest.mark.parametrize("name", ["tiny", "base", "big"])
def test_parameters_are_those_of_the_equations(name, tied):
    config = VanillaTransformerConfig.preset(name, tie_word_embeddings=tied)
    with torch.device("meta"):
        model = VanillaTransformerForConditionalGeneration(config)
    assert model.num_parameters() == parameter_count(config)


@pytest.mark.parametrize(
    "name, vocab_size, millions",
    [("tiny", 10_000, 2.6), ("base", 37_000, 65), ("big", 37_000, 213)],  # Wu et al. 2021; table 3, twice
)
def test_parameters_are_those_of_the_published_tables(name, vocab_size, millions):
    config = VanillaTransformerConfig.preset(name, vocab_size=vocab_size)
    assert parameter_count(config) == pytest.approx(millions * 1e6, rel=0.03)


def test_every_field_goes_through_json(tmp_path):
    fields = {
        "vocab_size": 77,
        "d_model": 24,
        "encoder_layers": 1,
        "decoder_layers": 2,
        "encoder_attention_heads": 3,
        "decoder_attention_heads": 2,
        "encoder_ffn_dim": 5,
        "decoder_ffn_dim": 7,
        "dropout": 0.25,
        "attention_dropout": 0.125,
        "activation_dropout": 0.5,
        "activation_function": "gelu",
        "scale_embedding": False,
        "position_convention": "fairseq",
        "use_cache": False,
        "tie_word_embeddings": False,
        "pad_token_id": 5,
        "bos_token_id": 6,
        "eos_token_id": 7,
        "decoder_start_token_id": 8,
    }
    VanillaTransformerConfig(**fields).save_pretrained(tmp_path)
    saved = json.loads((tmp_path / "config.json").read_text())
    loaded = VanillaTransformerConfig.from_pretrained(tmp_path)
    assert {name: saved[name] for name in fields} == fields
    assert {name: getattr(loaded, name) for name in fields} == fields
    assert saved["model_type"] == "vanilla_transformer" and saved["is_encoder_decoder"] is True
    assert set(saved["auto_map"]) == {"AutoConfig", "AutoModel", "AutoModelForSeq2SeqLM"}


def test_a_default_field_is_written_too(tmp_path):
    """Another version with other defaults must read the same model."""
    VanillaTransformerConfig().save_pretrained(tmp_path)
    saved = json.loads((tmp_path / "config.json").read_text())
    for name in ("encoder_layers", "decoder_layers", "d_model", "vocab_size", "tie_word_embeddings", "pad_token_id"):
        assert saved[name] == getattr(VanillaTransformerConfig, name)


def test_auto_config_knows_the_model_type():
    config = AutoConfig.for_model("vanilla_transformer", vocab_size=50, d_model=16)
    assert type(config) is VanillaTransformerConfig
    assert (config.vocab_size, config.d_model) == (50, 16)


def test_the_librarys_common_names_are_understood():
    config = small_config(d_model=48, encoder_layers=2, encoder_attention_heads=3)
    assert (config.hidden_size, config.num_hidden_layers, config.num_attention_heads) == (48, 2, 3)


SIZE_FIELDS = [
    "vocab_size",
    "d_model",
    "encoder_layers",
    "decoder_layers",
    "encoder_attention_heads",
    "decoder_attention_heads",
    "encoder_ffn_dim",
    "decoder_ffn_dim",
]
DROPOUT_FIELDS = ["dropout", "attention_dropout", "activation_dropout"]
ID_FIELDS = ["pad_token_id", "bos_token_id", "eos_token_id", "decoder_start_token_id"]
IMPOSSIBLE = [
    *[({field: value}, rf"{field} is {value}; .*at least 1") for field in SIZE_FIELDS for value in (0, -8)],
    ({"d_model": 27, "encoder_attention_heads": 3}, "d_model is 27; .*even"),
    ({"encoder_attention_heads": 3}, "d_model is 16 and encoder_attention_heads is 3; .*divisible"),
    ({"decoder_attention_heads": 5}, "d_model is 16 and decoder_attention_heads is 5; .*divisible"),
    *[
        ({field: value}, rf"{field} is {value}; .*at least 0 and below 1")
        for field in DROPOUT_FIELDS
        for value in (-0.1, 1.0, 1, 2.5, math.nan)
    ],
    ({"activation_function": "rellu"}, "activation_function is 'rellu'; .*relu"),
    ({"position_convention": "learned"}, "position_convention is 'learned'; .*paper.*fairseq"),
    (
        {"position_convention": "fairseq", "d_model": 2, "encoder_attention_heads": 1, "decoder_attention_heads": 1},
        "d_model is 2; .*at least 4",
    ),
    *[({field: value}, rf"{field} is {value}; .*from 0 to 60") for field in ID_FIELDS for value in (-1, 61)],
    ({"pad_token_id": 2}, "pad_token_id and eos_token_id are both 2; .*differ"),
    ({"eos_token_id": [2, 61]}, "eos_token_id is 61; .*from 0 to 60"),
    ({"eos_token_id": []}, "eos_token_id is \\[\\]; .*None"),
    ({"eos_token_id": [2, 1]}, "pad_token_id and eos_token_id are both 1; .*differ"),
    ({"is_encoder_decoder": False}, "is_encoder_decoder is False; .*True"),
]


@pytest.mark.parametrize("ends", [None, 2, [2], [2, 3]])
def test_a_sentence_may_have_one_end_or_several_or_none(ends, tmp_path):
    small_config(eos_token_id=ends).save_pretrained(tmp_path)
    config = VanillaTransformerConfig.from_pretrained(tmp_path)
    assert config.eos_token_id == ends
    config.eos_token_id = None
    config.save_pretrained(tmp_path)
    assert VanillaTransformerConfig.from_pretrained(tmp_path).eos_token_id is None


@pytest.mark.parametrize("fields, sentence", IMPOSSIBLE, ids=[str(fields) for fields, _ in IMPOSSIBLE])
def test_an_impossible_config_is_refused_when_it_is_made(fields, sentence):
    with pytest.raises(ValueError, match=sentence) as error:
        small_config(**fields)
    assert "\n" not in str(error.value)


@pytest.mark.parametrize("fields, sentence", IMPOSSIBLE, ids=[str(fields) for fields, _ in IMPOSSIBLE])
def test_an_impossible_config_is_refused_when_it_is_saved(fields, sentence, tmp_path):
    config = small_config()
    for field, value in fields.items():
        setattr(config, field, value)
    with pytest.raises(Exception, match=sentence):
        config.save_pretrained(tmp_path)
    assert not (tmp_path / "config.json").exists()


@pytest.mark.parametrize(
    "field, value", [("d_model", 16.0), ("vocab_size", "61"), ("pad_token_id", None), ("dropout", "0.1")]
)
def test_a_value_of_the_wrong_type_is_refused(field, value):
    with pytest.raises(Exception, match=rf"'{field}'.*{re.escape(repr(value))}"):
        small_config(**{field: value})


def test_an_impossible_config_file_is_refused_when_it_is_read(tmp_path):
    small_config().save_pretrained(tmp_path)
    path = tmp_path / "config.json"
    path.write_text(path.read_text().replace('"d_model": 16', '"d_model": 18'))
    with pytest.raises(ValueError, match="d_model is 18 and decoder_attention_heads is 4"):
        VanillaTransformerConfig.from_pretrained(tmp_path)


def test_smallest_possible_model_works():
    ones = dict.fromkeys(SIZE_FIELDS, 1) | {"vocab_size": 3, "d_model": 2}
    model = VanillaTransformerForConditionalGeneration(VanillaTransformerConfig(**ones)).eval()
    ids = torch.tensor([[0, 2]])
    assert model(input_ids=ids, decoder_input_ids=ids).logits.isfinite().all()


def test_a_tokenizer_may_have_no_bos(tmp_path):
    config = VanillaTransformerConfig.preset("tiny", vocab_size=9, bos_token_id=None)
    config.save_pretrained(tmp_path)
    assert VanillaTransformerConfig.from_pretrained(tmp_path).bos_token_id is None
