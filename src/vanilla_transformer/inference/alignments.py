"""Word alignments: which words of the source a translation's words come from, by encoder-decoder attention.

An alignment is what other tools write as `0-0 1-2`: pairs of a source word and a target word, counted from 0.
"""

import copy
from collections.abc import Iterator, Sequence
from functools import partial
from itertools import pairwise
from types import MethodType
from typing import Any
from unicodedata import category

import torch
from torch import nn
from transformers import PreTrainedConfig, PreTrainedModel, PreTrainedTokenizerBase

from ..data.normal_form import normalize_sources
from ..data.sources import pad_sources, prepare_sources
from ..errors import UserError

Alignment = tuple[tuple[int, int], ...]  # (source word, target word), in the order of the target
Span = tuple[int, int]  # the first character of a piece of text, and the one after its last

MAX_WEIGHTS = 2**25  # Attention weights that are held at once, of all layers and heads, if one sentence has no more.

# Thai and Lao, Burmese, Khmer, Japanese kana, Chinese characters (four blocks), narrow kana.
UNSPACED_SCRIPTS = (
    (0x0E00, 0x0EFF),
    (0x1000, 0x109F),
    (0x1780, 0x17FF),
    (0x3040, 0x30FF),
    (0x3400, 0x4DBF),
    (0x4E00, 0x9FFF),
    (0xF900, 0xFAFF),
    (0x20000, 0x323AF),
    (0xFF66, 0xFF9F),
)


def format_alignment(alignment: Alignment) -> str:
    """Write an alignment in the Pharaoh format, such as "0-0 1-2"."""
    return " ".join(f"{source}-{target}" for source, target in alignment)


def split_into_words(text: str) -> list[str]:
    """List the words that alignments count: those between white space, as `str.split()` finds them.

    A character of a script that is written without spaces (Chinese, Japanese kana, Thai, Lao, Khmer, Burmese) is a word
    of its own, with the marks that follow it.
    """
    return [text[start:end] for start, end in word_spans(text)]


def word_spans(text: str) -> list[Span]:
    """Find where the words of `split_into_words` begin and end."""
    spans: list[Span] = []
    joins = False  # whether the next character can belong to the last word
    for index, character in enumerate(text):
        if character.isspace():
            joins = False
            continue
        unspaced = _is_unspaced(character)
        is_mark = category(character).startswith("M") and bool(spans) and spans[-1][1] == index
        if is_mark or (joins and not unspaced):
            spans[-1] = (spans[-1][0], index + 1)
        else:
            spans.append((index, index + 1))
            joins = not unspaced
    return spans


def _is_unspaced(character: str) -> bool:
    return any(first <= ord(character) <= last for first, last in UNSPACED_SCRIPTS)


def align(
    model: PreTrainedModel,
    tokenizer: PreTrainedTokenizerBase,
    sources: Sequence[str],
    source_ids: Sequence[list[int]],
    sequences: torch.Tensor,
    target_lang: str | None = None,
) -> list[Alignment]:
    """Align each word of a translation to the source word that gets most of its encoder-decoder attention.

    The weights are those of the decoder's last layer but one, the mean of its heads, when the word's tokens are
    predicted. They are computed in one forward pass over the translations as they are, so they depend neither on the
    search nor on the attention implementation.

    Args:
        model: The model, in eval mode.
        tokenizer: Its tokenizer.
        sources: The texts.
        source_ids: Their token ids.
        sequences: What `generate()` wrote, the start token first: int64, [sources * n, length], n for each source.
        target_lang: The language whose tag was put before the texts; it is no word of theirs.

    Returns:
        An alignment for each sequence, with one source word for each target word.

    Raises:
        UserError: The model gives no attention weights.
    """
    readable = with_attention_weights(model)
    texts = normalize_sources(tokenizer, sources)
    read = prepare_sources(tokenizer, sources, target_lang)
    members = [
        _members(word_spans(text), source_token_spans(tokenizer, whole, ids, len(whole) - len(text)))
        for text, whole, ids in zip(texts, read, source_ids, strict=True)
    ]
    per_source = len(sequences) // len(texts)
    rows = [
        (source_ids[row // per_source], ids, members[row // per_source]) for row, ids in enumerate(sequences.tolist())
    ]
    alignments = []
    for chunk in _chunks(model.config, rows):
        weights = _attention(readable, tokenizer.pad_token_id, [row[0] for row in chunk], [row[1] for row in chunk])
        for (ids, sequence, source_words), of_row in zip(chunk, weights, strict=True):
            text, spans = target_token_spans(tokenizer, sequence[1:])
            target_words = _members(word_spans(text), spans)
            alignments.append(_strongest(of_row[: len(spans), : len(ids)], source_words, target_words))
    return alignments


Row = tuple[list[int], list[int], torch.Tensor]  # token ids of source and target, and the source's `_members`


def _chunks(config: PreTrainedConfig, rows: list[Row]) -> Iterator[list[Row]]:
    """Cut rows into lists whose attention weights fit into `MAX_WEIGHTS`."""
    heads = config.num_hidden_layers * config.num_attention_heads
    chunk: list[Row] = []
    longest = 0
    for row in rows:
        longest = max(longest, len(row[0]) + len(row[1]))
        if chunk and (len(chunk) + 1) * heads * longest**2 > MAX_WEIGHTS:
            yield chunk
            chunk, longest = [], len(row[0]) + len(row[1])
        chunk.append(row)
    if chunk:
        yield chunk


def _attention(model: Any, pad_token_id: int, source_ids: list[list[int]], sequences: list[list[int]]) -> torch.Tensor:
    """Compute what attends to what when each token is predicted, float32 on the CPU, [rows, targets, sources].

    The target is without the start token: row 0 is the first token that was written.
    """
    decoder_input_ids = torch.tensor(sequences)[:, :-1]  # the last token is never read
    decoder_input_ids = decoder_input_ids.masked_fill(decoder_input_ids < 0, pad_token_id)
    with torch.inference_mode():
        outputs = model(
            **pad_sources(source_ids, pad_token_id, model.device),
            decoder_input_ids=decoder_input_ids.to(model.device),
            output_attentions=True,
            use_cache=False,
        )
    layers = outputs.cross_attentions
    if not layers or layers[0] is None:
        raise UserError(
            "the model gives no attention weights, so there are no alignments; load it with attn_implementation='eager'"
        )
    return layers[max(0, len(layers) - 2)].float().mean(dim=1).cpu()  # docs/decisions.md has all layers


def _members(words: list[Span], tokens: list[Span]) -> torch.Tensor:
    """Compute which share of each token belongs to each word, [words, tokens].

    With the text "no, no" and the tokens "no" "," " no": [[1, 1, 0], [0, 0, 1]]. A token of white space or of no text
    is in none; one over several words, as in text without spaces, is in each by its characters.
    """
    shares = torch.zeros(len(words), len(tokens))
    for token, (start, end) in enumerate(tokens):
        for word, (first, last) in enumerate(words):
            shares[word, token] = max(0, min(end, last) - max(start, first))
    return shares / shares.sum(dim=0).clamp(min=1)


def _strongest(weights: torch.Tensor, source_words: torch.Tensor, target_words: torch.Tensor) -> Alignment:
    """Choose a source word for each target word: the sum over its tokens, the mean over the target word's."""
    if not len(source_words):
        return ()
    targets = target_words / target_words.sum(dim=1, keepdim=True)
    of_words = targets @ weights @ source_words.t()  # [target words, source words]
    return tuple((source, target) for target, source in enumerate(of_words.argmax(dim=1).tolist()))


def source_token_spans(tokenizer: PreTrainedTokenizerBase, text: str, ids: list[int], skipped: int = 0) -> list[Span]:
    """Find which characters of the text each token stands for; (0, 0) for those that are no part of it, as `</s>`.

    Args:
        tokenizer: A fast tokenizer.
        text: The source, as it was tokenized.
        ids: Its token ids; the last ones before `</s>` may have been cut off.
        skipped: How many characters at the beginning do not count.
    """
    offsets = tokenizer(text, return_offsets_mapping=True, verbose=False)["offset_mapping"][: len(ids) - 1]
    return [*((max(0, start - skipped), max(0, end - skipped)) for start, end in offsets), (0, 0)]


def target_token_spans(tokenizer: PreTrainedTokenizerBase, ids: list[int]) -> tuple[str, list[Span]]:
    """Decode a translation, and find which characters of the text each token stands for.

    A token that ends in the middle of a character, as bytes do, stands for that character. Special tokens stand for
    none: (0, 0).
    """
    starts = [str(tokenizer.decode(ids[:count], skip_special_tokens=True)) for count in range(len(ids) + 1)]
    text, special, spans = starts[-1], set(tokenizer.all_special_ids), []
    for token_id, (before, after) in zip(ids, pairwise(starts), strict=True):
        end = min(len(after), len(text))
        spans.append((0, 0) if token_id in special else (max(0, min(len(before), end - 1)), end))
    return text, spans


def with_attention_weights(model: PreTrainedModel) -> PreTrainedModel:
    """Return the model with an attention that gives weights; the model itself stays as it is, for other threads.

    Unless its attention is "eager" already, this is a second set of modules around the same parameters and hooks.
    """
    if model.config._attn_implementation == "eager":
        return model
    twins: dict[int, Any] = {}  # by the id of a module or a config
    return _twin(model, twins)


def _twin(value: Any, twins: dict[int, Any]) -> Any:
    """Copy a module with all inside, but for its parameters and buffers; what is bound to it is bound to the copy."""
    if id(value) in twins:
        return twins[id(value)]
    twin: Any = value
    if isinstance(value, PreTrainedConfig):
        twin = twins[id(value)] = copy.deepcopy(value)
        twin._attn_implementation = "eager"
    elif isinstance(value, nn.Module):
        twin = twins[id(value)] = object.__new__(type(value))
        for name, attribute in vars(value).items():
            vars(twin)[name] = _twin(attribute, twins)
        vars(twin)["_modules"] = {name: _twin(module, twins) for name, module in value._modules.items()}
    elif isinstance(value, MethodType) and id(value.__self__) in twins:
        twin = MethodType(value.__func__, twins[id(value.__self__)])
    elif isinstance(value, partial):  # as accelerate puts it before a forward, to load weights when they are needed
        twin = partial(value.func, *(twins.get(id(each), each) for each in value.args), **value.keywords)
    elif isinstance(value, dict):  # such as the table of hooks
        twin = copy.copy(value)
    return twin
