"""Compare decoding with MarianMT's generate() and with CTranslate2, in turn in one run on equal work.

python scripts/benchmarks/decoding.py --train_file data/train --source_lang en --target_lang de

Without data, on numbers written out. The models are new, as large as the presets, and write the same number of tokens.

python scripts/benchmarks/decoding.py --model_name_or_path runs/en-de --test_file data/test \
    --source_lang en --target_lang de

This compares the searches of translate() with a trained model: BLEU, speed, and length of the translations.
"""

import copy
import statistics
import tempfile
import time
from collections.abc import Callable
from dataclasses import dataclass, field
from pathlib import Path

import torch
from common import SEED, DataArguments, format_ratios, parse, print_header, run
from datasets import Dataset
from tqdm import tqdm
from transformers import PreTrainedModel, PreTrainedTokenizerBase

from vanilla_transformer import (
    VanillaTransformerConfig,
    VanillaTransformerForConditionalGeneration,
    gnmt_beam_search,
)
from vanilla_transformer.convert.ctranslate2 import to_ctranslate2
from vanilla_transformer.convert.marian import to_marian
from vanilla_transformer.data.reading import load_pairs
from vanilla_transformer.errors import UserError, require
from vanilla_transformer.inference.loading import load
from vanilla_transformer.inference.metrics import corpus_scores
from vanilla_transformer.inference.translate import translate

LENGTH_PENALTY = 0.6
Decode = Callable[[list[list[int]], int], None]  # token ids of a batch, and the number of beams


@dataclass
class BenchmarkArguments(DataArguments):
    """What is compared, and on what."""

    presets: list[str] = field(default_factory=lambda: ["tiny", "base"], metadata={"help": "Sizes to compare at."})
    num_beams: list[int] = field(default_factory=lambda: [4, 1], metadata={"help": "Beam sizes; 1 is greedy."})
    batch_sizes: list[int] = field(default_factory=lambda: [50, 25, 1], metadata={"help": "Sentences of a batch."})
    batches: int = field(default=2, metadata={"help": "Different batches in each turn; ten times as many of one."})
    new_tokens: int = field(default=16, metadata={"help": "Tokens that are written for each sentence."})
    rounds: int = field(default=5, metadata={"help": "How often each contender has its turn."})
    threads: int = field(default=1, metadata={"help": "Threads of torch and of CTranslate2."})
    model_name_or_path: str | None = field(
        default=None, metadata={"help": "A trained model, to compare searches with."}
    )
    test_file: str | None = field(default=None, metadata={"help": "Sentence pairs to compare searches on."})


def through_generate(model: PreTrainedModel, pad_token_id: int, new_tokens: int, **settings: Callable) -> Decode:
    """Decoding by `generate()` to the given length: without an end, there is nothing that would end it earlier."""
    model.generation_config.update(
        eos_token_id=None, forced_eos_token_id=None, bad_words_ids=None, max_new_tokens=new_tokens
    )

    @torch.inference_mode()
    def decode(token_ids: list[list[int]], num_beams: int) -> None:
        longest = max(map(len, token_ids))
        input_ids = torch.tensor([[*ids, *[pad_token_id] * (longest - len(ids))] for ids in token_ids])
        model.generate(
            input_ids=input_ids,
            attention_mask=(input_ids != pad_token_id).long(),
            num_beams=num_beams,
            length_penalty=LENGTH_PENALTY if num_beams > 1 else None,
            **settings,
        )

    return decode


def through_ctranslate2(
    model: PreTrainedModel, tokenizer: PreTrainedTokenizerBase, new_tokens: int, threads: int
) -> Decode:
    """Decoding by CTranslate2 with the same weights in float32."""
    with tempfile.TemporaryDirectory() as folder:
        to_ctranslate2(model, tokenizer, Path(folder) / "model")
        translator = require("ctranslate2", "ct2").Translator(
            str(Path(folder) / "model"), compute_type="float32", inter_threads=1, intra_threads=threads
        )

    def decode(token_ids: list[list[int]], num_beams: int) -> None:
        translator.translate_batch(
            [tokenizer.convert_ids_to_tokens(ids) for ids in token_ids],
            beam_size=num_beams,
            length_penalty=LENGTH_PENALTY,
            min_decoding_length=new_tokens,
            max_decoding_length=new_tokens,
        )

    return decode


def contenders(preset: str, tokenizer: PreTrainedTokenizerBase, arguments: BenchmarkArguments) -> dict[str, Decode]:
    """Make the decoders that take part, by name."""
    torch.manual_seed(SEED)
    config = VanillaTransformerConfig.preset(preset, vocab_size=len(tokenizer))
    ours = VanillaTransformerForConditionalGeneration(config).eval()
    marian, rounded = to_marian(ours), copy.deepcopy(ours).bfloat16()
    pad, new_tokens = tokenizer.pad_token_id, arguments.new_tokens
    return {
        "ours, the paper's search": through_generate(ours, pad, new_tokens, custom_generate=gnmt_beam_search),
        "ours, the paper's search, bfloat16": through_generate(
            rounded, pad, new_tokens, custom_generate=gnmt_beam_search
        ),
        "ours, generate()": through_generate(ours, pad, new_tokens),
        "MarianMT, generate()": through_generate(marian, pad, new_tokens),
        "CTranslate2, float32": through_ctranslate2(ours, tokenizer, new_tokens, arguments.threads),
    }


def compare(
    decoders: dict[str, Decode], batches: list[list[list[int]]], num_beams: int, arguments: BenchmarkArguments
) -> None:
    """Let each contender decode all batches in each round; the first round, not counted, warms up."""
    seconds: dict[str, list[float]] = {name: [] for name in decoders}
    for _ in tqdm(range(arguments.rounds + 1), unit=" rounds", leave=False, disable=None):
        for name, decode in decoders.items():
            start = time.perf_counter()
            for batch in batches:
                decode(batch, num_beams)
            seconds[name].append(time.perf_counter() - start)
    sentences = sum(map(len, batches))
    print("| | sentences/s | ms per step | times MarianMT (each round) | times CTranslate2 (each round) |")
    print("|---|---|---|---|---|")
    for name, (_, *turns) in seconds.items():
        median = statistics.median(turns)
        ratios = " | ".join(
            format_ratios([other / own for own, other in zip(turns, seconds[peer][1:], strict=True)])
            for peer in ("MarianMT, generate()", "CTranslate2, float32")
        )
        per_step = median / len(batches) / arguments.new_tokens
        print(f"| {name} | {sentences / median:,.1f} | {1000 * per_step:.2f} | {ratios} |", flush=True)


def compare_searches(arguments: BenchmarkArguments) -> None:
    """Let each search of translate() go through the whole test set in each round."""
    model, tokenizer = load(arguments.model_name_or_path, device="cpu")
    pairs = load_pairs(arguments.test_file, arguments.source_lang, arguments.target_lang)
    searches = {
        "greedy": {"num_beams": 1},
        "generate()'s beams of 4": {"num_beams": 4, "search": None},
        "the paper's beams of 4": {"num_beams": 4},
    }
    seconds: dict[str, list[float]] = {name: [] for name in searches}
    texts: dict[str, list[str]] = {}
    for _ in tqdm(range(arguments.rounds), unit=" rounds", disable=None):
        for name, settings in searches.items():
            start = time.perf_counter()
            translations = translate(model, tokenizer, pairs["source"], length_penalty=LENGTH_PENALTY, **settings)
            texts[name] = [translation.text for (translation,) in translations]
            seconds[name].append(time.perf_counter() - start)
    references = list(pairs["target"])
    print(f"{arguments.test_file}: {len(pairs):,} sentences, length penalty {LENGTH_PENALTY}")
    print(f"| search | BLEU | brevity penalty | tokens per translation | sentences/s ({arguments.rounds} rounds) |")
    print("|---|---|---|---|---|")
    for name, found in texts.items():
        scores = corpus_scores(found, references)
        tokens = statistics.mean(map(len, tokenizer(found)["input_ids"]))
        speeds = [len(pairs) / turn for turn in seconds[name]]
        turns = ", ".join(f"{speed:.1f}" for speed in speeds)
        figures = f"{scores['bleu']:.2f} | {scores['brevity_penalty']:.3f} | {tokens:.2f}"
        print(f"| {name} | {figures} | {statistics.median(speeds):.1f} ({turns}) |")
    print(scores["bleu_signature"])


def encode_sources(
    tokenizer: PreTrainedTokenizerBase, pairs: Dataset, arguments: BenchmarkArguments
) -> list[list[int]]:
    """Encode the sources that are needed, in the order of their lengths."""
    count = max(size * number_of_batches(size, arguments) for size in arguments.batch_sizes)
    return sorted(tokenizer(list(pairs["source"][:count]))["input_ids"], key=len)


def number_of_batches(size: int, arguments: BenchmarkArguments) -> int:
    """Number the batches of a size; one sentence at a time is so little work that it takes ten times as many."""
    return arguments.batches * (10 if size == 1 else 1)


def make_batches(sources: list[list[int]], size: int, arguments: BenchmarkArguments) -> list[list[list[int]]]:
    """Cut batches of similar length, spread over all lengths."""
    count = number_of_batches(size, arguments)
    starts = [round(index * (len(sources) - size) / max(1, count - 1)) for index in range(count)]
    return [sources[start : start + size] for start in starts]


def main(argv: list[str] | None = None) -> None:
    """Compare the engines on new models, or the searches on a trained one."""
    arguments = parse(BenchmarkArguments, __doc__, argv)
    if (arguments.model_name_or_path is None) != (arguments.test_file is None):
        raise UserError("--model_name_or_path and --test_file go together; one of them is missing")
    require("ctranslate2", "ct2")
    torch.set_num_threads(arguments.threads)
    print_header(arguments.threads, ("torch", "transformers", "ctranslate2", "sacrebleu"))
    if arguments.model_name_or_path:
        compare_searches(arguments)
        return
    print(f"{arguments.new_tokens} tokens written for each sentence")
    tokenizer, pairs = arguments.load()
    sources = encode_sources(tokenizer, pairs, arguments)
    for preset in arguments.presets:
        decoders = contenders(preset, tokenizer, arguments)
        for num_beams in arguments.num_beams:
            for size in arguments.batch_sizes:
                print(f"\n{preset}, {len(tokenizer):,} types, {num_beams} beams, batches of {size}")
                compare(decoders, make_batches(sources, size, arguments), num_beams, arguments)


if __name__ == "__main__":
    run(main)
