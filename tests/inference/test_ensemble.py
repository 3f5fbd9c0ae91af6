"""Several models that translate together, against the mean of softmax outputs of full forward passes."""

import math

import pytest
import torch
from helpers import SENTENCES, small_model, texts, wordy_model
from torch.nn import functional as F

from vanilla_transformer import VanillaTransformerForConditionalGeneration, gnmt_beam_search
from vanilla_transformer.data.tokenization import dictionary_tokenizer, find_difference, train_tokenizer
from vanilla_transformer.errors import UserError
from vanilla_transformer.hub.weights import weights_digest
from vanilla_transformer.inference import ensemble as ensemble_module
from vanilla_transformer.inference.ensemble import Ensemble, EnsembleCache, MeanDecoder
from vanilla_transformer.inference.loading import load_ensemble
from vanilla_transformer.inference.translate import translate
from vanilla_transformer.step_decoder_vanilla_transformer import CachedDecoder, IncrementalDecoder

CLOSE = {"rtol": 1e-4, "atol": 1e-5}
SHORT = {"max_new_tokens": 9}
START, EOS = 0, 2
SOURCES = [sentence for sentence in SENTENCES if sentence.strip()]


def another(tokenizer, seed: int, **overrides) -> VanillaTransformerForConditionalGeneration:
    """A model of other weights and sizes than `wordy_model`'s."""
    torch.manual_seed(seed)
    model = wordy_model(tokenizer, **overrides)
    with torch.no_grad():
        for parameter in model.parameters():
            parameter.copy_(parameter[torch.randperm(len(parameter))])
    return model


@pytest.fixture(scope="module")
def models(model, tokenizer):
    """Three models that differ in width, depth, heads and whether matrices are tied."""
    deep = {"d_model": 24, "decoder_layers": 2, "encoder_layers": 2, "decoder_attention_heads": 3}
    return [model, another(tokenizer, 1, **deep), another(tokenizer, 2, position_convention="fairseq")]


@pytest.fixture
def through_forward(monkeypatch):
    """Each model of an ensemble through its own forward, or the ensemble through its own."""

    def change(way: str) -> None:
        if way == "each forward":
            monkeypatch.setattr(IncrementalDecoder, "supports", classmethod(lambda cls, model: False))
        elif way == "one forward":
            answers = iter([True, False] * 1000)
            monkeypatch.setattr(IncrementalDecoder, "supports", classmethod(lambda cls, model: next(answers)))
        elif way == "the ensemble's forward":
            monkeypatch.setattr(ensemble_module, "is_unmodified", lambda model: False)

    return change


@torch.no_grad()
def mean_probs(models, source: dict[str, torch.Tensor], written: list[int]) -> torch.Tensor:
    """The mean of the models' probabilities of the next token, from forward passes over all of it: [vocabulary]."""
    ids = torch.tensor([[START, *written]])
    return torch.stack(
        [model(**source, decoder_input_ids=ids).logits[0, -1].double().softmax(-1) for model in models]
    ).mean(0)


def plain_search(models, source, beams: int, alpha: float, limit: int) -> list[tuple[float, list[int]]]:
    """Beam search with lists, always to the limit: penalized scores and tokens of what has ended, best first."""
    running, ended = [(0.0, [])], []
    for length in range(1, limit + 1):
        continued = [
            (score + log_prob, [*written, token])
            for score, written in running
            for token, log_prob in enumerate(mean_probs(models, source, written).log().tolist())
        ]
        continued.sort(reverse=True)
        for score, written in continued[:beams]:
            if written[-1] == EOS or length == limit:
                ended.append((score / ((5 + length) / 6) ** alpha, written))
        running = [(score, written) for score, written in continued if written[-1] != EOS][:beams]
    return sorted(ended, reverse=True)


@pytest.mark.parametrize("way", ["incremental", "one forward", "the ensemble's forward"])
@pytest.mark.parametrize("beams", [1, 3])
def test_the_search_is_a_plain_one_by_the_mean_of_probabilities(models, tokenizer, through_forward, way, beams):
    through_forward(way)
    alpha = 0.6 if beams > 1 else 0.0
    sentences = SOURCES[:2]
    settings = {"num_beams": beams, "num_return_sequences": beams, "length_penalty": 0.6, "max_new_tokens": 6}
    for sentence, found in zip(sentences, translate(models, tokenizer, sentences, **settings), strict=True):
        expected = plain_search(models, tokenizer(sentence, return_tensors="pt"), beams, alpha, 6)[:beams]
        assert [each.text for each in found] == [tokenizer.decode(ids, skip_special_tokens=True) for _, ids in expected]
        assert [each.score for each in found] == pytest.approx([score for score, _ in expected], rel=1e-4)


@pytest.mark.parametrize(
    ("way", "search"),
    [
        ("incremental", gnmt_beam_search),
        ("each forward", gnmt_beam_search),
        ("one forward", gnmt_beam_search),
        ("the ensemble's forward", gnmt_beam_search),
        ("the ensemble's forward", None),
    ],
)
@pytest.mark.parametrize("beams", [1, 4])
def test_copies_of_a_model_are_the_model_and_neighbours_change_nothing(
    model, models, tokenizer, through_forward, way, search, beams
):
    through_forward(way)
    wanted = 2 if beams > 1 else 1
    settings = {"num_beams": beams, "num_return_sequences": wanted, "search": search} | SHORT
    expected = list(translate(model, tokenizer, SENTENCES, **settings))
    found = list(translate([model, model, model], tokenizer, SENTENCES, **settings))
    assert texts(found) == texts(expected)
    together = list(translate(models, tokenizer, SENTENCES, **settings))
    assert texts(together) == texts(translate(models, tokenizer, SENTENCES, batch_tokens=1, **settings)) != texts(found)
    for one, other in zip(found, expected, strict=True):
        scores = [[each.score for each in translations] for translations in (one, other)]
        assert scores[0] == pytest.approx(scores[1], rel=1e-4, nan_ok=True)


def test_the_fast_decoder_is_used_for_each_model_that_allows_it(models, tokenizer, monkeypatch):
    made = []
    init = MeanDecoder.__init__
    monkeypatch.setattr(MeanDecoder, "__init__", lambda self, decoders: made.append(decoders) or init(self, decoders))

    def kinds():
        made.clear()
        list(translate(models, tokenizer, SOURCES[:1], **SHORT))
        return [type(decoder) for decoder in made[0]] if made else None

    assert kinds() == [IncrementalDecoder] * 3
    handle = models[1].model.decoder.layers[0].fc1.register_forward_hook(lambda *_: None)
    assert kinds() == [IncrementalDecoder, CachedDecoder, IncrementalDecoder]
    handle.remove()
    ensemble = Ensemble(models)
    handle = ensemble.register_forward_hook(lambda *_: None)
    models, made[:] = ensemble, []
    assert kinds() is None
    handle.remove()
    assert kinds() == [IncrementalDecoder] * 3


@pytest.mark.parametrize("search", [gnmt_beam_search, None])
def test_hooks_are_obeyed(models, tokenizer, search):
    """On a model of the ensemble, and on the ensemble itself."""
    ensemble = Ensemble(models)
    free = texts(translate(ensemble, tokenizer, SOURCES, search=search, **SHORT))

    def only_cat(module, args, output):
        output.logits[..., tokenizer("cat", add_special_tokens=False)["input_ids"][0]] += 1e3

    handle = models[2].register_forward_hook(only_cat)  # its probability is 1, and the mean of it at least a third
    one = texts(translate(ensemble, tokenizer, SOURCES, search=search, **SHORT))
    handle.remove()
    handle = ensemble.register_forward_hook(only_cat)
    both = texts(translate(ensemble, tokenizer, SOURCES, search=search, **SHORT))
    handle.remove()
    assert one != free and len({text for (text,) in both}) == 1
    assert texts(translate(ensemble, tokenizer, SOURCES, search=search, **SHORT)) == free


def test_logits_are_the_log_of_the_mean_at_each_position(models, tokenizer):
    inputs = tokenizer(SOURCES, return_tensors="pt", padding=True)
    ids = torch.randint(4, len(tokenizer), (len(SOURCES), 5))
    with torch.no_grad():
        found = Ensemble(models)(**inputs, decoder_input_ids=ids).logits
        probs = [model(**inputs, decoder_input_ids=ids).logits.softmax(-1) for model in models]
    torch.testing.assert_close(found.exp(), sum(probs) / 3)
    torch.testing.assert_close(F.log_softmax(found, dim=-1), found, **CLOSE)


def test_improbable_tokens_keep_a_finite_mean():
    low = torch.tensor([[-200.0, 0.0, -torch.inf]])
    assert ensemble_module.mean_log_probs([low, low]).tolist() == [[-200.0, 0.0, -math.inf]]


def test_samples_prefixes_and_dtypes(models, tokenizer):
    settings = {"num_beams": 1, "do_sample": True, "num_return_sequences": 4} | SHORT
    (found,) = translate(models, tokenizer, SOURCES[:1], target_prefix="cat", **settings)
    assert len({each.text for each in found}) > 1 and all(each.text.startswith("cat") for each in found)
    mixed = Ensemble([models[0], another(tokenizer, 1).bfloat16()])
    for search in (gnmt_beam_search, None):
        assert len(list(translate(mixed, tokenizer, SENTENCES, search=search, **SHORT))) == len(SENTENCES)


def test_modes_and_models_are_left_as_they_were(models, tokenizer):
    ensemble = Ensemble(models)
    assert not ensemble.training and weights_digest(ensemble) != weights_digest(Ensemble(models[:2]))
    expected = list(translate(ensemble, tokenizer, SENTENCES, **SHORT))
    models[1].train()
    assert Ensemble(models).training
    assert list(translate(models, tokenizer, SENTENCES, **SHORT)) == expected  # dropout 0.1 does not touch it
    assert models[1].training and not models[0].training
    models[1].eval()
    assert ensemble.config is not models[0].config and ensemble.generation_config is not models[0].generation_config


@pytest.mark.parametrize(
    ("settings", "named"),
    [
        ({"output_attentions": True}, "output_attentions"),
        ({"output_hidden_states": True, "search": None}, "output_hidden_states"),
        ({"cache_implementation": "static"}, "cache_implementation='static'"),
    ],
)
def test_what_only_a_single_model_has_is_refused_by_name(models, tokenizer, settings, named):
    with pytest.raises(ValueError, match=f"^{named} can't be given for an ensemble"):
        list(translate(models, tokenizer, ["a dog"], **settings))
    ids = torch.tensor([[5, 2]])
    with pytest.raises(ValueError, match="labels can't be given"):
        Ensemble(models)(input_ids=ids, labels=ids)


def test_without_a_cache_it_is_the_same(models, tokenizer):
    for search in (gnmt_beam_search, None):
        found = translate(models, tokenizer, SOURCES[:2], use_cache=False, search=search, **SHORT)
        assert texts(found) == texts(translate(models, tokenizer, SOURCES[:2], search=search, **SHORT))


def test_an_ensemble_is_not_saved(models, tmp_path):
    with pytest.raises(UserError, match="can't be saved as one model"):
        Ensemble(models).save_pretrained(tmp_path)
    assert not list(tmp_path.iterdir())


def test_models_that_do_not_fit_are_refused(models, tokenizer, caplog):
    assert not caplog.records
    for other, message in (
        (small_model(), "model 2 of the ensemble has vocab_size 61, but model 1 has 280; give models"),
        (wordy_model(tokenizer, decoder_start_token_id=2), "decoder_start_token_id 2, but model 1 has 0"),
        (models[0].model, "a VanillaTransformerModel can't be in an ensemble"),
        (torch.nn.Linear(1, 1), "a Linear can't be in an ensemble"),
        (another(tokenizer, 1).to("meta"), "has device meta, but model 1 has cpu"),
    ):
        with pytest.raises(UserError, match=message):
            translate([models[0], other], tokenizer, ["a"])
    with pytest.raises(UserError, match="there are no models"):
        translate([], tokenizer, ["a"])
    other = another(tokenizer, 1)
    other.generation_config.num_beams = 7
    assert Ensemble([models[0], other]).generation_config.num_beams == models[0].generation_config.num_beams
    assert "generation configs of the ensemble's models differ in num_beams; those of the first" in caplog.text


def test_the_cache_is_that_of_each_model(models):
    cache = EnsembleCache(torch.nn.ModuleList(models))
    assert [len(own) for own in cache.caches] == [1, 2, 1] and len(cache) == 4
    for own in cache.caches:
        own.self_attention_cache.update(torch.arange(2.0).view(2, 1, 1, 1), torch.zeros(2, 1, 1, 1), 0)
    cache.reorder_cache(torch.tensor([1, 1]))
    assert cache.get_seq_length() == 1
    for own in cache.caches:
        assert own.self_attention_cache.layers[0].keys.flatten().tolist() == [1.0, 1.0]


def test_saved_models_are_loaded_as_an_ensemble(models, tokenizer, tmp_path, saved):
    folders = [str(saved), str(tmp_path / "other")]
    models[1].save_pretrained(folders[1])
    tokenizer.save_pretrained(folders[1])
    ensemble, loaded = load_ensemble(folders, device="cpu")
    expected = list(translate(models[:2], tokenizer, SENTENCES, **SHORT))
    assert list(translate(ensemble, loaded, SENTENCES, **SHORT)) == expected
    assert type(load_ensemble(folders[:1], device="cpu")[0]) is type(models[0])
    other = train_tokenizer(["the cat barks", *SENTENCES] * 2, 280)
    other.save_pretrained(folders[1])
    with pytest.raises(
        UserError, match=r"^the tokenizers of .*saved.* and .*other differ: type \d+ is '.*' in the first"
    ) as error:
        load_ensemble(folders, device="cpu")
    assert "\n" not in str(error.value)


def test_the_first_difference_of_two_tokenizers_is_found(tokenizer):
    def same():
        return train_tokenizer(SENTENCES * 2, 280)

    assert find_difference(tokenizer, same()) is None
    padded = same()
    padded(["a", "a b"], padding=True, truncation=True, max_length=5)  # leaves marks in the backend
    assert find_difference(tokenizer, padded) is None
    added = same()
    added.add_special_tokens({"additional_special_tokens": [">>fr<<"]})
    assert find_difference(tokenizer, added) == ("the number of types", "280", "281")
    assert find_difference(tokenizer, train_tokenizer(["zx"] * 280, 270))[0] == "the number of types"
    words = dictionary_tokenizer(["<s>", "<pad>", "</s>", "<unk>", "a", "b"])
    swapped = dictionary_tokenizer(["<s>", "<pad>", "</s>", "<unk>", "b", "a"])
    assert find_difference(words, swapped) == ("type 4", "'a'", "'b'")
    formed = same()
    formed.init_kwargs["unicode_normal_form"] = "NFD"
    assert find_difference(tokenizer, formed) == ("its unicode_normal_form", "None", "'NFD'")
    unsplit = same()
    unsplit.split_special_tokens = False
    assert find_difference(tokenizer, unsplit) == ("split_special_tokens", "True", "False")


def test_greedy_search_gives_processors_logits(models, tokenizer):
    """As `generate()` does; of an ensemble they are the logarithms of the mean."""
    source = tokenizer(["a dog runs"], return_tensors="pt")
    ensemble = Ensemble(models)
    settings = {"num_beams": 1, "max_new_tokens": 9, "repetition_penalty": 1.5}
    expected = ensemble.generate(**source, **settings)
    assert torch.equal(ensemble.generate(**source, **settings, custom_generate=gnmt_beam_search), expected)
