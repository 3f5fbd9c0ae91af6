"""Scores: the right numbers, with what makes them comparable, and the same through each way to ask for them."""

import json
import math
import unicodedata

import numpy as np
import pytest
from datasets import Dataset
from sacrebleu.metrics import BLEU, bleu
from sacrebleu.tokenizers.tokenizer_13a import Tokenizer13a
from transformers import EvalPrediction, Seq2SeqTrainer, Seq2SeqTrainingArguments

from vanilla_transformer import VanillaTransformerConfig, VanillaTransformerForConditionalGeneration
from vanilla_transformer.data.batching import TranslationCollator
from vanilla_transformer.data.tokenization import train_tokenizer
from vanilla_transformer.errors import UserError
from vanilla_transformer.inference.metrics import (
    TranslationMetric,
    choose_bleu_tokenizer,
    corpus_scores,
    make_compute_metrics,
)

HYPOTHESES = ["the cat sat on the mat", "a dog runs", "two dogs"]
REFERENCES = ["the cat sat on a mat", "a dog runs", "three dogs play"]


def test_bleu_is_that_of_its_definition():
    scores = corpus_scores(["the cat sat on the mat"], ["the cat sat on a mat"])
    precisions = [5 / 6, 3 / 5, 2 / 4, 1 / 3]
    assert scores["bleu_precisions"] == pytest.approx([100 * precision for precision in precisions])
    assert scores["bleu"] == pytest.approx(100 * math.prod(precisions) ** 0.25)
    assert scores["brevity_penalty"] == 1 and scores["hypothesis_length"] == scores["reference_length"] == 6


def test_short_translations_are_penalised():
    scores = corpus_scores(["the cat sat on"], ["the cat sat on the mat"])
    assert scores["bleu_precisions"] == [100] * 4
    assert scores["brevity_penalty"] == pytest.approx(math.exp(1 - 6 / 4))
    assert scores["bleu"] == pytest.approx(100 * math.exp(1 - 6 / 4))


def test_chrf_is_that_of_its_definition():
    # "ab" and "abc", F with recall weighing twice: unigrams 2/2 and 2/3, bigrams 1/1 and 1/2, no trigram to compare
    scores = corpus_scores(["ab"], ["abc"])
    precision, recall = 1, (2 / 3 + 1 / 2) / 2
    assert scores["chrf"] == pytest.approx(100 * 5 * precision * recall / (4 * precision + recall))


def test_all_right_and_all_wrong():
    scores = corpus_scores(REFERENCES, REFERENCES)
    assert (scores["bleu"], scores["chrf"], scores["exact_match"]) == pytest.approx((100, 100, 100))
    scores = corpus_scores(["x"] * 3, REFERENCES)
    assert (scores["bleu"], scores["chrf"], scores["exact_match"]) == (0, 0, 0)


def test_exact_match_is_a_percentage_of_sentences():
    scores = corpus_scores(HYPOTHESES, REFERENCES)
    assert scores["exact_match"] == pytest.approx(100 / 3) and scores["sentences"] == 3
    assert corpus_scores(["A dog."], ["a dog."])["exact_match"] == 0


def test_text_that_is_tokenized_already_is_scored_as_it_is():
    tokens = ["ein rotes auto &apos;s ist da"], ["ein rotes auto &apos;s ist da"]
    scores = corpus_scores(*tokens, bleu_tokenize="none")
    assert "|tok:none|" in scores["bleu_signature"] and scores["reference_length"] == 6
    assert corpus_scores(*tokens)["reference_length"] > 6


def test_scores_carry_signatures_and_are_json():
    scores = json.loads(json.dumps(corpus_scores(HYPOTHESES, REFERENCES)))
    assert scores["bleu_signature"].startswith("nrefs:1|case:mixed|eff:no|tok:13a|smooth:exp|version:")
    assert scores["chrf_signature"].startswith("nrefs:1|case:mixed|eff:yes|nc:6|nw:0|space:no|version:")


def test_several_references():
    hypotheses, references = ["a dog runs fast now", "hi"], [["no match", "a dog runs fast now"], ["hello", "hi"]]
    scores = corpus_scores(hypotheses, references)
    assert scores["exact_match"] == 100 and scores["bleu"] == pytest.approx(100)
    assert scores["bleu_signature"].startswith("nrefs:2|")
    scores = corpus_scores(hypotheses, [["no match", "a dog runs fast now"], ["hi"]])
    assert scores["exact_match"] == 100 and scores["bleu_signature"].startswith("nrefs:var|")


@pytest.mark.parametrize("give_metric", [False, True])
@pytest.mark.parametrize(
    ("hypotheses", "references", "message"),
    [
        ([], [], "nothing to score"),
        (["a", "b"], ["a"], "2 hypotheses but 1 references"),
        ([], ["a"], "0 hypotheses but 1 references"),
        (["a", "b"], [["a"], []], "sentence 2 has no reference"),
    ],
)
def test_what_cannot_be_scored_is_refused_in_a_sentence(hypotheses, references, message, give_metric):
    with pytest.raises(UserError, match=message) as error:
        if give_metric:
            TranslationMetric().compute(predictions=hypotheses, references=references)
        else:
            corpus_scores(hypotheses, references)
    assert "\n" not in str(error.value)


@pytest.mark.parametrize("references", [REFERENCES, [[reference, "a cat"] for reference in REFERENCES]])
def test_the_metric_needs_no_download(references):
    assert TranslationMetric().compute(predictions=HYPOTHESES, references=references) == corpus_scores(
        HYPOTHESES, references
    )


def test_the_metric_collects_what_is_added():
    metric = TranslationMetric()
    metric.add(prediction=HYPOTHESES[0], reference=REFERENCES[0])
    metric.add_batch(predictions=HYPOTHESES[1:], references=REFERENCES[1:])
    assert metric.compute() == corpus_scores(HYPOTHESES, REFERENCES)
    assert metric.compute(predictions=["a"], references=["a"])["sentences"] == 1


@pytest.fixture(scope="module")
def tokenizer():
    return train_tokenizer(HYPOTHESES + REFERENCES, 270)


def padded(rows):
    return np.array([row + [-100] * (max(map(len, rows)) - len(row)) for row in rows])


def test_the_trainers_padding_is_not_decoded(tokenizer):
    predictions = padded([[0, *tokenizer(text)["input_ids"]] for text in HYPOTHESES])
    labels = padded([tokenizer(text)["input_ids"] for text in REFERENCES])
    metrics = make_compute_metrics(tokenizer)(EvalPrediction(predictions=predictions, label_ids=labels))
    expected = corpus_scores(HYPOTHESES, REFERENCES)
    assert metrics == {name: expected[name] for name in ("bleu", "chrf", "exact_match")}


def test_each_language_has_its_scores_and_tokenizer_and_the_mean_is_the_models(tokenizer):
    predictions = padded([[0, *tokenizer(text)["input_ids"]] for text in HYPOTHESES])
    labels = padded([tokenizer(text)["input_ids"] for text in REFERENCES])
    compute = make_compute_metrics(
        tokenizer, bleu_tokenize={"de": "13a", "zh": "char"}, target_langs=["zh", "de", "zh"]
    )
    metrics = compute(EvalPrediction(predictions=predictions, label_ids=labels))
    german = corpus_scores(HYPOTHESES[1:2], REFERENCES[1:2])
    chinese = corpus_scores(HYPOTHESES[::2], REFERENCES[::2], bleu_tokenize="char")
    for name in ("bleu", "chrf", "exact_match"):
        assert (metrics[f"{name}_de"], metrics[f"{name}_zh"]) == (german[name], chinese[name])
        assert metrics[name] == pytest.approx((german[name] + chinese[name]) / 2)
    assert len(metrics) == 9


def test_in_the_stock_trainer(tokenizer, tmp_path):
    config = VanillaTransformerConfig(
        vocab_size=len(tokenizer),
        d_model=8,
        encoder_layers=1,
        decoder_layers=1,
        encoder_attention_heads=1,
        decoder_attention_heads=1,
        encoder_ffn_dim=8,
        decoder_ffn_dim=8,
    )
    examples = [{"input_ids": ids, "labels": ids} for ids in tokenizer(REFERENCES)["input_ids"]]
    trainer = Seq2SeqTrainer(
        VanillaTransformerForConditionalGeneration(config),
        Seq2SeqTrainingArguments(
            tmp_path,
            per_device_eval_batch_size=1,  # rows of different lengths, which the Trainer pads with -100
            predict_with_generate=True,
            generation_max_length=20,
            report_to="none",
            use_cpu=True,
        ),
        data_collator=TranslationCollator(tokenizer, config.decoder_start_token_id),
        compute_metrics=make_compute_metrics(tokenizer),
    )
    metrics = trainer.evaluate(Dataset.from_list(examples))
    assert {"eval_bleu", "eval_chrf", "eval_exact_match"} <= metrics.keys()
    assert all(isinstance(value, int | float) for value in metrics.values())


@pytest.mark.parametrize(
    ("target_lang", "tokenizer"),
    [("de", "13a"), (None, "13a"), ("zh", "zh"), ("zh-TW", "zh"), ("zho_Hans", "zh"), ("ja", "ja-mecab")]
    + [("jpn", "ja-mecab"), ("ko", "ko-mecab"), ("KO_kr", "ko-mecab"), ("kok", "13a"), ("", "13a")],
)
def test_bleus_tokenizer_follows_the_target_language(target_lang, tokenizer):
    assert choose_bleu_tokenizer(target_lang) == tokenizer


@pytest.mark.parametrize("language", ["zh", "ja", "ko", "de"])
def test_bleus_tokenizer_is_that_of_sacrebleus_command(language, monkeypatch):
    built = []
    monkeypatch.setattr(bleu, "_get_tokenizer", lambda name: built.append(name) or Tokenizer13a)
    BLEU(trg_lang=language)  # as the command does with `--language-pair en-{language}`
    assert built == [choose_bleu_tokenizer(language)]


def test_chinese_is_scored_by_characters(tokenizer):
    hypotheses, references = ["猫坐在垫子上。", "一只狗在跑。"], ["猫坐在垫子上。", "一只狗在叫。"]
    assert corpus_scores(hypotheses, references)["bleu"] == 0
    scores = corpus_scores(hypotheses, references, bleu_tokenize=choose_bleu_tokenizer("zh"))
    assert scores["bleu"] > 50 and "|tok:zh|" in scores["bleu_signature"]
    texts = train_tokenizer(hypotheses + references, 270)
    prediction = EvalPrediction(*(padded(texts(lines)["input_ids"]) for lines in (hypotheses, references)))
    assert make_compute_metrics(texts, bleu_tokenize="zh")(prediction)["bleu"] == scores["bleu"]
    assert scores == TranslationMetric().compute(predictions=hypotheses, references=references, bleu_tokenize="zh")


def test_a_missing_package_of_bleus_tokenizer_is_named_before_training(tokenizer, monkeypatch):
    monkeypatch.setattr("sacrebleu.tokenizers.tokenizer_ko_mecab.MeCab", None)
    with pytest.raises(UserError, match=r"ko-mecab .* pip install 'sacrebleu\[ko\]'") as error:
        make_compute_metrics(tokenizer, bleu_tokenize="ko-mecab")
    assert "\n" not in str(error.value)


def test_an_unknown_tokenizer_of_bleu_is_refused():
    with pytest.raises(UserError, match="'15b'; it must be one of none, zh, 13a"):
        corpus_scores(HYPOTHESES, REFERENCES, bleu_tokenize="15b")


def test_texts_in_two_normal_forms_are_reported(caplog):
    references = ["caf\u00e9 noir", "na\u00efve"]
    hypotheses = [unicodedata.normalize("NFD", reference) for reference in references]
    assert corpus_scores(references, references)["exact_match"] == 100 and not caplog.records
    assert corpus_scores(hypotheses, references)["exact_match"] == 0
    assert "the translations are in Unicode normal form NFD and the references in NFC" in caplog.text
