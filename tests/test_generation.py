"""Caches and generate(): what is decoded step by step is what the whole forward gives."""

import copy
import warnings

import pytest
import torch
from helpers import EOS, PAD, SIZES, labels_of, padded, ragged_batch, random_ids, small_config, small_model
from transformers import (
    CompileConfig,
    DynamicCache,
    EncoderDecoderCache,
    GenerationConfig,
    LogitsProcessor,
    StaticCache,
    set_seed,
)
from transformers.modeling_outputs import BaseModelOutput

from vanilla_transformer import VanillaTransformerForConditionalGeneration

CLOSE = {"rtol": 1e-4, "atol": 1e-4}
START = 0


def deep_and_shallow():
    """Which stack has more layers must not matter: a cache made for the encoder's layers would fit only one of them."""
    return pytest.mark.parametrize("layers", [(1, 3), (3, 1)], ids=["deep-decoder", "deep-encoder"])


def layers_of(layers: tuple[int, int]) -> dict[str, int]:
    return {"encoder_layers": layers[0], "decoder_layers": layers[1]}


def lively_model(**overrides) -> VanillaTransformerForConditionalGeneration:
    """Sharp attention and no constant favourite: what it writes depends on the source, on order and on each step."""
    config = small_config(**overrides)
    model = VanillaTransformerForConditionalGeneration(config).eval()
    model.generation_config.no_repeat_ngram_size = 2  # a model that isn't trained repeats itself
    with torch.no_grad():
        for name, parameter in model.named_parameters():
            if "q_proj" in name or "k_proj" in name:
                parameter.mul_(4)
            elif "layers" in name:
                parameter.add_(torch.randn_like(parameter) * 0.1)
    return model


def sources(side: str = "right") -> dict[str, torch.Tensor]:
    """Four sources of 11, 7, 3 and 1 tokens with </s>."""
    rows = [torch.cat([random_ids(n - 1), torch.tensor([EOS])]) for n in (11, 7, 3, 1)]
    input_ids, attention_mask = padded(rows, 11, side)
    return {"input_ids": input_ids, "attention_mask": attention_mask}


def make_cache(kind: str, model, length: int, source_length: int) -> EncoderDecoderCache | None:
    if kind == "default":
        return None
    if kind == "dynamic":
        return EncoderDecoderCache(DynamicCache(config=model.config), DynamicCache(config=model.config))
    return EncoderDecoderCache(
        StaticCache(config=model.config, max_cache_len=length),
        StaticCache(config=model.config, max_cache_len=source_length),
    )


@pytest.mark.parametrize("attn_implementation", ["eager", "sdpa"])
@pytest.mark.parametrize("kind", ["default", "dynamic", "static"])
@deep_and_shallow()
@torch.no_grad()
def test_cached_steps_give_the_logits_of_the_whole_forward(layers, kind, attn_implementation):
    model = small_model(attn_implementation, **layers_of(layers))
    # Targets of 8, 5 and 2 tokens with their padding on the left, as prompts have it.
    decoder_input_ids, decoder_attention_mask = padded([random_ids(n) for n in (8, 5, 2)], 8, "left")
    input_ids, attention_mask = padded([random_ids(n) for n in (9, 4, 6)], 9)
    whole = model(
        input_ids=input_ids,
        attention_mask=attention_mask,
        decoder_input_ids=decoder_input_ids,
        decoder_attention_mask=decoder_attention_mask,
    ).logits

    encoder_outputs = model.get_encoder()(input_ids=input_ids, attention_mask=attention_mask)
    cache, steps = make_cache(kind, model, 8, 9), []
    for new in (slice(0, 3), *(slice(i, i + 1) for i in range(3, 8))):
        outputs = model(
            encoder_outputs=encoder_outputs,
            attention_mask=attention_mask,
            decoder_input_ids=decoder_input_ids[:, new],
            decoder_attention_mask=decoder_attention_mask[:, : new.stop],
            past_key_values=cache,
            use_cache=True,
        )
        cache = outputs.past_key_values
        steps.append(outputs.logits)
    kept = decoder_attention_mask.bool()
    torch.testing.assert_close(torch.cat(steps, dim=1)[kept], whole[kept], **CLOSE)
    assert len(cache.self_attention_cache) == len(cache.cross_attention_cache) == layers[1]


@torch.no_grad()
def test_cached_steps_without_masks_give_the_logits_of_the_whole_forward():
    model, input_ids, decoder_input_ids = small_model(), random_ids(2, 6), random_ids(2, 5)
    whole = model(input_ids=input_ids, decoder_input_ids=decoder_input_ids).logits
    cache = None
    for i in range(5):
        outputs = model(input_ids=input_ids, decoder_input_ids=decoder_input_ids[:, i : i + 1], past_key_values=cache)
        cache = outputs.past_key_values
        torch.testing.assert_close(outputs.logits[:, 0], whole[:, i], **CLOSE)


def test_the_encoders_keys_are_computed_once(monkeypatch):
    model, calls = small_model(), []
    projection = model.model.decoder.layers[0].encoder_attn.k_proj
    projection.register_forward_hook(lambda *_: calls.append(1))
    model.generate(**sources(), max_new_tokens=5, min_new_tokens=5)
    assert len(calls) == 1


def test_a_cache_that_is_not_for_an_encoder_and_a_decoder_is_refused():
    model = small_model()
    with pytest.raises(ValueError, match="DynamicCache.*EncoderDecoderCache") as error:
        model(**ragged_batch(), past_key_values=DynamicCache(config=model.config))
    assert "\n" not in str(error.value)


def test_labels_need_no_cache():
    batch = ragged_batch()
    assert small_model()(**batch, labels=labels_of(batch["decoder_input_ids"])).past_key_values is None


def test_use_cache_of_the_config_is_obeyed():
    batch = ragged_batch()
    assert small_model(use_cache=False)(**batch).past_key_values is None
    assert isinstance(small_model(use_cache=True)(**batch).past_key_values, EncoderDecoderCache)
    assert small_model(use_cache=True)(**batch, use_cache=False).past_key_values is None


MODES = {
    "greedy": {},
    "sampling": {"do_sample": True},
    "beam": {"num_beams": 3},
    "beams-returned": {"num_beams": 3, "num_return_sequences": 3},
    "exact-stop": {"num_beams": 3, "early_stopping": "never", "length_penalty": 0.6},
}


@pytest.mark.parametrize("mode", MODES.values(), ids=MODES)
@deep_and_shallow()
def test_generate_gives_the_same_with_any_cache_and_without(layers, mode):
    model = lively_model(**layers_of(layers))
    arguments = sources() | mode | {"max_new_tokens": 12}
    sequences = []
    for cache in ({"use_cache": False}, {"use_cache": True}, {"cache_implementation": "static"}):
        set_seed(1)
        sequences.append(model.generate(**arguments, **cache))
    assert torch.equal(sequences[0], sequences[1])
    assert torch.equal(sequences[0], sequences[2])
    assert min(len(set(row.tolist())) for row in sequences[0]) > 3, "too dull to tell"


@pytest.mark.skipif(torch.__version__ < "2.7", reason="torch 2.6 can't trace transformers' own decorators")
def test_generate_compiles_with_a_static_cache():
    """On a GPU a static cache makes generate() compile the forward by itself; here it is told to."""
    torch.compiler.reset()
    model = lively_model(encoder_layers=1, decoder_layers=1)
    arguments = sources() | {"max_new_tokens": 8}
    compile_config = CompileConfig(fullgraph=True, backend="eager", mode=None)
    compile_config._compile_all_devices = True
    compiled = model.generate(**arguments, cache_implementation="static", compile_config=compile_config)
    assert torch.equal(compiled, model.generate(**arguments))


def test_greedy_is_the_most_likely_token_of_each_whole_forward():
    model, batch = lively_model(), sources()
    model.generation_config.no_repeat_ngram_size = None
    decoded = torch.full((4, 1), START)
    with torch.no_grad():
        for _ in range(8):
            logits = model(**batch, decoder_input_ids=decoded, use_cache=False).logits[:, -1]
            logits[:, EOS] = -torch.inf
            decoded = torch.cat([decoded, logits.argmax(-1, keepdim=True)], dim=1)
    assert torch.equal(model.generate(**batch, max_new_tokens=8, min_new_tokens=8), decoded)


def test_one_beam_is_greedy():
    model, batch = lively_model(), sources()
    greedy = model.generate(**batch, max_new_tokens=10)
    assert torch.equal(model.generate(**batch, max_new_tokens=10, num_beams=1), greedy)
    # num_beams=1 chooses greedy search. Here is a true beam search in which only one beam has a chance.
    one_way = model.generate(**batch, max_new_tokens=10, num_beams=2, logits_processor=[KeepOnlyTheBest()])
    assert torch.equal(one_way, greedy)


class KeepOnlyTheBest(LogitsProcessor):
    """Leave one continuation to each beam."""

    def __call__(self, input_ids: torch.Tensor, scores: torch.Tensor) -> torch.Tensor:
        return torch.where(scores == scores.max(-1, keepdim=True).values, scores, -1e9)


def sequence_score(model, batch: dict[str, torch.Tensor], sequences: torch.Tensor) -> torch.Tensor:
    """Sum of log-probabilities of each sequence after its start, padding left out."""
    with torch.no_grad():
        logits = model(**batch, decoder_input_ids=sequences[:, :-1]).logits
    labels = sequences[:, 1:]
    token_scores = logits.log_softmax(-1).gather(-1, labels[..., None])[..., 0]
    return token_scores.masked_fill(labels == PAD, 0).sum(-1)


def test_beam_scores_are_the_forwards_log_probabilities():
    model, batch = lively_model(), sources()
    beam = model.generate(
        **batch, num_beams=4, max_new_tokens=8, length_penalty=0.0, output_scores=True, return_dict_in_generate=True
    )
    torch.testing.assert_close(beam.sequences_scores, sequence_score(model, batch, beam.sequences), **CLOSE)


class EndOneByOne(LogitsProcessor):
    """Source i ends after i + 2 tokens, and none ends before."""

    def __init__(self, beams: int) -> None:
        self.beams = beams

    def __call__(self, input_ids: torch.Tensor, scores: torch.Tensor) -> torch.Tensor:
        scores = scores.clone()
        scores[:, PAD] = -torch.inf
        for row in range(len(scores)):
            end = input_ids.shape[1] == row // self.beams + 2
            scores[row, torch.arange(scores.shape[1]) != EOS if end else EOS] = -1e4
        return scores


@pytest.mark.parametrize("num_beams, num_return_sequences", [(1, 1), (3, 1), (3, 3)])
def test_what_follows_the_end_is_padding(num_beams, num_return_sequences):
    """With pad_token_id 0 beam search fills up with </s> instead (`pad or eos` in transformers)."""
    sequences = lively_model().generate(
        **sources(),
        num_beams=num_beams,
        num_return_sequences=num_return_sequences,
        max_new_tokens=40,
        logits_processor=[EndOneByOne(num_beams)],
    )
    for i, row in enumerate(sequences.view(4, num_return_sequences, -1)[:, 0].tolist()):
        assert row[i + 2] == EOS
        assert EOS not in row[: i + 2] and PAD not in row[: i + 2]
        assert set(row[i + 3 :]) <= {PAD}
    assert sequences.shape[1] >= 6


def test_generate_stops_at_source_length_plus_50(recwarn, caplog):
    """Section 6.1. transformers' own default is 20 tokens, without a word."""
    model = small_model()
    model.generation_config.bad_words_ids = [[EOS]]
    for length in (1, 7):
        sequences = model.generate(input_ids=random_ids(2, length), attention_mask=torch.ones(2, length).long())
        assert sequences.shape == (2, 1 + length + 50)
    with_prompt = model.generate(input_ids=random_ids(2, 7), decoder_input_ids=torch.tensor([[START, 9, 9]] * 2))
    assert with_prompt.shape == (2, 3 + 7 + 50)
    embeds = model.get_input_embeddings()(random_ids(2, 4))
    assert model.generate(inputs_embeds=embeds).shape == (2, 1 + 4 + 50)
    beam = model.generate(input_ids=random_ids(2, 3), num_beams=2)
    assert beam.shape == (2, 1 + 3 + 50)
    assert not recwarn.list and not caplog.records


LIMITS = {
    "max_new_tokens": ({"max_new_tokens": 5}, 6),
    "max_length": ({"max_length": 5}, 5),
    "longer max_new_tokens": ({"max_new_tokens": 90}, 91),
    "longer max_length": ({"max_length": 90}, 90),
    "max_length of the default's value": ({"max_length": 20}, 20),
}


@pytest.mark.parametrize("limit, length", LIMITS.values(), ids=LIMITS)
@pytest.mark.parametrize("place", ["argument", "given config", "model's config"])
def test_generate_obeys_a_limit_that_is_set(place, limit, length, recwarn, caplog):
    model = small_model()
    model.generation_config.bad_words_ids = [[EOS]]
    arguments = {"input_ids": random_ids(2, 6)}
    if place == "argument":
        arguments |= limit
    elif place == "given config":
        arguments["generation_config"] = GenerationConfig(**limit)
    else:
        model.generation_config.update(**limit)
    assert model.generate(**arguments).shape == (2, length)
    assert not recwarn.list and not caplog.records


def test_generating_leaves_the_generation_config_as_it_was():
    model = lively_model()
    before = model.generation_config.to_dict()
    model.generate(**sources(), num_beams=2, early_stopping=True)
    assert model.generation_config.to_dict() == before
    assert (before["pad_token_id"], before["eos_token_id"], before["decoder_start_token_id"]) == (PAD, EOS, START)


def test_generation_does_not_depend_on_padding_or_neighbours():
    model = lively_model()
    right = sources("right")
    left_ids, left_mask = padded(
        [row[mask.bool()] for row, mask in zip(right["input_ids"], right["attention_mask"], strict=True)], 15, "left"
    )
    for mode in (MODES["greedy"], MODES["beam"]):
        expected = model.generate(**right, **mode, max_new_tokens=9)
        assert torch.equal(
            model.generate(input_ids=left_ids, attention_mask=left_mask, **mode, max_new_tokens=9), expected
        )
        for row in range(4):
            alone = right["input_ids"][row][right["attention_mask"][row].bool()][None]
            sequence = model.generate(input_ids=alone, **mode, max_new_tokens=9)[0]
            assert torch.equal(sequence, expected[row, : len(sequence)])


@pytest.mark.parametrize("cache_implementation", ["dynamic", "static"])
@pytest.mark.parametrize("mode", [MODES["greedy"], MODES["beam"]])
@pytest.mark.parametrize("attn_implementation", ["eager", "sdpa"])
def test_prompts_padded_on_the_left_continue_as_they_do_alone(attn_implementation, mode, cache_implementation):
    """With a static cache generate() makes the mask 4-D, in which padding is easily overlooked."""
    model = lively_model()
    model.set_attn_implementation(attn_implementation)
    prompts = [torch.cat([torch.tensor([START]), random_ids(n)]) for n in (5, 2, 0)]
    decoder_input_ids, decoder_attention_mask = padded(prompts, 6, "left")
    input_ids = random_ids(3, 7)
    arguments = mode | {"max_new_tokens": 8, "min_new_tokens": 8, "cache_implementation": cache_implementation}
    together = model.generate(
        input_ids=input_ids,
        decoder_input_ids=decoder_input_ids,
        decoder_attention_mask=decoder_attention_mask,
        no_repeat_ngram_size=None,  # it would take the padding's bigrams for the prompt's
        **arguments,
    )
    for row, prompt in enumerate(prompts):
        alone = model.generate(
            input_ids=input_ids[row : row + 1], decoder_input_ids=prompt[None], no_repeat_ngram_size=None, **arguments
        )
        assert torch.equal(together[row, 6:], alone[0, len(prompt) :])


def test_sampling_and_several_sequences():
    model, batch = lively_model(), sources()
    sequences = model.generate(**batch, do_sample=True, num_return_sequences=3, max_new_tokens=10, min_new_tokens=10)
    assert sequences.shape == (12, 11)
    assert sequences.max() < SIZES["vocab_size"]
    assert len({tuple(row.tolist()) for row in sequences}) > 4
    beams = model.generate(**batch, num_beams=3, num_return_sequences=3, max_new_tokens=10, min_new_tokens=10)
    best = model.generate(**batch, num_beams=3, max_new_tokens=10, min_new_tokens=10)
    assert beams.shape == (12, 11) and torch.equal(beams[::3], best)


def test_sampling_follows_the_models_distribution():
    model = lively_model()
    source = random_ids(1, 5)
    with torch.no_grad():
        expected = model(input_ids=source, decoder_input_ids=torch.tensor([[START]])).logits[0, -1].softmax(-1)
    sampled = model.generate(input_ids=source, do_sample=True, top_k=0, num_return_sequences=4000, max_new_tokens=1)
    frequency = torch.bincount(sampled[:, 1], minlength=len(expected)) / 4000
    torch.testing.assert_close(frequency, expected, atol=0.04, rtol=0)


@pytest.mark.parametrize("mode", [MODES["greedy"], MODES["beam"]])
def test_generation_starts_from_encoder_outputs_or_embeddings_as_well(mode):
    model, batch = lively_model(), sources()
    arguments = mode | {"max_new_tokens": 9, "attention_mask": batch["attention_mask"]}
    expected = model.generate(input_ids=batch["input_ids"], **arguments)
    encoder_outputs = model.get_encoder()(**batch)
    assert isinstance(encoder_outputs, BaseModelOutput)
    assert torch.equal(model.generate(encoder_outputs=encoder_outputs, **arguments), expected)
    embeds = model.get_input_embeddings()(batch["input_ids"])
    assert torch.equal(model.generate(inputs_embeds=embeds, **arguments), expected)


def test_untied_model_generates():
    model = lively_model(tie_word_embeddings=False)
    arguments = sources() | {"max_new_tokens": 9}
    cached, uncached = (model.generate(**arguments, use_cache=use_cache) for use_cache in (True, False))
    assert torch.equal(cached, uncached)


def test_generation_returns_attentions_and_hidden_states():
    model, batch = small_model("eager"), sources()
    outputs = model.generate(
        **batch,
        max_new_tokens=4,
        min_new_tokens=4,
        output_attentions=True,
        output_hidden_states=True,
        return_dict_in_generate=True,
    )
    assert [a.shape for a in outputs.encoder_attentions] == [(4, 2, 11, 11)] * 2
    assert [len(step) for step in outputs.cross_attentions] == [3] * 4
    assert [step[0].shape for step in outputs.cross_attentions] == [(4, 4, 1, 11)] * 4
    assert [step[0].shape for step in outputs.decoder_attentions] == [(4, 4, 1, n) for n in (1, 2, 3, 4)]
    assert [step[-1].shape for step in outputs.decoder_hidden_states] == [(4, 1, 16)] * 4


def test_generation_in_bfloat16_is_finite():
    model = small_model(dtype=torch.bfloat16)
    with warnings.catch_warnings():
        warnings.simplefilter("error")
        outputs = model.generate(
            **sources(), max_new_tokens=6, num_beams=2, output_scores=True, return_dict_in_generate=True
        )
    assert outputs.sequences_scores.isfinite().all()


@pytest.mark.parametrize("mode", MODES.values(), ids=MODES)
def test_eager_and_sdpa_generate_the_same(mode):
    model, arguments = lively_model(), sources() | mode | {"max_new_tokens": 10}
    sequences = []
    for implementation in ("eager", "sdpa"):
        model.set_attn_implementation(implementation)
        set_seed(1)
        sequences.append(model.generate(**arguments))
    assert torch.equal(*sequences)


@torch.no_grad()
@pytest.mark.parametrize("settings", [{"top_k": 3}, {"top_k": 0, "top_p": 0.5}], ids=["top_k", "top_p"])
def test_sampling_keeps_to_the_likeliest(settings):
    model, source = lively_model(), random_ids(1, 5)
    model.generation_config.no_repeat_ngram_size = None
    sampled = model.generate(input_ids=source, do_sample=True, num_return_sequences=200, max_new_tokens=3, **settings)
    repeated = source.repeat(200, 1)
    probabilities = model(input_ids=repeated, decoder_input_ids=sampled[:, :-1]).logits.softmax(-1)
    chosen = probabilities.gather(2, sampled[:, 1:, None])
    greater = probabilities > chosen
    real = sampled[:, 1:] != PAD
    if "top_p" in settings:
        assert ((probabilities * greater).sum(-1)[real] < 0.5).all()
    else:
        assert (greater.sum(-1)[real] < 3).all()
    assert len(set(sampled[:, 1].tolist())) > 1


@pytest.mark.parametrize("num_beams", [1, 3])
def test_generation_keeps_to_the_tokens_that_a_prefix_allows(num_beams):
    """Each source its own, and after an odd token an even one."""

    def allowed(source: int, written: torch.Tensor) -> list[int]:
        return [EOS, 10 + 2 * source + (len(written) % 2)]

    sequences = lively_model().generate(
        **sources(),
        num_beams=num_beams,
        prefix_allowed_tokens_fn=allowed,
        max_new_tokens=6,
        min_new_tokens=4,
        no_repeat_ngram_size=None,
    )
    for source, row in enumerate(sequences.tolist()):
        assert row[1:5] == [10 + 2 * source + n % 2 for n in (1, 2, 3, 4)]


@pytest.mark.parametrize("helper", ["assistant", "prompt lookup"])
def test_assisted_decoding_is_greedy(helper):
    """transformers allows it for one source at a time."""
    model = lively_model()
    model.generation_config.no_repeat_ngram_size = None
    source = {"input_ids": random_ids(1, 6)}
    settings = {"assistant_model": lively_model()} if helper == "assistant" else {"prompt_lookup_num_tokens": 3}
    assisted = model.generate(**source, **settings, max_new_tokens=12)
    assert torch.equal(assisted, model.generate(**source, max_new_tokens=12))


@torch.no_grad()
@pytest.mark.parametrize("num_beams", [1, 3])
def test_scores_and_attentions_of_the_steps_are_the_forwards(num_beams):
    """Also where the beams of a source share its keys and values."""
    model, batch = lively_model(), sources()
    model.set_attn_implementation("eager")
    model.generation_config.no_repeat_ngram_size = None
    steps = 5
    found = model.generate(
        **batch,
        num_beams=num_beams,
        max_new_tokens=steps,
        min_new_tokens=steps,
        output_scores=True,
        output_logits=True,
        output_attentions=True,
        return_dict_in_generate=True,
    )
    forward = model(**batch, decoder_input_ids=found.sequences[:, :-1], output_attentions=True)
    for step in range(steps):
        rows = torch.arange(4) if num_beams == 1 else found.beam_indices[:, step]
        assert found.cross_attentions[step][0].shape == (4 * num_beams, 4, 1, batch["input_ids"].shape[1])
        torch.testing.assert_close(found.logits[step][rows], forward.logits[:, step], **CLOSE)
        for layer in range(3):
            torch.testing.assert_close(
                found.cross_attentions[step][layer][rows, :, 0], forward.cross_attentions[layer][:, :, step], **CLOSE
            )
    transitions = model.compute_transition_scores(
        found.sequences, found.scores, getattr(found, "beam_indices", None), normalize_logits=num_beams == 1
    )
    logits = forward.logits
    if num_beams == 1:
        logits = logits.index_fill(2, torch.tensor([EOS]), -torch.inf)  # min_new_tokens, before it is normalized
    log_probs = logits.log_softmax(-1)
    expected = log_probs.gather(2, found.sequences[:, 1:, None])[..., 0]
    torch.testing.assert_close(transitions, expected, **CLOSE)


@torch.no_grad()
def test_bfloat16_chooses_what_float32_does_up_to_ties():
    model, batch = lively_model(), sources()
    model.generation_config.no_repeat_ngram_size = None
    half = copy.deepcopy(model).bfloat16()
    sequences = half.generate(**batch, max_new_tokens=10)
    logits = model(**batch, decoder_input_ids=sequences[:, :-1]).logits
    chosen = logits.gather(2, sequences[:, 1:, None])[..., 0]
    behind = (logits.amax(-1) - chosen)[sequences[:, 1:] != PAD]
    assert (behind == 0).float().mean() > 0.8 and behind.max() < 0.1 * logits.std()
