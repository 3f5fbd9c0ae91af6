"""A sentence that shows why beam search is there: greedy search translates it otherwise, and less likely."""

import math
from collections.abc import Sequence
from typing import Any, NamedTuple

import torch
from transformers import PreTrainedModel, PreTrainedTokenizerBase

from ..data.sources import prepare_sources
from ..data.tokenization import decode_batch
from ..eval_mode_vanilla_transformer import eval_mode
from ..generation_vanilla_transformer import PAPER_DECODING, gnmt_beam_search, gnmt_length_penalty
from ..inference.translate import translate

SEARCH: dict[str, Any] = PAPER_DECODING
MOST_TOKENS = 24  # of a source and of its translations, so that the tree of the search can be drawn
BUDGET = 6_000_000_000  # sentences searched greedily, times parameters of the model: a few seconds on a core
WINDOW = 200  # sentences that are tried before the best of them is looked at
LIKELY = math.log(0.5)  # no hypothesis is more likely than one above this
MOST_SEARCHED = 50  # of the others in a window, those of the fewest tokens are searched with beams
MOST_COMPARED = 5  # of those that differ
CUT: dict[str, Any] = {"max_new_tokens": MOST_TOKENS + 1}  # a longer translation is not drawn
CLEAR = 0.01  # a difference of scores that no other order of summation turns round; nats


def find_search_example(
    model: PreTrainedModel, tokenizer: PreTrainedTokenizerBase, pairs: Sequence[tuple[str, str]]
) -> dict[str, Any] | None:
    """Look for a source that greedy search and the paper's beam search translate differently.

    Args:
        model: The model.
        tokenizer: Its tokenizer.
        pairs: Sources with their reference translations.

    Returns:
        "source", "greedy" and "beam", the texts; "greedyScore" and "beamScore", the log-probabilities divided by the
        length penalty, of which that of the beam is higher; "numBeams" and "lengthPenalty". The first source with a
        reference that only the beam finds, the shortest in a window; without any, one with a difference, if possible in
        whole characters. None if there is no such source among those that were tried.
    """
    lengths = [len(tokenizer(source, verbose=False)["input_ids"]) for source, _ in pairs]
    short = [_Candidate(length, *pair) for length, pair in zip(lengths, pairs, strict=True) if length <= MOST_TOKENS]
    tried = short[: BUDGET // model.num_parameters()]
    second_best: dict[str, Any] | None = None
    for start in range(0, len(tried), WINDOW):
        for candidate in _find_differences(model, tokenizer, tried[start : start + WINDOW]):
            if (example := _compare(model, tokenizer, candidate.source)) is None:
                continue
            if example["beam"] == candidate.reference:
                return example
            if second_best is None or (_is_broken(second_best) and not _is_broken(example)):
                second_best = example
    return second_best


def _is_broken(example: dict[str, Any]) -> bool:
    """Return whether a translation has bytes that are no whole character."""
    return "\ufffd" in example["greedy"] + example["beam"]


class _Candidate(NamedTuple):
    """A source of so many tokens, with its reference translation."""

    tokens: int
    source: str
    reference: str


def _find_differences(
    model: PreTrainedModel, tokenizer: PreTrainedTokenizerBase, candidates: list[_Candidate]
) -> list[_Candidate]:
    """List some sources that the two searches translate differently, those whose reference the beam finds first."""
    found = translate(model, tokenizer, [candidate.source for candidate in candidates], num_beams=1, **CUT)
    greedy = {candidate: best for candidate, (best,) in zip(candidates, found, strict=True)}
    unlikely = sorted(candidate for candidate in greedy if greedy[candidate].score < LIKELY)[:MOST_SEARCHED]
    found = translate(model, tokenizer, [candidate.source for candidate in unlikely], **SEARCH, **CUT)
    beam = {candidate: best for candidate, (best,) in zip(unlikely, found, strict=True)}
    different = [candidate for candidate in unlikely if beam[candidate].text != greedy[candidate].text]
    different.sort(key=lambda candidate: beam[candidate].text != candidate.reference)  # stable: then by length
    return different[:MOST_COMPARED]


def _compare(model: PreTrainedModel, tokenizer: PreTrainedTokenizerBase, source: str) -> dict[str, Any] | None:
    """Search both ways for one source; None if the difference is not clear, or a translation too long to be drawn."""
    greedy, greedy_score, greedy_tokens = _search(model, tokenizer, source, num_beams=1, length_penalty=None)
    beam, beam_score, beam_tokens = _search(model, tokenizer, source, **SEARCH)
    if greedy == beam or beam_score - greedy_score < CLEAR or max(greedy_tokens, beam_tokens) > MOST_TOKENS:
        return None
    return {
        "source": source,
        "greedy": greedy,
        "beam": beam,
        "greedyScore": round(greedy_score, 4),
        "beamScore": round(beam_score, 4),
        "numBeams": SEARCH["num_beams"],
        "lengthPenalty": SEARCH["length_penalty"],
    }


def _search(
    model: PreTrainedModel, tokenizer: PreTrainedTokenizerBase, source: str, **settings: Any
) -> tuple[str, float, int]:
    """Translate one source: the text, its log-probability divided by the paper's length penalty, and its tokens."""
    (source,) = prepare_sources(tokenizer, [source])
    input_ids = torch.tensor([tokenizer(source, verbose=False)["input_ids"]], device=model.device)
    with eval_mode(model), torch.inference_mode():
        found: Any = model.generate(  # type: ignore[operator] # GenerationMixin
            input_ids=input_ids,
            attention_mask=torch.ones_like(input_ids),
            custom_generate=gnmt_beam_search,
            return_dict_in_generate=True,
            **settings,
        )
    tokens = int((found.beam_indices[0] >= 0).sum())
    score = float(found.sequences_scores[0])
    if settings["num_beams"] == 1:  # greedy search has no penalty
        score /= gnmt_length_penalty(tokens, SEARCH["length_penalty"])
    return decode_batch(tokenizer, found.sequences)[0], score, tokens
