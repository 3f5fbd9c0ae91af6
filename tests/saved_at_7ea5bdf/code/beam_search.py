"""The paper's search (section 6.1): beam search with the length penalty of Wu et al. 2016, behind `generate()`."""

from dataclasses import dataclass, replace
from typing import Any

import torch
from torch.nn import functional as F
from transformers import (
    DynamicCache,
    EncoderDecoderCache,
    EosTokenCriteria,
    GenerationConfig,
    LogitsProcessorList,
    MaxLengthCriteria,
    PreTrainedModel,
    StoppingCriteriaList,
)
from transformers.generation import GenerateBeamEncoderDecoderOutput
from transformers.generation.streamers import BaseStreamer
from transformers.modeling_outputs import Seq2SeqLMOutput

from .errors import UserError
from .incremental_decoder import IncrementalDecoder, is_plain

SHRINK_TO = 0.8  # A batch gets smaller when no more than this share of its sentences is open.
ROWS = 16  # of the vocabulary in `best_continuations`
TOKENS_BEYOND_SOURCE = 50  # "maximum output length during inference to input length + 50"
# Section 6.1. transformers divides a hypothesis' score by length^0.6; the paper by ((5 + length) / 6)^0.6.
PAPER_DECODING = {"num_beams": 4, "length_penalty": 0.6}


def completed(num_beams: int | None, length_penalty: float | None) -> dict[str, int | float | None]:
    """Settings of `gnmt_beam_search`, the paper's where they are None; greedy search has no length penalty."""
    num_beams = num_beams or PAPER_DECODING["num_beams"]
    if num_beams == 1:
        return {"num_beams": 1, "length_penalty": None}
    length_penalty = PAPER_DECODING["length_penalty"] if length_penalty is None else length_penalty
    return {"num_beams": num_beams, "length_penalty": length_penalty}


def gnmt_length_penalty(length: int | torch.Tensor, alpha: float) -> float | torch.Tensor:
    """((5 + |Y|) / 6)^alpha, by which a hypothesis' log-probability is divided (Wu et al. 2016, equation 14).

    Args:
        length: |Y|, the number of generated tokens, `</s>` counted.
        alpha: 0 for none; the paper's is 0.6.
    """
    return ((5 + length) / 6) ** alpha


@dataclass
class Hypotheses:
    """Some hypotheses for each sentence of a batch.

    Attributes:
        ids: Their tokens, int64, [batch, hypotheses, length]; `<pad>` where none is written yet.
        beams: Which row of the batch of all beams each generated token continues, int64, [batch, hypotheses, steps]; -1
            where there is no token.
        scores: float32, [batch, hypotheses]; minus infinity where there is no hypothesis.
    """

    ids: torch.Tensor
    beams: torch.Tensor
    scores: torch.Tensor

    def take(self, places: torch.Tensor, scores: torch.Tensor) -> "Hypotheses":
        """Those at these places of each sentence, both [batch, taken], with new scores."""
        ids, beams = (tensor.take_along_dim(places[:, :, None], dim=1) for tensor in (self.ids, self.beams))
        return Hypotheses(ids, beams, scores)

    def best(self, count: int) -> "Hypotheses":
        """Of each sentence the `count` best, best first."""
        scores, places = self.scores.topk(count)
        return self.take(places, scores)

    def first(self, count: int) -> "Hypotheses":
        """Of each sentence the first `count`."""
        return Hypotheses(self.ids[:, :count], self.beams[:, :count], self.scores[:, :count])

    def of(self, sentences: torch.Tensor) -> "Hypotheses":
        """Those of some of the sentences, by their places in the batch, [sentences]."""
        return Hypotheses(*(getattr(self, name)[sentences] for name in ("ids", "beams", "scores")))

    def put(self, sentences: torch.Tensor, others: "Hypotheses") -> None:
        """Replace those of some of the sentences."""
        for name in ("ids", "beams", "scores"):
            getattr(self, name)[sentences] = getattr(others, name)

    def and_also(self, others: "Hypotheses") -> "Hypotheses":
        """These and the others."""
        pairs = ((getattr(self, name), getattr(others, name)) for name in ("ids", "beams", "scores"))
        return Hypotheses(*(torch.cat(pair, dim=1) for pair in pairs))


def gnmt_beam_search(
    model: PreTrainedModel,
    input_ids: torch.LongTensor,
    logits_processor: LogitsProcessorList,
    stopping_criteria: StoppingCriteriaList,
    generation_config: GenerationConfig,
    tokens_beyond_source: int | None = TOKENS_BEYOND_SOURCE,
    final_streamer: BaseStreamer | None = None,
    **model_kwargs: Any,
) -> GenerateBeamEncoderDecoderOutput | torch.LongTensor:
    """Beam search that scores a hypothesis Y by log P(Y|X) / ((5 + |Y|) / 6)^alpha.

    To be passed to `generate()`, which prepares all arguments but `tokens_beyond_source` and `final_streamer`:
    `model.generate(**inputs, custom_generate=gnmt_beam_search, num_beams=4, length_penalty=0.6)`.

    The best continuations of the open hypotheses are found step by step. Those that end, and are among the best as many
    as there are beams, get their score; the search goes on with the best that do not end. It stops for a sentence when
    none of these can reach a score among the `num_return_sequences` best any more: exactly then, as long as each token
    lowers a log-probability, which a logits processor may change. Sentences of a batch do not influence each other.

    Args:
        model: An encoder-decoder model.
        input_ids: The decoder's prompt, [batch * beams, prompt length].
        logits_processor: Applied to the log-probabilities of each step, [batch * beams, vocabulary].
        stopping_criteria: What ends a hypothesis beside the limit.
        generation_config: Of which `length_penalty` is alpha. With one beam alpha is 0, and the search greedy.
            `early_stopping` has no meaning here.
        tokens_beyond_source: A hypothesis ends where it has so many tokens more than its source, or where
            `max_new_tokens` or `max_length` say so; None for these alone.
        final_streamer: Gets the prompt, and when the search is over the best sequence, token by token. (`generate()`
            does not hand its own `streamer` to a function.)
        **model_kwargs: What the model takes: `encoder_outputs`, `attention_mask`, the cache.

    Returns:
        The ids, [batch * num_return_sequences, length], best first, padded with `<pad>`. With `return_dict_in_generate`
        also `sequences_scores`, the scores as above, [batch * num_return_sequences], `beam_indices`, and on request
        what `generate()` has for any beam search, but for the cache.

    Raises:
        UserError: Sampling, which is not a search, or several sequences to stream.
    """
    if generation_config.do_sample:
        raise UserError("do_sample is set, but gnmt_beam_search does not sample; leave out one of the two")
    beams = generation_config.num_beams
    alpha = generation_config.length_penalty if beams > 1 else 0.0
    wanted = generation_config.num_return_sequences
    if final_streamer is not None:
        if wanted > 1:
            raise UserError(
                f"num_return_sequences is {wanted}, but final_streamer takes one sequence; leave out one of them"
            )
        final_streamer.put(input_ids[::beams].cpu())
    prompt_length = input_ids.shape[1]
    batch = input_ids.shape[0] // beams
    limits = _limits(generation_config, model_kwargs, prompt_length, tokens_beyond_source, batch)
    steps = int(limits.max())
    divisors = gnmt_length_penalty(limits, alpha)  # at the greatest length, [batch]
    first_beam = torch.arange(batch, device=input_ids.device)[:, None] * beams  # [batch, 1]
    eos = generation_config._eos_token_tensor
    candidates = beams * (2 if eos is None else 1 + len(eos))  # so that enough are left when each beam ends in each way

    ids = input_ids.new_full((batch, beams, prompt_length + steps), int(generation_config._pad_token_tensor))
    ids[:, :, :prompt_length] = input_ids.view(batch, beams, prompt_length)
    none = torch.full((batch, beams), -torch.inf, device=input_ids.device)
    ended = Hypotheses(ids, input_ids.new_full((batch, beams, steps), -1), none)
    # All beams begin alike: only the first of them is a hypothesis.
    running = replace(ended, scores=none.index_fill(1, first_beam.new_zeros(1), 0.0))
    settled = ended  # of all sentences; the other variables lose those that are settled
    open_sentences = torch.arange(batch, device=input_ids.device)
    decoder = _decoder(model, model_kwargs, generation_config, input_ids, beams, steps)
    may_shrink = _rows_are_free(decoder, generation_config, logits_processor, stopping_criteria)
    is_among_the_best = torch.arange(candidates, device=input_ids.device) < beams
    recorded: dict[str, tuple] = {}
    for step in range(steps):
        length = prompt_length + step
        written = running.ids[:, :, :length]
        log_probs = decoder.step(written, running.beams[:, :, :step])
        if logits_processor:
            rows = log_probs.expand(-1, beams, -1).flatten(0, 1)
            log_probs = logits_processor(written.flatten(0, 1), rows).unflatten(0, (batch, beams))
        _record(recorded, generation_config, decoder, log_probs)

        scores, places, tokens = best_continuations(running.scores, log_probs, candidates)
        continued = running.take(places, scores)
        continued.ids[:, :, length] = tokens
        continued.beams[:, :, step] = places + first_beam
        ends = stopping_criteria(continued.ids[:, :, : length + 1].flatten(0, 1), recorded.get("scores"))
        ends = ends.view_as(scores) | (step + 1 >= limits)[:, None]

        if ends.any():
            ending = ends & is_among_the_best[: scores.shape[1]]
            penalized = (scores / gnmt_length_penalty(step + 1, alpha)).masked_fill(~ending, -torch.inf)
            ended = ended.and_also(replace(continued, scores=penalized)).best(beams)
            running = replace(continued, scores=scores.masked_fill(ends, -torch.inf)).best(beams)
        else:
            running = continued.first(beams)

        # At best a running hypothesis keeps its log-probability, and has the length that gives the best score then.
        reachable = running.scores[:, 0] / (divisors if alpha >= 0 else gnmt_length_penalty(step + 2, alpha))
        kept = (reachable > ended.scores[:, wanted - 1]).nonzero()[:, 0]
        if not len(kept):
            break
        if may_shrink and len(kept) <= SHRINK_TO * len(open_sentences):
            settled.put(open_sentences, ended)
            open_sentences, first_beam = open_sentences[kept], first_beam[kept]
            limits, divisors = limits[kept], divisors[kept]
            running, ended = running.of(kept), ended.of(kept)
            decoder.keep(kept)
    settled.put(open_sentences, ended)

    output = _output(settled, prompt_length, generation_config, model_kwargs, recorded)
    if final_streamer is not None:
        sequences = output.sequences if generation_config.return_dict_in_generate else output
        for tokens in sequences[:, prompt_length:].t().cpu():
            final_streamer.put(tokens)
        final_streamer.end()
    return output


def best_continuations(
    scores: torch.Tensor, log_probs: torch.Tensor, count: int
) -> tuple[torch.Tensor, torch.Tensor, torch.Tensor]:
    """Of each sentence the best continuations of all its beams, best first.

    The best of a beam are among those in the columns with the greatest maxima, when the vocabulary is laid out in
    `ROWS` rows: two small searches in the place of a large one.

    Args:
        scores: What the beams have so far, [batch, beams]; of the beams that `log_probs` has not, nothing is read.
        log_probs: Of the next token, [batch, beams or fewer, vocabulary].
        count: How many; fewer where there are not so many.

    Returns:
        Their scores, which beam each continues, and its token, each [batch, count].
    """
    batch, beams, vocab_size = log_probs.shape
    columns = vocab_size // ROWS
    kept = min(count, vocab_size)
    if columns > kept:
        whole = columns * ROWS
        maxima = log_probs[:, :, :whole].unflatten(2, (ROWS, columns)).amax(dim=2)
        starts = maxima.topk(kept, sorted=False).indices  # [batch, beams, kept]
        rows = torch.arange(0, whole, columns, device=scores.device)
        tokens = (starts[..., None] + rows).flatten(2)
        rest = torch.arange(whole, vocab_size, device=scores.device).expand(batch, beams, -1)
        tokens = torch.cat([tokens, rest], dim=2)
        values, places = log_probs.gather(2, tokens).topk(kept)
        tokens = tokens.gather(2, places)
    else:
        values, tokens = log_probs.topk(kept)
    continued = (scores[:, :beams, None] + values).flatten(1)
    best, places = continued.topk(min(count, continued.shape[1]))
    return best, places // kept, tokens.flatten(1).gather(1, places)


class CachedDecoder:
    """Any encoder-decoder model, through its `forward` and the cache that `generate()` prepared for it.

    Attributes:
        outputs: What the model gave at the last step.
    """

    def __init__(self, model: PreTrainedModel, model_kwargs: dict[str, Any]) -> None:
        self.model, self.model_kwargs = model, model_kwargs
        self.outputs: Seq2SeqLMOutput

    def step(self, written: torch.Tensor, continued: torch.Tensor) -> torch.Tensor:
        """As `IncrementalDecoder.step`."""
        batch, beams, steps = continued.shape
        cache = self.model_kwargs.get("past_key_values")
        if steps and cache is not None:
            places = continued[:, :, -1].flatten()
            if hasattr(self.model, "_reorder_cache"):
                self.model._reorder_cache(cache, places)
            else:
                cache.reorder_cache(places)
        newest = 1 if steps and self.model_kwargs["use_cache"] else None
        inputs = self.model.prepare_inputs_for_generation(
            written.flatten(0, 1), next_sequence_length=newest, **self.model_kwargs
        )
        self.outputs = self.model(**inputs, return_dict=True)
        self.model_kwargs = self.model._update_model_kwargs_for_generation(
            self.outputs, self.model_kwargs, is_encoder_decoder=True
        )
        return F.log_softmax(self.outputs.logits[:, -1].float(), dim=-1).unflatten(0, (batch, beams))


def _decoder(
    model: PreTrainedModel,
    model_kwargs: dict[str, Any],
    generation_config: GenerationConfig,
    prompt: torch.Tensor,
    beams: int,
    steps: int,
) -> CachedDecoder | IncrementalDecoder:
    """The incremental one for our models, unless something is asked for that only `forward` and its cache give."""
    cache = model_kwargs.get("past_key_values")
    usual = {"encoder_outputs", "attention_mask", "past_key_values", "use_cache", "logits_to_keep"}
    if (
        prompt.shape[1] == 1
        and not any(getattr(generation_config, f"output_{name}") for name in ("logits", "attentions", "hidden_states"))
        and all(value is None or name in usual for name, value in model_kwargs.items())
        and isinstance(cache, EncoderDecoderCache)
        and type(cache.self_attention_cache) is DynamicCache
        and cache.get_seq_length() == 0
        and is_plain(model)
    ):
        memory = model_kwargs["encoder_outputs"].last_hidden_state
        return IncrementalDecoder(model, memory, model_kwargs.get("attention_mask"), beams, steps)
    return CachedDecoder(model, model_kwargs)


def _rows_are_free(
    decoder: CachedDecoder | IncrementalDecoder,
    generation_config: GenerationConfig,
    logits_processor: LogitsProcessorList,
    stopping_criteria: StoppingCriteriaList,
) -> bool:
    """Whether a sentence may leave the batch when it is settled: nobody else counts the batch's rows."""
    usual = (MaxLengthCriteria, EosTokenCriteria)
    return (
        isinstance(decoder, IncrementalDecoder)
        and not logits_processor
        and not generation_config.output_scores
        and all(type(criterion) in usual for criterion in stopping_criteria)
    )


def _limits(
    generation_config: GenerationConfig,
    model_kwargs: dict[str, Any],
    prompt_length: int,
    tokens_beyond_source: int | None,
    batch: int,
) -> torch.Tensor:
    """The most tokens that may be generated for each source, int64, [batch]."""
    memory, mask = model_kwargs["encoder_outputs"].last_hidden_state, model_kwargs.get("attention_mask")
    source_lengths = (memory.new_ones(memory.shape[:2]) if mask is None else mask.to(memory.device)).long().sum(dim=1)
    source_lengths = source_lengths.view(batch, -1)[:, 0]  # some models have the source once for each beam
    limits = torch.full_like(source_lengths, generation_config.max_length - prompt_length)
    return limits if tokens_beyond_source is None else limits.minimum(source_lengths + tokens_beyond_source)


def _record(
    recorded: dict[str, tuple],
    generation_config: GenerationConfig,
    decoder: CachedDecoder | IncrementalDecoder,
    log_probs: torch.Tensor,
) -> None:
    """Add a step to each of the outputs that are asked for."""
    step = {}
    if generation_config.output_scores:
        step["scores"] = log_probs.expand(-1, generation_config.num_beams, -1).flatten(0, 1).clone()
    if generation_config.output_logits:
        step["logits"] = decoder.outputs.logits[:, -1].float()
    if generation_config.output_attentions:
        step |= {name: decoder.outputs[name] for name in ("decoder_attentions", "cross_attentions")}
    if generation_config.output_hidden_states:
        step["decoder_hidden_states"] = decoder.outputs.decoder_hidden_states
    for name, value in step.items():
        recorded[name] = (*recorded.get(name, ()), value)


def _output(
    ended: Hypotheses,
    prompt_length: int,
    generation_config: GenerationConfig,
    model_kwargs: dict[str, Any],
    recorded: dict[str, tuple],
) -> GenerateBeamEncoderDecoderOutput | torch.LongTensor:
    """What `generate()` returns, cut to the longest of the hypotheses that are wanted."""
    wanted = slice(generation_config.num_return_sequences)
    beam_indices = ended.beams[:, wanted].flatten(0, 1)
    longest = int((beam_indices >= 0).sum(dim=1).max())
    sequences = ended.ids[:, wanted, : prompt_length + longest].flatten(0, 1)
    if not generation_config.return_dict_in_generate:
        return sequences
    encoder_outputs = model_kwargs["encoder_outputs"]
    return GenerateBeamEncoderDecoderOutput(
        sequences=sequences,
        sequences_scores=ended.scores[:, wanted].flatten(),
        beam_indices=beam_indices[:, :longest],
        encoder_attentions=encoder_outputs.get("attentions") if generation_config.output_attentions else None,
        encoder_hidden_states=encoder_outputs.get("hidden_states") if generation_config.output_hidden_states else None,
        **recorded,
    )
