"""Train this model and MarianMT from scratch for the same number of minutes, in turn on one machine, and score both.

python scripts/benchmarks/same_minutes.py --train_file data/multi30k/train --validation_file data/multi30k/val \
    --test_files data/multi30k/test_2016_flickr data/multi30k/test_2017_flickr --output_dir runs/same-minutes

All contenders have the same tokenizer and the same size:

- ours: the README's training command, with as many steps as fit, and the mean of its last 5 checkpoints;
- documented: MarianMT under the stock Seq2SeqTrainer, with the arguments of transformers' page on translation;
- tuned: the same with our batch size in sentences, learning rate, warm-up, schedule, dropout and label smoothing, and
  the stock trainer's own sampler of batches of like length.

Two short runs tell how many steps fit into the minutes, so that each schedule ends in time. Nobody validates meanwhile.
With --bf16 short runs in float32 and in bfloat16 tell which is faster for each contender.
"""

import json
import tempfile
import time
from collections.abc import Callable, Iterator
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any

import torch
from common import parse, print_header, run
from datasets import Dataset
from transformers import (
    DataCollatorForSeq2Seq,
    MarianConfig,
    MarianMTModel,
    PreTrainedModel,
    PreTrainedTokenizerBase,
    Seq2SeqTrainer,
    Seq2SeqTrainingArguments,
    set_seed,
)

from vanilla_transformer import VanillaTransformerConfig
from vanilla_transformer.commands import train
from vanilla_transformer.data.batching import TokenBatchSampler, token_lengths
from vanilla_transformer.data.encoding import encode_pairs
from vanilla_transformer.data.files import in_use
from vanilla_transformer.data.limits import take_pairs
from vanilla_transformer.data.reading import iterate_sentences, load_pairs
from vanilla_transformer.data.tokenization import train_tokenizer
from vanilla_transformer.errors import UserError
from vanilla_transformer.inference.loading import load, load_tokenizer
from vanilla_transformer.inference.metrics import corpus_scores
from vanilla_transformer.inference.translate import translate
from vanilla_transformer.training.averaging import average_checkpoints
from vanilla_transformer.training.checkpoints import complete_checkpoints

CONTENDERS = ("ours", "documented", "tuned")
DTYPES = {False: "float32", True: "bfloat16"}
LIMITS = {"max_source_length": 256, "max_target_length": 256, "max_length_ratio": 3.0}
AVERAGED = 5
SAVE_STEPS = 25  # at least: in a short run checkpoints must not count for more than in a long one

# The README's command.
TOKENS = 2_048
SHAPE = {"d_model": 256, "encoder_layers": 3, "decoder_layers": 3, "encoder_ffn_dim": 512, "decoder_ffn_dim": 512}
OURS = {"lr_scheduler_type": "cosine", "learning_rate": 0.002, "warmup_steps": 500}
SMOOTHING = 0.1  # the paper's, which is our default

# https://huggingface.co/docs/transformers/tasks/translation
DOCUMENTED = {"learning_rate": 2e-5, "per_device_train_batch_size": 16, "weight_decay": 0.01}


@dataclass
class SameMinutesArguments:
    """What is trained, and for how long."""

    train_file: str = field(metadata={"help": "Training pairs, as for `vanilla-transformer train`."})
    validation_file: str = field(metadata={"help": "Validation pairs; only the training command asks for them."})
    test_files: list[str] = field(metadata={"help": "Pairs to score."})
    output_dir: str = field(metadata={"help": "A new folder, for the tokenizer, the runs and the models."})
    source_lang: str = field(default="en", metadata={"help": "Language of the source."})
    target_lang: str = field(default="de", metadata={"help": "Language of the target."})
    contenders: list[str] = field(
        default_factory=lambda: list(CONTENDERS), metadata={"help": f"Which to train, of {', '.join(CONTENDERS)}."}
    )
    minutes: float = field(default=20.0, metadata={"help": "Minutes of training for each contender."})
    vocab_size: int = field(default=4_000, metadata={"help": "Types of the tokenizer."})
    dropout: float = field(default=0.2, metadata={"help": "Dropout of ours and of the tuned MarianMT."})
    bf16: bool = field(default=False, metadata={"help": "Train in bfloat16 whoever is faster in it."})
    trial_steps: int = field(
        default=60, metadata={"help": "Steps of a short run, and a third of another, that tell a contender's speed."}
    )
    test_samples: int | None = field(default=None, metadata={"help": "Score only the first so many of each test set."})
    seed: int = field(default=42, metadata={"help": "Of weights, order and dropout."})


@dataclass
class Trained:
    """A trained model.

    Attributes:
        steps: Optimizer steps.
        seconds: What training took, from its start to the last step.
        models: Folders, by what their models are called in the table.
    """

    steps: int
    seconds: float
    models: dict[str, Path]


Train = Callable[[Path, int, bool], Trained]  # of a contender: so many steps into a new folder, in bfloat16 or not


def train_ours(arguments: SameMinutesArguments, tokenizer_dir: Path) -> Train:
    """Prepare the README's command."""
    shape = ",".join(f"{name}={value}" for name, value in {**SHAPE, "dropout": arguments.dropout}.items())

    def train_steps(folder: Path, steps: int, bf16: bool) -> Trained:
        words = (
            f"--train_file {arguments.train_file} --validation_file {arguments.validation_file} "
            f"--source_lang {arguments.source_lang} --target_lang {arguments.target_lang} --output_dir {folder} "
            f"--tokenizer_name {tokenizer_dir} --seed {arguments.seed} --preset tiny --config_overrides {shape} "
            f"--per_device_train_tokens {TOKENS} --lr_scheduler_type {OURS['lr_scheduler_type']} "
            f"--learning_rate {OURS['learning_rate']} --warmup_steps {min(OURS['warmup_steps'], steps // 4)} "
            f"--max_steps {steps} --eval_strategy no --save_steps {max(SAVE_STEPS, steps // 36)} "
            f"--save_total_limit {AVERAGED} --disable_tqdm True --bf16 {bf16}"
        ).split()
        train.main(words)
        checkpoints = complete_checkpoints(folder)
        minutes = json.loads((folder / "run.json").read_text(encoding="utf-8"))["result"]["minutes"]
        averaged = folder / "averaged"
        average_checkpoints(checkpoints[-AVERAGED:], averaged)
        name = f"ours{', bfloat16' if bf16 else ''}"
        return Trained(steps, 60 * minutes, {name: folder, f"{name}, mean of {AVERAGED} checkpoints": averaged})

    return train_steps


def train_marian(
    arguments: SameMinutesArguments, tokenizer: PreTrainedTokenizerBase, dataset: Dataset, name: str, **settings: Any
) -> Train:
    """Prepare MarianMT under the stock trainer.

    Args:
        arguments: The benchmark's arguments.
        tokenizer: The tokenizer that all share.
        dataset: The encoded training pairs.
        name: What to call it in the table.
        **settings: `dropout`, and the Seq2SeqTrainingArguments that are not the defaults.
    """
    dropout = settings.pop("dropout", 0.1)  # MarianConfig's default
    shape = VanillaTransformerConfig.preset("tiny", vocab_size=len(tokenizer), **SHAPE).to_dict()
    shape = {name: value for name, value in shape.items() if hasattr(MarianConfig, name)}

    def train_steps(folder: Path, steps: int, bf16: bool) -> Trained:
        set_seed(arguments.seed)
        model = MarianMTModel(MarianConfig(**{**shape, "dropout": dropout, "max_position_embeddings": 512}))
        stock = Seq2SeqTrainingArguments(
            str(folder),
            max_steps=steps,
            seed=arguments.seed,
            save_strategy="no",
            report_to="none",
            disable_tqdm=True,
            dataloader_pin_memory=False,
            bf16=bf16,
            use_cpu=not torch.accelerator.is_available(),  # else bf16 is refused there
            **{**settings, "warmup_steps": min(settings.get("warmup_steps", 0), steps // 4)},
        )
        collator = DataCollatorForSeq2Seq(tokenizer, model=model)
        trainer = Seq2SeqTrainer(
            model, stock, train_dataset=dataset, processing_class=tokenizer, data_collator=collator
        )
        start = time.perf_counter()
        trainer.train()
        seconds = time.perf_counter() - start
        trainer.save_model()
        return Trained(steps, seconds, {f"MarianMT, {name}{', bfloat16' if bf16 else ''}": folder})

    return train_steps


def fit_steps(train_steps: Train, bf16: bool, minutes: float, trial_steps: int) -> int:
    """Return how many steps fit into the minutes, by two short runs: their difference leaves out how a run starts.

    The stock sampler of like lengths begins with the longest batches.
    """
    with tempfile.TemporaryDirectory() as folder:
        short, long = (train_steps(Path(folder, f"{n}"), n * trial_steps, bf16).seconds for n in (1, 3))
    return max(1, int(minutes * 60 / ((long - short) / (2 * trial_steps))))


def load_either(folder: Path) -> tuple[PreTrainedModel, PreTrainedTokenizerBase]:
    """Load a model of this package or MarianMT, and its tokenizer."""
    if json.loads((folder / "config.json").read_text(encoding="utf-8"))["model_type"] == "marian":
        return MarianMTModel.from_pretrained(folder), load_tokenizer(str(folder))
    return load(str(folder))


def score_models(arguments: SameMinutesArguments, trained: Trained) -> Iterator[tuple[str, str]]:
    """Translate the test sets with each model, by its own beam 4; yield a table row and BLEU's signature."""
    for name, folder in trained.models.items():
        model, tokenizer = load_either(folder)
        # MarianMT by generate()'s beam search, to which the stock config gives no limit but 21 tokens.
        search = {"search": None, "max_new_tokens": 256} if model.config.model_type == "marian" else {}
        cells = []
        for file in arguments.test_files:
            pairs = load_pairs(file, arguments.source_lang, arguments.target_lang)
            pairs = take_pairs(pairs, arguments.test_samples)
            found = translate(model, tokenizer, list(pairs["source"]), num_beams=4, **search)
            scores = corpus_scores([translations[0].text for translations in found], list(pairs["target"]))
            cells.append(f"{scores['bleu']:.2f} | {scores['chrf']:.2f}")
        row = f"| {name} | {trained.steps:,} | {trained.seconds / 60:.1f} | {' | '.join(cells)} |"
        yield row, scores["bleu_signature"]


def main(argv: list[str] | None = None) -> None:
    """Train each contender in turn, then score all."""
    arguments = parse(SameMinutesArguments, __doc__, argv)
    unknown = set(arguments.contenders) - set(CONTENDERS)
    if unknown:
        raise UserError(f"contenders has {', '.join(sorted(unknown))}; there are {', '.join(CONTENDERS)}")
    output_dir = Path(arguments.output_dir)
    if in_use(output_dir):
        raise UserError(f"the folder {output_dir} is not empty; give a new --output_dir, or remove it first")
    print_header(torch.get_num_threads(), ("torch", "transformers", "sacrebleu"), seed=arguments.seed)
    pairs = load_pairs(arguments.train_file, arguments.source_lang, arguments.target_lang)
    tokenizer = train_tokenizer(iterate_sentences(pairs), arguments.vocab_size)
    tokenizer.save_pretrained(output_dir / "tokenizer")
    dataset = encode_pairs(pairs, tokenizer, **LIMITS)[0]
    lengths = token_lengths(dataset, "input_ids"), token_lengths(dataset, "labels")
    sentences = round(len(dataset) / len(TokenBatchSampler(*lengths, TOKENS)))
    tuned = {
        **OURS,
        "dropout": arguments.dropout,
        "per_device_train_batch_size": sentences,
        "label_smoothing_factor": SMOOTHING,
        "train_sampling_strategy": "group_by_length",
    }
    trainings = {
        "ours": train_ours(arguments, output_dir / "tokenizer"),
        "documented": train_marian(arguments, tokenizer, dataset, "documented", **DOCUMENTED),
        "tuned": train_marian(arguments, tokenizer, dataset, "tuned", **tuned),
    }
    rows: list[tuple[str, str]] = []
    for name in arguments.contenders:
        dtypes = (False, True) if arguments.bf16 else (False,)
        steps = {bf16: fit_steps(trainings[name], bf16, arguments.minutes, arguments.trial_steps) for bf16 in dtypes}
        bf16 = max(steps, key=lambda dtype: steps[dtype])
        print(f"{name}: {', '.join(f'{n:,} steps in {DTYPES[dtype]}' for dtype, n in steps.items())}", flush=True)
        rows += score_models(arguments, trainings[name](output_dir / name, steps[bf16], bf16))
    print(
        "\n| model | steps | minutes | "
        + " | ".join(f"{Path(file).name} BLEU | chrF" for file in arguments.test_files)
        + " |"
    )
    print("|---" * (3 + 2 * len(arguments.test_files)) + "|")
    for row, _ in rows:
        print(row)
    print(f"BLEU {rows[0][1]}")


if __name__ == "__main__":
    run(main)
