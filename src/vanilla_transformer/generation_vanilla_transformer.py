"""The paper's search (section 6.1): beam search with the length penalty of Wu et al. 2016, for `generate()`.

`gnmt_beam_search` is the function that `generate()` calls. `BeamSearch` holds the hypotheses, and a decoder of
`step_decoder_vanilla_transformer.py` computes the log-probabilities of each step.
"""

import math
from copy import deepcopy
from dataclasses import dataclass
from typing import Any, overload

import torch
from torch.nn import functional as F
from transformers import (
    EosTokenCriteria,
    GenerationConfig,
    LogitsProcessorList,
    MaxLengthCriteria,
    PreTrainedModel,
    PreTrainedTokenizerBase,
    StoppingCriteriaList,
)
from transformers.generation import GenerateBeamEncoderDecoderOutput, GenerationMode
from transformers.generation.streamers import BaseStreamer

from .base_vanilla_transformer import TOKENS_BEYOND_SOURCE
from .step_decoder_vanilla_transformer import StepDecoder, select_decoder

# Section 6.1. transformers divides a hypothesis' score by length^0.6; the paper by ((5 + length) / 6)^0.6.
PAPER_DECODING = {"num_beams": 4, "length_penalty": 0.6}

SHRINK_TO = 0.8  # Finished sentences leave the batch when at most this share of its sentences is unfinished.
FIRST_ROOM = 64  # Hypotheses begin with room for so many tokens, which doubles when it is used up.
VOCABULARY_ROWS = 16  # `best_continuations` arranges the vocabulary in so many rows.


def search_settings(num_beams: int | None, length_penalty: float | None) -> dict[str, int | float | None]:
    """Fill in the paper's value for each setting that is None; greedy search has no length penalty."""
    num_beams = num_beams or int(PAPER_DECODING["num_beams"])
    if num_beams == 1:
        return {"num_beams": 1, "length_penalty": None}
    length_penalty = PAPER_DECODING["length_penalty"] if length_penalty is None else length_penalty
    return {"num_beams": num_beams, "length_penalty": length_penalty}


def paper_generation_config(model: PreTrainedModel) -> GenerationConfig:
    """Copy the model's generation config, with the paper's beam 4 and length penalty 0.6 (section 6.1)."""
    generation_config = deepcopy(model.generation_config)
    generation_config.update(**PAPER_DECODING)
    return generation_config


@overload
def gnmt_length_penalty(length: int, alpha: float) -> float: ...
@overload
def gnmt_length_penalty(length: torch.Tensor, alpha: float) -> torch.Tensor: ...
def gnmt_length_penalty(length: int | torch.Tensor, alpha: float) -> float | torch.Tensor:
    """Compute ((5 + |Y|) / 6)^alpha, the divisor of a hypothesis' log-probability (Wu et al. 2016, equation 14).

    Args:
        length: |Y|, the number of generated tokens, including `</s>`.
        alpha: 0 for no penalty; the paper's is 0.6.
    """
    return ((5 + length) / 6) ** alpha


def gnmt_beam_search(
    model: PreTrainedModel,
    input_ids: torch.LongTensor,
    logits_processor: LogitsProcessorList,
    stopping_criteria: StoppingCriteriaList,
    generation_config: GenerationConfig,
    tokens_beyond_source: int | None = TOKENS_BEYOND_SOURCE,
    final_streamer: BaseStreamer | None = None,
    tokenizer: PreTrainedTokenizerBase | None = None,
    streamer: BaseStreamer | None = None,
    synced_gpus: bool = False,
    **model_kwargs: Any,
) -> GenerateBeamEncoderDecoderOutput | torch.Tensor:
    """Search for the hypotheses Y with the highest log P(Y|X) / ((5 + |Y|) / 6)^alpha.

    Pass this function to `generate()`, which prepares all arguments but `tokens_beyond_source` and `final_streamer`:
    `model.generate(**inputs, custom_generate=gnmt_beam_search, num_beams=4, length_penalty=0.6)`.

    A sentence is finished when no unfinished hypothesis can reach a score among its `num_return_sequences` best any
    more. This is exact as long as each token lowers the log-probability, which a logits processor may change. The
    sentences of a batch do not influence each other.

    Args:
        model: An encoder-decoder model.
        input_ids: The decoder's prompt, int64, [batch * beams, prompt length].
        logits_processor: Applied to the log-probabilities of each step, float32, [batch * beams, vocabulary].
        stopping_criteria: Decide which hypotheses end, in addition to the length limit.
        generation_config: `length_penalty` is alpha. With one beam alpha is 0 and the search is greedy.
            `early_stopping` has no effect.
        tokens_beyond_source: A hypothesis ends when it is this many tokens longer than its source, or at
            `max_new_tokens` or `max_length`; None for these two alone.
        final_streamer: Receives the prompt, and after the search the best sequence token by token.
        tokenizer: For `stop_strings`, of which `generate()` makes a stopping criterion. With a model of another kind,
            which drops the tokenizer before, give a `StopStringCriteria` in `stopping_criteria` instead.
        streamer: Refused: a search knows no token before its end. `generate()` accepts it with one beam only.
        synced_gpus: Whether to call the model until all processes have finished: each has a part of it (FSDP, ZeRO-3).
        **model_kwargs: Arguments of the model's forward: `encoder_outputs`, `attention_mask`, the cache.

    Returns:
        Token ids, [batch * num_return_sequences, length], best first, padded with `<pad>`. With
        `return_dict_in_generate` also `sequences_scores` (as defined above), float32, [batch * num_return_sequences],
        `beam_indices`, and the other outputs of `generate()` that are requested, except the cache.

    Raises:
        ValueError: If another kind of generation is asked for, such as sampling, the length penalty is not finite,
            several sequences are to be streamed, or the model's output is not finite.
    """
    _check_settings(generation_config)
    if streamer is not None:
        raise ValueError("streamer is set, but a search knows no token before its end; use final_streamer instead")
    beams = generation_config.num_beams
    if final_streamer is not None:
        _stream_prompt(final_streamer, input_ids[::beams], generation_config.num_return_sequences)
    batch, prompt_length = input_ids.shape[0] // beams, input_ids.shape[1]
    limits = _length_limits(generation_config, model_kwargs, prompt_length, tokens_beyond_source, batch)
    search = BeamSearch(input_ids, limits, generation_config)
    decoder = select_decoder(model, model_kwargs, generation_config, input_ids, beams, search.steps)
    batch_may_shrink = _batch_may_shrink(generation_config, logits_processor, stopping_criteria)
    recorded: dict[str, tuple] = {}  # name of an output: its value at each step

    for step in range(search.steps):
        if synced_gpus:  # tells the processes that have finished to take one more step
            model._has_unfinished_sequences(False, synced_gpus, input_ids.device)  # type: ignore[operator]
        ids = search.alive.ids[:, :, : prompt_length + step]
        log_probs = decoder.step(ids, search.alive.parents[:, :, :step])
        if logits_processor:
            log_probs = _process(logits_processor, ids, log_probs, decoder, generation_config)
        _record(recorded, generation_config, decoder, log_probs)
        search.advance(step, log_probs, stopping_criteria, recorded.get("scores"))
        unfinished = search.can_improve(step).nonzero()[:, 0]  # rows of the batch
        if not len(unfinished):
            break
        if batch_may_shrink and len(unfinished) <= SHRINK_TO * search.batch and decoder.select(unfinished):
            search.drop_finished(unfinished)

    while synced_gpus and model._has_unfinished_sequences(True, synced_gpus, input_ids.device):  # type: ignore[operator]
        decoder.step(search.alive.ids[:, :, : prompt_length + step], search.alive.parents[:, :, :step])

    output = _output(search.results(), prompt_length, generation_config, model_kwargs, recorded)
    if final_streamer is not None:
        sequences = output if isinstance(output, torch.Tensor) else output.sequences
        for tokens in sequences[:, prompt_length:].t().cpu():
            final_streamer.put(tokens)
        final_streamer.end()
    return output


@dataclass
class Hypotheses:
    """A number of hypotheses for each sentence of a batch.

    Attributes:
        ids: Prompt and generated tokens, int64, [batch, hypotheses, length]; `<pad>` after the last token.
        parents: For each generated token the hypothesis that it continued, as a row of [batch * beams], int64,
            [batch, hypotheses, steps]; -1 after the last token. `generate()` calls them `beam_indices`.
        scores: float32, [batch, hypotheses]; minus infinity for an empty place.
    """

    ids: torch.Tensor
    parents: torch.Tensor
    scores: torch.Tensor

    def gather(self, indices: torch.Tensor, scores: torch.Tensor) -> "Hypotheses":
        """Copy the hypotheses at these indices of each sentence, [batch, n], and give them new scores, [batch, n]."""
        ids, parents = (tensor.take_along_dim(indices[:, :, None], dim=1) for tensor in (self.ids, self.parents))
        return Hypotheses(ids, parents, scores)

    def top(self, count: int) -> "Hypotheses":
        """Copy the `count` hypotheses with the highest scores of each sentence, best first."""
        scores, indices = self.scores.topk(count)
        return self.gather(indices, scores)

    def first(self, count: int) -> "Hypotheses":
        """View the first `count` hypotheses of each sentence."""
        return Hypotheses(self.ids[:, :count], self.parents[:, :count], self.scores[:, :count])

    def select(self, rows: torch.Tensor) -> "Hypotheses":
        """Select hypotheses by batch index, int64, [rows]."""
        return Hypotheses(self.ids[rows], self.parents[rows], self.scores[rows])

    def concat(self, other: "Hypotheses") -> "Hypotheses":
        """Concatenate along the hypothesis axis."""
        pairs = ((self.ids, other.ids), (self.parents, other.parents), (self.scores, other.scores))
        return Hypotheses(*(torch.cat(pair, dim=1) for pair in pairs))

    def write(self, rows: torch.Tensor, other: "Hypotheses") -> None:
        """Overwrite the hypotheses at these batch indices, int64, [rows]."""
        self.ids[rows], self.parents[rows], self.scores[rows] = other.ids, other.parents, other.scores


class BeamSearch:
    """Hypotheses of a beam search with the GNMT length penalty.

    Attributes:
        alive: The hypotheses that are continued, best first, with log-probabilities as scores, [batch, beams].
        finished: The best hypotheses that have ended, best first, with penalized scores, [batch, beams].
        batch: How many sentences are still in the batch.
        steps: How many tokens may be generated at most.

    Args:
        input_ids: The decoder's prompt, int64, [batch * beams, prompt length].
        limits: How many tokens may be generated for each sentence, int64, [batch].
        generation_config: As `generate()` prepares it.
    """

    def __init__(self, input_ids: torch.Tensor, limits: torch.Tensor, generation_config: GenerationConfig) -> None:
        self.beams = generation_config.num_beams
        self.wanted = generation_config.num_return_sequences
        self.alpha = generation_config.length_penalty if self.beams > 1 else 0.0
        self.prompt_length = input_ids.shape[1]
        self.limits, self.steps = limits, int(limits.max())
        self.best_penalty = gnmt_length_penalty(limits.float(), self.alpha)  # at a sentence's greatest length, [batch]
        eos = generation_config._eos_token_tensor
        # If each beam is continued by every end token, `beams` candidates that do not end remain.
        self.candidates = self.beams * (2 if eos is None else 1 + len(eos))
        self.is_top_candidate = torch.arange(self.candidates, device=input_ids.device) < self.beams

        self.batch = len(limits)
        self.unfinished = torch.arange(self.batch, device=input_ids.device)  # rows of `_results`
        self.first_beam = self.unfinished[:, None] * self.beams  # row of [batch * beams], [batch, 1]
        pad = generation_config._pad_token_tensor
        self.filling = -1 if pad is None else int(pad)  # without `<pad>` as generate() fills it
        self.room = min(FIRST_ROOM, self.steps)
        ids = input_ids.new_full((self.batch, self.beams, self.prompt_length + self.room), self.filling)
        ids[:, :, : self.prompt_length] = input_ids.view(self.batch, self.beams, -1)
        parents = input_ids.new_full((self.batch, self.beams, self.room), -1)
        scores = torch.full((self.batch, self.beams), -torch.inf, dtype=torch.float32, device=input_ids.device)
        self.finished = Hypotheses(ids, parents, scores)
        self._results = self.finished  # of all sentences, also of those that have left the batch
        # All beams begin alike, so only the first is a hypothesis: scores = [[0, -inf, -inf, -inf]].
        self.alive = Hypotheses(ids, parents, scores.index_fill(1, self.first_beam.new_zeros(1), 0.0))

    def advance(
        self, step: int, log_probs: torch.Tensor, stopping_criteria: StoppingCriteriaList, all_scores: tuple | None
    ) -> None:
        """Continue each alive hypothesis by a token, and move those that end to the finished ones.

        Args:
            step: How many tokens have been generated.
            log_probs: Log-probabilities of the next token, float32, [batch, beams, vocabulary]; [batch, 1, vocabulary]
                at the first step.
            stopping_criteria: Decide which hypotheses end.
            all_scores: What stopping criteria get as `scores`.
        """
        if step == self.room:
            self._make_room()
        if log_probs.shape[2] < self.candidates:  # one beam alone may not have enough continuations
            log_probs = log_probs.expand(-1, self.beams, -1)
        scores, parents, tokens = best_continuations(self.alive.scores, log_probs, self.candidates)
        # parents = [[0, 0, 1, 0, ...]]: the best two candidates continue beam 0, the third one beam 1.
        length = self.prompt_length + step + 1
        continued = self.alive.gather(parents, scores)  # [batch, candidates]
        continued.ids[:, :, length - 1] = tokens
        continued.parents[:, :, step] = parents + self.first_beam
        ends = stopping_criteria(continued.ids[:, :, :length].flatten(0, 1), all_scores).view_as(scores)
        ends = ends | (step + 1 >= self.limits)[:, None]
        if not ends.any():
            self.alive = continued.first(self.beams)
            return
        # An end counts only among the best `beams` candidates; the others are there to fill the places of these.
        # ends = [[F, T, F, F, T, F, F, F]] with 4 beams: candidate 1 is finished, 4 is dropped, and 0, 2, 3, 5 go on.
        counted = ends & self.is_top_candidate[: scores.shape[1]]
        penalized = (scores / gnmt_length_penalty(step + 1, self.alpha)).masked_fill(~counted, -torch.inf)
        ending = Hypotheses(continued.ids, continued.parents, penalized)
        self.finished = self.finished.concat(ending).top(self.beams)
        # Greedy search is over then, even if a processor makes later scores positive.
        if self.beams == 1 and self.alpha == 0:
            ends = ends | counted.any(dim=1, keepdim=True)
        continued.scores = scores.masked_fill(ends, -torch.inf)
        self.alive = continued.top(self.beams)

    def _make_room(self) -> None:
        """Double the number of tokens that there is room for, or take as many as may be generated."""
        more = min(self.room, self.steps - self.room)
        self.room += more
        for hypotheses in {id(kind): kind for kind in (self.alive, self.finished, self._results)}.values():
            hypotheses.ids = F.pad(hypotheses.ids, (0, more), value=self.filling)
            hypotheses.parents = F.pad(hypotheses.parents, (0, more), value=-1)

    def can_improve(self, step: int) -> torch.Tensor:
        """Decide which sentences may still get a better result, bool, [batch], after `step` + 1 tokens.

        At best, the first alive hypothesis keeps its log-probability and gets the most favourable length: the greatest
        one, or for a negative alpha the next one.
        """
        penalty = self.best_penalty if self.alpha >= 0 else gnmt_length_penalty(step + 2, self.alpha)
        return self.alive.scores[:, 0] / penalty > self.finished.scores[:, self.wanted - 1]

    def drop_finished(self, unfinished: torch.Tensor) -> None:
        """Go on with these sentences only, given by batch index, int64, [unfinished].

        Raises:
            ValueError: If the model's output was not finite.
        """
        self._save_results()
        self.unfinished, self.first_beam = self.unfinished[unfinished], self.first_beam[unfinished]
        self.limits, self.best_penalty = self.limits[unfinished], self.best_penalty[unfinished]
        self.alive, self.finished = self.alive.select(unfinished), self.finished.select(unfinished)
        self.batch = len(unfinished)

    def results(self) -> Hypotheses:
        """Return the finished hypotheses of all sentences, [sentences, num_return_sequences], best first.

        A sentence without any, because every token was forbidden, has the prompt alone, with score minus infinity.

        Raises:
            ValueError: If the model's output was not finite.
        """
        self._save_results()
        return self._results.first(self.wanted)

    def _save_results(self) -> None:
        """Store the finished hypotheses of the sentences in the batch.

        A log-probability that is no number is the greatest for `topk`, stays in all sums, and is greater than no score,
        so that it ends the search for its sentence: it is enough to look for it here.
        """
        if torch.cat([self.alive.scores, self.finished.scores]).isnan().any():
            raise ValueError(
                "the model's output is not finite, or that of a logits processor; "
                "check the model's weights for NaN and infinity"
            )
        if self.finished is not self._results:  # something has ended
            self._results.write(self.unfinished, self.finished)


def best_continuations(
    scores: torch.Tensor, log_probs: torch.Tensor, count: int
) -> tuple[torch.Tensor, torch.Tensor, torch.Tensor]:
    """Find the top continuations of each sentence, over all its beams, best first.

    A search over the whole vocabulary is replaced by two small ones: with the vocabulary arranged in rows, the top
    `count` tokens of a beam lie in the `count` columns with the highest maxima.

    Args:
        scores: Log-probabilities of the beams so far, [batch, beams]. Beams that `log_probs` does not have are ignored.
        log_probs: Log-probabilities of the next token, [batch, beams or fewer, vocabulary].
        count: How many continuations to find. There are fewer if the beams do not have as many.

    Returns:
        The continuations' log-probabilities, the beam that each continues, and its token, each [batch, count].
    """
    batch, beams, vocab_size = log_probs.shape
    columns = vocab_size // VOCABULARY_ROWS
    per_beam = min(count, vocab_size)
    if columns > per_beam:
        # Token t < arranged is in row t // columns and column t % columns. The tokens after these are searched too.
        arranged = columns * VOCABULARY_ROWS
        maxima = log_probs[:, :, :arranged].unflatten(2, (VOCABULARY_ROWS, columns)).amax(dim=2)
        top_columns = maxima.topk(per_beam, sorted=False).indices  # [batch, beams, per_beam]
        row_starts = torch.arange(0, arranged, columns, device=scores.device)
        tokens = (top_columns[..., None] + row_starts).flatten(2)  # [batch, beams, per_beam * VOCABULARY_ROWS]
        rest = torch.arange(arranged, vocab_size, device=scores.device).expand(batch, beams, -1)
        tokens = torch.cat([tokens, rest], dim=2)
        values, indices = log_probs.gather(2, tokens).topk(per_beam)
        tokens = tokens.gather(2, indices)
    else:
        values, tokens = log_probs.topk(per_beam)
    continued = (scores[:, :beams, None] + values).flatten(1)  # [batch, beams * per_beam]
    best, indices = continued.topk(min(count, continued.shape[1]))
    # With per_beam = 8, indices = [[0, 9, 1]]: beam 0's best token, beam 1's second best, beam 0's second best.
    return best, indices // per_beam, tokens.flatten(1).gather(1, indices)


def _check_settings(generation_config: GenerationConfig) -> None:
    """Raise ValueError for settings that ask for something else than this search."""
    mode = generation_config.get_generation_mode()
    if generation_config.do_sample:
        raise ValueError("do_sample is set, but gnmt_beam_search does not sample; leave out one of the two")
    if mode not in (GenerationMode.GREEDY_SEARCH, GenerationMode.BEAM_SEARCH):
        raise ValueError(
            f"the settings ask for {mode.value}, but gnmt_beam_search does not do that; leave out one of the two"
        )
    alpha = generation_config.length_penalty
    if generation_config.num_beams > 1 and not math.isfinite(alpha):
        raise ValueError(f"length_penalty is {alpha}; it must be a finite number")


def _stream_prompt(streamer: BaseStreamer, prompt: torch.Tensor, sequences: int) -> None:
    """Put the prompt of each sentence, [batch, prompt length], or raise ValueError for several sequences."""
    if sequences > 1:
        raise ValueError(
            f"num_return_sequences is {sequences}, but final_streamer takes one sequence; leave out one of them"
        )
    streamer.put(prompt.cpu())


def _batch_may_shrink(
    generation_config: GenerationConfig,
    logits_processor: LogitsProcessorList,
    stopping_criteria: StoppingCriteriaList,
) -> bool:
    """Decide whether finished sentences may leave the batch: if nothing else depends on the batch's rows."""
    independent_of_rows = (MaxLengthCriteria, EosTokenCriteria)
    return (
        not logits_processor
        and not generation_config.output_scores
        and all(type(criterion) in independent_of_rows for criterion in stopping_criteria)
    )


def _length_limits(
    generation_config: GenerationConfig,
    model_kwargs: dict[str, Any],
    prompt_length: int,
    tokens_beyond_source: int | None,
    batch: int,
) -> torch.Tensor:
    """Compute how many tokens may be generated for each source, int64, [batch]."""
    memory, mask = model_kwargs["encoder_outputs"][0], model_kwargs.get("attention_mask")
    source_lengths = (memory.new_ones(memory.shape[:2]) if mask is None else mask.to(memory.device)).long().sum(dim=1)
    source_lengths = source_lengths.view(batch, -1)[:, 0]  # other models have each source once per beam
    limits = torch.full_like(source_lengths, generation_config.max_length - prompt_length)
    return limits if tokens_beyond_source is None else limits.minimum(source_lengths + tokens_beyond_source)


def _process(
    logits_processor: LogitsProcessorList,
    ids: torch.Tensor,
    log_probs: torch.Tensor,
    decoder: StepDecoder,
    generation_config: GenerationConfig,
) -> torch.Tensor:
    """Let the processors change the scores, as `generate()` does: with one beam logits, with several log-probabilities.

    A penalty that divides or multiplies depends on which of the two it gets.
    """
    batch, beams = ids.shape[:2]
    # Processors may write into the scores, and keep them: a row of its own for each beam, in new memory.
    scores = log_probs.expand(-1, beams, -1) if beams > 1 else decoder.logits[:batch, None].float()
    rows = scores.clone(memory_format=torch.contiguous_format).flatten(0, 1)
    processed = logits_processor(ids.flatten(0, 1), rows)  # type: ignore[arg-type]  # it only names the kind of ids
    if beams == 1 and not generation_config.renormalize_logits:
        processed = processed - scores.flatten(0, 1).logsumexp(dim=-1, keepdim=True)
    return processed.unflatten(0, (batch, beams))


def _record(
    recorded: dict[str, tuple],
    generation_config: GenerationConfig,
    decoder: StepDecoder,
    log_probs: torch.Tensor,
) -> None:
    """Append this step's values of all requested outputs."""
    step: dict[str, Any] = {}
    if not generation_config.return_dict_in_generate:
        return
    if generation_config.output_scores:
        step["scores"] = log_probs.expand(-1, generation_config.num_beams, -1).flatten(0, 1).clone()
    if (outputs := decoder.outputs) is not None:
        if generation_config.output_logits and outputs.logits is not None:
            step["logits"] = outputs.logits[:, -1].float()
        if generation_config.output_attentions:
            step |= {name: outputs[name] for name in ("decoder_attentions", "cross_attentions")}
        if generation_config.output_hidden_states:
            step["decoder_hidden_states"] = outputs.decoder_hidden_states
    for name, value in step.items():
        recorded[name] = (*recorded.get(name, ()), value)


def _output(
    results: Hypotheses,
    prompt_length: int,
    generation_config: GenerationConfig,
    model_kwargs: dict[str, Any],
    recorded: dict[str, tuple],
) -> GenerateBeamEncoderDecoderOutput | torch.Tensor:
    """Build what `generate()` returns, cut to the longest of the results, [batch, num_return_sequences]."""
    beam_indices = results.parents.flatten(0, 1)
    longest = int((beam_indices >= 0).sum(dim=1).max())
    sequences = results.ids[:, :, : prompt_length + longest].flatten(0, 1)
    if not generation_config.return_dict_in_generate:
        return sequences
    encoder_outputs = model_kwargs["encoder_outputs"]
    outputs: dict[str, Any] = {
        "sequences": sequences,
        "sequences_scores": results.scores.flatten(),
        "beam_indices": beam_indices[:, :longest],
        **recorded,
    }
    for name in ("attentions", "hidden_states"):
        if getattr(generation_config, f"output_{name}"):
            outputs[f"encoder_{name}"] = encoder_outputs.get(name)
    return GenerateBeamEncoderDecoderOutput(**outputs)
