"""Joint byte-level BPE for source and target, as a stock fast tokenizer.

The paper (section 5.1) shares one BPE vocabulary between both languages. Working on bytes rather than characters
means that no text is ever unknown and that decoding restores the encoded text exactly.
"""

from collections.abc import Iterable, Iterator, Sequence

import numpy as np
import torch
from tokenizers import Regex, Tokenizer, decoders, models, pre_tokenizers, processors, trainers
from transformers import PreTrainedTokenizerBase, TokenizersBackend

from ..errors import UserError

BOS_TOKEN, PAD_TOKEN, EOS_TOKEN, UNK_TOKEN = SPECIAL_TOKENS = ("<s>", "<pad>", "</s>", "<unk>")  # ids 0, 1, 2, 3
_WORD_END = "</w>"  # subword-nmt's mark after a word's last character

MIN_VOCAB_SIZE = len(SPECIAL_TOKENS) + len(pre_tokenizers.ByteLevel.alphabet())

# Texts that tokenizers commonly fail to restore; each new tokenizer is checked with them.
_HARD_STRINGS = (
    "",
    " ",
    "  leading, double  and trailing  ",
    "\ttabs\tand\nnew\r\nlines\n\n",
    "line separators \x0b \x0c \x1c \x85 \u2028 \u2029",
    "control characters \x00 \x07 \x1b[0m \x7f \ufeff \u200b \u200e \u202e \u00ad",
    "the special tokens as text: <s>a</s> <pad><pad>b <unk> </s>",
    "spaces before punctuation , like this . Isn 't it ? Do n't !",
    "combining e\u0301 a\u0308\u0323 and composed \u00e9 \u00e4; \ufb01 \u212b \u2460 \u3000",
    "emoji 👍🏽 👩‍👩‍👧‍👦 🏳️‍🌈 🇰🇷",
    "한국어 각 \u1100\u1161\u11a8 日本語 עִבְרִית العربية हिन्दी",
    "the byte alphabet's own letters Ġ Ċ Ā ▁ ##",
    "the ends of Unicode \ud7ff \ue000 \uffff \U00010000 \U0010ffff",
)


class PreTrainedTokenizerFast(TokenizersBackend):
    """The stock fast tokenizer under its transformers 4 name.

    A tokenizer is saved under the name of its class. transformers 5 has renamed the stock class to
    `TokenizersBackend`, which version 4 and other tools refuse; `PreTrainedTokenizerFast` loads in both. So do copies
    that this class's `from_pretrained` loads and saves again. `AutoTokenizer` returns the library's own class, which
    encodes and decodes the same but saves under the new name.
    """


def train_tokenizer(texts: Iterable[str], vocab_size: int) -> PreTrainedTokenizerFast:
    """Train a joint byte-level BPE tokenizer.

    The tokenizer appends `</s>` and nothing else, adds no `token_type_ids`, pads on the right, and encodes the names of
    special tokens inside a text (`"</s>"`, `"<pad>"`) as plain text. `decode(..., skip_special_tokens=True)` restores
    the encoded text exactly.

    Args:
        texts: Sentences of both languages, each read once and none kept.
        vocab_size: Number of types, special tokens and the 256 bytes included. A small corpus gives fewer, when no
            further pair of types occurs twice.

    Returns:
        The tokenizer, with the ids `<s>` 0, `<pad>` 1, `</s>` 2 and `<unk>` 3.

    Raises:
        UserError: `vocab_size` has no room for the special tokens and the bytes, or there is no text in `texts`.
    """
    if vocab_size < MIN_VOCAB_SIZE:
        raise UserError(
            f"vocab_size is {vocab_size}, but {len(SPECIAL_TOKENS)} special tokens and "
            f"{MIN_VOCAB_SIZE - len(SPECIAL_TOKENS)} bytes need at least {MIN_VOCAB_SIZE}"
        )
    backend = Tokenizer(models.BPE())
    # The pre-tokenizer also keeps punctuation and letters apart, so that no merge can spell a special token.
    backend.pre_tokenizer = pre_tokenizers.ByteLevel(add_prefix_space=False, use_regex=True)
    backend.decoder = decoders.ByteLevel()
    texts_with_text = 0

    def counted() -> Iterator[str]:
        nonlocal texts_with_text
        for text in texts:
            texts_with_text += bool(text.strip())
            yield text

    backend.train_from_iterator(
        counted(),
        trainers.BpeTrainer(
            vocab_size=vocab_size,
            min_frequency=2,
            special_tokens=list(SPECIAL_TOKENS),
            initial_alphabet=pre_tokenizers.ByteLevel.alphabet(),
            show_progress=False,
        ),
    )
    if texts_with_text == 0:
        raise UserError("there is no text to train a tokenizer on: `texts` is empty, or every text in it is blank")
    tokenizer = _with_special_tokens(backend)
    _check_round_trip(tokenizer)
    return tokenizer


def subword_nmt_tokenizer(codes: Iterable[str], texts: Iterable[str]) -> PreTrainedTokenizerFast:
    """Make a tokenizer from the merges of subword-nmt or fastBPE, for text that is tokenized already.

    Splits at spaces and merges each word's characters as `subword-nmt apply-bpe` does. Decoding joins the pieces to
    words and the words with spaces.

    Args:
        codes: The lines of the file of codes: a merge each, as two symbols and optionally a count. A line that starts
            with `#version` is skipped.
        texts: The training text before segmentation: its characters complete the vocabulary. Any other character
            becomes `<unk>`.

    Returns:
        The tokenizer, with the special tokens as in `train_tokenizer`.

    Raises:
        UserError: A line that is no merge, or there is no text in `texts`.
    """
    merges: list[tuple[str, str]] = []
    for number, line in enumerate(codes, start=1):
        if line.startswith("#version"):
            continue
        symbols = line.split()
        if len(symbols) < 2:
            raise UserError(f"line {number} of the codes is {line!r}; it must be two symbols with a space between")
        merges.append((symbols[0], symbols[1]))
    characters = sorted({character for text in texts for character in text if not character.isspace()})
    if not characters:
        raise UserError("there is no text to take characters from: `texts` is empty, or every text in it is blank")
    merged = [symbol for merge in merges for symbol in (*merge, "".join(merge))]
    types = [*SPECIAL_TOKENS, *characters, *(character + _WORD_END for character in characters), *merged]
    vocabulary = {symbol: index for index, symbol in enumerate(dict.fromkeys(types))}
    backend = Tokenizer(models.BPE(vocabulary, merges, unk_token=UNK_TOKEN, end_of_word_suffix=_WORD_END))
    backend.pre_tokenizer = pre_tokenizers.WhitespaceSplit()
    backend.decoder = decoders.BPEDecoder(suffix=_WORD_END)
    return _with_special_tokens(backend)


def dictionary_tokenizer(types: Sequence[str]) -> PreTrainedTokenizerFast:
    """Make a tokenizer that looks up types, for text that is tokenized and segmented already, as fairseq expects it.

    Splits at spaces; a type that is not in the dictionary becomes `<unk>`. Decoding joins the types with spaces, and
    the pieces that `subword-nmt apply-bpe` marks with "@@" to words. Merges can't be part of it: a fast tokenizer needs
    an id for every intermediate symbol, and not all of them are in the dictionary.

    Args:
        types: Each type once, ordered by id, starting with the special tokens as in `train_tokenizer`.
    """
    backend = Tokenizer(models.WordLevel({word: index for index, word in enumerate(types)}, unk_token=UNK_TOKEN))
    backend.pre_tokenizer = pre_tokenizers.WhitespaceSplit()
    backend.decoder = decoders.Sequence(
        [
            decoders.Replace(Regex("$"), " "),
            decoders.Fuse(),
            decoders.Replace("@@ ", ""),
            decoders.Replace(Regex(" $"), ""),
        ]
    )
    return _with_special_tokens(backend)


def _with_special_tokens(backend: Tokenizer) -> PreTrainedTokenizerFast:
    """Wrap a backend in the stock tokenizer class; it appends `</s>`."""
    backend.post_processor = processors.TemplateProcessing(
        single=f"$A {EOS_TOKEN}",
        pair=f"$A {EOS_TOKEN} $B {EOS_TOKEN}",
        special_tokens=[(EOS_TOKEN, backend.token_to_id(EOS_TOKEN))],
    )
    return PreTrainedTokenizerFast(
        tokenizer_object=backend,
        bos_token=BOS_TOKEN,
        pad_token=PAD_TOKEN,
        eos_token=EOS_TOKEN,
        unk_token=UNK_TOKEN,
        split_special_tokens=True,
        clean_up_tokenization_spaces=False,
        model_input_names=["input_ids", "attention_mask"],
    )


def _check_round_trip(tokenizer: PreTrainedTokenizerFast) -> None:
    """Raise RuntimeError if the tokenizer does not restore a text exactly."""
    for text in _HARD_STRINGS:
        ids = tokenizer(text)["input_ids"]
        decoded = tokenizer.decode(ids, skip_special_tokens=True)
        if decoded != text or ids[-1] != tokenizer.eos_token_id:
            raise RuntimeError(f"the trained tokenizer turns {text!r} into {ids} and back into {decoded!r}")


def decode_batch(tokenizer: PreTrainedTokenizerBase, token_ids: np.ndarray | torch.Tensor) -> list[str]:
    """Turn rows of ids into text, without special tokens.

    Args:
        tokenizer: The model's tokenizer.
        token_ids: Integers of shape [rows, length]; -100, the Trainer's padding, counts as `<pad>`.
    """
    ids = np.asarray(token_ids.cpu() if isinstance(token_ids, torch.Tensor) else token_ids)
    return tokenizer.batch_decode(np.where(ids < 0, tokenizer.pad_token_id, ids), skip_special_tokens=True)
