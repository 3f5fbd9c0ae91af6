"""Training batches by token budget: of all processes, of a stream, and of an epoch."""

import copy
import math
from typing import Any, cast

import torch
from datasets import Dataset
from torch.utils.data import DataLoader

from ..data.batching import TokenBatchSampler, token_lengths
from ..data.bpe_dropout import BpeDropoutBatchSampler, BpeDropoutPairs
from ..data.corpora import Mixture
from ..data.streaming import TokenStream
from ..errors import UserError
from .moving_average import AveragingTrainer
from .recipe import PaperTrainingArguments


class TokenBatchTrainer(AveragingTrainer):
    """Trainer whose training batches have a token budget.

    They come from `TokenBatchSampler`, from `BpeDropoutBatchSampler` if `train_dataset` is `BpeDropoutPairs`, or from
    `train_dataset` itself if that is a `TokenStream`.
    """

    args: PaperTrainingArguments

    def __init__(self, *args: Any, mixture: Mixture | None = None, **kwargs: Any) -> None:
        """Create the trainer.

        Args:
            *args: As for `Seq2SeqTrainer`.
            mixture: The share of each corpus in an epoch; `train_dataset` has their rows, one corpus after the other.
                None for each row once.
            **kwargs: As for `Seq2SeqTrainer`.
        """
        self.mixture = mixture
        # What the batches were planned for, and they themselves.
        self._plan: tuple[Any, dict[str, Any], TokenBatchSampler | BpeDropoutBatchSampler] | None = None
        self._sampler: TokenBatchSampler | BpeDropoutBatchSampler | None = None  # of the batches that are trained on
        super().__init__(*args, **kwargs)

    def token_batches(self) -> TokenBatchSampler | BpeDropoutBatchSampler:
        """Return the sampler of the batches of all processes. It depends on `data_seed` (or `seed`) and the epoch.

        Raises:
            UserError: There is no training data, or a sentence exceeds the token budget.
        """
        if self.train_dataset is None:
            raise UserError("training needs a train_dataset; this trainer was made without one")
        data = cast(Any, self.train_dataset)
        settings: dict[str, Any] = {
            "max_tokens": self.args.per_device_train_tokens,
            "seed": self.args.seed if self.args.data_seed is None else self.args.data_seed,
            "num_processes": self.accelerator.num_processes,
            "mixture": self.mixture,
        }
        if self._plan is None or self._plan[0] is not data or self._plan[1] != settings:
            if isinstance(data, BpeDropoutPairs):
                self._plan = data, settings, BpeDropoutBatchSampler(data, **settings)  # segments all pairs
            else:
                lengths = token_lengths(data, "input_ids"), token_lengths(data, "labels")
                self._plan = data, settings, TokenBatchSampler(*lengths, **settings)
        return copy.copy(self._plan[2])  # each has an epoch of its own

    def total_steps(self) -> int:
        """Return the number of optimizer steps of the whole run.

        Raises:
            UserError: The run is to last a number of epochs, but its data is a stream.
        """
        if self.args.max_steps > 0 or self.train_dataset is None:
            return self.args.max_steps
        if isinstance(self.train_dataset, TokenStream):
            raise UserError("num_train_epochs needs data of a known length, which a stream has not; give max_steps")
        batches = len(self.token_batches()) // self.accelerator.num_processes
        return math.ceil(cast(float, self.args.num_train_epochs) * math.ceil(batches / self._accumulation))

    @property
    def _accumulation(self) -> int:
        return self.args.gradient_accumulation_steps

    def get_train_dataloader(self) -> DataLoader:
        """Return this process's batches, a share of `token_batches` or of the stream."""
        if isinstance(self.train_dataset, TokenStream):
            # No workers: each would read the whole stream. A separate generator: an iterator draws a seed when it is
            # created, and a resumed run would draw once more from the generator that dropout uses.
            return DataLoader(
                self.train_dataset, batch_size=None, collate_fn=self.data_collator, generator=torch.Generator()
            )
        data = cast(Any, self.train_dataset)
        self._sampler = self.token_batches()
        loader: DataLoader = DataLoader(
            self._remove_unused_columns(data, description="training") if isinstance(data, Dataset) else data,
            batch_sampler=self._sampler,
            collate_fn=self.data_collator,
            num_workers=self.args.dataloader_num_workers,
            pin_memory=self.args.dataloader_pin_memory,
            persistent_workers=self.args.dataloader_persistent_workers,
            prefetch_factor=self.args.dataloader_prefetch_factor,
            multiprocessing_context=getattr(self.args, "dataloader_multiprocessing_context", None),
            in_order=getattr(self.args, "dataloader_in_order", True),
        )
        # accelerate makes batches even by repeating sentences up to one batch size, which our batches do not have. The
        # number of our batches is a multiple of the number of processes already.
        dataloader_config = self.accelerator.dataloader_config
        even_batches, dataloader_config.even_batches = dataloader_config.even_batches, False
        try:
            return self.accelerator.prepare(loader)
        finally:
            dataloader_config.even_batches = even_batches

    def _run_epoch(self, *args: Any, **kwargs: Any) -> None:
        """Run the stock epoch, whose number the sampler has to know.

        The stock loop does not reach the sampler behind the two wrappers that it has in a resumed run of several
        processes.
        """
        if self._sampler is not None:
            self._sampler.set_epoch(kwargs["epoch"])
        super()._run_epoch(*args, **kwargs)

    def _maybe_log_save_evaluate(self, *args: Any, **kwargs: Any) -> None:
        """Log, validate and save as the stock trainer does; of a stream, the epoch is the share of the run.

        The stock loop begins it anew where a stream is resumed.
        """
        if isinstance(self.train_dataset, TokenStream):
            self.state.epoch = self.state.global_step / self.state.max_steps
        super()._maybe_log_save_evaluate(*args, **kwargs)
