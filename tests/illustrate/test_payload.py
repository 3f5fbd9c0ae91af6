"""What the page is given: all of the model once, accurate enough, or a refusal that names what is in the way."""

import json
import struct
from typing import Any

import pytest
import torch
from helpers import one_layer_config, randomized
from tokenizers import AddedToken, normalizers, pre_tokenizers, processors

from vanilla_transformer import VanillaTransformerConfig, VanillaTransformerForConditionalGeneration
from vanilla_transformer.data.tokenization import dictionary_tokenizer, train_tokenizer
from vanilla_transformer.errors import UserError
from vanilla_transformer.illustrate import payload
from vanilla_transformer.illustrate.payload import check_supported, make_payload


@pytest.fixture
def tokenizer():
    return train_tokenizer(["one two three four"] * 3, 270)


@pytest.fixture
def model(tokenizer) -> Any:
    return randomized(VanillaTransformerForConditionalGeneration(one_layer_config(tokenizer))).eval()


def refusal(model: Any, tokenizer: Any) -> str:
    with pytest.raises(UserError) as raised:
        check_supported(model, tokenizer)
    sentence = str(raised.value)
    assert "\n" not in sentence
    with pytest.raises(UserError, match="^.{20}"):
        make_payload(model, tokenizer)
    return sentence


@pytest.mark.parametrize("tied", [True, False])
def test_each_weight_is_in_the_page_once(model, tokenizer, tied) -> None:
    config = one_layer_config(tokenizer, tie_word_embeddings=tied)
    model = randomized(VanillaTransformerForConditionalGeneration(config)).eval()
    fields, weights = make_payload(model, tokenizer)
    parameters = {name.removeprefix("model."): weight for name, weight in model.named_parameters()}
    assert fields["tensors"].keys() == parameters.keys()
    assert fields["model"]["parameters"] * 4 == len(weights)
    for name, weight in parameters.items():
        shape, offset = fields["tensors"][name]["shape"], fields["tensors"][name]["offset"]
        values = struct.unpack_from(f"<{weight.numel()}f", weights, 4 * offset)
        assert shape == list(weight.shape)
        assert torch.equal(torch.tensor(values).view(shape), weight)


def test_payload_can_be_written_and_says_nothing_of_this_machine(model, tokenizer, tmp_path) -> None:
    model.save_pretrained(tmp_path)
    tokenizer.save_pretrained(tmp_path)
    model = VanillaTransformerForConditionalGeneration.from_pretrained(tmp_path)
    fields, _ = make_payload(model, type(tokenizer).from_pretrained(tmp_path))
    assert str(tmp_path) not in json.dumps(fields, allow_nan=False)
    assert VanillaTransformerConfig(**fields["config"]).to_dict().items() >= fields["config"].items()


def test_half_precision_is_chosen_where_it_is_accurate_enough(model, tokenizer, monkeypatch) -> None:
    assert make_payload(model, tokenizer)[0]["dtype"] == "float32"
    fields, weights = make_payload(model.half(), tokenizer)
    assert fields["dtype"] == "float16"
    assert len(weights) == 2 * fields["model"]["parameters"]
    first = next(iter(fields["tensors"].values()))
    values = struct.unpack_from(f"<{first['shape'][0] * first['shape'][1]}e", weights, 2 * first["offset"])
    assert torch.equal(torch.tensor(values).view(first["shape"]).half(), model.model.shared.weight)
    # Beyond half precision's range everything would be infinite.
    large = model.float()
    with torch.no_grad():
        large.model.encoder.layers[0].fc1.weight[0, 0] = 1e6
    assert make_payload(large, tokenizer)[0]["dtype"] == "float32"


def test_half_precision_gives_the_same_numbers_in_the_page(run_engine, engine_model, model, tokenizer) -> None:
    model = model.half().float()
    with torch.no_grad():
        model.model.encoder.layers[0].fc1.weight[0, :3] = torch.tensor([6e-8, -6e-5, 500.0])  # two are subnormal
        model.model.encoder.layers[0].fc1.bias[0] = -300
    given = engine_model(model.half(), tokenizer)
    assert given["payload"]["dtype"] == "float16"
    (result,) = run_engine({"run": "forward", **given, "pairs": [{"source": [5, 6, 2], "target": [0, 7]}]})
    with torch.no_grad():
        expected = model.float()(input_ids=torch.tensor([[5, 6, 2]]), decoder_input_ids=torch.tensor([[0, 7]])).logits[
            0
        ]
    torch.testing.assert_close(torch.tensor(result[0]["decoder"]["logits"]), expected, rtol=0, atol=1e-4)


def test_mode_and_weights_of_the_model_stay(model, tokenizer) -> None:
    before = {name: weight.clone() for name, weight in model.state_dict().items()}
    model.train()
    make_payload(model, tokenizer)
    assert model.training
    assert all(torch.equal(weight, before[name]) for name, weight in model.state_dict().items())


def test_too_large_a_model_is_refused_with_its_size(model, tokenizer, monkeypatch) -> None:
    size = 4 * model.num_parameters()
    monkeypatch.setattr(payload, "MAX_WEIGHT_BYTES", size)
    check_supported(model, tokenizer)
    monkeypatch.setattr(payload, "MAX_WEIGHT_BYTES", size - 1)
    assert f"{size / 1e6:.1f} MB in float32" in refusal(model, tokenizer)
    monkeypatch.setattr(payload, "MAX_WEIGHT_BYTES", size // 2 - 1)
    assert f"{size / 2e6:.1f} MB in float16" in refusal(model, tokenizer)
    assert payload.MAX_WEIGHT_BYTES < 64_000_000


class Derived(VanillaTransformerForConditionalGeneration):
    """A user's own model."""


def test_another_model_is_refused(model, tokenizer) -> None:
    assert "Derived" in refusal(Derived(model.config), tokenizer)
    assert "VanillaTransformerModel" in refusal(model.model, tokenizer)
    model.config.activation_function = "laplace"
    assert "activation_function is 'laplace'" in refusal(model, tokenizer)


@pytest.mark.parametrize(
    "where", ["model.encoder.layers.0.fc1", "model.decoder.layers.0.encoder_attn.out_proj", "lm_head"]
)
def test_a_modified_model_is_refused(model, tokenizer, where) -> None:
    handle = model.get_submodule(where).register_forward_hook(lambda module, inputs, output: output * 1.01)
    assert "modified" in refusal(model, tokenizer)
    handle.remove()
    check_supported(model, tokenizer)
    torch.nn.utils.parametrizations.weight_norm(model.get_submodule(where))
    assert "modified" in refusal(model, tokenizer)


@pytest.mark.parametrize(
    ("name", "value"),
    [
        ("repetition_penalty", 1.2),
        ("no_repeat_ngram_size", 3),
        ("min_length", 4),
        ("min_new_tokens", 4),
        ("forced_bos_token_id", 5),
        ("suppress_tokens", [5]),
        ("bad_words_ids", [[5]]),
        ("do_sample", True),
        ("stop_strings", ["x"]),
        ("some_setting_of_the_future", 1),
    ],
)
def test_a_setting_that_the_search_does_not_know_is_refused(model, tokenizer, name, value) -> None:
    setattr(model.generation_config, name, value)
    assert f"{name} is {value!r}" in refusal(model, tokenizer)


def test_settings_that_change_nothing_are_accepted(model, tokenizer) -> None:
    for name, value in {
        "repetition_penalty": 1.0,
        "min_length": 0,
        "do_sample": False,
        "suppress_tokens": [],
        "early_stopping": True,
        "top_k": 50,
        "use_cache": False,
    }.items():
        setattr(model.generation_config, name, value)
    check_supported(model, tokenizer)


def test_settings_of_the_search_are_those_of_the_generation_config(model, tokenizer) -> None:
    def settings(**values: Any) -> tuple[int, float]:
        for name, value in values.items():
            setattr(model.generation_config, name, value)
        generation = make_payload(model, tokenizer)[0]["generation"]
        return generation["num_beams"], generation["length_penalty"]

    assert settings() == (4, 0.6)  # the paper's
    assert settings(num_beams=6, length_penalty=1.0) == (6, 1.0)
    assert settings(num_beams=1, length_penalty=None) == (1, 0.6)


def test_a_start_token_is_needed(model, tokenizer) -> None:
    model.generation_config.decoder_start_token_id = model.generation_config.bos_token_id = None
    assert "decoder_start_token_id" in refusal(model, tokenizer)


def test_a_tokenizer_of_another_kind_is_refused(model, tokenizer) -> None:
    words = dictionary_tokenizer(["<s>", "<pad>", "</s>", "<unk>", "one", "two"])
    assert "WordLevel" in refusal(model, words)


@pytest.mark.parametrize(
    ("change", "named"),
    [
        (lambda t: setattr(t.backend_tokenizer, "normalizer", normalizers.NFC()), "normalizer (NFC)"),
        (lambda t: setattr(t.backend_tokenizer, "pre_tokenizer", pre_tokenizers.Whitespace()), "pre_tokenizer"),
        (lambda t: setattr(t.backend_tokenizer, "pre_tokenizer", pre_tokenizers.ByteLevel()), "pre_tokenizer"),
        (lambda t: setattr(t.backend_tokenizer.model, "dropout", 0.1), "dropout is 0.1"),
        (lambda t: setattr(t.backend_tokenizer.model, "ignore_merges", True), "ignore_merges"),
        (lambda t: setattr(t, "clean_up_tokenization_spaces", True), "clean_up_tokenization_spaces"),
        (lambda t: t.add_tokens([AddedToken("<2de>", single_word=True)]), "single_word is set for the added token"),
        (
            lambda t: setattr(
                t.backend_tokenizer,
                "post_processor",
                processors.TemplateProcessing(single="<s> $A </s>", special_tokens=[("<s>", 0), ("</s>", 2)]),
            ),
            "before a text",
        ),
    ],
)
def test_a_tokenizer_with_something_unknown_is_refused(model, tokenizer, change, named) -> None:
    check_supported(model, tokenizer)
    change(tokenizer)
    assert named in refusal(model, tokenizer)
