"""Seq2SeqTrainer with batches by token budget and the paper's label smoothing."""

import math
import time
from copy import deepcopy
from pathlib import Path
from typing import Any, cast

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
from .checkpoints import checkpoint_to_resume, complete_checkpoints
from .fsdp import FSDPSeq2SeqTrainer
from .recipe import PaperTrainingArguments, set_paper_learning_rate


class VanillaTransformerTrainer(FSDPSeq2SeqTrainer):
    """Seq2SeqTrainer with batches by token budget and the paper's label smoothing.

    The stock trainer works with the model as well. This one differs as follows:
    - Training batches come from `TokenBatchSampler`, or from `train_dataset` if that is a `TokenStream`.
    - The model smooths the labels itself, in training only. The loss does not depend on how a batch is split for
      gradient accumulation, and `eval_loss` is the negative log-likelihood.
    - The log has source and target tokens per second, `minutes` since the run began (including validation, checkpoints
      and the time before an interruption) and `eval_perplexity`. `eval_loss` is the mean over all labels, not the mean
      of the batches' means.
    - A non-finite loss, or a checkpoint that can't be written, stops the run with a `UserError`.
    - `model.generation_config` and `config.use_cache` do not change, so that a saved model keeps both.
    """

    args: PaperTrainingArguments

    def __init__(self, model: PreTrainedModel, args: PaperTrainingArguments, **kwargs: Any) -> None:
        """Create the trainer.

        Args:
            model: The model to train.
            args: The training arguments.
            **kwargs: Further arguments of `Seq2SeqTrainer`.

        Raises:
            UserError: The tokenizer has more types than the model, there is neither a warm-up nor a learning rate, or
                fp16 is set on a CPU.
        """
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
        # Source and target tokens of this process since the last log line, and the time of that line.
        self._tokens = torch.zeros(2, dtype=torch.long, device=args.device)
        self._clock = self._last_line = time.perf_counter()
        # Sum of the negative log-likelihood and number of labels in the current evaluation, over all processes.
        self._likelihood = torch.zeros(2, dtype=torch.float64)

    def token_batches(self) -> TokenBatchSampler:
        """Return the sampler of the batches of all processes. It depends on `data_seed` (or `seed`) and the epoch.

        Raises:
            UserError: There is no training data, or a sentence exceeds the token budget.
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
        """Return this process's batches, a share of `token_batches` or of the stream."""
        if isinstance(self.train_dataset, TokenStream):
            # No workers: each would read the whole stream. A separate generator: an iterator draws a seed when it is
            # created, and a resumed run would draw once more from the generator that dropout uses.
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
        # accelerate makes batches even by repeating sentences up to one batch size, which our batches do not have. The
        # number of our batches is a multiple of the number of processes already.
        dataloader_config = self.accelerator.dataloader_config
        even_batches, dataloader_config.even_batches = dataloader_config.even_batches, False
        try:
            return self.accelerator.prepare(loader)
        finally:
            dataloader_config.even_batches = even_batches

    def train(
        self, resume_from_checkpoint: str | bool | None = None, trial: Any = None, ignore_keys_for_eval: Any = None
    ) -> TrainOutput:
        """Run the stock training; on resuming, continue a stream of data at the checkpoint's position.

        Args:
            resume_from_checkpoint: A checkpoint's folder; True for the last complete checkpoint in `output_dir`; None
                or False for a new run.
            trial: As in the stock trainer.
            ignore_keys_for_eval: As in the stock trainer.

        Raises:
            UserError: There is no such checkpoint, or it was trained on a stream and this run is not, or vice versa.
        """
        if resume_from_checkpoint is True:
            resume_from_checkpoint = checkpoint_to_resume(str(self.args.output_dir), "last")
        stream = self.train_dataset if isinstance(self.train_dataset, TokenStream) else None
        if resume_from_checkpoint:
            state = TrainerState.load_from_json(str(Path(resume_from_checkpoint, TRAINER_STATE_NAME)))
            position = _saved_states(state).get(TokenStream.__name__)
            if (position is not None) != (stream is not None):
                raise UserError(
                    f"{resume_from_checkpoint} was trained {'without' if position is None else 'with'} --streaming; "
                    "continue it in the same way"
                )
            if stream is not None and position is not None:
                stream.resume(position)
                self.args.ignore_data_skip = True  # the stream skips by itself, without making the batches
        self._clock = self._last_line = time.perf_counter()
        return super().train(resume_from_checkpoint or None, trial, ignore_keys_for_eval)

    def training_step(self, model: nn.Module, inputs: dict[str, Any], *args: Any) -> torch.Tensor:
        """Run the stock step, count tokens, and stop if the loss is not finite.

        Raises:
            UserError: The loss is infinite or NaN.
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
        """Return a clause for an error message that names the checkpoint to continue from."""
        checkpoints = complete_checkpoints(str(self.args.output_dir))
        return f"the last good checkpoint is {checkpoints[-1]}" if checkpoints else "no checkpoint was saved before"

    def compute_loss(
        self,
        model: nn.Module,
        inputs: dict[str, Any],
        return_outputs: bool = False,
        num_items_in_batch: torch.Tensor | int | None = None,
    ) -> torch.Tensor | tuple[torch.Tensor, Any]:
        """Return the model's own loss, with label smoothing (section 5.4) in training; add it up in evaluation."""
        if model.training:
            inputs = inputs | {"smoothing": self.args.label_smoothing_factor}
            return super().compute_loss(model, inputs, return_outputs, num_items_in_batch)
        labels = inputs["labels"]
        loss, outputs = super().compute_loss(model, inputs, return_outputs=True)
        losses = F.cross_entropy(outputs["logits"].transpose(1, 2).float(), labels, reduction="none")
        sums = torch.stack([losses.sum(1), (labels != IGNORED_LABEL).sum(1).to(losses.dtype)], dim=1)
        self._likelihood += self.accelerator.gather_for_metrics(sums).double().sum(0).cpu()  # [sentences, 2] to [2]
        return (loss, outputs) if return_outputs else loss

    def evaluation_loop(self, *args: Any, **kwargs: Any) -> EvalLoopOutput:
        """Run the stock evaluation; report the loss per label and its perplexity."""
        self._likelihood.zero_()
        output = super().evaluation_loop(*args, **kwargs)
        if output.metrics is not None and self._likelihood[1]:
            prefix = kwargs.get("metric_key_prefix", "eval")  # the stock trainer gives it by name
            loss = (self._likelihood[0] / self._likelihood[1]).item()
            output.metrics[f"{prefix}_loss"] = loss
            output.metrics[f"{prefix}_perplexity"] = math.exp(min(loss, 700))  # exp(710) overflows
        return output

    def evaluate(self, *args: Any, **kwargs: Any) -> dict[str, float]:
        """Run the stock evaluation, without counting its time in tokens per second."""
        start = time.perf_counter()
        try:
            return super().evaluate(*args, **kwargs)
        finally:
            self._clock += time.perf_counter() - start

    def _save_checkpoint(self, *args: Any, **kwargs: Any) -> None:
        """Save the stock checkpoint with the stream's position, without counting its time in tokens per second.

        Raises:
            UserError: The disk is full or the folder can't be written to.
        """
        start = time.perf_counter()
        if isinstance(self.train_dataset, TokenStream):
            batches_per_step = self.args.gradient_accumulation_steps * self.accelerator.num_processes
            taken = self.state.global_step * batches_per_step
            _saved_states(self.state)[TokenStream.__name__] = self.train_dataset.position(taken)
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

    def prediction_step(
        self,
        model: nn.Module,
        inputs: dict[str, Any],
        prediction_loss_only: bool,
        ignore_keys: list[str] | None = None,
        **gen_kwargs: Any,
    ) -> Any:  # the library declares two types that contradict each other
        """Run the stock step and undo its changes to the generation config, such as `max_length=20`."""
        own_model = cast(PreTrainedModel, self.model)
        generation_config = deepcopy(own_model.generation_config)
        try:
            return super().prediction_step(model, inputs, prediction_loss_only, ignore_keys, **gen_kwargs)
        finally:
            own_model.generation_config = generation_config

    def log(self, logs: dict[str, float], *args: Any, **kwargs: Any) -> None:
        """Write the stock log line, with tokens per second (without padding) and, in training, minutes.

        Samples per second are removed: they count `per_device_train_batch_size` sentences per batch.
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
        """Do not warn about the further names of tied matrices, which are saved once."""
        tied = cast(dict[str, str], cast(PreTrainedModel, self.model).all_tied_weights_keys)
        load_result.missing_keys[:] = [key for key in load_result.missing_keys if key not in tied]
        super()._issue_warnings_after_load(load_result)


def _saved_states(state: TrainerState) -> dict[str, Any]:
    """Return the part of the state that checkpoints keep for callbacks; declared as a list, it is a dict once made."""
    return cast(dict[str, Any], state.stateful_callbacks)
