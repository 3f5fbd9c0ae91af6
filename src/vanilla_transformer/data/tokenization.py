"""Joint byte-level BPE for source and target, as a stock fast tokenizer.

The paper (section 5.1) shares one BPE vocabulary between both languages. Working on bytes rather than characters
means that no text is ever unknown and that decoding restores the encoded text exactly.
"""

import json
from collections.abc import Iterable, Iterator, Sequence
from itertools import zip_longest
from typing import Any, TypedDict

import numpy as np
import torch
from tokenizers import AddedToken, Regex, Tokenizer, decoders, models, pre_tokenizers, processors, trainers
from transformers import PreTrainedTokenizerBase, TokenizersBackend

from ..errors import UserError
from ..language_tags_vanilla_transformer import language_tag, tagged_languages
from .limits import check_count
from .normal_form import NORMAL_FORM_KEY, NormalFormCounter, normal_form

BOS_TOKEN, PAD_TOKEN, EOS_TOKEN, UNK_TOKEN = SPECIAL_TOKENS = ("<s>", "<pad>", "</s>", "<unk>")  # ids 0, 1, 2, 3
_WORD_END = "</w>"  # subword-nmt's mark after a word's last character

# GPT-2's pattern with two changes. A combining mark after a letter belongs to the word: in Hindi, Thai, Bengali or
# vocalised Arabic every word has some; so do the zero-width joiner and non-joiner. And no piece is longer than 128
# characters, as training takes time in the square of the longest. Punctuation never shares a piece with letters, so
# no merge can spell a special token.
_LONGEST_PIECE = 128
_JOINERS = "\u200c\u200d"
PIECES = (
    r"'s|'t|'re|'ve|'m|'ll|'d"
    rf"| ?\p{{L}}[\p{{L}}\p{{M}}{_JOINERS}]{{0,{_LONGEST_PIECE - 1}}}"
    rf"| ?\p{{N}}{{1,{_LONGEST_PIECE}}}"
    rf"| ?[^\s\p{{L}}\p{{N}}]{{1,{_LONGEST_PIECE}}}"
    rf"|\s{{1,{_LONGEST_PIECE}}}(?!\S)|\s{{1,{_LONGEST_PIECE}}}"
)

MIN_VOCAB_SIZE = len(SPECIAL_TOKENS) + len(pre_tokenizers.ByteLevel.alphabet())
MAX_VOCAB_SIZE = 1_000_000  # training reserves memory for all types at once, and aborts if it gets none

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
    """The stock fast tokenizer under its transformers 4 name, which also recognises tokens that are added to it.

    A tokenizer is saved under the name of its class. transformers 5 has renamed the stock class to
    `TokenizersBackend`, which version 4 and other tools refuse; `PreTrainedTokenizerFast` loads in both. So do copies
    that this class's `from_pretrained` loads and saves again. `AutoTokenizer` returns the library's own class, which
    encodes and decodes the same but saves under the new name.

    With `split_special_tokens` the stock class splits every special token inside a text, even one that was added with
    `add_special_tokens`. Here only the tokenizer's own `bos_token`, `eos_token`, `pad_token` and `unk_token` are split;
    an added token is one id. For the backend it is an ordinary added token, so that it is one id in every program that
    loads the saved tokenizer; `decode(..., skip_special_tokens=True)` skips it in this class only. A token that is
    added to a tokenizer of the stock class is split until this class loads it.
    """

    @classmethod
    def from_pretrained(cls, *args: Any, **kwargs: Any) -> "PreTrainedTokenizerFast":
        """Load a tokenizer, as in the stock class."""
        tokenizer = super().from_pretrained(*args, **kwargs)
        tokenizer._unmark_added_tokens()
        return tokenizer

    def _unmark_added_tokens(self) -> None:
        """Recognise added tokens inside a text, also those that the stock class has marked as special."""
        added = [token for token in self.added_tokens_decoder.values() if str(token) not in self._split_tokens]
        if self.split_special_tokens and added:
            self._add_tokens(added)
            self._tokenizer = Tokenizer.from_str(self.backend_tokenizer.to_str())  # marks are read at loading only
            self._tokenizer.encode_special_tokens = True

    @property
    def _split_tokens(self) -> set[str]:
        """The special tokens whose names inside a text are text."""
        return {str(token) for token in (self.bos_token, self.eos_token, self.pad_token, self.unk_token)}

    def _add_tokens(self, new_tokens: Sequence[str | AddedToken], special_tokens: bool = False) -> int:
        tokens: list[str | AddedToken] = list(new_tokens)
        if not self.split_special_tokens:
            return super()._add_tokens(tokens, special_tokens)
        for i, token in enumerate(tokens):
            if isinstance(token, str):
                token = AddedToken(token, special=special_tokens, normalized=not special_tokens)
            special = token.special and str(token) in self._split_tokens
            tokens[i] = AddedToken(**(token.__getstate__() | {"special": special}))
        return super()._add_tokens(tokens)

    def _decode(
        self,
        token_ids: int | list[int],
        skip_special_tokens: bool = False,
        clean_up_tokenization_spaces: bool | None = None,
        **kwargs: Any,
    ) -> str:
        if skip_special_tokens and self.extra_special_tokens:
            skipped = set(map(self.convert_tokens_to_ids, self.extra_special_tokens))
            token_ids = [token_ids] if isinstance(token_ids, int) else token_ids
            token_ids = [index for index in token_ids if index not in skipped]
        return super()._decode(token_ids, skip_special_tokens, clean_up_tokenization_spaces, **kwargs)


def train_tokenizer(texts: Iterable[str], vocab_size: int, target_langs: Sequence[str] = ()) -> PreTrainedTokenizerFast:
    """Train a joint byte-level BPE tokenizer.

    The tokenizer appends `</s>` and nothing else, adds no `token_type_ids`, pads on the right, and encodes the names of
    special tokens inside a text (`"</s>"`, `"<pad>"`) as plain text. `decode(..., skip_special_tokens=True)` restores
    the encoded text exactly. The Unicode normal form of the texts is noted in the tokenizer for `normalize_sources`.

    Args:
        texts: Sentences of both languages, each read once and none kept.
        vocab_size: Number of types, special tokens, tags and the 256 bytes included. A small corpus gives fewer, when
            no further pair of types occurs twice.
        target_langs: Languages that get a tag, as in `add_language_tags`.

    Returns:
        The tokenizer, with the ids `<s>` 0, `<pad>` 1, `</s>` 2 and `<unk>` 3, and the tags last.

    Raises:
        UserError: `vocab_size` has no room for the special tokens, the tags and the bytes or is over a million, there
            is no text in `texts`, or a language can't be a tag.
    """
    check_count("vocab_size", vocab_size, MIN_VOCAB_SIZE + len(target_langs), MAX_VOCAB_SIZE)
    backend = Tokenizer(models.BPE())
    backend.pre_tokenizer = pre_tokenizers.Sequence(
        [
            pre_tokenizers.Split(Regex(PIECES), behavior="isolated"),
            pre_tokenizers.ByteLevel(add_prefix_space=False, use_regex=False),
        ]
    )
    backend.decoder = decoders.ByteLevel()
    texts_with_text = 0
    normal_forms = NormalFormCounter()

    def counted() -> Iterator[str]:
        nonlocal texts_with_text
        for text in texts:
            texts_with_text += bool(text.strip())
            normal_forms.add(text)
            yield text

    backend.train_from_iterator(
        counted(),
        trainers.BpeTrainer(
            vocab_size=vocab_size - len(target_langs),
            min_frequency=2,
            special_tokens=list(SPECIAL_TOKENS),
            initial_alphabet=pre_tokenizers.ByteLevel.alphabet(),
            show_progress=False,
        ),
    )
    if texts_with_text == 0:
        raise UserError("there is no text to train a tokenizer on: `texts` is empty, or every text in it is blank")
    tokenizer = _with_special_tokens(backend, **{NORMAL_FORM_KEY: normal_forms.form})
    _check_round_trip(tokenizer)
    add_language_tags(tokenizer, target_langs)
    return tokenizer


def add_language_tags(tokenizer: PreTrainedTokenizerBase, target_langs: Sequence[str]) -> None:
    """Add a tag for each language that has none, such as ">>de<<": one id, which no text around it changes.

    Spaces around a tag belong to it, so that ">>de<< A dog" is the tag and what "A dog" is alone. The tag is an
    ordinary added token, which every program that loads the saved tokenizer finds inside a text.

    Raises:
        UserError: A language can't be a tag, or the tokenizer splits it all the same.
    """
    present = tagged_languages(tokenizer)
    try:
        tags = [language_tag(language) for language in target_langs if language not in present]
    except ValueError as error:
        raise UserError(str(error)) from error
    tokenizer.add_tokens([AddedToken(tag, lstrip=True, rstrip=True, normalized=False) for tag in tags])
    for tag in tags:
        if tokenizer(tag, add_special_tokens=False)["input_ids"] != [tokenizer.convert_tokens_to_ids(tag)]:
            raise UserError(f"the tokenizer splits the tag {tag}; use one from train_tokenizer")


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


def _with_special_tokens(backend: Tokenizer, **kwargs: Any) -> PreTrainedTokenizerFast:
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
        **kwargs,
    )


def _check_round_trip(tokenizer: PreTrainedTokenizerFast) -> None:
    """Raise RuntimeError if the tokenizer does not restore a text exactly."""
    for text in _HARD_STRINGS:
        ids = tokenizer(text)["input_ids"]
        decoded = tokenizer.decode(ids, skip_special_tokens=True)
        if decoded != text or ids[-1] != tokenizer.eos_token_id:
            raise RuntimeError(f"the trained tokenizer turns {text!r} into {ids} and back into {decoded!r}")


class SpecialTokenIds(TypedDict):
    """Ids that a model's config takes from its tokenizer."""

    pad_token_id: int
    bos_token_id: int
    eos_token_id: int
    decoder_start_token_id: int


def special_token_ids(tokenizer: PreTrainedTokenizerBase) -> SpecialTokenIds:
    """Return the special ids of a tokenizer for the config of a model that is made for it.

    The decoder starts with the tokenizer's `bos_token`, or without one with its `pad_token`, as in T5.

    Raises:
        UserError: The tokenizer has no padding or end-of-sentence token, they are the same, or it does not append the
            end-of-sentence token.
    """
    ids: dict[str, int] = {}
    for name in ("pad_token", "eos_token"):
        index = getattr(tokenizer, f"{name}_id")
        if index is None:
            raise UserError(f"the tokenizer has no {name}, which the model needs; set tokenizer.{name}")
        ids[name] = index
    bos = tokenizer.bos_token_id
    start = ids["pad_token"] if bos is None else bos
    if ids["pad_token"] == ids["eos_token"]:
        raise UserError(
            f"the tokenizer's pad_token and eos_token are both {tokenizer.eos_token!r}, so a model could not tell "
            "padding from the end of a sentence; set another tokenizer.pad_token"
        )
    check_appends_eos(tokenizer)
    return {
        "pad_token_id": ids["pad_token"],
        "bos_token_id": start,
        "eos_token_id": ids["eos_token"],
        "decoder_start_token_id": start,
    }


def check_appends_eos(tokenizer: PreTrainedTokenizerBase) -> None:
    """Refuse a tokenizer that does not mark the end of a sentence.

    Raises:
        UserError: It appends no end-of-sentence token.
    """
    if tokenizer("")["input_ids"][-1:] != [tokenizer.eos_token_id]:
        raise UserError(
            f"the tokenizer does not append its end-of-sentence token ({tokenizer.eos_token!r}), so a model could not "
            "learn where to stop; use one from train_tokenizer"
        )


def check_added_tokens(tokenizer: PreTrainedTokenizerBase) -> None:
    """Refuse a tokenizer that splits a token which was added to it, as the stock class does with `train_tokenizer`'s.

    Raises:
        UserError: An added special token inside a text would be several tokens.
    """
    for token in tokenizer.extra_special_tokens if tokenizer.split_special_tokens else ():
        if len(tokenizer(token, add_special_tokens=False)["input_ids"]) != 1:
            raise UserError(
                f"the tokenizer splits the added token {token!r} inside a text; load it with "
                "vanilla_transformer.data.tokenization.PreTrainedTokenizerFast, or add the token with add_tokens"
            )


def find_difference(one: PreTrainedTokenizerBase, other: PreTrainedTokenizerBase) -> tuple[str, str, str] | None:
    """Find what two fast tokenizers differ in; what they pad and truncate is not looked at.

    Returns:
        The first difference: what it is, and how it is in each of the two, shortened; None if there is none.
    """
    types = [{index: token for token, index in tokenizer.get_vocab().items()} for tokenizer in (one, other)]
    found: list[tuple[str, Any, Any]] = [("the number of types", len(types[0]), len(types[1]))]
    found += [(f"type {n}", types[0].get(n), types[1].get(n)) for n in sorted({**types[0], **types[1]})]
    for name in ("bos_token", "eos_token", "pad_token", "unk_token", "extra_special_tokens", "split_special_tokens"):
        found.append((name, getattr(one, name), getattr(other, name)))
    parts = [json.loads(tokenizer.backend_tokenizer.to_str()) for tokenizer in (one, other)]
    merges = [part["model"].pop("merges", None) or [] for part in parts]
    found += [(f"merge {rank}", *pair) for rank, pair in enumerate(zip_longest(*merges), start=1)]
    for name in ("normalizer", "pre_tokenizer", "model", "post_processor", "decoder", "added_tokens"):
        found.append((f"its {name}", parts[0].get(name), parts[1].get(name)))
    found.append((f"its {NORMAL_FORM_KEY}", normal_form(one), normal_form(other)))
    return next(((what, f"{a!r:.60}", f"{b!r:.60}") for what, a, b in found if a != b), None)


def decode_batch(tokenizer: PreTrainedTokenizerBase, token_ids: np.ndarray | torch.Tensor) -> list[str]:
    """Turn rows of ids into text, without special tokens.

    Args:
        tokenizer: The model's tokenizer.
        token_ids: Integers of shape [rows, length]; -100, the Trainer's padding, counts as `<pad>`.
    """
    ids = np.asarray(token_ids.cpu() if isinstance(token_ids, torch.Tensor) else token_ids)
    return tokenizer.batch_decode(np.where(ids < 0, tokenizer.pad_token_id, ids), skip_special_tokens=True)
