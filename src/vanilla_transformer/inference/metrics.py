"""Scores of translations: sacreBLEU's metrics with their signatures, and exact match."""

import logging
import re
from collections.abc import Callable, Iterable, Mapping, Sequence
from itertools import chain, zip_longest
from typing import Any, TypedDict

import evaluate
import numpy as np
from datasets import Features, Value
from datasets import Sequence as ListOf
from sacrebleu.metrics import BLEU, CHRF, TER
from sacrebleu.metrics.base import Metric
from transformers import EvalPrediction, PreTrainedTokenizerBase

from ..data.normal_form import NormalFormCounter
from ..data.tokenization import decode_batch
from ..errors import UserError, first_line

logger = logging.getLogger(__name__)

TWO_LETTER_CODES = {"zho": "zh", "cmn": "zh", "jpn": "ja", "kor": "ko"}  # ISO 639-3, as in FLORES (zho_Hans)
TOKENIZER_PACKAGES = {"ja-mecab": "sacrebleu[ja]", "ko-mecab": "sacrebleu[ko]"}
FURTHER_METRICS = ("chrf++", "ter")  # of sacreBLEU, computed where they are asked for

References = Sequence[str] | Sequence[Sequence[str]]  # one for each sentence, or a list of them for each

_FurtherScores = TypedDict(
    "_FurtherScores", {"chrf++": float, "chrf++_signature": str, "ter": float, "ter_signature": str}, total=False
)


class Scores(_FurtherScores):
    """Result of `corpus_scores`; serialisable as JSON. Those of `FURTHER_METRICS` are there if they were asked for."""

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


def choose_bleu_tokenizer(target_lang: str | None) -> str:
    """Choose BLEU's tokenizer by language, as the command `sacrebleu --language-pair` does.

    Args:
        target_lang: Code of the target language. Only its first part counts ("zh" in "zh-TW" and "zh_Hant"), in two
            letters or in the three of ISO 639-3. None if it is not known.

    Returns:
        "zh" for Chinese, "ja-mecab" for Japanese, "ko-mecab" for Korean, "13a" for any other language.
    """
    code = re.split("[-_]", target_lang or "")[0].lower()
    return BLEU._TOKENIZER_MAP.get(TWO_LETTER_CODES.get(code, code), BLEU.TOKENIZER_DEFAULT)


def make_bleu(tokenize: str) -> BLEU:
    """Make sacreBLEU's BLEU with a tokenizer.

    Args:
        tokenize: Name of the tokenizer in sacreBLEU.

    Raises:
        UserError: There is no such tokenizer, or a package or file that it needs is missing.
    """
    if tokenize not in BLEU.TOKENIZERS:
        raise UserError(f"BLEU's tokenizer is {tokenize!r}; it must be one of {', '.join(BLEU.TOKENIZERS)}")
    try:
        return BLEU(tokenize=tokenize)
    except (RuntimeError, ImportError, OSError, AssertionError) as error:  # as its different tokenizers raise
        packages = TOKENIZER_PACKAGES.get(tokenize, "sentencepiece")
        raise UserError(
            f"BLEU's tokenizer {tokenize} can't be loaded ({type(error).__name__}: {first_line(error)}); install what "
            f"it needs with: pip install '{packages}'; or choose another tokenizer, such as char"
        ) from error


def make_metrics(bleu_tokenize: str = "13a", further_metrics: Sequence[str] = ()) -> dict[str, Metric]:
    """Make sacreBLEU's metrics by the names that they have in `Scores`: BLEU, chrF, and further ones.

    Args:
        bleu_tokenize: BLEU's tokenizer, as in `make_bleu`.
        further_metrics: Some of `FURTHER_METRICS`: "chrf++", chrF with words of up to two, and "ter".

    Raises:
        UserError: There is no such metric, or BLEU's tokenizer can't be loaded.
    """
    makers: dict[str, Callable[[], Metric]] = {"chrf++": lambda: CHRF(word_order=2), "ter": TER}
    if unknown := [name for name in further_metrics if name not in makers]:
        raise UserError(f"there is no metric {unknown[0]!r}; it must be one of {', '.join(FURTHER_METRICS)}")
    further = {name: make() for name, make in makers.items() if name in further_metrics}
    return {"bleu": make_bleu(bleu_tokenize), "chrf": CHRF(), **further}


def reference_streams(references: Sequence[Sequence[str]]) -> Any:
    """Transpose each sentence's references into sacreBLEU's streams: [["a", "b"], ["c"]] -> [["a", "c"], ["b", None]].

    The return type is Any because sacreBLEU's hints do not mention its None.
    """
    return list(map(list, zip_longest(*references)))


def list_references(references: References, sentences: int) -> list[list[str]]:
    """List the references of each sentence.

    Args:
        references: One reference per sentence, or a list of them per sentence.
        sentences: The number of hypotheses.

    Raises:
        UserError: There are no sentences, the numbers differ, or a sentence has no reference.
    """
    if sentences != len(references):
        raise UserError(
            f"there are {sentences:,} hypotheses but {len(references):,} references; give one each per sentence"
        )
    if sentences == 0:
        raise UserError("there is nothing to score; give at least one hypothesis and its reference")
    per_sentence = [[reference] if isinstance(reference, str) else list(reference) for reference in references]
    for number, alternatives in enumerate(per_sentence, start=1):
        if not alternatives:
            raise UserError(f"sentence {number} has no reference; give at least one")
    return per_sentence


def _normal_form(texts: Iterable[str]) -> str | None:
    counter = NormalFormCounter()
    for text in texts:
        counter.add(text)
    return counter.form


def corpus_scores(
    hypotheses: Sequence[str],
    references: References,
    *,
    bleu_tokenize: str = "13a",
    further_metrics: Sequence[str] = (),
) -> Scores:
    """Score translations of a whole test set.

    Args:
        hypotheses: One translation per sentence, as plain (detokenized) text.
        references: One reference per sentence, or a list of them per sentence.
        bleu_tokenize: BLEU's tokenizer by its name in sacreBLEU, such as "zh" for Chinese, or "none" for text that is
            already tokenized; `choose_bleu_tokenizer` gives the usual one for a language. Scores with different
            tokenizers are not comparable.
        further_metrics: Some of `FURTHER_METRICS`. TER is slow: it takes seconds for a thousand sentences.

    Returns:
        `bleu` and `chrf` (0 to 100) with their signatures; BLEU's n-gram precisions (0 to 100), brevity penalty and
        lengths in BLEU's own tokens; `exact_match`, the percentage of translations that equal a reference exactly; the
        number of sentences; and the further metrics, `chrf++` (0 to 100) and `ter` (edits per 100 words of the
        reference; lower is better), with their signatures.

    Raises:
        UserError: There are no sentences, the numbers of hypotheses and references differ, or a sentence has no
            reference; there is no such metric; or BLEU's tokenizer can't be loaded.
    """
    per_sentence = list_references(references, len(hypotheses))
    forms = _normal_form(hypotheses), _normal_form(chain.from_iterable(per_sentence))
    if None not in forms and forms[0] != forms[1]:
        logger.warning(
            "the translations are in Unicode normal form %s and the references in %s, so that the same words do not "
            "match; convert one of the two",
            *forms,
        )
    metrics = make_metrics(bleu_tokenize, further_metrics)
    streams = reference_streams(per_sentence)
    found: dict[str, Any] = {name: metric.corpus_score(hypotheses, streams) for name, metric in metrics.items()}
    signatures = {name: metric.get_signature().format() for name, metric in metrics.items()}
    matches = sum(hypothesis in row for hypothesis, row in zip(hypotheses, per_sentence, strict=True))
    scores: Scores = {
        "bleu": found["bleu"].score,
        "bleu_signature": signatures["bleu"],
        "bleu_precisions": found["bleu"].precisions,
        "brevity_penalty": found["bleu"].bp,
        "hypothesis_length": found["bleu"].sys_len,
        "reference_length": found["bleu"].ref_len,
        "chrf": found["chrf"].score,
        "chrf_signature": signatures["chrf"],
        "exact_match": 100 * matches / len(hypotheses),
        "sentences": len(hypotheses),
    }
    if "chrf++" in found:
        scores |= {"chrf++": found["chrf++"].score, "chrf++_signature": signatures["chrf++"]}
    if "ter" in found:
        scores |= {"ter": found["ter"].score, "ter_signature": signatures["ter"]}
    return scores


class TranslationMetric(evaluate.Metric):
    """`corpus_scores` as a metric of the library evaluate, without a script to download.

    `TranslationMetric().compute(predictions=[...], references=[...])` takes the arguments of `corpus_scores` and
    returns its result.
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
        """Score `predictions` against `references`, or the sentences collected by `add` and `add_batch`."""
        if predictions is not None and references is not None and not len(predictions) == len(references) > 0:
            return corpus_scores(
                predictions, references, **kwargs
            )  # raises UserError; the library would raise IndexError
        return super().compute(predictions=predictions, references=references, **kwargs)

    def _compute(self, predictions: Sequence[str], references: References, **kwargs: Any) -> Scores:
        return corpus_scores(predictions, references, **kwargs)


def make_compute_metrics(
    tokenizer: PreTrainedTokenizerBase,
    *,
    bleu_tokenize: str | Mapping[str, str] = "13a",
    target_langs: Sequence[str] = (),
) -> Callable[[EvalPrediction], dict[str, float]]:
    """Make the `compute_metrics` function of a Seq2SeqTrainer with `predict_with_generate`.

    Args:
        tokenizer: The model's tokenizer.
        bleu_tokenize: BLEU's tokenizer, as in `corpus_scores`, or that of each target language; they are loaded now, so
            that a missing package is found before training.
        target_langs: With a tokenizer for each language, the language of each sentence.

    Returns:
        A function that takes generated ids and labels, int64 of shape [sentences, length] padded with -100, and
        returns "bleu", "chrf" and "exact_match". With several languages these are the means of the languages' own
        scores, which are there too, as "bleu_de".

    Raises:
        UserError: BLEU's tokenizer can't be loaded.
    """
    tokenizers = {"": bleu_tokenize} if isinstance(bleu_tokenize, str) else dict(bleu_tokenize)
    for name in tokenizers.values():
        make_bleu(name)

    def score_rows(hypotheses: list[str], references: list[str], name: str) -> dict[str, float]:
        scores = corpus_scores(hypotheses, references, bleu_tokenize=name)
        return {"bleu": scores["bleu"], "chrf": scores["chrf"], "exact_match": scores["exact_match"]}

    def compute_metrics(prediction: EvalPrediction) -> dict[str, float]:
        predictions, labels = np.asarray(prediction.predictions), np.asarray(prediction.label_ids)
        hypotheses, references = decode_batch(tokenizer, predictions), decode_batch(tokenizer, labels)
        if len(tokenizers) == 1:
            return score_rows(hypotheses, references, *tokenizers.values())
        by_language = {}
        for language, name in tokenizers.items():
            rows = [row for row, other in enumerate(target_langs) if other == language]
            by_language[language] = score_rows(
                [hypotheses[row] for row in rows], [references[row] for row in rows], name
            )
        means = {
            metric: sum(scores[metric] for scores in by_language.values()) / len(by_language)
            for metric in next(iter(by_language.values()))
        }
        return means | {
            f"{metric}_{language}": value
            for language, scores in by_language.items()
            for metric, value in scores.items()
        }

    return compute_metrics
