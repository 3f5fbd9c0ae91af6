import json
import random
import time
import tracemalloc

import pytest
import transformers
from tokenizers import AddedToken, Tokenizer, models, pre_tokenizers, processors
from transformers import AutoTokenizer

from vanilla_transformer.data.tokenization import (
    _HARD_STRINGS,
    SPECIAL_TOKENS,
    PreTrainedTokenizerFast,
    check_added_tokens,
    dictionary_tokenizer,
    special_token_ids,
    subword_nmt_tokenizer,
    train_tokenizer,
)
from vanilla_transformer.errors import UserError

CORPUS = [
    "Two young men are talking about the weather.",
    "Zwei junge Männer reden über das Wetter.",
    "두 젊은이가 날씨에 대해 이야기하고 있다.",
    "The text has </s> and <pad> and <s> in it.",
] * 20


@pytest.fixture(scope="module")
def tokenizer():
    return train_tokenizer(CORPUS, 320)


@pytest.fixture(scope="module")
def saved(tokenizer, tmp_path_factory):
    folder = tmp_path_factory.mktemp("tokenizer")
    tokenizer.save_pretrained(folder)
    return folder


@pytest.fixture(scope="module", params=["trained", "saved and loaded"])
def either(request, tokenizer, saved):
    return tokenizer if request.param == "trained" else AutoTokenizer.from_pretrained(saved)


def random_texts():
    rng = random.Random(0)
    planes = [(0, 0x7F), (0x80, 0x2FF), (0x300, 0x36F), (0x2000, 0x206F), (0, 0xD7FF), (0xE000, 0x10FFFF)]
    return ["".join(chr(rng.randint(*rng.choice(planes))) for _ in range(rng.randrange(60))) for _ in range(500)]


def test_special_tokens_have_the_documented_ids(either):
    assert either.convert_tokens_to_ids(["<s>", "<pad>", "</s>", "<unk>"]) == [0, 1, 2, 3]
    assert (either.bos_token_id, either.pad_token_id, either.eos_token_id, either.unk_token_id) == (0, 1, 2, 3)


def test_every_text_ends_in_eos_which_is_not_pad(either):
    for text in ["", "Two men.", " "]:
        ids = either(text)["input_ids"]
        assert ids == [*either(text, add_special_tokens=False)["input_ids"], either.eos_token_id]
        assert not {either.bos_token_id, either.pad_token_id, either.eos_token_id} & set(ids[:-1])
    assert either.pad_token_id != either.eos_token_id


def test_decoding_gives_back_any_text_exactly(either):
    for text in [*_HARD_STRINGS, *random_texts()]:
        assert either.decode(either(text)["input_ids"], skip_special_tokens=True) == text


def test_batch_decoding_gives_back_padded_texts_exactly(either):
    batch = either(list(_HARD_STRINGS), padding=True, return_tensors="np")
    assert either.batch_decode(batch["input_ids"], skip_special_tokens=True) == list(_HARD_STRINGS)


def test_special_tokens_inside_a_text_are_text(either):
    ids = either("</s><pad><s><unk></s>")["input_ids"]
    assert set(ids[:-1]).isdisjoint(range(4))


def test_a_corpus_full_of_special_tokens_learns_none_of_them_as_a_word():
    tokenizer = train_tokenizer(["</s>", "a </s> b<pad>", "<s><unk>"] * 1000, 320)
    assert set(tokenizer("</s> a </s> b<pad> <s><unk>")["input_ids"][:-1]).isdisjoint(range(4))


def test_pads_right_without_token_types(either):
    batch = either(["Two", "Two young men"], padding=True)
    assert set(batch) == {"input_ids", "attention_mask"}
    assert batch["input_ids"][0][-1] == either.pad_token_id
    assert batch["attention_mask"][0][-1] == 0
    assert either.clean_up_tokenization_spaces is False


def test_auto_tokenizer_loads_the_same_tokenizer(tokenizer, saved):
    loaded = AutoTokenizer.from_pretrained(saved)
    assert isinstance(loaded, transformers.PreTrainedTokenizerFast)
    assert isinstance(tokenizer, transformers.PreTrainedTokenizerFast)
    assert loaded.get_vocab() == tokenizer.get_vocab()
    assert [loaded(text)["input_ids"] for text in CORPUS[:4]] == [tokenizer(text)["input_ids"] for text in CORPUS[:4]]


def test_saved_under_the_class_name_that_transformers_4_knows(saved, tmp_path):
    PreTrainedTokenizerFast.from_pretrained(saved).save_pretrained(tmp_path)
    for folder in (saved, tmp_path):
        config = json.loads((folder / "tokenizer_config.json").read_text(encoding="utf-8"))
        assert config["tokenizer_class"] == "PreTrainedTokenizerFast"
        # What version 4 would otherwise set differently.
        assert config["clean_up_tokenization_spaces"] is False
        assert config["split_special_tokens"] is True
        assert config["model_input_names"] == ["input_ids", "attention_mask"]
        special = {"bos_token": "<s>", "pad_token": "<pad>", "eos_token": "</s>", "unk_token": "<unk>"}
        assert {name: config[name] for name in special} == special
        assert "auto_map" not in config
    assert (saved / "tokenizer.json").read_bytes() == (tmp_path / "tokenizer.json").read_bytes()


def test_training_twice_gives_the_same_tokenizer(tokenizer):
    assert train_tokenizer(CORPUS, 320).backend_tokenizer.to_str() == tokenizer.backend_tokenizer.to_str()


def test_vocabulary_is_as_large_as_asked_for_and_smaller_where_the_corpus_is_small(tokenizer):
    assert len(tokenizer) == 320
    assert len(train_tokenizer(["one word"], 10_000)) == 260


def test_texts_are_streamed():
    def texts():
        for number in range(3_000):
            yield f"{number} " * 500

    tracemalloc.start()
    train_tokenizer(texts(), 270)
    _, peak = tracemalloc.get_traced_memory()
    tracemalloc.stop()
    assert peak < 2e6  # the texts together are 7 MB


def test_too_small_a_vocabulary_is_refused():
    with pytest.raises(UserError, match="vocab_size is 259; it must be an integer from 260 to 1,000,000"):
        train_tokenizer(CORPUS, 259)
    assert len(train_tokenizer(CORPUS, 260)) == 260


@pytest.mark.parametrize("texts", [[], iter([]), ["", " ", "\n"]])
def test_a_corpus_without_text_is_refused(texts):
    with pytest.raises(UserError, match="there is no text to train a tokenizer on"):
        train_tokenizer(texts, 1000)


# subword-nmt's merges

CODES = ["#version: 0.2", "l o", "lo w</w>", "e r</w>", "n e"]


def test_subword_nmt_codes_split_words_as_subword_nmt_does():
    tokenizer = subword_nmt_tokenizer(CODES, ["low lower newer"])
    # What `subword-nmt apply-bpe` prints for "low lower newer": low lo@@ w@@ er ne@@ w@@ er.
    assert tokenizer.tokenize("low lower newer") == ["low</w>", "lo", "w", "er</w>", "ne", "w", "er</w>"]
    ids = tokenizer("low  lower newer")["input_ids"]
    assert ids[-1] == tokenizer.eos_token_id and tokenizer.unk_token_id not in ids
    assert tokenizer.decode(ids, skip_special_tokens=True) == "low lower newer"
    assert tokenizer.unk_token_id in tokenizer("löw")["input_ids"]


def test_subword_nmt_tokenizer_is_saved_and_loaded(tmp_path):
    tokenizer = subword_nmt_tokenizer(CODES, ["low lower newer"])
    tokenizer.save_pretrained(tmp_path)
    loaded = AutoTokenizer.from_pretrained(tmp_path)
    assert loaded("lower newer low").input_ids == tokenizer("lower newer low").input_ids
    assert loaded.decode(loaded("lower low").input_ids, skip_special_tokens=True) == "lower low"


def test_codes_that_can_not_be_are_refused():
    with pytest.raises(UserError, match="line 2 of the codes is 'lo'"):
        subword_nmt_tokenizer(["#version: 0.2", "lo"], ["low"])
    with pytest.raises(UserError, match="no text"):
        subword_nmt_tokenizer(CODES, [" "])


# fairseq's dictionary

TYPES = [*SPECIAL_TOKENS, "lo@@", "w", "er", "ne@@", "w@@", ","]


def test_a_dictionary_gives_its_own_ids(tmp_path):
    tokenizer = dictionary_tokenizer(TYPES)
    tokenizer.save_pretrained(tmp_path)
    for either in (tokenizer, AutoTokenizer.from_pretrained(tmp_path)):
        assert either.convert_ids_to_tokens(range(len(either))) == TYPES
        assert either("lo@@ w  ,\tnew er ").input_ids == [4, 5, 9, 3, 6, 2]


@pytest.mark.parametrize(
    "pieces, text",
    [
        ("lo@@ w , ne@@ w@@ er", "low , newer"),
        ("ne@@ w@@", "new"),  # cut off inside a word
        ("w", "w"),
        ("", ""),
    ],
)
def test_a_dictionarys_pieces_are_joined_to_words(pieces, text, tmp_path):
    tokenizer = dictionary_tokenizer(TYPES)
    tokenizer.save_pretrained(tmp_path)
    for either in (tokenizer, AutoTokenizer.from_pretrained(tmp_path)):
        assert either.decode(either(pieces).input_ids, skip_special_tokens=True) == text


# Words with combining marks, long lines

MARKED_WORDS = {
    "Hindi": "हिन्दी में बोलिए",
    "Thai": "หนึ่ง สี่ หมื่น",
    "Bengali": "চল্লিশ হাজার একানব্বই",
    "Telugu": "నలభై వేయి ఎనిమిది",
    "vocalised Arabic": "كِتَابٌ جَمِيلٌ",
    "pointed Hebrew": "שָׁלוֹם עֲלֵיכֶם",
    "Persian with non-joiner": "می\u200cخواهم کتاب\u200cها",
    "decomposed German": "Ma\u0308nner gru\u0308ßen",
}


@pytest.mark.parametrize("text", MARKED_WORDS.values(), ids=MARKED_WORDS)
def test_words_with_combining_marks_become_single_types(text, tmp_path):
    tokenizer = train_tokenizer([text] * 5, 1_000)
    tokenizer.save_pretrained(tmp_path)
    for either in (tokenizer, AutoTokenizer.from_pretrained(tmp_path)):
        ids = either(text)["input_ids"]
        assert len(ids) == len(text.split()) + 1
        assert either.decode(ids, skip_special_tokens=True) == text


def test_text_without_marks_is_cut_as_gpt2_cuts_it(tokenizer):
    gpt2 = pre_tokenizers.ByteLevel(add_prefix_space=False, use_regex=True)
    texts = [
        *CORPUS[:4],
        *_HARD_STRINGS[:4],
        _HARD_STRINGS[6],
        _HARD_STRINGS[7],
        "It's 12345 o'clock!?  \n\n So we'll...",
    ]
    for text in texts:
        pieces = [piece for piece, _ in tokenizer.backend_tokenizer.pre_tokenizer.pre_tokenize_str(text)]
        assert pieces == [piece for piece, _ in gpt2.pre_tokenize_str(text)]


@pytest.mark.parametrize("kind", ["letters", "digits", "punctuation", "spaces", "marks"])
def test_no_run_of_characters_makes_a_piece_of_more_than_128(kind):
    run = {"letters": "ab", "digits": "12", "punctuation": "!?", "spaces": " \t", "marks": "\u0301"}[kind] * 5_000
    tokenizer = train_tokenizer([run, "a b"], 300)
    pieces = [piece for piece, _ in tokenizer.backend_tokenizer.pre_tokenizer.pre_tokenize_str(run)]
    assert max(map(len, pieces)) <= 130 * (2 if kind == "marks" else 1)  # a mark is two bytes, a space may come before
    assert tokenizer.decode(tokenizer(run)["input_ids"], skip_special_tokens=True) == run


def test_a_long_line_without_spaces_adds_time_by_its_length_only():
    def seconds(line: str) -> float:
        start = time.perf_counter()
        train_tokenizer([*CORPUS, line], 1_000)
        return time.perf_counter() - start

    rng = random.Random(0)
    letters = "".join(rng.choices("abcdefghijklmnopqrstuvwxyz", k=12_000)) * 10
    spaced = " ".join(letters[i : i + 6] for i in range(0, len(letters), 6))
    assert seconds(letters) < 5 * seconds(spaced) + 1  # 70 times as long with pieces of any length


# Tokens that are added


@pytest.mark.parametrize(
    "add",
    [
        lambda tokenizer: tokenizer.add_special_tokens({"additional_special_tokens": [">>fr<<"]}),
        lambda tokenizer: tokenizer.add_special_tokens({"extra_special_tokens": [AddedToken(">>fr<<", special=True)]}),
        lambda tokenizer: tokenizer.add_tokens([">>fr<<"]),
        lambda tokenizer: tokenizer.add_tokens(AddedToken(">>fr<<", special=True)),
    ],
    ids=["additional", "extra", "plain", "marked as special"],
)
def test_an_added_token_is_one_id_and_the_own_special_tokens_stay_text(add, tmp_path):
    tokenizer = train_tokenizer(CORPUS, 320)
    plain = tokenizer("two </s> <s><pad> men")["input_ids"]
    assert add(tokenizer) == 1
    tokenizer.save_pretrained(tmp_path / "once")
    AutoTokenizer.from_pretrained(tmp_path / "once").save_pretrained(tmp_path / "twice")
    loaded = [
        loader.from_pretrained(tmp_path / name)
        for loader in (AutoTokenizer, PreTrainedTokenizerFast)
        for name in ("once", "twice")
    ]
    for either in (tokenizer, *loaded):
        assert either(">>fr<<two </s> <s><pad> men")["input_ids"] == [320, *plain]
        assert set(plain[:-1]).isdisjoint(range(4))
        assert either.convert_tokens_to_ids(">>fr<<") == 320 and len(either) == 321
        assert either.decode(plain, skip_special_tokens=True) == "two </s> <s><pad> men"


def test_an_added_special_token_is_skipped_in_decoding_by_this_class():
    tokenizer = train_tokenizer(CORPUS, 320)
    tokenizer.add_special_tokens({"additional_special_tokens": [">>fr<<"]})
    ids = tokenizer(">>fr<<two men")["input_ids"]
    assert tokenizer.decode(ids, skip_special_tokens=True) == "two men"
    assert tokenizer.decode(ids) == ">>fr<<two men</s>"


def test_a_token_added_with_the_stock_class_is_recognised_once_this_class_loads_it(saved, tmp_path):
    stock = AutoTokenizer.from_pretrained(saved)
    stock.add_special_tokens({"additional_special_tokens": [">>fr<<"]})
    stock.save_pretrained(tmp_path)
    with pytest.raises(UserError, match="the tokenizer splits the added token '>>fr<<' inside a text; load it with"):
        check_added_tokens(stock)
    loaded = PreTrainedTokenizerFast.from_pretrained(tmp_path)
    check_added_tokens(loaded)
    assert loaded(">>fr<<</s>")["input_ids"] == [320, *stock("</s>")["input_ids"]]
    loaded.save_pretrained(tmp_path)
    assert AutoTokenizer.from_pretrained(tmp_path)(">>fr<<")["input_ids"] == [320, 2]


def test_an_added_named_token_is_one_id(tmp_path):
    tokenizer = train_tokenizer(CORPUS, 320)
    tokenizer.add_special_tokens({"sep_token": "<sep>"})
    tokenizer.save_pretrained(tmp_path)
    for either in (tokenizer, PreTrainedTokenizerFast.from_pretrained(tmp_path)):
        assert either("<sep>")["input_ids"] == [320, 2]


# Special ids of any tokenizer


def word_tokenizer(pad: int, eos: int, bos: int | None = None, appends: bool = True) -> PreTrainedTokenizerFast:
    """A tokenizer of words as another library may have made it."""
    words = [f"w{i}" for i in range(6)]
    backend = Tokenizer(models.WordLevel({word: i for i, word in enumerate(words)}, unk_token=words[5]))
    if appends:
        backend.post_processor = processors.TemplateProcessing(single=f"$A w{eos}", special_tokens=[(f"w{eos}", eos)])
    names = {"pad_token": f"w{pad}", "eos_token": f"w{eos}", "bos_token": None if bos is None else f"w{bos}"}
    return PreTrainedTokenizerFast(tokenizer_object=backend, **names)


def test_a_model_takes_the_special_ids_of_its_tokenizer(tokenizer):
    assert special_token_ids(tokenizer) == {
        "pad_token_id": 1,
        "bos_token_id": 0,
        "eos_token_id": 2,
        "decoder_start_token_id": 0,
    }
    t5 = {"pad_token_id": 0, "bos_token_id": 0, "eos_token_id": 1, "decoder_start_token_id": 0}
    assert special_token_ids(word_tokenizer(pad=0, eos=1)) == t5
    assert special_token_ids(word_tokenizer(pad=0, eos=1, bos=3)) == t5 | {
        "bos_token_id": 3,
        "decoder_start_token_id": 3,
    }


def test_a_tokenizer_that_a_model_can_not_use_is_refused():
    with pytest.raises(UserError, match="pad_token and eos_token are both 'w1'"):
        special_token_ids(word_tokenizer(pad=1, eos=1))
    with pytest.raises(UserError, match="does not append its end-of-sentence token"):
        special_token_ids(word_tokenizer(pad=0, eos=1, appends=False))
    without = word_tokenizer(pad=0, eos=1)
    without.pad_token = None
    with pytest.raises(UserError, match="has no pad_token"):
        special_token_ids(without)
