"""Scores for people: those of one system, and a table of several."""

from collections.abc import Mapping, Sequence
from typing import Any

from ..inference.significance import SIGNIFICANT, TEST_TYPES, PairedTestResult

WIDTH = 80  # of a terminal
COLUMN = 9  # a score such as "37.62" or "0.0010*", right-aligned
METRICS = {"bleu": "BLEU", "chrf": "chrF", "chrf++": "chrF++", "ter": "TER", "comet": "COMET"}  # name: title
DECIMALS = {"comet": 4}  # about 0 to 1; all others go to 100


def format_scores(report: Mapping[str, Any]) -> str:
    """Form the report of one system, a line or two for each metric."""
    precisions = "/".join(f"{precision:.1f}" for precision in report["bleu_precisions"])
    lengths = f"{report['hypothesis_length']} tokens, reference {report['reference_length']}"
    lines = [
        f"sacreBLEU    {report['bleu']:6.2f}  {report['bleu_signature']}",
        f"                     {precisions} (brevity penalty {report['brevity_penalty']:.3f}: {lengths})",
    ]
    for name, title in METRICS.items():
        if name != "bleu" and name in report:
            lines.append(f"{title:<13}{_number(name, report[name]):>6}  {report[f'{name}_signature']}")
    lines.append(f"exact match  {report['exact_match']:6.2f}% of {report['sentences']} sentences")
    if "seconds" in report:
        speed = report["sentences"] / report["seconds"]
        lines.append(
            f"{report['data']} in {report['seconds']:.1f} s ({speed:.0f} per second), num_beams {report['num_beams']}"
        )
    return "\n".join(lines)


def format_table(
    system_names: Sequence[str], reports: Sequence[Mapping[str, Any]], result: PairedTestResult | None
) -> str:
    """Form a table with a row for each system and further ones for the paired test, and the signatures under it.

    It is at most `WIDTH` characters wide, but for names and signatures that are longer by themselves; these have lines
    of their own and are never cut.
    """
    metrics = [name for name in METRICS if name in reports[0]]
    width = WIDTH - COLUMN * (len(metrics) + 1)
    lines = [_row("system", [METRICS[name] for name in metrics] + ["exact"], width)]
    for number, (name, report) in enumerate(zip(system_names, reports, strict=True)):
        label = f"{number + 1} {name}"
        if len(label) >= width:
            lines.append(label)
            label = ""
        scores = [_number(metric, report[metric]) for metric in metrics] + [f"{report['exact_match']:.2f}%"]
        lines.append(_row(label, scores, width))
        if result is not None:
            lines += _test_rows(metrics, result, number, width)
    sentences = reports[0]["sentences"]
    lines += ["", f"{sentences:,} sentence{'' if sentences == 1 else 's'}"]
    if result is not None:
        lines[-1] += f"; {TEST_TYPES[result['test_type']]}, {result['n_samples']:,} samples, seed {result['seed']}"
        lines.append(f"p: against system 1; * a difference with p below {SIGNIFICANT}")
    for name in metrics:
        signature = reports[0][f"{name}_signature"]
        if result is not None:
            signature = result["signatures"].get(name, signature)
        separator = " " if len(METRICS[name]) + 1 + len(signature) <= WIDTH else "\n"
        lines.append(f"{METRICS[name]}{separator}{signature}")
    return "\n".join(lines)


def _test_rows(metrics: Sequence[str], result: PairedTestResult, number: int, width: int) -> list[str]:
    """Form the rows of the paired test under a system; a metric that was not tested has empty cells."""
    cells: dict[str, list[str]] = {"difference": [], "p": [], "95% +/-": []}
    for metric in metrics:
        tested = result["systems"][number].get(metric)
        p_value, ci = (tested["p_value"], tested["ci"]) if tested else (None, None)
        baseline = result["systems"][0][metric]["score"] if tested else 0.0
        cells["difference"].append(f"{tested['score'] - baseline:+.2f}" if tested and p_value is not None else "")
        # sacreBLEU gives a system of the baseline's very translations a small p-value too.
        marked = p_value is not None and p_value < SIGNIFICANT and tested and tested["score"] != baseline
        cells["p"].append("" if p_value is None else f"{p_value:.4f}{'*' if marked else ' '}")
        cells["95% +/-"].append("" if ci is None else f"{ci:.2f}")
    return [_row(f"  {label}", values, width) for label, values in cells.items() if any(values)]


def _number(metric: str, value: float) -> str:
    return f"{value:.{DECIMALS.get(metric, 2)}f}"


def _row(label: str, cells: Sequence[str], width: int) -> str:
    return (f"{label:<{width}}" + "".join(f"{cell:>{COLUMN}}" for cell in cells)).rstrip()
