"""Measure two uses of scores: reranking n-best lists with another model, and finding wrong pairs in a corpus.

python scripts/benchmarks/scoring.py --model_name_or_path runs/en-de --other_model runs/en-de-averaged \
    --test_file data/multi30k/test_2016_flickr --source_lang en --target_lang de

The first model translates the test set into n-best lists, the other one reranks them with several weights. Then, of a
tenth of the test set's pairs the targets change places, and the first model's log-probability per token has to find
these pairs.
"""

import random
from dataclasses import dataclass, field

import common
import torch

from vanilla_transformer.data.reading import load_pairs
from vanilla_transformer.inference.loading import load
from vanilla_transformer.inference.metrics import corpus_scores
from vanilla_transformer.inference.scoring import rerank, score
from vanilla_transformer.inference.translate import Translation, translate

WEIGHTS = (0.0, 0.25, 0.5, 0.75, 1.0)
WRONG = 0.1  # share of the pairs that get the target of another
DROPPED = (0.05, 0.1, 0.15, 0.2)  # shares of the pairs that a filter leaves out


@dataclass
class Arguments:
    """What to measure."""

    model_name_or_path: str = field(metadata={"help": "The model that translates and filters."})
    other_model: str = field(metadata={"help": "The model that reranks."})
    test_file: str = field(metadata={"help": "Sentence pairs, as for `vanilla-transformer evaluate`."})
    source_lang: str = field(default="en", metadata={"help": "Language of the source."})
    target_lang: str = field(default="de", metadata={"help": "Language of the target."})
    num_beams: int = field(default=4, metadata={"help": "Beam size, and length of the n-best lists."})


def find_best(found: list[Translation], scores: dict[str, float], weight: float) -> str:
    """Return the translation with the highest score, of which the other model's has a weight."""
    return max(found, key=lambda item: (1 - weight) * item.score + weight * scores[item.text]).text


def measure_reranking(arguments: Arguments, sources: list[str], references: list[str]) -> None:
    """Print the scores of the best translations by each weight, and of the best that the lists have."""
    lists = list(
        translate(
            *load(arguments.model_name_or_path),
            sources,
            num_beams=arguments.num_beams,
            num_return_sequences=arguments.num_beams,
        )
    )
    model, tokenizer = load(arguments.other_model)
    # One pass: with weight 1 the score is the other model's; the rest are weighted sums.
    reranked = rerank(model, tokenizer, zip(sources, lists, strict=True))
    new = [{item.text: item.score for item in found} for found in reranked]
    print("| weight of the other model | BLEU | chrF | other translations than by weight 0 |\n|---|---|---|---|")
    first = [found[0].text for found in lists]
    for weight in WEIGHTS:
        best = [find_best(found, scores, weight) for found, scores in zip(lists, new, strict=True)]
        scores_of_best = corpus_scores(best, references)
        changed = sum(one != other for one, other in zip(best, first, strict=True))
        print(f"| {weight} | {scores_of_best['bleu']:.2f} | {scores_of_best['chrf']:.2f} | {changed:,} |")
    oracle = [
        max(found, key=lambda item: corpus_scores([item.text], [reference])["chrf"]).text
        for found, reference in zip(lists, references, strict=True)
    ]
    scores_of_best = corpus_scores(oracle, references)
    print(f"| the best of each list by chrF | {scores_of_best['bleu']:.2f} | {scores_of_best['chrf']:.2f} | |")
    print(scores_of_best["bleu_signature"], scores_of_best["chrf_signature"], sep="\n")


def measure_filtering(arguments: Arguments, sources: list[str], targets: list[str]) -> None:
    """Print how many of the pairs that are left out are wrong, and how many of the wrong ones are left out."""
    generator = random.Random(common.SEED)
    wrong = sorted(generator.sample(range(len(sources)), max(2, round(WRONG * len(sources)))))
    noisy = list(targets)
    for index, other in zip(wrong, [*wrong[1:], wrong[0]], strict=True):  # each wrong pair gets the next one's target
        noisy[index] = targets[other]
    pairs = list(zip(sources, noisy, strict=True))
    found = list(score(*load(arguments.model_name_or_path), pairs))
    worst = sorted(range(len(pairs)), key=lambda index: found[index].log_prob_per_token)
    print(f"\n{len(pairs):,} pairs, of {len(wrong):,} the targets have changed places\n")
    print("| left out | precision | recall |\n|---|---|---|")
    for share in DROPPED:
        dropped = worst[: max(1, round(share * len(pairs)))]
        hits = len(set(dropped) & set(wrong))
        print(f"| {share:.0%} | {hits / len(dropped):.1%} | {hits / len(wrong):.1%} |", flush=True)


def main() -> None:
    """Run both measurements."""
    arguments = common.parse(Arguments, __doc__, None)
    common.print_header(torch.get_num_threads(), ("torch", "transformers", "sacrebleu"))
    pairs = load_pairs(arguments.test_file, arguments.source_lang, arguments.target_lang)
    sources, targets = list(pairs["source"]), list(pairs["target"])
    measure_filtering(arguments, sources, targets)
    print()
    measure_reranking(arguments, sources, targets)


if __name__ == "__main__":
    common.run(main)
