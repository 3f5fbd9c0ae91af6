"""Scores of given translations: equal to a slow computation, to the search's own, and to the trainer's loss."""

import math
import unicodedata

import pytest
import torch
from datasets import Dataset
from helpers import SENTENCES, SHORT, wordy_model
from training_runs import make_arguments, make_trainer

from vanilla_transformer import gnmt_beam_search
from vanilla_transformer.data.tokenization import train_tokenizer
from vanilla_transformer.errors import UserError
from vanilla_transformer.inference.scoring import rerank, score
from vanilla_transformer.inference.translate import Translation

PAIRS = [
    ("a dog runs", "ein Hund"),
    ("two dogs run on the green grass", "zwei"),
    ("", "the cat sleeps all day long"),
    ("a cat", ""),
    ("  \t", "\U0001f600 \u05e9\u05dc\u05d5\u05dd"),
]


def slow_score(model, tokenizer, source: str, target: str) -> list[float]:
    """Log-probabilities of the target's tokens, one forward pass for each prefix of one pair."""
    source_ids = torch.tensor([tokenizer(source)["input_ids"]])
    found, prefix = [], [model.config.decoder_start_token_id]
    for token in tokenizer(target)["input_ids"]:
        with torch.no_grad():
            logits = model(input_ids=source_ids, decoder_input_ids=torch.tensor([prefix])).logits
        found.append(logits[0, -1].double().log_softmax(-1)[token].item())
        prefix.append(token)
    return found


def test_scores_are_those_of_one_token_after_the_other(model, tokenizer):
    model.eval()
    for pair, found in zip(PAIRS, score(model, tokenizer, PAIRS, length_penalty=0.6), strict=True):
        expected = slow_score(model, tokenizer, *pair)
        assert found.token_log_probs == pytest.approx(expected, abs=1e-4)
        assert found.token_ids == tokenizer(pair[1])["input_ids"] and found.tokens == len(expected)
        assert found.log_prob == pytest.approx(sum(expected), abs=1e-3)
        assert found.score == pytest.approx(sum(expected) / ((5 + len(expected)) / 6) ** 0.6, abs=1e-3)
        assert found.log_prob_per_token == pytest.approx(sum(expected) / len(expected), abs=1e-4)


@pytest.mark.parametrize("alpha", [0.0, 0.6, 1.0])
@pytest.mark.parametrize("papers", [True, False])
def test_scores_equal_those_of_the_search(model, tokenizer, alpha, papers):
    model.eval()
    sources = [sentence for sentence in SENTENCES if sentence.strip()]
    for source in sources:
        settings = {"num_beams": 4, "num_return_sequences": 4, "length_penalty": alpha, **SHORT}
        if papers:
            settings["custom_generate"] = gnmt_beam_search
        output = model.generate(
            **tokenizer(source, return_tensors="pt"), **settings, return_dict_in_generate=True, output_scores=True
        )
        ids = [row[1:][row[1:] != tokenizer.pad_token_id].tolist() for row in output.sequences]
        found = list(score(model, tokenizer, [(source, row) for row in ids], length_penalty=alpha))
        # generate()'s own search divides by |Y|^alpha
        scores = [each.score if papers else each.log_prob / each.tokens**alpha for each in found]
        assert scores == pytest.approx(output.sequences_scores.tolist(), abs=1e-3)


def test_the_penalty_is_that_of_the_models_own_search_unless_given(model, tokenizer):
    (found,) = score(model, tokenizer, PAIRS[:1])
    assert found.score == pytest.approx(found.log_prob / ((5 + found.tokens) / 6) ** 0.6)
    model.generation_config.num_beams = 1
    try:
        (greedy,) = score(model, tokenizer, PAIRS[:1])
    finally:
        model.generation_config.num_beams = None
    assert greedy.score == greedy.log_prob == found.log_prob


def test_the_sum_by_tokens_is_the_trainers_loss(model, tokenizer, tmp_path):
    pairs = PAIRS * 2
    columns = {
        "input_ids": tokenizer([source for source, _ in pairs])["input_ids"],
        "labels": tokenizer([target for _, target in pairs])["input_ids"],
    }
    data = Dataset.from_dict(columns)
    trainer = make_trainer(model, make_arguments(tmp_path, label_smoothing_factor=0.1), tokenizer, data)
    found = list(score(model, tokenizer, pairs))
    loss = -sum(pair.log_prob for pair in found) / sum(pair.tokens for pair in found)
    assert trainer.evaluate(data)["eval_loss"] == pytest.approx(loss, rel=1e-5)


def test_neighbours_and_batches_change_nothing(model, tokenizer, monkeypatch):
    expected = [next(score(model, tokenizer, [pair])) for pair in PAIRS]
    for batch_tokens in (1, 40, 1024):
        found = list(score(model, tokenizer, PAIRS * 3, batch_tokens=batch_tokens))
        assert [pair.log_prob for pair in found] == pytest.approx([pair.log_prob for pair in expected] * 3, abs=1e-4)
    monkeypatch.setattr("vanilla_transformer.inference.translate.WINDOW_SIZE", 2)
    found = score(model, tokenizer, iter(PAIRS))
    assert [pair.log_prob for pair in found] == pytest.approx([pair.log_prob for pair in expected], abs=1e-4)


def test_pairs_are_read_as_they_are_needed(model, tokenizer, monkeypatch):
    monkeypatch.setattr("vanilla_transformer.inference.translate.WINDOW_SIZE", 2)
    read = []

    def pairs():
        for _ in range(50):
            read.append(1)
            yield PAIRS[0]

    found = score(model, tokenizer, pairs())
    assert not read
    next(found)
    assert len(read) == 2


def test_the_mode_is_restored_and_hooks_count(model, tokenizer):
    (before,) = score(model, tokenizer, PAIRS[:1])
    model.train()
    (again,) = score(model, tokenizer, PAIRS[:1])
    assert model.training and again == before  # without dropout
    model.eval()
    forbidden = before.token_ids[0]

    def forbid(module, inputs, logits):
        return logits.index_fill(-1, torch.tensor([forbidden]), -math.inf)

    handle = model.lm_head.register_forward_hook(forbid)
    try:
        (found,) = score(model, tokenizer, PAIRS[:1])
    finally:
        handle.remove()
    assert found.token_log_probs[0] == found.log_prob == -math.inf


def test_a_list_is_put_into_the_order_of_the_new_scores(model, tokenizer):
    texts = ["ein Hund rennt", "a", "zwei Hunde", "a"]
    lists = [
        ("a dog runs", [Translation(text, -float(n)) for n, text in enumerate(texts)]),
        ("a cat", [Translation("b", -1.0)]),
    ]
    scores = [pair.score for pair in score(model, tokenizer, [("a dog runs", text) for text in texts])]
    for weight in (1.0, 0.25):
        mixed = [weight * new - (1 - weight) * n for n, new in enumerate(scores)]
        order = sorted(range(len(texts)), key=lambda n: -mixed[n])
        first, second = rerank(model, tokenizer, iter(lists), weight=weight)
        assert [translation.text for translation in first] == [texts[n] for n in order]
        assert [translation.score for translation in first] == pytest.approx([mixed[n] for n in order], abs=1e-4)
        assert len(second) == 1
    first, _ = rerank(model, tokenizer, lists, weight=0.0)
    assert first == lists[0][1]


@pytest.mark.parametrize(
    ("pairs", "settings", "message"),
    [
        (PAIRS, {"max_length": 5}, "pair 1: the target has 9 tokens, more than max_length 5; leave"),
        ([PAIRS[3], ("a " * 50, "a")], {"max_length": 9}, "pair 2: the source has"),
        ([("a", [])], {}, "pair 1: the target's ids must be at least one"),
        ([("a", [3, -100])], {}, "leave out padding with -100"),
        (PAIRS, {"batch_tokens": 0}, "batch_tokens is 0"),
        (PAIRS, {"max_length": 1}, "max_length is 1"),
        (PAIRS, {"length_penalty": math.nan}, "length_penalty is nan"),
        (PAIRS, {"target_lang": "de"}, "the model has no tags of target languages"),
    ],
)
def test_what_cannot_be_scored_is_refused_in_a_sentence(model, tokenizer, pairs, settings, message):
    with pytest.raises(UserError, match=message) as error:
        list(score(model, tokenizer, pairs, **settings))
    assert "\n" not in str(error.value)


def test_a_model_that_is_not_finite_and_a_list_without_scores_are_refused(model, tokenizer):
    with pytest.raises(UserError, match="list 2: a translation has no score"):
        lists = [("a", [Translation("a", 0.0)]), ("a", [Translation("a", math.nan)])]
        list(rerank(model, tokenizer, lists, weight=0.5))
    for weight in (-0.1, 1.1, math.nan):
        with pytest.raises(UserError, match="weight is"):
            rerank(model, tokenizer, [], weight=weight)
    handle = model.lm_head.register_forward_hook(lambda module, inputs, logits: logits * math.nan)
    try:
        with pytest.raises(UserError, match="output is not finite"):
            list(score(model, tokenizer, PAIRS))
    finally:
        handle.remove()


def test_nothing_gives_nothing(model, tokenizer):
    assert list(score(model, tokenizer, [])) == list(rerank(model, tokenizer, [])) == []


def test_a_target_in_another_normal_form_is_reported_once(caplog):
    words = ["caf\u00e9", "na\u00efve"]
    tokenizer = train_tokenizer(words * 2, 270)
    targets = [unicodedata.normalize("NFD", word) for word in words]
    pairs = list(zip(words, targets, strict=True))
    list(score(wordy_model(tokenizer), tokenizer, [*zip(words, words, strict=True), *pairs]))
    (message,) = [record.getMessage() for record in caplog.records]
    assert message.startswith("pair 3: the target is not in Unicode normal form NFC")


@pytest.mark.parametrize("pair", [("a \ud800", "b"), ("a", "b \udfff")])
def test_half_a_surrogate_pair_is_named(model, tokenizer, pair):
    with pytest.raises(UserError, match=r"of pair 2 has half of a surrogate pair; write the character whole"):
        list(score(model, tokenizer, [("a", "b"), pair]))
