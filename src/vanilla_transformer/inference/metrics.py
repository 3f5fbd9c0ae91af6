"""Scores of translations: sacreBLEU and chrF with the signatures that make them comparable, and exact match."""

from collections.abc import Callable, Sequence
from typing import Any, TypedDict

import evaluate
from datasets import Features, Value
from datasets import Sequence as ListOf
from sacrebleu.metrics import BLEU, CHRF
from transformers import EvalPrediction, PreTrainedTokenizerBase

from ..data.tokenization import decode
from ..errors import UserError


class Scores(TypedDict):
    """What `score` gives; ready for JSON."""

    bleu: float
    bleu_signature: str
    bleu_precisions: list[float]
    brevity_penalty: float
    hypothesis_length: int
    reference_length: int
    chrf: float
    chrf_signature: str
    exact_match: float
    sentences: int


def score(
    hypotheses: Sequence[str], references: Sequence[str] | Sequence[Sequence[str]], *, bleu_tokenize: str = "13a"
) -> Scores:
    """Score translations of a whole test set.

    Args:
        hypotheses: One translation per sentence, as plain (detokenized) text.
        references: One reference per sentence, or a list of them per sentence.
        bleu_tokenize: sacreBLEU's name of the tokenizer that BLEU counts with, such as "zh" for Chinese, or "none" for
            text that is tokenized already. Scores by different ones can't be compared.

    Returns:
        `bleu` (sacreBLEU) and `chrf` from 0 to 100 with their signatures; BLEU's n-gram precisions (from 0 to 100),
        brevity penalty and lengths in its own tokens; `exact_match`, the percentage of translations that equal a
        reference character by character; and the number of sentences.

    Raises:
        UserError: No sentences, not as many hypotheses as references, or a sentence without a reference.
    """
    if len(hypotheses) != len(references):
        raise UserError(
            f"there are {len(hypotheses):,} hypotheses but {len(references):,} references; give one each per sentence"
        )
    if len(hypotheses) == 0:
        raise UserError("there is nothing to score; give at least one hypothesis and its reference")
    per_sentence = [[reference] if isinstance(reference, str) else list(reference) for reference in references]
    for number, alternatives in enumerate(per_sentence, start=1):
        if not alternatives:
            raise UserError(f"sentence {number} has no reference; give at least one")

    # sacreBLEU wants the n-th references of all sentences together, with None where a sentence has fewer.
    most = max(len(alternatives) for alternatives in per_sentence)
    streams = [[row[n] if n < len(row) else None for row in per_sentence] for n in range(most)]
    bleu_metric, chrf_metric = BLEU(tokenize=bleu_tokenize), CHRF()
    bleu = bleu_metric.corpus_score(hypotheses, streams)
    chrf = chrf_metric.corpus_score(hypotheses, streams)
    matches = sum(hypothesis in row for hypothesis, row in zip(hypotheses, per_sentence, strict=True))
    return {
        "bleu": bleu.score,
        "bleu_signature": bleu_metric.get_signature().format(),
        "bleu_precisions": bleu.precisions,
        "brevity_penalty": bleu.bp,
        "hypothesis_length": bleu.sys_len,
        "reference_length": bleu.ref_len,
        "chrf": chrf.score,
        "chrf_signature": chrf_metric.get_signature().format(),
        "exact_match": 100 * matches / len(hypotheses),
        "sentences": len(hypotheses),
    }


class TranslationMetric(evaluate.Metric):
    """`score` as a metric of the evaluate library, without the script that `evaluate.load` would download.

    `TranslationMetric().compute(predictions=[...], references=[...])` takes and gives what `score` does.
    """

    def _info(self) -> evaluate.MetricInfo:
        text = Value("string")
        return evaluate.MetricInfo(
            description="sacreBLEU and chrF with their signatures, and exact match.",
            citation="Post (2018), A Call for Clarity in Reporting BLEU Scores. Popović (2015), chrF.",
            inputs_description="predictions: one string each; references: one string, or a list of strings, each.",
            features=[
                Features({"predictions": text, "references": text}),
                Features({"predictions": text, "references": ListOf(text)}),
            ],
            reference_urls=["https://github.com/mjpost/sacrebleu"],
        )

    def compute(self, *, predictions: Any = None, references: Any = None, **kwargs: Any) -> Scores | None:
        """Score `predictions` against `references`, or what `add` and `add_batch` have collected."""
        if predictions is not None and references is not None and not len(predictions) == len(references) > 0:
            return score(predictions, references)  # which says what is wrong; the library would fail with IndexError
        return super().compute(predictions=predictions, references=references, **kwargs)

    def _compute(self, predictions: Sequence[str], references: Sequence[str] | Sequence[Sequence[str]]) -> Scores:
        return score(predictions, references)


def compute_metrics_with(tokenizer: PreTrainedTokenizerBase) -> Callable[[EvalPrediction], dict[str, float]]:
    """The `compute_metrics` of a Seq2SeqTrainer with `predict_with_generate`.

    Args:
        tokenizer: The model's tokenizer.

    Returns:
        A function from generated ids and labels, both of shape [sentences, length] and padded with -100, to "bleu",
        "chrf" and "exact_match".
    """

    def compute_metrics(prediction: EvalPrediction) -> dict[str, float]:
        scores = score(decode(tokenizer, prediction.predictions), decode(tokenizer, prediction.label_ids))
        return {name: scores[name] for name in ("bleu", "chrf", "exact_match")}

    return compute_metrics
