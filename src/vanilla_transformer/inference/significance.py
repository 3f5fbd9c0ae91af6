"""Paired significance tests of systems against a baseline, by sacreBLEU."""

import os
from collections.abc import Iterator, Sequence
from contextlib import contextmanager
from typing import Any, TypedDict

from sacrebleu.significance import PairedTest

from ..errors import UserError
from .metrics import References, list_references, make_metrics, reference_streams

TEST_TYPES = {"bs": "paired bootstrap resampling", "ar": "paired approximate randomization"}
DEFAULT_SAMPLES: dict[str, int] = PairedTest._DEFAULT_SAMPLES  # 1,000 resamples and 10,000 trials
MAX_SAMPLES = 100_000  # sacreBLEU holds the statistics of all samples in memory at once
DEFAULT_SEED = 12345  # sacreBLEU's
SIGNIFICANT = 0.05
SEED_VARIABLE = "SACREBLEU_SEED"


class PairedResult(TypedDict):
    """A system's result in one metric.

    Attributes:
        score: Its score, as `corpus_scores` gives it.
        p_value: How probable a difference from the baseline as large as the one that was found, or larger, is if both
            are equally good; None for the baseline.
        mean: Mean of the scores of the resamples; None with approximate randomization.
        ci: Half of the width of the interval that holds 95% of these scores; None with approximate randomization.
    """

    score: float
    p_value: float | None
    mean: float | None
    ci: float | None


class PairedTestResult(TypedDict):
    """Result of `paired_test`; serialisable as JSON.

    Attributes:
        test_type: "bs" or "ar".
        n_samples: Number of resamples or trials.
        seed: The seed.
        signatures: For each metric by its name in `Scores` the signature, which names test, number and seed.
        systems: For each system, in order, its result by metric.
    """

    test_type: str
    n_samples: int
    seed: int
    signatures: dict[str, str]
    systems: list[dict[str, PairedResult]]


def check_samples(name: str, value: int) -> None:
    """Refuse a number of samples that is no integer from 1 to `MAX_SAMPLES`.

    Raises:
        UserError: With the name of the field and its value.
    """
    if not 1 <= value <= MAX_SAMPLES:
        raise UserError(f"{name} is {value}; it must be from 1 to {MAX_SAMPLES:,}")


def check_seed(name: str, value: int) -> None:
    """Refuse a seed that sacreBLEU does not fix: it takes 0 for none.

    Raises:
        UserError: With the name of the field and its value.
    """
    if not 1 <= value < 2**63:
        raise UserError(f"{name} is {value}; it must be a whole number from 1 to {2**63 - 1}")


def paired_test(
    systems: Sequence[tuple[str, Sequence[str]]],
    references: References,
    *,
    test_type: str = "bs",
    n_samples: int | None = None,
    seed: int = DEFAULT_SEED,
    bleu_tokenize: str = "13a",
    further_metrics: Sequence[str] = (),
) -> PairedTestResult:
    """Test whether systems differ from a baseline by more than chance, with sacreBLEU's `PairedTest`.

    Args:
        systems: Names and translations, at least two; the first is the baseline.
        references: As in `corpus_scores`.
        test_type: "bs" for paired bootstrap resampling (Koehn 2004), "ar" for paired approximate randomization
            (Riezler and Maxwell 2005).
        n_samples: Number of resamples or trials. Defaults to sacreBLEU's 1,000 and 10,000.
        seed: Seed of the random numbers. All systems are tested on the same samples.
        bleu_tokenize: As in `corpus_scores`.
        further_metrics: As in `corpus_scores`.

    Raises:
        UserError: There are fewer than two systems, their numbers of sentences differ, a setting is out of range, or
            there is too little memory; or as in `corpus_scores`.
    """
    if test_type not in TEST_TYPES:
        raise UserError(f"test_type is {test_type!r}; it must be one of {', '.join(TEST_TYPES)}")
    n_samples = DEFAULT_SAMPLES[test_type] if n_samples is None else n_samples
    check_samples("n_samples", n_samples)
    check_seed("seed", seed)
    if len(systems) < 2:
        raise UserError("a paired test compares systems with a baseline; give at least two systems")
    for name, hypotheses in systems:
        if len(hypotheses) != len(references):
            raise UserError(
                f"{name} has {len(hypotheses):,} translations but there are {len(references):,} references; give one "
                "each per sentence"
            )
    streams = reference_streams(list_references(references, len(references)))
    metrics = make_metrics(bleu_tokenize, further_metrics)
    named: list[tuple[str, Sequence[str]]] = [(name, list(hypotheses)) for name, hypotheses in systems]
    try:
        with _sacrebleu_seed(seed):
            signatures, results = PairedTest(named, metrics, streams, test_type, n_samples)()
    except MemoryError as error:
        raise UserError(
            f"there is too little memory for {n_samples:,} samples of {len(references):,} sentences; take fewer samples"
        ) from error
    titles = [title for title in results if title != "System"]  # "BLEU", "chrF2", ... in the order of `metrics`
    columns: dict[str, Any] = {name: results[title] for name, title in zip(metrics, titles, strict=True)}
    return {
        "test_type": test_type,
        "n_samples": n_samples,
        "seed": seed,
        "signatures": {name: signatures[title].format() for name, title in zip(metrics, titles, strict=True)},
        "systems": [
            {name: _as_dict(column[number]) for name, column in columns.items()} for number in range(len(systems))
        ],
    }


def _as_dict(result: Any) -> PairedResult:
    """Convert a result of sacreBLEU's, whose numbers may be NumPy's."""
    values = {name: getattr(result, name) for name in ("score", "p_value", "mean", "ci")}
    return {name: None if value is None else float(value) for name, value in values.items()}  # type: ignore[return-value]


@contextmanager
def _sacrebleu_seed(seed: int) -> Iterator[None]:
    """Set the variable of the environment from which alone sacreBLEU takes its seed; restore it on exit."""
    before = os.environ.get(SEED_VARIABLE)
    os.environ[SEED_VARIABLE] = str(seed)
    try:
        yield
    finally:
        if before is None:
            del os.environ[SEED_VARIABLE]
        else:
            os.environ[SEED_VARIABLE] = before
