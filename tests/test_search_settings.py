"""The paper's search with processors, limits, stop strings and streamers, and under other defaults of torch."""

import pytest
import torch
from helpers import small_config, wordy_model
from searches import SETTINGS, inputs, library, paper, rows, sharp_model
from torch import nn
from transformers import GenerationMixin, LogitsProcessor, LogitsProcessorList, set_seed
from transformers.generation.streamers import BaseStreamer

import vanilla_transformer
from vanilla_transformer import (
    VanillaTransformerForConditionalGeneration,
    VanillaTransformerTranslationPipeline,
    gnmt_beam_search,
)
from vanilla_transformer.data.tokenization import train_tokenizer
from vanilla_transformer.inference.translate import translate


@pytest.fixture
def model() -> VanillaTransformerForConditionalGeneration:
    return sharp_model()


# Processors and values


def test_a_processor_may_write_into_the_scores_and_keep_them(model):
    class Adds(LogitsProcessor):
        kept: list = []

        def __call__(self, input_ids, scores):
            assert scores.is_contiguous()
            scores += torch.linspace(-3, 0, scores.shape[1])
            self.kept.append((scores, scores.clone()))
            return scores

    processors = LogitsProcessorList([Adds()])
    for batch_size in (1, 2):
        batch = {name: tensor[:batch_size] for name, tensor in inputs().items()}
        found = model.generate(**batch, custom_generate=gnmt_beam_search, logits_processor=processors, **SETTINGS)
        expected = model.generate(**batch, early_stopping="never", logits_processor=processors, **SETTINGS)
        assert rows(found) == rows(expected)
    assert all(torch.equal(*pair) for pair in Adds.kept)


@pytest.mark.parametrize("step", [0, 2])
@pytest.mark.parametrize("use_cache", [True, False], ids=["fast", "forward"])
def test_forbidding_every_token_gives_an_empty_translation(model, step, use_cache):
    class Forbids(LogitsProcessor):
        def __call__(self, input_ids, scores):
            return torch.full_like(scores, -torch.inf) if input_ids.shape[1] > step else scores

    settings = {"logits_processor": LogitsProcessorList([Forbids()]), "eos_token_id": None, "use_cache": use_cache}
    assert paper(model, **settings) == [[0], [0]]
    if step == 0:  # later, the library returns what was written before
        assert library(model, **settings) == [[0], [0]]


@pytest.mark.parametrize(
    ("name", "value"), [("lm_head", torch.nan), ("lm_head", torch.inf), ("model.decoder.layers.1.fc1", torch.nan)]
)
def test_output_that_is_not_finite_is_said_in_a_sentence(model, name, value):
    with torch.no_grad():
        model.get_submodule(name).weight[3, 2] = value
    for settings in ({}, {"use_cache": False}, {"num_beams": 1}):
        with pytest.raises(ValueError, match="^the model's output is not finite.*; check the model's weights for NaN"):
            paper(model, **settings)


def test_ends_may_be_none_one_or_several(model):
    written = paper(model)[0]
    for ends in (None, written[1], [written[3], written[2]]):
        assert paper(model, eos_token_id=ends) == library(model, eos_token_id=ends)


def test_more_beams_than_types_in_the_vocabulary():
    set_seed(1)
    model = VanillaTransformerForConditionalGeneration(small_config(vocab_size=6)).eval()
    batch = {"input_ids": torch.tensor([[4, 5, 2]])}
    settings = SETTINGS | {"num_beams": 10, "num_return_sequences": 10, "max_new_tokens": 3}
    found = model.generate(**batch, custom_generate=gnmt_beam_search, **settings)
    assert len({tuple(row.tolist()) for row in found}) == 10


@pytest.mark.parametrize(
    ("settings", "message"),
    [
        ({"length_penalty": float("nan")}, "length_penalty is nan; it must be a finite number"),
        ({"num_beams": 1, "penalty_alpha": 0.6, "top_k": 4}, "ask for contrastive_search, but gnmt_beam_search"),
    ],
)
def test_settings_of_another_search_are_refused(model, settings, message):
    with pytest.raises(ValueError, match=message):
        model.generate(**inputs(), **(SETTINGS | settings), custom_generate=gnmt_beam_search)


def test_encoder_outputs_and_limits_in_any_form(model):
    encoded = model.get_encoder()(**inputs())
    batch = {"attention_mask": inputs()["attention_mask"]}
    found = model.generate(**batch, encoder_outputs=encoded, custom_generate=gnmt_beam_search, **SETTINGS)
    assert rows(found) == paper(model)
    config = vanilla_transformer.generation_vanilla_transformer.paper_generation_config(model)
    config.update(**SETTINGS, eos_token_id=None, max_length=None)
    longest = [
        max(map(len, rows(model.generate(**inputs(), custom_generate=gnmt_beam_search, **limit))))
        for limit in (
            {"generation_config": config},
            {"max_length": 10, "eos_token_id": None},
            {"max_new_tokens": 9, "eos_token_id": None},
        )
    ]
    assert longest == [10, 10, 10]


def test_stop_strings_end_a_translation():
    tokenizer = train_tokenizer(["a dog runs", "two dogs run on the green grass"] * 2, 280)
    model = wordy_model(tokenizer)
    batch = tokenizer("two dogs run on the grass", return_tensors="pt")
    settings = SETTINGS | {"max_new_tokens": 20, "no_repeat_ngram_size": 1, "tokenizer": tokenizer}
    whole = model.generate(**batch, custom_generate=gnmt_beam_search, **settings)[0]
    stop = [tokenizer.decode(whole[3:4])]
    ours = model.generate(**batch, custom_generate=gnmt_beam_search, stop_strings=stop, **settings)
    expected = model.generate(**batch, early_stopping="never", stop_strings=stop, **settings)
    assert rows(ours) == rows(expected)
    assert stop[0] in tokenizer.decode(ours[0]) and len(ours[0]) < len(whole)
    del settings["tokenizer"]
    pipe = VanillaTransformerTranslationPipeline(model, tokenizer=tokenizer, device="cpu")
    (translation,) = pipe("two dogs run on the grass", stop_strings=stop, return_tensors=True, **settings)
    assert translation["translation_token_ids"].tolist() == rows(ours)[0]
    (translated,) = translate(model, tokenizer, ["two dogs run on the grass"], stop_strings=stop, **settings)
    assert translated[0].text == tokenizer.decode(ours[0], skip_special_tokens=True)


def test_translate_and_the_pipeline_obey_a_prefix():
    peft = pytest.importorskip("peft")
    tokenizer = train_tokenizer(["a dog runs", "two dogs run on the green grass"] * 2, 280)
    model = wordy_model(tokenizer)
    (plain,) = translate(model, tokenizer, ["a dog runs"])
    config = peft.PrefixTuningConfig(task_type="SEQ_2_SEQ_LM", num_virtual_tokens=4)
    tuned = peft.get_peft_model(model, config).eval()
    with torch.no_grad():
        for parameter in tuned.prompt_encoder.parameters():
            parameter.mul_(5)
    batch = tokenizer("a dog runs", return_tensors="pt")
    expected = tuned.generate(**batch, num_beams=4, early_stopping="never", length_penalty=0.0)
    (found,) = translate(tuned, tokenizer, ["a dog runs"], length_penalty=0.0)
    assert found[0].text == tokenizer.decode(expected[0], skip_special_tokens=True) != plain[0].text


def test_a_streamer_is_refused_and_the_pipeline_streams_at_the_end():
    tokenizer = train_tokenizer(["a dog runs", "two dogs run on the green grass"] * 2, 280)
    model = wordy_model(tokenizer)

    class Collects(BaseStreamer):
        tokens: list = []

        def put(self, value):
            self.tokens += value.flatten().tolist()

        def end(self):
            self.tokens.append("end")

    batch = tokenizer("a dog", return_tensors="pt")
    for beams, message in (
        (1, "streamer is set.*use final_streamer"),
        (2, "`streamer` cannot be used with beam search"),
    ):
        with pytest.raises(ValueError, match=message):
            model.generate(**batch, custom_generate=gnmt_beam_search, streamer=Collects(), num_beams=beams)
    Collects.tokens.clear()
    pipe = VanillaTransformerTranslationPipeline(model, tokenizer=tokenizer, device="cpu")
    (translation,) = pipe("a dog", streamer=Collects(), return_tensors=True)
    assert Collects.tokens == [*translation["translation_token_ids"].tolist(), "end"]


# Fewer heads than in the config, other defaults of torch, and several processes


@pytest.mark.parametrize("attention", ["self_attn", "encoder_attn"])
def test_pruned_heads(model, attention):
    layer = getattr(model.model.decoder.layers[0], attention)
    width = layer.q_proj.out_features - layer.d_head
    for name in ("q_proj", "k_proj", "v_proj"):
        projection = getattr(layer, name)
        projection.weight, projection.bias = (
            nn.Parameter(parameter.detach()[:width].clone()) for parameter in (projection.weight, projection.bias)
        )
        projection.out_features = width
    layer.out_proj.weight, layer.out_proj.in_features = nn.Parameter(layer.out_proj.weight.detach()[:, :width]), width
    expected = model.generate(**inputs(), **SETTINGS)
    assert torch.equal(model.generate(**inputs(), custom_generate=gnmt_beam_search, **SETTINGS), expected)


@pytest.mark.parametrize("dtype", [torch.bfloat16, torch.float64])
def test_the_default_dtype_changes_nothing(model, dtype):
    settings = {"custom_generate": gnmt_beam_search, "num_beams": 3, "length_penalty": 0.6, "max_new_tokens": 9}
    expected = model.generate(**inputs(), **settings, return_dict_in_generate=True)
    torch.set_default_dtype(dtype)
    try:
        found = model.generate(**inputs(), **settings, return_dict_in_generate=True)
    finally:
        torch.set_default_dtype(torch.float32)
    assert torch.equal(found.sequences, expected.sequences)
    torch.testing.assert_close(found.sequences_scores, expected.sequences_scores)


@pytest.mark.parametrize("hooked", [False, True], ids=["incremental decoder", "forward"])
def test_a_process_that_has_finished_goes_on_until_all_have(model, monkeypatch, hooked):
    """Each process has a part of the model, so that all must call it equally often."""
    settings = {"custom_generate": gnmt_beam_search, **SETTINGS, "num_beams": 2}
    calls = []
    if hooked:
        model.lm_head.register_forward_hook(lambda *_: calls.append("step"))
    expected = model.generate(**inputs(), **settings)
    steps, others = len(calls), 4  # steps that another process takes after this one
    calls.clear()
    finished = []

    def has_unfinished_sequences(self, this_peer_finished, synced_gpus, device):
        finished.append(this_peer_finished)
        return not this_peer_finished or sum(finished) <= others

    monkeypatch.setattr(GenerationMixin, "_has_unfinished_sequences", has_unfinished_sequences)
    assert torch.equal(model.generate(**inputs(), **settings, synced_gpus=True), expected)
    assert finished == [False] * (len(finished) - others - 1) + [True] * (others + 1)
    assert not hooked or (len(calls) == steps + others and len(finished) == steps + others + 1)


def test_a_translation_longer_than_there_is_room_at_first(model):
    """Hypotheses, positions, keys and values double their room, also after sentences have left the batch."""
    model.generation_config.no_repeat_ngram_size = 0
    settings = {"num_beams": 3, "length_penalty": 0.6, "max_new_tokens": 150, "tokens_beyond_source": None}
    settings |= {"custom_generate": gnmt_beam_search, "return_dict_in_generate": True, "suppress_tokens": [2]}
    fast = model.generate(**inputs(), **settings)
    model.lm_head.register_forward_hook(lambda *_: None)
    slow = model.generate(**inputs(), **settings)
    assert fast.sequences.shape[1] == 151 and torch.equal(fast.sequences, slow.sequences)
    torch.testing.assert_close(fast.sequences_scores, slow.sequences_scores, rtol=1e-4, atol=1e-4)


@pytest.mark.parametrize("use_cache", [True, False], ids=["incremental decoder", "forward"])
@pytest.mark.parametrize(
    "settings",
    [
        {"repetition_penalty": 1.3},
        {"repetition_penalty": 1.8},
        {"encoder_repetition_penalty": 3.0},
        {"exponential_decay_length_penalty": (1, 3.0)},
        {"repetition_penalty": 1.3, "renormalize_logits": True},
    ],
)
def test_greedy_search_gives_processors_logits_as_the_library_does(model, settings, use_cache):
    """A penalty that divides scores depends on whether they are logits or log-probabilities."""
    model.generation_config.no_repeat_ngram_size = 0
    settings |= {"num_beams": 1, "use_cache": use_cache}
    expected = library(model, **settings)
    assert paper(model, **settings) == expected
    assert expected != library(model, num_beams=1), "the settings must change something"
