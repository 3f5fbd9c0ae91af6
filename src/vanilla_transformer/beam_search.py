"""The paper's search (section 6.1): beam search with the length penalty of Wu et al. 2016, behind `generate()`."""

from dataclasses import dataclass, replace
from typing import Any

import torch
from torch.nn import functional as F
from transformers import GenerationConfig, LogitsProcessorList, PreTrainedModel, StoppingCriteriaList
from transformers.generation import GenerateBeamEncoderDecoderOutput
from transformers.modeling_outputs import Seq2SeqLMOutput

from .errors import UserError

TOKENS_BEYOND_SOURCE = 50  # "maximum output length during inference to input length + 50"


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
    **model_kwargs: Any,
) -> GenerateBeamEncoderDecoderOutput | torch.LongTensor:
    """Beam search that scores a hypothesis Y by log P(Y|X) / ((5 + |Y|) / 6)^alpha.

    To be passed to `generate()`, which prepares all arguments but `tokens_beyond_source`:
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
        generation_config: Of which `length_penalty` is alpha. `early_stopping` has no meaning here.
        tokens_beyond_source: A hypothesis ends where it has so many tokens more than its source, or where
            `max_new_tokens` or `max_length` say so; None for these alone.
        **model_kwargs: What the model takes: `encoder_outputs`, `attention_mask`, the cache.

    Returns:
        The ids, [batch * num_return_sequences, length], best first, padded with `<pad>`. With `return_dict_in_generate`
        also `beam_indices`, and on request what `generate()` has for any beam search; of these `sequences_scores`, the
        scores as above, [batch * num_return_sequences], come with `output_scores`.

    Raises:
        UserError: Sampling, which is not a search.
    """
    if generation_config.do_sample:
        raise UserError("do_sample is set, but gnmt_beam_search does not sample; leave out one of the two")
    beams, alpha = generation_config.num_beams, generation_config.length_penalty
    prompt_length = input_ids.shape[1]
    batch = input_ids.shape[0] // beams
    limits = _limits(generation_config, model_kwargs, prompt_length, tokens_beyond_source)[::beams]  # [batch]
    steps = int(limits.max())
    first_beam = torch.arange(batch, device=input_ids.device)[:, None] * beams  # [batch, 1]
    eos = generation_config._eos_token_tensor
    candidates = beams * (2 if eos is None else 1 + len(eos))  # so that enough are left when each beam ends in each way

    ids = input_ids.new_full((batch, beams, prompt_length + steps), int(generation_config._pad_token_tensor))
    ids[:, :, :prompt_length] = input_ids.view(batch, beams, prompt_length)
    none = torch.full((batch, beams), -torch.inf, device=input_ids.device)
    ended = Hypotheses(ids, input_ids.new_full((batch, beams, steps), -1), none)
    # All beams begin alike: only the first of them is a hypothesis.
    running = replace(ended, scores=none.index_fill(1, first_beam.new_zeros(1), 0.0))
    recorded: dict[str, tuple] = {}
    for step in range(steps):
        length = prompt_length + step
        written = running.ids[:, :, :length].flatten(0, 1)
        inputs = model.prepare_inputs_for_generation(
            written, next_sequence_length=1 if step and model_kwargs["use_cache"] else None, **model_kwargs
        )
        outputs = model(**inputs, return_dict=True)
        model_kwargs = model._update_model_kwargs_for_generation(outputs, model_kwargs, is_encoder_decoder=True)
        log_probs = logits_processor(written, F.log_softmax(outputs.logits[:, -1].float(), dim=-1))
        _record(recorded, generation_config, outputs, log_probs)

        vocab_size = log_probs.shape[-1]
        continuations = (running.scores[:, :, None] + log_probs.view(batch, beams, vocab_size)).flatten(1)
        scores, places = continuations.topk(min(candidates, continuations.shape[1]))
        continued = running.take(places // vocab_size, scores)
        continued.ids[:, :, length] = places % vocab_size
        continued.beams[:, :, step] = places // vocab_size + first_beam
        ends = stopping_criteria(continued.ids[:, :, : length + 1].flatten(0, 1), recorded.get("scores"))
        ends = ends.view_as(scores) | (step + 1 >= limits)[:, None]

        ending = ends & (torch.arange(scores.shape[1], device=scores.device) < beams)
        penalized = (scores / gnmt_length_penalty(step + 1, alpha)).masked_fill(~ending, -torch.inf)
        ended = ended.and_also(replace(continued, scores=penalized)).best(beams)
        running = replace(continued, scores=scores.masked_fill(ends, -torch.inf)).best(beams)

        # At best a running hypothesis keeps its log-probability, and has the length that gives the best score then.
        best_lengths = limits if alpha >= 0 else torch.full_like(limits, step + 2)
        reachable = running.scores[:, 0] / gnmt_length_penalty(best_lengths, alpha)
        if (reachable <= ended.scores[:, generation_config.num_return_sequences - 1]).all():
            break
        if model_kwargs.get("past_key_values") is not None:
            model_kwargs["past_key_values"].reorder_cache(running.beams[:, :, step].flatten())

    return _output(ended, prompt_length, generation_config, model_kwargs, recorded)


def _limits(
    generation_config: GenerationConfig,
    model_kwargs: dict[str, Any],
    prompt_length: int,
    tokens_beyond_source: int | None,
) -> torch.Tensor:
    """The most tokens that may be generated for each source, int64, [batch * beams]."""
    memory, mask = model_kwargs["encoder_outputs"].last_hidden_state, model_kwargs.get("attention_mask")
    source_lengths = (memory.new_ones(memory.shape[:2]) if mask is None else mask.to(memory.device)).long().sum(dim=1)
    limits = torch.full_like(source_lengths, generation_config.max_length - prompt_length)
    return limits if tokens_beyond_source is None else limits.minimum(source_lengths + tokens_beyond_source)


def _record(
    recorded: dict[str, tuple], generation_config: GenerationConfig, outputs: Seq2SeqLMOutput, log_probs: torch.Tensor
) -> None:
    """Add a step to each of the outputs that are asked for."""
    step = {
        "scores": log_probs if generation_config.output_scores else None,
        "logits": outputs.logits[:, -1].float() if generation_config.output_logits else None,
        "decoder_attentions": outputs.decoder_attentions if generation_config.output_attentions else None,
        "cross_attentions": outputs.cross_attentions if generation_config.output_attentions else None,
        "decoder_hidden_states": outputs.decoder_hidden_states if generation_config.output_hidden_states else None,
    }
    for name, value in step.items():
        if value is not None:
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
        sequences_scores=ended.scores[:, wanted].flatten() if generation_config.output_scores else None,
        beam_indices=beam_indices[:, :longest],
        encoder_attentions=encoder_outputs.get("attentions") if generation_config.output_attentions else None,
        encoder_hidden_states=encoder_outputs.get("hidden_states") if generation_config.output_hidden_states else None,
        past_key_values=model_kwargs.get("past_key_values"),
        **recorded,
    )
