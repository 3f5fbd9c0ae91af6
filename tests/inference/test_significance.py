"""Paired tests: the p-values are those of their definitions, computed sentence by sentence."""

import json
import os

import numpy as np
import pytest
from sacrebleu.metrics import BLEU, CHRF, TER

from vanilla_transformer.errors import UserError
from vanilla_transformer.inference.metrics import corpus_scores
from vanilla_transformer.inference.significance import DEFAULT_SEED, paired_test

REFERENCES = [f"the {animal} sat on the {place} today" for animal in ("cat", "dog", "cow") for place in ("mat", "hill")]
BASELINE = [reference.replace("sat on", "stood at") if i % 2 else reference for i, reference in enumerate(REFERENCES)]
OTHER = [reference.replace("today", "now") if i % 3 else reference for i, reference in enumerate(REFERENCES)]
SYSTEMS = [("baseline", BASELINE), ("other", OTHER)]
METRICS = {"bleu": BLEU(), "chrf": CHRF(), "chrf++": CHRF(word_order=2), "ter": TER()}


def score_of(metric, hypotheses, references):
    return metric.corpus_score(list(hypotheses), [list(references)]).score


@pytest.mark.parametrize("name", METRICS)
def test_bootstrap_counts_resampled_test_sets(name):
    result = paired_test(SYSTEMS, REFERENCES, n_samples=40, seed=7, further_metrics=["chrf++", "ter"])
    metric, texts = METRICS[name], np.array([BASELINE, OTHER, REFERENCES])
    rows = np.random.default_rng(7).choice(len(REFERENCES), size=(40, len(REFERENCES)), replace=True)
    resampled = [[score_of(metric, texts[system, row], texts[2, row]) for row in rows] for system in (0, 1)]
    differences = np.abs(np.subtract(*resampled))
    real = abs(score_of(metric, OTHER, REFERENCES) - score_of(metric, BASELINE, REFERENCES))
    p_value = (np.sum(differences - differences.mean() > real) + 1) / 41
    baseline, other = (system[name] for system in result["systems"])
    assert baseline["p_value"] is None and other["p_value"] == pytest.approx(p_value)
    assert other["mean"] == pytest.approx(np.mean(resampled[1]), rel=1e-5)
    low, high = np.sort(resampled[1])[[1, 38]]  # a fortieth at each end is left out
    assert other["ci"] == pytest.approx((high - low) / 2, rel=1e-4)


def test_approximate_randomization_counts_exchanged_translations():
    result = paired_test(SYSTEMS, REFERENCES, test_type="ar", n_samples=40, seed=7)
    exchanged = np.random.default_rng(7).integers(2, size=(40, len(REFERENCES)), dtype=bool)
    one, two = np.where(exchanged, BASELINE, OTHER), np.where(exchanged, OTHER, BASELINE)
    for name in ("bleu", "chrf"):
        metric = METRICS[name]
        differences = [
            abs(score_of(metric, a, REFERENCES) - score_of(metric, b, REFERENCES))
            for a, b in zip(one, two, strict=True)
        ]
        real = abs(score_of(metric, OTHER, REFERENCES) - score_of(metric, BASELINE, REFERENCES))
        tested = result["systems"][1][name]
        assert tested["p_value"] == pytest.approx((np.sum(np.array(differences) > real + 1e-9) + 1) / 41, abs=2 / 41)
        assert tested["ci"] is None and tested["mean"] is None


def test_scores_are_those_of_corpus_scores_and_signatures_name_the_test():
    references = [[reference, "a cat"] for reference in REFERENCES]
    result = paired_test(SYSTEMS, references, n_samples=10, further_metrics=["ter", "chrf++"], bleu_tokenize="char")
    for (_, hypotheses), system in zip(SYSTEMS, result["systems"], strict=True):
        scores = corpus_scores(hypotheses, references, bleu_tokenize="char", further_metrics=["ter", "chrf++"])
        assert {name: values["score"] for name, values in system.items()} == {
            name: pytest.approx(scores[name]) for name in ("bleu", "chrf", "chrf++", "ter")
        }
    assert result["signatures"]["bleu"].startswith(f"nrefs:2|bs:10|seed:{DEFAULT_SEED}|case:mixed|eff:no|tok:char|")
    assert all("|bs:10|seed:12345|" in signature for signature in result["signatures"].values())
    json.dumps(result)


def test_the_same_seed_gives_the_same_and_the_environment_is_left_alone(monkeypatch):
    monkeypatch.setenv("SACREBLEU_SEED", "99")
    first, second, other = (paired_test(SYSTEMS, REFERENCES, n_samples=20, seed=seed) for seed in (1, 1, 2))
    assert first == second != other
    assert os.environ["SACREBLEU_SEED"] == "99"
    monkeypatch.delenv("SACREBLEU_SEED")
    assert paired_test(SYSTEMS, REFERENCES, n_samples=20, seed=1) == first and "SACREBLEU_SEED" not in os.environ


def test_a_system_does_not_differ_from_itself():
    result = paired_test([("a", OTHER), ("b", OTHER)], REFERENCES, n_samples=20)
    assert result["systems"][1]["bleu"]["p_value"] == pytest.approx(1 / 21)


@pytest.mark.parametrize(
    ("changes", "message"),
    [
        ({"test_type": "t"}, "test_type is 't'; it must be one of bs, ar"),
        ({"n_samples": 0}, "n_samples is 0"),
        ({"n_samples": 10**6}, "n_samples is 1000000; it must be from 1 to 100,000"),
        ({"seed": 0}, "seed is 0"),
        ({"systems": SYSTEMS[:1]}, "give at least two systems"),
        ({"systems": [*SYSTEMS, ("short", ["a"])]}, "short has 1 translations but there are 6 references"),
        ({"further_metrics": ["meteor"]}, "there is no metric 'meteor'; it must be one of chrf"),
    ],
)
def test_what_cannot_be_tested_is_refused_in_a_sentence(changes, message):
    arguments = {"systems": SYSTEMS, "references": REFERENCES} | changes
    with pytest.raises(UserError, match=message) as error:
        paired_test(**arguments)
    assert "\n" not in str(error.value)
