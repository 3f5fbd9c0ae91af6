"""Compare the engines that run one trained model: quality, speed, size, and how often they write the same tokens.

python scripts/benchmarks/engines.py --model_name_or_path runs/en-de-averaged \
    --test_file data/multi30k/test_2016_flickr --source_lang en --target_lang de

The model is exported to each engine. Each translates in a process of its own, on the same number of threads, the same
sentences in the same order; in each round every engine has its turn. Prints a table in Markdown.
"""

import statistics
import sys
import tempfile
import time
from collections.abc import Callable
from concurrent.futures import ProcessPoolExecutor
from dataclasses import dataclass, field
from multiprocessing import get_context
from pathlib import Path

import torch
import transformers
from tqdm import tqdm
from transformers import AutoModelForSeq2SeqLM, AutoTokenizer, PreTrainedModel

# vanilla_transformer, and `common`, which needs it, are imported in functions only: the engines run in processes that
# import this file, and one of them must not have the package.

LIBRARIES = ("torch", "transformers", "ctranslate2", "onnxruntime", "sacrebleu")
OURS = "transformers"
WARM_UP = 64  # sentences that are translated before the clock starts

Ids = list[list[int]]


@dataclass
class BenchmarkArguments:
    """Which model, on what, and how often."""

    model_name_or_path: str = field(metadata={"help": "Folder of a trained model, or its id on the Hub."})
    test_file: str = field(metadata={"help": "Sentence pairs, as for `vanilla-transformer evaluate`."})
    source_lang: str = field(metadata={"help": "Language of the source."})
    target_lang: str = field(metadata={"help": "Language of the target."})
    max_predict_samples: int | None = field(default=None, metadata={"help": "Translate only the first so many."})
    num_beams: int = field(default=4, metadata={"help": "Beam size, beside greedy search."})
    batch_size: int = field(default=64, metadata={"help": "Sentences translated together, of similar length."})
    threads: int = field(default=1, metadata={"help": "Threads of each engine."})
    rounds: int = field(default=3, metadata={"help": "How often each engine has its turn; the median counts."})


@dataclass
class Work:
    """What an engine is given.

    Attributes:
        sources: Ids of the sentences, `</s>` at each end, longest sentence first.
        searches: Beam sizes.
        length_penalty: Of the beam search.
        batch_size: Sentences at a time.
        max_new_tokens: Longest translation.
        threads: How many to compute on.
    """

    sources: Ids
    searches: list[int]
    length_penalty: float
    batch_size: int
    max_new_tokens: int
    threads: int


Translate = Callable[[Ids, int], Ids]  # from sources and a beam size to targets


# The engines: each function loads an exported model and returns how it translates


def with_generate(model: PreTrainedModel, work: Work, encode: Callable | None = None) -> Translate:
    """Batch by batch with `generate()`, after an encoder of its own if there is one."""
    pad, eos = model.config.pad_token_id, model.config.eos_token_id

    def translate(sources: Ids, num_beams: int) -> Ids:
        targets = []
        for start in range(0, len(sources), work.batch_size):
            batch = sources[start : start + work.batch_size]
            rows = [torch.tensor(row) for row in batch]
            ids = torch.nn.utils.rnn.pad_sequence(rows, batch_first=True, padding_value=pad)
            inputs = {"input_ids": ids, "attention_mask": (ids != pad).long()}
            if encode is not None:
                inputs = {"encoder_outputs": encode(**inputs), "attention_mask": inputs["attention_mask"]}
            with torch.inference_mode():
                output = model.generate(
                    **inputs,
                    num_beams=num_beams,
                    length_penalty=work.length_penalty,
                    max_new_tokens=work.max_new_tokens,
                )
            for row in output[:, 1:].tolist():
                targets.append(row[: row.index(eos)] if eos in row else row)
        return targets

    return translate


def load_with_package(folder: str, work: Work) -> Translate:
    """Load our model, with the package."""
    import vanilla_transformer  # noqa: F401

    return with_generate(AutoModelForSeq2SeqLM.from_pretrained(folder).eval(), work)


def load_without_package(folder: str, work: Work) -> Translate:
    """Load our model by the code in its folder."""
    sys.modules["vanilla_transformer"] = None  # an import of it fails from here on
    return with_generate(AutoModelForSeq2SeqLM.from_pretrained(folder, trust_remote_code=True).eval(), work)


def load_marian(folder: str, work: Work) -> Translate:
    """Load the model as transformers' own MarianMT."""
    sys.modules["vanilla_transformer"] = None
    return with_generate(AutoModelForSeq2SeqLM.from_pretrained(folder).eval(), work)


def load_ctranslate2(folder: str, work: Work) -> Translate:
    """Load the model in CTranslate2."""
    from vanilla_transformer.errors import require

    ctranslate2 = require("ctranslate2", extra="ct2")
    tokenizer = AutoTokenizer.from_pretrained(folder)
    translator = ctranslate2.Translator(folder, intra_threads=work.threads)

    def translate(sources: Ids, num_beams: int) -> Ids:
        results = translator.translate_batch(
            [tokenizer.convert_ids_to_tokens(row) for row in sources],
            beam_size=num_beams,
            patience=2 if num_beams > 1 else 1,
            length_penalty=work.length_penalty,
            max_batch_size=work.batch_size,
            max_decoding_length=work.max_new_tokens,
            min_decoding_length=0,
        )
        return [tokenizer.convert_tokens_to_ids(result.hypotheses[0]) for result in results]

    return translate


def load_onnx(folder: str, work: Work) -> Translate:
    """The graphs under `generate()`, so that the search is transformers' own."""
    from transformers.exporters import ExportedModel

    from vanilla_transformer import VanillaTransformerForConditionalGeneration
    from vanilla_transformer.errors import require

    options = require("onnxruntime", extra="onnx").SessionOptions()
    options.intra_op_num_threads = work.threads
    exported = ExportedModel.from_pretrained(folder, session_options=options)

    class Graphs(VanillaTransformerForConditionalGeneration):
        """Its own weights are not used."""

        def forward(self, encoder_outputs=None, past_key_values=None, use_cache=None, return_dict=None, **inputs):
            name = "decode" if past_key_values.get_seq_length() else "prefill"
            return exported.runners[name](encoder_outputs=encoder_outputs, past_key_values=past_key_values, **inputs)

    return with_generate(Graphs(exported.config).eval(), work, encode=exported.runners["encoder"])


ENGINES: dict[str, tuple[str, Callable[[str, Work], Translate]]] = {
    OURS: ("model", load_with_package),
    "transformers without the package": ("model", load_without_package),
    "transformers, as MarianMT": ("marian", load_marian),
    "CTranslate2, float32": ("ctranslate2", load_ctranslate2),
    "CTranslate2, int8": ("ctranslate2-int8", load_ctranslate2),
    "ONNX Runtime": ("onnx", load_onnx),
}


def turn(engine: str, folder: str, work: Work) -> list[tuple[Ids, float]]:
    """An engine's targets, and the seconds they took, for each of the searches. Runs in a process of its own."""
    torch.set_num_threads(work.threads)
    transformers.utils.logging.set_verbosity_error()
    transformers.utils.logging.disable_progress_bar()
    translate = ENGINES[engine][1](folder, work)
    results = []
    for num_beams in work.searches:
        translate(work.sources[-WARM_UP:], num_beams)
        start = time.perf_counter()
        targets = translate(work.sources, num_beams)
        results.append((targets, time.perf_counter() - start))
    return results


def export_all(model: PreTrainedModel, tokenizer: transformers.PreTrainedTokenizerBase, folder: Path) -> None:
    """Write the model for every engine, into sub-folders with the tokenizer."""
    from vanilla_transformer.convert.ctranslate2 import to_ctranslate2
    from vanilla_transformer.convert.marian import to_marian
    from vanilla_transformer.convert.onnx import to_onnx

    model.save_pretrained(folder / "model")
    to_marian(model).save_pretrained(folder / "marian")
    to_ctranslate2(model, tokenizer, folder / "ctranslate2")
    to_ctranslate2(model, tokenizer, folder / "ctranslate2-int8", quantization="int8")
    to_onnx(model, folder / "onnx")
    for subfolder in folder.iterdir():
        tokenizer.save_pretrained(subfolder)


def size_in_mb(folder: Path) -> float:
    """Of all files, in 10^6 bytes."""
    return sum(path.stat().st_size for path in folder.rglob("*") if path.is_file()) / 1e6


def main(argv: list[str] | None = None) -> None:
    """Export the model to every engine, let each translate, and print the table."""
    from common import parse, print_header

    from vanilla_transformer.data.limits import take_pairs
    from vanilla_transformer.data.reading import load_pairs
    from vanilla_transformer.errors import require
    from vanilla_transformer.inference.loading import load
    from vanilla_transformer.inference.metrics import corpus_scores

    arguments = parse(BenchmarkArguments, __doc__, argv)
    require("ctranslate2", extra="ct2")
    require("onnxruntime", extra="onnx")
    pairs = load_pairs(arguments.test_file, arguments.source_lang, arguments.target_lang)
    pairs = take_pairs(pairs, arguments.max_predict_samples, "max_predict_samples")
    model, tokenizer = load(arguments.model_name_or_path, device="cpu")

    length_penalty = model.generation_config.length_penalty
    sources = tokenizer(list(pairs["source"]))["input_ids"]
    order = sorted(range(len(sources)), key=lambda index: len(sources[index]), reverse=True)
    work = Work(
        sources=[sources[index] for index in order],
        searches=[1, arguments.num_beams],
        length_penalty=1.0 if length_penalty is None else length_penalty,  # as generate() has it
        batch_size=arguments.batch_size,
        max_new_tokens=max(map(len, sources)) + 50,
        threads=arguments.threads,
    )
    references = [pairs["target"][index] for index in order]
    results: dict[str, list] = {engine: [] for engine in ENGINES}
    with tempfile.TemporaryDirectory() as temporary:
        folder = Path(temporary)
        export_all(model, tokenizer, folder)
        sizes = {engine: size_in_mb(folder / subfolder) for engine, (subfolder, _) in ENGINES.items()}
        with tqdm(total=arguments.rounds * len(ENGINES), unit=" turns", disable=None) as progress:
            for _ in range(arguments.rounds):
                for engine, (subfolder, _) in ENGINES.items():
                    progress.set_description(engine)
                    with ProcessPoolExecutor(1, mp_context=get_context("spawn")) as executor:
                        results[engine].append(executor.submit(turn, engine, str(folder / subfolder), work).result())
                    progress.update()

    print_header(arguments.threads, LIBRARIES)
    print(f"{len(sources):,} sentences, batches of {arguments.batch_size}")
    print(f"length penalty {work.length_penalty}, median of {arguments.rounds} rounds\n")
    searches = ["greedy", f"beam {arguments.num_beams}"]
    columns = [f"{search}: {column}" for search in searches for column in ("BLEU", "sentences/s", "same as ours")]
    print(f"| engine | {' | '.join(columns)} | MB |")
    print("|---" * (len(columns) + 2) + "|")
    for engine, turns in results.items():
        cells = []
        for search in range(len(searches)):
            targets = turns[0][search][0]
            ours = results[OURS][0][search][0]
            bleu = corpus_scores(tokenizer.batch_decode(targets, skip_special_tokens=True), references)["bleu"]
            seconds = statistics.median(results[search][1] for results in turns)
            same = sum(own == other for own, other in zip(targets, ours, strict=True))
            cells += [f"{bleu:.2f}", f"{len(sources) / seconds:.0f}", f"{same:,} of {len(sources):,}"]
        print(f"| {engine} | {' | '.join(cells)} | {sizes[engine]:.1f} |")


if __name__ == "__main__":
    from common import run

    run(main)
