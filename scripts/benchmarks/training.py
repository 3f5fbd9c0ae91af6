"""Compare training with MarianMT and torch.nn.Transformer, in turn in one run on equal work.

python scripts/benchmarks/training.py --train_file data/train --source_lang en --target_lang de

Without data, on numbers written out. Three parts: steps on the same batches, whole pipelines, and peak memory.
"""

import itertools
import statistics
import tempfile
import time
from collections.abc import Callable
from concurrent.futures import ProcessPoolExecutor
from dataclasses import dataclass, field
from multiprocessing import get_context
from pathlib import Path

import torch
from common import SEED, DataArguments, format_ratios, parse, print_header, run
from datasets import Dataset
from torch import nn
from torch.nn import functional as F
from transformers import (
    DataCollatorForSeq2Seq,
    MarianConfig,
    MarianMTModel,
    PreTrainedTokenizerBase,
    Seq2SeqTrainer,
    Seq2SeqTrainingArguments,
)
from transformers.trainer_callback import PrinterCallback
from transformers.trainer_pt_utils import LabelSmoother

from vanilla_transformer import VanillaTransformerConfig, VanillaTransformerForConditionalGeneration
from vanilla_transformer.data.batching import TokenBatchSampler, TranslationCollator, token_lengths
from vanilla_transformer.data.encoding import encode_pairs
from vanilla_transformer.errors import UserError
from vanilla_transformer.modeling_vanilla_transformer import IGNORED_LABEL, sinusoidal_positions
from vanilla_transformer.training.recipe import paper_arguments
from vanilla_transformer.training.trainer import VanillaTransformerTrainer

Batch = dict[str, torch.Tensor]
SMOOTHING = 0.1
PARTS = ("steps", "pipelines", "memory")
MEMORY_PRESET, MEMORY_TYPES = "base", 37_000
MEMORY_LENGTH = 25  # tokens of each sentence in the memory part, about the mean of WMT


# The contenders


class TorchTransformer(nn.Module):
    """torch.nn.Transformer, post-norm, with the paper's embeddings and output layer."""

    def __init__(self, config: VanillaTransformerConfig) -> None:
        super().__init__()
        self.embedding = nn.Embedding(config.vocab_size, config.d_model)
        nn.init.normal_(self.embedding.weight, std=config.d_model**-0.5)
        self.dropout = nn.Dropout(config.dropout)
        self.transformer = nn.Transformer(
            config.d_model,
            config.encoder_attention_heads,
            config.encoder_layers,
            config.decoder_layers,
            config.encoder_ffn_dim,
            config.dropout,
            batch_first=True,
        )

    def embed(self, ids: torch.Tensor) -> torch.Tensor:
        """[batch, length] to [batch, length, d_model]."""
        d_model = self.embedding.embedding_dim
        positions = sinusoidal_positions(torch.arange(ids.shape[1]), d_model)
        return self.dropout(self.embedding(ids) * d_model**0.5 + positions)

    def forward(
        self, input_ids: torch.Tensor, attention_mask: torch.Tensor, decoder_input_ids: torch.Tensor
    ) -> torch.Tensor:
        """Logits: [batch, target length, vocabulary]."""
        padding = attention_mask == 0
        length = decoder_input_ids.shape[1]
        hidden = self.transformer(
            self.embed(input_ids),
            self.embed(decoder_input_ids),
            tgt_mask=nn.Transformer.generate_square_subsequent_mask(length).isinf(),
            src_key_padding_mask=padding,
            memory_key_padding_mask=padding,
            tgt_is_causal=True,
        )
        return F.linear(hidden, self.embedding.weight)


def logits_inputs(batch: Batch) -> Batch:
    """The batch without labels, so that the model computes no loss of its own."""
    return {name: tensor for name, tensor in batch.items() if name != "labels"}


def make_ours(config: VanillaTransformerConfig) -> tuple[nn.Module, Callable[[Batch], torch.Tensor]]:
    """Make this package's model, and its loss of a batch."""
    model = VanillaTransformerForConditionalGeneration(config).train()
    return model, lambda batch: model(**batch, smoothing=SMOOTHING, return_logits=False).loss


def make_ours_in_bfloat16(config: VanillaTransformerConfig) -> tuple[nn.Module, Callable[[Batch], torch.Tensor]]:
    """Make this package's model under autocast, as `--bf16` trains it: weights and optimizer stay float32."""
    model, plain_loss = make_ours(config)
    return model, torch.autocast("cpu", torch.bfloat16)(plain_loss)


def make_marian(config: VanillaTransformerConfig) -> tuple[nn.Module, Callable[[Batch], torch.Tensor]]:
    """Make MarianMT of the same shape, smoothed by the Trainer's own label smoother, as it has no other."""
    fields = {name: value for name, value in config.to_dict().items() if hasattr(MarianConfig, name)}
    model = MarianMTModel(MarianConfig(**fields, max_position_embeddings=512)).train()
    smoother = LabelSmoother(epsilon=SMOOTHING)

    def loss(batch: Batch) -> torch.Tensor:
        return smoother(model(**logits_inputs(batch), use_cache=False), batch["labels"])

    return model, loss


def make_torch(config: VanillaTransformerConfig) -> tuple[nn.Module, Callable[[Batch], torch.Tensor]]:
    """Make torch.nn.Transformer of the same shape, with torch's smoothed cross-entropy."""
    model = TorchTransformer(config).train()

    def loss(batch: Batch) -> torch.Tensor:
        return F.cross_entropy(
            model(**logits_inputs(batch)).flatten(0, 1),
            batch["labels"].flatten(),
            ignore_index=IGNORED_LABEL,
            label_smoothing=SMOOTHING,
        )

    return model, loss


CONTENDERS = {
    "ours": make_ours,
    "ours, bfloat16": make_ours_in_bfloat16,
    "MarianMT": make_marian,
    "torch.nn.Transformer": make_torch,
}


@dataclass
class BenchmarkArguments(DataArguments):
    """What is compared, and on what."""

    parts: list[str] = field(default_factory=lambda: list(PARTS), metadata={"help": f"Of {', '.join(PARTS)}."})
    presets: list[str] = field(default_factory=lambda: ["tiny", "base"], metadata={"help": "Sizes to compare at."})
    tokens: int = field(default=4_096, metadata={"help": "Budget of a batch, source and target each."})
    batches: int = field(default=6, metadata={"help": "Different batches that are stepped through."})
    rounds: int = field(default=3, metadata={"help": "How often each contender has its turn."})
    pipeline_steps: int = field(default=30, metadata={"help": "Steps of a pipeline in each of its turns."})
    contenders: list[str] = field(
        default_factory=lambda: list(CONTENDERS),
        metadata={"help": "Who takes part in steps and memory, beside ours, where a machine is too small for all."},
    )
    memory_tokens: list[int] = field(
        default_factory=lambda: [6_250], metadata={"help": "Source and as many target tokens in the memory part."}
    )


def make_step(name: str, config: VanillaTransformerConfig) -> Callable[[Batch], None]:
    """A whole step of a new model: forward, backward and Adam, which all contenders share."""
    torch.manual_seed(SEED)
    model, loss = CONTENDERS[name](config)
    optimizer = torch.optim.AdamW(model.parameters(), 1e-4, (0.9, 0.98), 1e-9, weight_decay=0, fused=True)

    def step(batch: Batch) -> None:
        loss(batch).backward()
        optimizer.step()
        optimizer.zero_grad()

    return step


# Steps


def flops(config: VanillaTransformerConfig, batch: Batch) -> int:
    """Matrix products of a training step, for the tokens that are not padding; the backward counts twice."""
    source = batch["attention_mask"].sum(1)  # [batch]
    target = (batch["labels"] != IGNORED_LABEL).sum(1)
    square, d_ff = config.d_model**2, config.encoder_ffn_dim
    per_source = config.encoder_layers * (4 * square + 2 * config.d_model * d_ff) + config.decoder_layers * 2 * square
    per_target = config.decoder_layers * (6 * square + 2 * config.d_model * d_ff) + config.d_model * config.vocab_size
    # Pairs of a query and a key: all, and all before (section 3.1), in products QK and (QK)V.
    pairs = config.encoder_layers * source**2 + config.decoder_layers * (target * (target + 1) // 2 + target * source)
    products = source * per_source + target * per_target + pairs * 2 * config.d_model
    return 3 * 2 * int(products.sum())


def matrix_product_rate(size: int = 2_048, repeats: int = 3) -> float:
    """This machine's float32 operations per second in a square matrix product."""
    a, b = torch.randn(size, size), torch.randn(size, size)
    start = time.perf_counter()
    for _ in range(repeats):
        a @ b
    return repeats * 2 * size**3 / (time.perf_counter() - start)


def compare_steps(config: VanillaTransformerConfig, batches: list[Batch], rounds: int, contenders: list[str]) -> None:
    """Each contender's turn through all batches, in each round; the first round, not counted, warms up."""
    steps = {name: make_step(name, config) for name in contenders}
    seconds: dict[str, list[float]] = {name: [] for name in steps}
    rates = []
    for _ in range(rounds + 1):
        rates.append(matrix_product_rate())
        for name, step in steps.items():
            start = time.perf_counter()
            for batch in batches:
                step(batch)
            seconds[name].append(time.perf_counter() - start)
    tokens = sum(int((batch["labels"] != IGNORED_LABEL).sum()) for batch in batches)
    work = sum(flops(config, batch) for batch in batches)
    rate = statistics.median(rates[1:])
    print(f"matrix products at {rate / 1e9:.0f} GFLOP/s; median of {rounds} rounds of {len(batches)} batches")
    print("| model | s per step | target tokens/s | share of the rate | ours is faster by (each round) |")
    print("|---|---|---|---|---|")
    for name, turns in seconds.items():
        median = statistics.median(turns[1:])
        ratios = [other / own for own, other in zip(seconds["ours"][1:], turns[1:], strict=True)]
        print(
            f"| {name} | {median / len(batches):.3f} | {tokens / median:,.0f} | {work / median / rate:.0%} "
            f"| {format_ratios(ratios)} |"
        )


# Whole pipelines


class CountingCollator:
    """A collator that counts the target tokens which pass through it, padding aside."""

    def __init__(self, collator: Callable[[list], Batch]) -> None:
        self.collator = collator
        self.tokens = 0

    def __call__(self, features: list) -> Batch:
        """Collate a batch and count its target tokens."""
        batch = self.collator(features)
        self.tokens += int((batch["labels"] != IGNORED_LABEL).sum())
        return batch


def compare_pipelines(
    preset: str,
    config: VanillaTransformerConfig,
    tokenizer: PreTrainedTokenizerBase,
    dataset: Dataset,
    sampler: TokenBatchSampler,
    arguments: BenchmarkArguments,
) -> None:
    """Ours under its trainer; MarianMT under the stock one, in random batches of as many sentences on average."""
    sentences = round(len(dataset) / len(sampler))
    common = {
        "max_steps": arguments.pipeline_steps,
        "eval_strategy": "no",
        "save_strategy": "no",
        "report_to": "none",
        "disable_tqdm": True,
        "logging_steps": 10_000,
        "use_cpu": True,
    }

    def ours(folder: str) -> Seq2SeqTrainer:
        collator = CountingCollator(TranslationCollator(tokenizer, config.decoder_start_token_id))
        settings = paper_arguments(preset, folder, **common, per_device_train_tokens=arguments.tokens)
        model = make_ours(config)[0]
        return VanillaTransformerTrainer(
            model, settings, train_dataset=dataset, processing_class=tokenizer, data_collator=collator
        )

    def marian(folder: str) -> Seq2SeqTrainer:
        model = make_marian(config)[0]
        collator = CountingCollator(DataCollatorForSeq2Seq(tokenizer, model=model))
        settings = Seq2SeqTrainingArguments(
            folder,
            **common,
            per_device_train_batch_size=sentences,
            label_smoothing_factor=SMOOTHING,
            dataloader_pin_memory=False,
        )
        return Seq2SeqTrainer(
            model, settings, train_dataset=dataset, processing_class=tokenizer, data_collator=collator
        )

    speeds: dict[str, list[float]] = {"ours": [], "MarianMT": []}
    with tempfile.TemporaryDirectory() as folder:
        for _ in range(arguments.rounds):
            for name, make in (("ours", ours), ("MarianMT", marian)):
                torch.manual_seed(SEED)
                trainer = make(folder)
                trainer.remove_callback(PrinterCallback)
                start = time.perf_counter()
                trainer.train()
                speeds[name].append(trainer.data_collator.tokens / (time.perf_counter() - start))
    ratios = [own / other for own, other in zip(speeds["ours"], speeds["MarianMT"], strict=True)]
    print(f"whole pipelines, {arguments.pipeline_steps} steps a turn, {sentences} sentences per batch in the stock one")
    for name, turns in speeds.items():
        print(f"  {name}: {statistics.median(turns):,.0f} target tokens/s")
    print(f"  ratio {format_ratios(ratios)}")


# Memory


def peak_memory(name: str, tokens: int) -> float:
    """Peak resident memory of a process that makes the base model and takes one step, in GB (10^9 bytes)."""
    config = VanillaTransformerConfig.preset(MEMORY_PRESET, vocab_size=MEMORY_TYPES)
    torch.manual_seed(SEED)
    ids = torch.randint(4, MEMORY_TYPES, (tokens // MEMORY_LENGTH, MEMORY_LENGTH))
    batch = {"input_ids": ids, "attention_mask": torch.ones_like(ids), "decoder_input_ids": ids, "labels": ids}
    make_step(name, config)(batch)
    # Not getrusage: what the parent had at the fork counts there.
    status = Path("/proc/self/status").read_text()
    return int(status.split("VmHWM:")[1].split()[0]) * 1024 / 1e9


def compare_memory(tokens: int, contenders: list[str]) -> None:
    """Peak memory of each contender, in a process of its own."""
    ours = float("nan")
    for name in contenders:
        with ProcessPoolExecutor(1, mp_context=get_context("spawn")) as executor:
            try:
                peak = executor.submit(peak_memory, name, tokens).result()
            except (RuntimeError, MemoryError) as error:  # torch's allocator, or the kernel's end of the process
                print(f"  {name}: out of memory ({error})", flush=True)
                continue
        ours = peak if name == "ours" else ours
        print(f"  {name}: {peak:.2f} GB, ours is {ours / peak:.0%} of it", flush=True)


def main(argv: list[str] | None = None) -> None:
    """Run the parts that are asked for."""
    arguments = parse(BenchmarkArguments, __doc__, argv)
    if unknown := set(arguments.parts) - set(PARTS):
        raise UserError(f"--parts has {', '.join(sorted(unknown))}; choose from {', '.join(PARTS)}")
    if unknown := set(arguments.contenders) - set(CONTENDERS):
        raise UserError(f"--contenders has {', '.join(sorted(unknown))}; choose from {', '.join(CONTENDERS)}")
    contenders = [name for name in CONTENDERS if name == "ours" or name in arguments.contenders]
    print_header(torch.get_num_threads())
    tokenizer, pairs = arguments.load()
    limits = {"max_source_length": 256, "max_target_length": 256, "max_length_ratio": 3.0}
    dataset = encode_pairs(pairs, tokenizer, **limits)[0]
    lengths = token_lengths(dataset, "input_ids"), token_lengths(dataset, "labels")
    sampler = TokenBatchSampler(*lengths, arguments.tokens)
    for preset in arguments.presets:
        config = VanillaTransformerConfig.preset(preset, vocab_size=len(tokenizer))
        print(f"\n{preset}: {len(tokenizer):,} types, batches of {arguments.tokens:,} tokens")
        if "steps" in arguments.parts:
            collator = TranslationCollator(tokenizer, config.decoder_start_token_id)
            chosen = itertools.islice(sampler, arguments.batches)
            batches = [collator([dataset[i] for i in indices]) for indices in chosen]
            compare_steps(config, batches, arguments.rounds, contenders)
        if "pipelines" in arguments.parts:
            compare_pipelines(preset, config, tokenizer, dataset, sampler, arguments)
    if "memory" in arguments.parts:
        for tokens in arguments.memory_tokens:
            print(f"\nmemory: {MEMORY_PRESET}, {MEMORY_TYPES:,} types, {tokens:,} + {tokens:,} tokens, one step")
            compare_memory(tokens, contenders)


if __name__ == "__main__":
    run(main)
