"""Seq2SeqTrainer with batches by token budget and the paper's label smoothing."""

import math
import time
from copy import deepcopy
from pathlib import Path
from typing import Any

import torch
from safetensors import SafetensorError
from torch import nn
from torch.nn import functional as F
from torch.utils.data import DataLoader
from transformers import (
    PreTrainedModel,
    TrainerState,
)
from transformers.trainer import TRAINER_STATE_NAME
from transformers.trainer_callback import ProgressCallback
from transformers.trainer_utils import EvalLoopOutput, TrainOutput

from ..data.batching import TokenBatchSampler, token_lengths
from ..data.streaming import TokenStream
from ..errors import UserError, first_line
from ..modeling_vanilla_transformer import IGNORED_LABEL
from .callbacks import LossOnProgressBar
from .checkpoints import complete_checkpoints
from .fsdp import FSDPSeq2SeqTrainer
from .recipe import PaperTrainingArguments, set_paper_learning_rate


class VanillaTransformerTrainer(FSDPSeq2SeqTrainer):
    """Seq2SeqTrainer with batches by token budget and the paper's label smoothing.

    It differs from the stock trainer, which works with the model as well, in this:
    - Training batches are those of `TokenBatchSampler`, or of a `TokenStream` that is the `train_dataset`.
    - The model smooths the labels itself, in training only: the loss is the same however a batch is split for
      gradient accumulation, and `eval_loss` is the negative log-likelihood.
    - The log has source and target tokens per second, `minutes` since the run began (validation, checkpoints and what
      came before an interruption counted) and `eval_perplexity`; `eval_loss` is the mean over all labels and not over
      the batches' means.
    - A loss that is not finite and a checkpoint that can't be written stop the run with a sentence.
    - `model.generation_config` and `config.use_cache` stay as they were, so that a saved model keeps both.

    Raises:
        UserError: A tokenizer with more types than the model has, neither warm-up nor learning rate, or fp16 on a CPU.
    """

    args: PaperTrainingArguments

    def __init__(self, model: PreTrainedModel, args: PaperTrainingArguments, **kwargs: Any) -> None:
        tokenizer = kwargs.get("processing_class")
        if tokenizer is not None and len(tokenizer) > model.config.vocab_size:
            raise UserError(
                f"the tokenizer has {len(tokenizer)} types, but the model's vocab_size is {model.config.vocab_size}; "
                "use the model's own tokenizer, or model.resize_token_embeddings"
            )
        if args.fp16 and args.device.type == "cpu":
            raise UserError("fp16 is set, but on a CPU accelerate trains in float32 all the same; use bf16, or neither")
        set_paper_learning_rate(args, model.config.d_model)
        use_cache = model.config.use_cache
        super().__init__(model=model, args=args, **kwargs)
        model.config.use_cache = use_cache
        self.label_smoother = None
        if not args.disable_tqdm:
            self.remove_callback(ProgressCallback)
            self.add_callback(LossOnProgressBar)
        # Since the last line of the log: source and target tokens on this process, and when that was.
        self._tokens = torch.zeros(2, dtype=torch.long, device=args.device)
        self._clock = self._last_line = time.perf_counter()
        # In the evaluation that runs: negative log-likelihood and labels, of all processes.
        self._likelihood = torch.zeros(2, dtype=torch.float64)

    def token_batches(self) -> TokenBatchSampler:
        """The plan of all processes' batches; it follows from `data_seed` (or `seed`) and the epoch.

        Raises:
            UserError: No training data, or a sentence over the budget.
        """
        if self.train_dataset is None:
            raise UserError("training needs a train_dataset; this trainer was made without one")
        return TokenBatchSampler(
            token_lengths(self.train_dataset, "input_ids"),
            token_lengths(self.train_dataset, "labels"),
            max_tokens=self.args.per_device_train_tokens,
            seed=self.args.seed if self.args.data_seed is None else self.args.data_seed,
            num_processes=self.accelerator.num_processes,
        )

    def get_train_dataloader(self) -> DataLoader:
        """Batches by token budget, each process's share of `token_batches` or of the stream."""
        if isinstance(self.train_dataset, TokenStream):
            # No workers: each would read the whole stream. A generator of its own: iterating draws a seed, which
            # resuming would otherwise draw once more from the generator that dropout uses.
            return DataLoader(
                self.train_dataset, batch_size=None, collate_fn=self.data_collator, generator=torch.Generator()
            )
        loader = DataLoader(
            self._remove_unused_columns(self.train_dataset, description="training"),
            batch_sampler=self.token_batches(),
            collate_fn=self.data_collator,
            num_workers=self.args.dataloader_num_workers,
            pin_memory=self.args.dataloader_pin_memory,
            persistent_workers=self.args.dataloader_persistent_workers,
        )
        # accelerate evens batches out by their size, which ours do not have in common; the sampler's number is even.
        dataloader_config = self.accelerator.dataloader_config
        even_batches, dataloader_config.even_batches = dataloader_config.even_batches, False
        try:
            return self.accelerator.prepare(loader)
        finally:
            dataloader_config.even_batches = even_batches

    def train(self, resume_from_checkpoint: str | None = None, **kwargs: Any) -> TrainOutput:
        """The stock training, with the clocks started, and a stream of data where the checkpoint's had come to.

        Raises:
            UserError: The checkpoint was trained on a stream and this run's data is none, or the other way round.
        """
        if resume_from_checkpoint is not None:
            state = TrainerState.load_from_json(str(Path(resume_from_checkpoint, TRAINER_STATE_NAME)))
            position = state.stateful_callbacks.get(TokenStream.__name__)
            if (position is not None) != isinstance(self.train_dataset, TokenStream):
                raise UserError(
                    f"{resume_from_checkpoint} was trained {'without' if position is None else 'with'} --streaming; "
                    "continue it in the same way"
                )
            if position is not None:
                self.train_dataset.resume(position)
                self.args.ignore_data_skip = True  # the stream skips by itself, without making the batches
        self._clock = self._last_line = time.perf_counter()
        return super().train(resume_from_checkpoint=resume_from_checkpoint, **kwargs)

    def training_step(self, model: nn.Module, inputs: dict[str, torch.Tensor], *args: Any) -> torch.Tensor:
        """The stock step; counts tokens, and stops where the loss is not finite.

        Raises:
            UserError: The loss is infinite or not a number.
        """
        labels = inputs["labels"]
        self._tokens += torch.stack([inputs["attention_mask"].sum(), (labels != IGNORED_LABEL).sum()]).to(
            self._tokens.device
        )
        loss = super().training_step(model, inputs, *args)
        if not loss.isfinite():
            raise UserError(
                f"the loss is {loss.item()} at step {self.state.global_step + 1}: the run stops before it updates the "
                f"weights; {self._last_good_checkpoint()}; try a lower learning_rate or more warmup_steps"
            )
        return loss

    def _last_good_checkpoint(self) -> str:
        """Where to go on from, as a clause for an error."""
        checkpoints = complete_checkpoints(self.args.output_dir)
        return f"the last good checkpoint is {checkpoints[-1]}" if checkpoints else "no checkpoint was saved before"

    def compute_loss(
        self,
        model: nn.Module,
        inputs: dict[str, torch.Tensor],
        return_outputs: bool = False,
        num_items_in_batch: torch.Tensor | int | None = None,
    ) -> torch.Tensor | tuple[torch.Tensor, Any]:
        """The model's own loss, with label smoothing (section 5.4) in training; in evaluation it is also summed up."""
        if model.training:
            inputs = inputs | {"smoothing": self.args.label_smoothing_factor}
            return super().compute_loss(model, inputs, return_outputs, num_items_in_batch)
        labels = inputs["labels"]
        loss, outputs = super().compute_loss(model, inputs, return_outputs=True)
        losses = F.cross_entropy(outputs["logits"].transpose(1, 2).float(), labels, reduction="none")
        sums = torch.stack([losses.sum(1), (labels != IGNORED_LABEL).sum(1).to(losses.dtype)], dim=1)
        self._likelihood += self.accelerator.gather_for_metrics(sums).double().sum(0).cpu()  # [sentences, 2] to [2]
        return (loss, outputs) if return_outputs else loss

    def evaluation_loop(self, *args: Any, metric_key_prefix: str = "eval", **kwargs: Any) -> EvalLoopOutput:
        """The stock evaluation, with the loss per label, not per batch, and its perplexity."""
        self._likelihood.zero_()
        output = super().evaluation_loop(*args, metric_key_prefix=metric_key_prefix, **kwargs)
        if self._likelihood[1]:
            loss = (self._likelihood[0] / self._likelihood[1]).item()
            output.metrics[f"{metric_key_prefix}_loss"] = loss
            output.metrics[f"{metric_key_prefix}_perplexity"] = math.exp(min(loss, 700))  # exp(710) overflows
        return output

    def evaluate(self, *args: Any, **kwargs: Any) -> dict[str, float]:
        """The stock evaluation, with the clock of tokens per second stopped."""
        start = time.perf_counter()
        try:
            return super().evaluate(*args, **kwargs)
        finally:
            self._clock += time.perf_counter() - start

    def _save_checkpoint(self, *args: Any, **kwargs: Any) -> None:
        """The stock checkpoint, with the stream's position, the clock stopped and a sentence where it can't be written.

        Raises:
            UserError: The disk is full or the folder can't be written into.
        """
        start = time.perf_counter()
        if isinstance(self.train_dataset, TokenStream):
            batches_per_step = self.args.gradient_accumulation_steps * self.accelerator.num_processes
            taken = self.state.global_step * batches_per_step
            self.state.stateful_callbacks[TokenStream.__name__] = self.train_dataset.position(taken)
        try:
            super()._save_checkpoint(*args, **kwargs)
        except (OSError, SafetensorError, RuntimeError) as error:  # RuntimeError: torch.save, of the optimizer
            raise UserError(
                f"can't write the checkpoint of step {self.state.global_step} into {self.args.output_dir}: "
                f"{first_line(error)}; {self._last_good_checkpoint()}; free some space and continue with "
                "--resume_from_checkpoint"
            ) from error
        finally:
            self._clock += time.perf_counter() - start

    def prediction_step(self, *args: Any, **kwargs: Any) -> tuple[torch.Tensor | None, ...]:
        """The stock step, without what it leaves in the generation config: a `max_length` of 20 among others."""
        generation_config = deepcopy(self.model.generation_config)
        try:
            return super().prediction_step(*args, **kwargs)
        finally:
            self.model.generation_config = generation_config

    def log(self, logs: dict[str, float], *args: Any, **kwargs: Any) -> None:
        """The stock log, with tokens per second, padding not counted, and in training with minutes.

        Samples per second are left out: they count `per_device_train_batch_size` sentences per batch.
        """
        logs.pop("train_samples_per_second", None)
        now = time.perf_counter()
        if self.is_in_train:
            before = next((line["minutes"] for line in reversed(self.state.log_history) if "minutes" in line), 0.0)
            logs["minutes"] = round(before + (now - self._last_line) / 60, 4)
            self._last_line = now
        if "loss" in logs:
            source, target = self.accelerator.gather(self._tokens[None]).sum(0).tolist()
            logs["source_tokens_per_second"] = round(source / (now - self._clock))
            logs["target_tokens_per_second"] = round(target / (now - self._clock))
            self._tokens.zero_()
            self._clock = now
        super().log(logs, *args, **kwargs)

    def _issue_warnings_after_load(self, load_result: Any) -> None:
        """Tied matrices are saved once; the stock trainer takes their other names for missing."""
        tied = self.model.all_tied_weights_keys
        load_result.missing_keys[:] = [key for key in load_result.missing_keys if key not in tied]
        super()._issue_warnings_after_load(load_result)
