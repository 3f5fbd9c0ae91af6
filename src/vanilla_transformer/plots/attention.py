"""Attention weights with their tokens, and pictures of them."""

import logging
import textwrap
from collections.abc import Iterable
from dataclasses import dataclass
from pathlib import Path
from typing import TYPE_CHECKING, Any
from unicodedata import category, east_asian_width

import numpy as np
import torch
from transformers import PreTrainedModel, PreTrainedTokenizerBase
from transformers.convert_slow_tokenizer import bytes_to_unicode

from ..data.normal_form import missed_form
from ..data.sources import prepare_sources
from ..errors import UserError, require
from ..eval_mode_vanilla_transformer import eval_mode
from ..generation_vanilla_transformer import gnmt_beam_search, search_settings
from ..inference.alignments import with_attention_weights
from ..inference.settings import new_tokens_limit
from ..language_tags_vanilla_transformer import is_blank
from ..modeling_vanilla_transformer import shift_right
from .figures import DPI

if TYPE_CHECKING:
    from matplotlib.figure import Figure


logger = logging.getLogger(__name__)


OWN_FONT = "DejaVu Sans"  # comes with matplotlib


SPACE, NO_GLYPH = "\u2423", "\u25a1"  # an open box and a square, which that font has


BYTES = {character: byte for byte, character in bytes_to_unicode().items()}  # a byte-level tokenizer's alphabet


# Kind of attention: heading, which tokens attend, and which are attended to.
KINDS = {
    "encoder": ("Encoder self-attention", "source", "source"),
    "decoder": ("Decoder self-attention", "target", "target"),
    "cross": ("Encoder-decoder attention", "target", "source"),
}


ROWS = {
    "source": "A row: what one source token attends to.",
    "target": "A row: what the decoder attends to, having read that token and predicting the next.",
}


POINTS = 8  # of the labels


PAD = 0.08  # around each picture; inches, as below


INCHES_PER_LABEL, INCHES_WITHOUT_LABELS = 0.14, 2.5


MOST_LABELS, MOST_INCHES = 40, 30  # beside one picture, and of all that stand in a row


@dataclass(frozen=True)
class AttentionMaps:
    """The weights of equation 1 in each layer and head, for one source and target.

    Attributes:
        source_tokens: What the encoder reads, in readable form.
        target_tokens: What the decoder reads: the target shifted right, so that the row of a token is what was attended
            to when the next one was predicted.
        encoder: Encoder self-attention, float32 on the CPU, [layers, heads, source length, source length]. Here and
            below the query comes first, and each row sums to 1.
        decoder: Decoder self-attention, [layers, heads, target length, target length]; 0 above the diagonal.
        cross: Encoder-decoder attention, [layers, heads, target length, source length].
    """

    source_tokens: tuple[str, ...]
    target_tokens: tuple[str, ...]
    encoder: torch.Tensor
    decoder: torch.Tensor
    cross: torch.Tensor


def attention_maps(
    model: PreTrainedModel, tokenizer: PreTrainedTokenizerBase, source: str, target: str | None = None
) -> AttentionMaps:
    """Run the model over a source and a target, and keep what attends to what.

    Args:
        model: The model, on any device, in any dtype and mode and with any attention implementation; its mode is
            restored.
        tokenizer: The model's tokenizer.
        source: One text.
        target: Its translation; by default the model's own, as `translate` gives it.

    Raises:
        UserError: A blank source or target, or a source that begins with a tag that the model does not know.
        TypeError: Several texts in place of one.
    """
    texts = {"source": source} if target is None else {"source": source, "target": target}
    for name, text in texts.items():
        if not isinstance(text, str):
            raise TypeError(f"attention_maps() takes one {name}, a string; this is a {type(text).__name__}")
        if is_blank(text):
            raise UserError(f"the {name} is blank; there is nothing that could attend to anything")
    input_ids = _ids(model, tokenizer, *prepare_sources(tokenizer, [source]))
    inputs = {"input_ids": input_ids, "attention_mask": torch.ones_like(input_ids)}
    with eval_mode(model), torch.inference_mode():
        if target is None:
            own = model.generation_config
            search = {"custom_generate": gnmt_beam_search, **search_settings(own.num_beams, own.length_penalty)}
            if new_tokens_limit(own) is not None:  # which counts alone, as in translate
                search["tokens_beyond_source"] = None
            written = model.generate(**inputs, **search, num_return_sequences=1, do_sample=False)  # type: ignore[operator] # GenerationMixin
            decoder_input_ids = written[:, :-1]  # the last token is never read
        else:
            if (form := missed_form(tokenizer, target)) is not None:
                logger.warning("the target is not in Unicode normal form %s, which the model was trained on", form)
            labels = _ids(model, tokenizer, target)
            decoder_input_ids = shift_right(labels, model.config.pad_token_id, model.config.decoder_start_token_id)
        readable: Any = with_attention_weights(model)
        outputs = readable(**inputs, decoder_input_ids=decoder_input_ids, output_attentions=True, use_cache=False)
    stacks = (outputs.encoder_attentions, outputs.decoder_attentions, outputs.cross_attentions)
    return AttentionMaps(
        token_labels(tokenizer, input_ids[0].tolist()),
        token_labels(tokenizer, decoder_input_ids[0].tolist()),
        *(torch.cat(layers).float().cpu() for layers in stacks),
    )


def _ids(model: PreTrainedModel, tokenizer: PreTrainedTokenizerBase, text: str) -> torch.Tensor:
    """int64 of shape [1, length], on the model's device."""
    return torch.tensor([tokenizer(text, verbose=False)["input_ids"]], device=model.device)


def token_labels(tokenizer: PreTrainedTokenizerBase, token_ids: Iterable[int]) -> tuple[str, ...]:
    r"""Each token as readable text.

    Spaces become U+2423, and what can't be seen (line breaks, control characters, bytes that are no whole character) is
    escaped as in Python: "\n", "\u200b", "\xe2\x82".

    Args:
        tokenizer: The tokenizer, byte-level or not.
        token_ids: The tokens' ids.
    """
    return tuple(_label(tokenizer, token_id) for token_id in token_ids)


def _label(tokenizer: PreTrainedTokenizerBase, token_id: int) -> str:
    text, token = tokenizer.decode([token_id]), tokenizer.convert_ids_to_tokens(token_id)
    if "\ufffd" in text and BYTES.keys() >= set(token):
        text = bytes(BYTES[character] for character in token).decode("utf-8", errors="backslashreplace")
    return "".join(_visible(character) for character in text)


def _visible(character: str) -> str:
    if character == " ":
        return SPACE
    unseen = category(character)[0] in "CZ"  # control, format, unassigned; separators
    return character.encode("unicode_escape").decode() if unseen else character


def plot_attention(maps: AttentionMaps, kind: str) -> "Figure":
    """Draw one kind of attention: a row of pictures for each layer, a column for each head.

    Tokens label the sides that have room for them; otherwise positions do, and the picture says so.

    Args:
        maps: What `attention_maps` gave.
        kind: "encoder", "decoder" or "cross".

    Returns:
        A matplotlib figure, for `save_figure`.

    Raises:
        UserError: An unknown kind, or matplotlib is not installed.
    """
    if kind not in KINDS:
        raise UserError(f"there is no kind of attention {kind!r}; there are {', '.join(KINDS)}")
    heading, query, key = KINDS[kind]
    weights, tokens = getattr(maps, kind), {"source": maps.source_tokens, "target": maps.target_tokens}
    if kind == "decoder":
        weights = weights.masked_fill(torch.ones_like(weights, dtype=torch.bool).triu(1), torch.nan)
    layers, heads, rows, columns = weights.shape
    row_labels, height = _labels_and_inches(tokens[query], layers)
    column_labels, width = _labels_and_inches(tokens[key], heads)
    merged = rows > height * DPI or columns > width * DPI

    size = (max(7.0, heads * width + 2 + _longest(row_labels)), layers * height + 1.8 + _longest(column_labels))
    points = 8 + size[0] / 4  # so that a large picture, shrunk to a slide, has a readable heading
    figure = require("matplotlib.figure", "plots").Figure(size, layout="constrained")
    figure.get_layout_engine().set(w_pad=PAD, h_pad=PAD, wspace=0, hspace=0)
    axes = figure.subplots(layers, heads, squeeze=False)
    style = {
        "cmap": require("matplotlib", "plots").colormaps["Blues"].with_extremes(bad="0.85"),
        "interpolation": "auto" if merged else "nearest",
    }
    for (layer, head), axis in np.ndenumerate(axes):
        image = axis.imshow(weights[layer, head].numpy(), vmin=0, vmax=1, aspect="auto", **style)
        axis.set_title(f"head {head + 1}" if layer == 0 else "", fontsize=points)
        axis.set_ylabel(f"layer {layer + 1}" if head == 0 else "", fontsize=points)
    _write_labels(axes, row_labels, column_labels)

    notes = [ROWS[query], "It sums to 1." + (" Grey: later tokens, which are masked." if kind == "decoder" else "")]
    unlabelled = ([] if row_labels else [f"{rows} rows"]) + ([] if column_labels else [f"{columns} columns"])
    if unlabelled:
        neighbours = ", and neighbours are drawn as one" if merged else ""
        notes.append(f"{' and '.join(unlabelled)} are too many to label: the numbers are positions{neighbours}.")
    characters_per_line = int(size[0] * 72 / (0.6 * points))
    figure.suptitle(f"{heading}: {query} (rows) to {key} (columns)", fontsize=1.3 * points)
    figure.supxlabel("\n".join(textwrap.fill(note, characters_per_line) for note in notes), fontsize=points)
    figure.colorbar(image, ax=axes, shrink=0.8).set_label("attention weight", fontsize=points)
    return figure


def _labels_and_inches(labels: tuple[str, ...], pictures: int) -> tuple[tuple[str, ...], float]:
    """The labels, or none if they are too many beside so many pictures, and how high or wide one picture is."""
    room = MOST_INCHES / pictures
    if len(labels) > MOST_LABELS or INCHES_PER_LABEL * len(labels) > room:
        return (), min(INCHES_WITHOUT_LABELS, room)
    return labels, max(1.0, INCHES_PER_LABEL * len(labels)) + 2 * PAD


def _longest(labels: tuple[str, ...]) -> float:
    """About how long the longest label is, in inches: letters of Chinese, Japanese and Korean are square."""
    widths = {"W": 1.0, "F": 1.0}
    return POINTS / 72 * max((sum(widths.get(east_asian_width(c), 0.65) for c in label) for label in labels), default=0)


def _write_labels(axes: np.ndarray, row_labels: tuple[str, ...], column_labels: tuple[str, ...]) -> None:
    """Put labels on the left and below; positions stay where there are none."""
    families, squares = _fonts(row_labels + column_labels)
    text = {"fontsize": POINTS, "family": families, "parse_math": False}
    for axis in axes[:, 0] if row_labels else ():
        axis.set_yticks(range(len(row_labels)), [label.translate(squares) for label in row_labels], **text)
    for axis in axes[-1] if column_labels else ():
        labels = [label.translate(squares) for label in column_labels]
        axis.set_xticks(range(len(labels)), labels, rotation=90, **text)
    for axis in axes[:, 1:].flat:
        axis.set_yticks([])
    for axis in axes[:-1].flat:
        axis.set_xticks([])


def _fonts(labels: Iterable[str]) -> tuple[list[str], dict[int, str]]:
    """The font families that draw some labels, and what puts a square in place of each character that no font has.

    matplotlib's own font comes first; where it lacks a character, those that are installed are looked through.
    """
    manager = require("matplotlib.font_manager", "plots")
    families, missing = [OWN_FONT], set("".join(labels)) - _characters(manager.findfont(OWN_FONT))
    bundled = require("matplotlib", "plots").get_data_path()  # its other fonts are for formulas, or draw placeholders
    installed = [font for font in manager.fontManager.ttflist if not Path(font.fname).is_relative_to(bundled)]
    for font in sorted(installed, key=lambda font: (not font.name.startswith("Noto Sans"), font.name)):
        if missing and missing & (characters := _characters(font.fname)):
            families.append(font.name)
            missing -= characters
    if missing:
        logger.warning(
            "no installed font has %s, drawn as %s; install one that does, such as one of the Noto fonts",
            "".join(sorted(missing)),
            NO_GLYPH,
        )
    return families, str.maketrans(dict.fromkeys(missing, NO_GLYPH))


def _characters(path: str) -> set[str]:
    """What a font can draw at any size; nothing if it is not that kind of font."""
    try:
        font = require("matplotlib.ft2font", "plots").FT2Font(path)
    except (OSError, RuntimeError):
        return set()
    return set(map(chr, font.get_charmap())) if font.scalable else set()
