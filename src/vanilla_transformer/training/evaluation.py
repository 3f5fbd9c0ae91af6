"""Validation in batches by token budget, in the order of the data, with the exact loss."""

import math
from collections.abc import Callable, Iterator
from contextlib import contextmanager
from copy import deepcopy
from typing import Any, cast

import numpy as np
import torch
from datasets import Dataset
from torch import nn
from torch.nn import functional as F
from torch.utils.data import DataLoader, Sampler
from transformers import EvalPrediction, PreTrainedModel, Seq2SeqTrainingArguments
from transformers.trainer_utils import EvalLoopOutput

from ..data.batching import token_lengths
from ..modeling_vanilla_transformer import IGNORED_LABEL
from .fsdp import FSDPSeq2SeqTrainer


class ConsecutiveBatchSampler(Sampler[list[int]]):
    """One process's batches of consecutive rows, limited by rows and by tokens.

    In each step all processes have a batch of the same number of rows. Their batches, one after the other, are
    consecutive rows, so that gathered results are in the order of the data. In the last step the last row may be
    repeated; results beyond the number of rows are to be dropped.
    """

    def __init__(
        self, lengths: np.ndarray, max_rows: int, max_tokens: int, process_index: int = 0, num_processes: int = 1
    ) -> None:
        """Plan the batches.

        Args:
            lengths: Tokens of each row, the longer of source and target: int64 of shape [rows].
            max_rows: Most rows of a batch.
            max_tokens: Most tokens of a batch, including padding. A longer row is a batch of its own.
            process_index: Index of this process.
            num_processes: Number of processes.
        """
        self.batches: list[list[int]] = []
        start = 0
        while start < len(lengths):
            rows, longest = 1, lengths[start : start + num_processes].max()
            while rows < max_rows and start + rows * num_processes < len(lengths):
                more = lengths[start + rows * num_processes : start + (rows + 1) * num_processes].max()
                if (rows + 1) * max(longest, more) > max_tokens:
                    break
                rows, longest = rows + 1, max(longest, more)
            # With two processes and rows = 3: process 0 has rows 0, 1, 2, process 1 has rows 3, 4, 5 of this step.
            first = start + process_index * rows
            self.batches.append([min(row, len(lengths) - 1) for row in range(first, first + rows)])
            start += rows * num_processes

    def __len__(self) -> int:
        """Return the number of batches."""
        return len(self.batches)

    def __iter__(self) -> Iterator[list[int]]:
        """Yield the batches, lists of row indices."""
        yield from self.batches


class EvaluatingTrainer(FSDPSeq2SeqTrainer):
    """Seq2SeqTrainer that validates in batches by token budget.

    - Predictions come in the order of the data.
    - `eval_loss` is the negative log-likelihood per label, not a mean of batches' means, and `eval_perplexity` its
      exponential.
    - `model.generation_config` stays as it was.
    """

    # [rows, 2] of each evaluation step: negative log-likelihood and number of labels, of all processes.
    _likelihoods: list[torch.Tensor]

    def get_eval_dataloader(self, eval_dataset: Any = None) -> DataLoader:
        """Return the validation batches."""
        data = self.eval_dataset if eval_dataset is None else eval_dataset
        if isinstance(data, str):
            data = cast(dict[str, Any], self.eval_dataset)[data]
        loader = self._budgeted_loader(data)
        return super().get_eval_dataloader(eval_dataset) if loader is None else loader

    def get_test_dataloader(self, test_dataset: Any) -> DataLoader:
        """Return the batches of data to predict on."""
        loader = self._budgeted_loader(test_dataset)
        return super().get_test_dataloader(test_dataset) if loader is None else loader

    def _budgeted_loader(self, data: Any) -> DataLoader | None:
        """Return batches by token budget, or None for data without token ids or arguments without a budget."""
        max_tokens = getattr(self.args, "per_device_eval_tokens", None)
        if max_tokens is None or not isinstance(data, Dataset) or "input_ids" not in data.column_names or not len(data):
            return None
        columns = [name for name in ("input_ids", "labels") if name in data.column_names]
        lengths = np.max([token_lengths(data, column) for column in columns], axis=0)
        sampler = ConsecutiveBatchSampler(
            lengths,
            self.args.per_device_eval_batch_size,
            max_tokens,
            self.args.process_index,
            self.accelerator.num_processes,
        )
        # Not through accelerate, which would distribute the batches once more.
        return DataLoader(
            cast(Any, self._remove_unused_columns(data, description="evaluation")),
            batch_sampler=sampler,
            collate_fn=self.data_collator,
            num_workers=self.args.dataloader_num_workers,
            pin_memory=self.args.dataloader_pin_memory,
        )

    def evaluation_loop(self, dataloader: DataLoader, *args: Any, **kwargs: Any) -> EvalLoopOutput:
        """Run the stock evaluation; drop repeated rows, and report the loss per label and its perplexity."""
        self._likelihoods = []
        rows = len(dataloader.dataset) if hasattr(dataloader.dataset, "__len__") else None
        compute_metrics = self.compute_metrics
        if compute_metrics is not None:
            self.compute_metrics = self._on_first_rows(compute_metrics, rows)
        try:
            output = super().evaluation_loop(dataloader, *args, **kwargs)
        finally:
            self.compute_metrics = compute_metrics
        likelihood, labels = torch.cat(self._likelihoods)[:rows].sum(0).tolist() if self._likelihoods else (0, 0)
        if output.metrics is not None and labels:
            prefix = kwargs.get("metric_key_prefix", "eval")  # the stock trainer gives it by name
            loss = likelihood / labels
            output.metrics[f"{prefix}_loss"] = loss
            output.metrics[f"{prefix}_perplexity"] = math.exp(min(loss, 700))  # exp(710) overflows
        return output._replace(
            predictions=_first_rows(output.predictions, rows), label_ids=_first_rows(output.label_ids, rows)
        )

    def prediction_step(
        self,
        model: nn.Module,
        inputs: dict[str, Any],
        prediction_loss_only: bool,
        ignore_keys: list[str] | None = None,
        **gen_kwargs: Any,
    ) -> Any:  # the library declares two types that contradict each other
        """Compute the loss, and translate with `predict_with_generate`.

        Returns:
            The loss, the predictions or None, and the labels or None: int64 of shape [rows, length].
        """
        if (
            prediction_loss_only
            or not cast(Seq2SeqTrainingArguments, self.args).predict_with_generate
            or "labels" not in inputs
        ):
            with self._same_generation_config():
                return super().prediction_step(model, inputs, prediction_loss_only, ignore_keys, **gen_kwargs)
        loss, _, _ = super().prediction_step(model, inputs, True, ignore_keys)
        sources = {name: inputs[name] for name in inputs if name != "labels" and not name.startswith("decoder_")}
        with self._same_generation_config():
            _, predictions, _ = super().prediction_step(model, sources, False, ignore_keys, **gen_kwargs)
        if self.args.prediction_loss_only:
            return loss, None, None
        return loss, predictions, inputs["labels"].to(self.args.device)

    def add_likelihood(self, logits: torch.Tensor, labels: torch.Tensor) -> None:
        """Add a batch to the loss of the current evaluation.

        Args:
            logits: [rows, target length, vocabulary].
            labels: int64 of shape [rows, target length], padded with -100.
        """
        losses = F.cross_entropy(logits.transpose(1, 2).float(), labels, reduction="none")
        sums = torch.stack([losses.sum(1), (labels != IGNORED_LABEL).sum(1).to(losses.dtype)], dim=1)
        self._likelihoods.append(self.accelerator.gather(sums).double().cpu())

    def _on_first_rows(
        self, compute_metrics: Callable[[EvalPrediction], dict[str, float]], rows: int | None
    ) -> Callable[[EvalPrediction], dict[str, float]]:
        """Leave out the rows that were repeated to give each process equally many; give each row its own loss."""

        def compute(prediction: EvalPrediction) -> dict[str, float]:
            further = {}
            if prediction.inputs is not None:
                further["inputs"] = _first_rows(prediction.inputs, rows)
            if prediction.losses is not None:  # of batches, whose sizes differ
                likelihoods, labels = torch.cat(self._likelihoods)[:rows].unbind(1)
                further["losses"] = (likelihoods / labels.clamp(min=1)).numpy()
            predictions, label_ids = (
                _first_rows(array, rows) for array in (prediction.predictions, prediction.label_ids)
            )
            return compute_metrics(EvalPrediction(predictions, label_ids, **further))

        return compute

    @contextmanager
    def _same_generation_config(self) -> Iterator[None]:
        """Undo what a stock step does to the generation config, such as `max_length=20`."""
        model = cast(PreTrainedModel, self.model)
        before = deepcopy(model.generation_config)
        try:
            yield
        finally:
            model.generation_config = before


def _first_rows(array: Any, rows: int | None) -> Any:
    return array[:rows] if isinstance(array, np.ndarray) else array
