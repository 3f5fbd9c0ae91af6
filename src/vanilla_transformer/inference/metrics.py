"""Scores of translations: sacreBLEU and chrF with their signatures, and exact match."""

import re
from collections.abc import Callable, Mapping, Sequence
from itertools import zip_longest
from typing import Any, TypedDict

import evaluate
import numpy as np
from datasets import Features, Value
from datasets import Sequence as ListOf
from sacrebleu.metrics import BLEU, CHRF
from transformers import EvalPrediction, PreTrainedTokenizerBase

from ..data.tokenization import decode_batch
from ..errors import UserError, first_line

TWO_LETTER_CODES = {"zho": "zh", "cmn": "zh", "jpn": "ja", "kor": "ko"}  # ISO 639-3, as in FLORES (zho_Hans)
TOKENIZER_PACKAGES = {"ja-mecab": "sacrebleu[ja]", "ko-mecab": "sacrebleu[ko]"}


class Scores(TypedDict):
    """Result of `corpus_scores`; serialisable as JSON."""

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


def corpus_scores(
    hypotheses: Sequence[str], references: Sequence[str] | Sequence[Sequence[str]], *, bleu_tokenize: str = "13a"
) -> Scores:
    """Score translations of a whole test set.

    Args:
        hypotheses: One translation per sentence, as plain (detokenized) text.
        references: One reference per sentence, or a list of them per sentence.
        bleu_tokenize: BLEU's tokenizer by its name in sacreBLEU, such as "zh" for Chinese, or "none" for text that is
            already tokenized; `choose_bleu_tokenizer` gives the usual one for a language. Scores with different
            tokenizers are not comparable.

    Returns:
        `bleu` and `chrf` (0 to 100) with their signatures; BLEU's n-gram precisions (0 to 100), brevity penalty and
        lengths in BLEU's own tokens; `exact_match`, the percentage of translations that equal a reference exactly; and
        the number of sentences.

    Raises:
        UserError: There are no sentences, the numbers of hypotheses and references differ, or a sentence has no
            reference; or BLEU's tokenizer can't be loaded.
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

    # sacreBLEU's streams are the transpose of per_sentence: [["a", "b"], ["c"]] -> [["a", "c"], ["b", None]]
    streams: Any = list(map(list, zip_longest(*per_sentence)))  # Any: sacreBLEU's hints do not mention its None
    bleu_metric, chrf_metric = make_bleu(bleu_tokenize), CHRF()
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

    def _compute(
        self, predictions: Sequence[str], references: Sequence[str] | Sequence[Sequence[str]], **kwargs: Any
    ) -> Scores:
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
