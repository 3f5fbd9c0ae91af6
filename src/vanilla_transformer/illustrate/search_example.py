"""A sentence that shows why beam search is there: greedy search translates it otherwise, and less likely."""

import math
from collections.abc import Sequence
from typing import Any

import torch
from transformers import PreTrainedModel, PreTrainedTokenizerBase

from ..data.sources import prepare_sources
from ..data.tokenization import decode_batch
from ..eval_mode_vanilla_transformer import eval_mode
from ..generation_vanilla_transformer import PAPER_DECODING, gnmt_beam_search, gnmt_length_penalty
from ..inference.translate import translate

SEARCH: dict[str, Any] = PAPER_DECODING
MOST_TOKENS = 24  # of a source, so that the tree of its search can be drawn
BUDGET = 6_000_000_000  # sentences searched greedily, times parameters of the model: a few seconds on a core
BATCH_TOKENS = 4096
LIKELY = math.log(0.5)  # no hypothesis is more likely than one above this
MOST_SEARCHED = 100  # of the others, those of the fewest tokens are searched with beams
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
        length penalty, of which that of the beam is higher; "numBeams" and "lengthPenalty". A source whose reference
        the beam finds and greedy search does not comes first, then a short one. None if there is no such source among
        those that were tried.
    """
    lengths = [len(tokenizer(source, verbose=False)["input_ids"]) for source, _ in pairs]
    short = [(length, *pair) for length, pair in zip(lengths, pairs, strict=True) if length <= MOST_TOKENS]
    tried = short[: BUDGET // model.num_parameters()]
    found = translate(model, tokenizer, [source for _, source, _ in tried], num_beams=1, batch_tokens=BATCH_TOKENS)
    greedy = {source: best for (_, source, _), (best,) in zip(tried, found, strict=True)}
    unlikely = sorted(item for item in tried if greedy[item[1]].score < LIKELY)[:MOST_SEARCHED]
    found = translate(model, tokenizer, [source for _, source, _ in unlikely], **SEARCH)
    different = [
        (best.text != reference or greedy[source].text == reference, length, source)
        for (length, source, reference), (best,) in zip(unlikely, found, strict=True)
        if best.text != greedy[source].text
    ]
    examples = (_compare(model, tokenizer, source) for *_, source in sorted(different))
    return next((example for example in examples if example is not None), None)


def _compare(model: PreTrainedModel, tokenizer: PreTrainedTokenizerBase, source: str) -> dict[str, Any] | None:
    """Search both ways for one source; None if the difference is not clear."""
    greedy, greedy_score = _search(model, tokenizer, source, num_beams=1, length_penalty=None)
    beam, beam_score = _search(model, tokenizer, source, **SEARCH)
    if greedy == beam or beam_score - greedy_score < CLEAR:
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
) -> tuple[str, float]:
    """Translate one source; returns the text, and its log-probability divided by the paper's length penalty."""
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
    return decode_batch(tokenizer, found.sequences)[0], score
