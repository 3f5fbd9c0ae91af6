"""The page's tokenizer gives the ids that the library gives, for text of any script."""

import random
import unicodedata

import pytest
from helpers import one_layer_config
from tokenizers import AddedToken, Tokenizer, decoders, models, pre_tokenizers, processors, trainers

from vanilla_transformer import VanillaTransformerForConditionalGeneration
from vanilla_transformer.data.tokenization import PreTrainedTokenizerFast, add_language_tags, train_tokenizer
from vanilla_transformer.illustrate.payload import character_classes, make_payload

CORPUS = [
    "Two men walk, and a dog runs; don't they? It's 12,345 o'clock.",
    "Zwei Männer gehen über die Straße. É è à \u00fc e\u0301",
    "한국어 문장과 각각의 낱말, 그리고 한글",
    "हिन्दी में लिखा हुआ वाक्य और שָׁלוֹם עִבְרִית العربية",
    "日本語の文。中文句子，　全角 👍🏽 👩‍👩‍👧‍👦 🏳️‍🌈",
    "  two  spaces \t tabs\n\nlines\r\nand</s> <pad>",
]
STRANGE = [
    "",
    " ",
    "   ",
    "\n",
    "\r\n\r\n",
    "a\x00b\x00",
    "\ufeffBOM \ufeff",
    "\u0301 a mark first",
    "e\u0301\u0323\u0307 a\u200db\u200cc \u200d",
    "\x0b\x0c\x1c\x1d\x1e\x1f\x85\xa0\u1680\u180e\u2000\u2003\u2028\u2029\u202f\u205f\u3000\u200b\u2060 x",
    "a\u00a0b \u3000 c\u2028d  \u2029 e",
    "<s></s><pad><unk> </s> <s>x<pad>y</ s>",
    "it's IT'S 'tis 're 'VE don't've ''s 'll'd'm",
    "ſ ı İ K Å ﬁ Ⅷ ½ ² ٣ ५ 𝟘 〇",
    "𝒳𝔘 𐍈 \U0001f600\U0001f3fd \U0010ffff \ue000 \ufffe \uffff \U000e0041",
    "a" * 300,
    "क\u093f" * 200,
    "1" * 300,
    "." * 300 + " x",
    " " * 300 + "x",
    " " * 300,
    "x" + "\u0301" * 300,
    "각 \u1100\u1161\u11a8 \u1112\u1161\u11ab\u1100\u1173\u11af",
    "Ġ Ċ Ā ▁ ## Â Ã © \u0120\u010a",
    "tag <2de> and <2de><2fr> <2 de> <2de",
    "<sep>x<sep> <sep",
    ">>de<< two dogs  >>fr<<\u3000\n>>de<<x >>en<<  y>>fr<< ",
    "a <left> b <right> c<right>  <left> <left>\u2028<right>\u2028x  <right>  >>de<<  <left> ",
]
BLOCKS = [
    (0x20, 0x7F), (0xA0, 0x250), (0x300, 0x370), (0x370, 0x530), (0x590, 0x700), (0x900, 0xE00), (0xE00, 0x1100),
    (0x1100, 0x1200), (0x1E00, 0x2000), (0x2000, 0x2100), (0x2100, 0x2C00), (0x3000, 0x3100), (0x4E00, 0xA000),
    (0xAC00, 0xD7A4), (0xF900, 0x10000), (0x10000, 0x11000), (0x1D000, 0x20000), (0x0, 0x20), (0xE000, 0xE100),
    (0x20000, 0x32000), (0xE0000, 0xE0200), (0x10FF00, 0x110000),
]  # fmt: skip


def random_texts(count: int) -> list[str]:
    """Strings of up to 30 characters out of one to three scripts, with spaces, digits and signs in between."""
    choose = random.Random(0)
    texts = []
    for _ in range(count):
        blocks = choose.sample(BLOCKS, choose.randint(1, 3))
        points = [
            choose.randrange(*choose.choice(blocks)) if choose.random() < 0.75 else ord(choose.choice(" \n\t\r0'’-.,a"))
            for _ in range(choose.randint(1, 30))
        ]
        texts.append("".join(map(chr, points)))
    return texts


TEXTS = [*CORPUS, *STRANGE, *random_texts(1000 - len(CORPUS) - len(STRANGE))]


def gpt2_like_tokenizer() -> PreTrainedTokenizerFast:
    """The stock pattern of the library, special tokens that are recognised in a text, and nothing appended."""
    backend = Tokenizer(models.BPE())
    backend.pre_tokenizer = pre_tokenizers.ByteLevel(add_prefix_space=False)
    backend.decoder = decoders.ByteLevel()
    specials = ["<s>", "<pad>", "</s>", "<unk>"]
    alphabet = pre_tokenizers.ByteLevel.alphabet()
    backend.train_from_iterator(
        CORPUS * 3,
        trainers.BpeTrainer(vocab_size=400, special_tokens=specials, initial_alphabet=alphabet, show_progress=False),
    )
    backend.post_processor = processors.TemplateProcessing(single="$A </s>", special_tokens=[("</s>", 2)])
    return PreTrainedTokenizerFast(
        tokenizer_object=backend, bos_token="<s>", pad_token="<pad>", eos_token="</s>", unk_token="<unk>"
    )


def with_added_tokens() -> PreTrainedTokenizerFast:
    """Tags of both kinds: found before the special tokens' names are looked at, and after; one inside another."""
    tokenizer = train_tokenizer(CORPUS * 3, 420)
    tokenizer.add_tokens(["<2de>", "<2fr>", "<2", "s>x", "각각"])
    tokenizer.add_special_tokens({"extra_special_tokens": ["<sep>"]})
    tokenizer.add_tokens([AddedToken("<left>", lstrip=True), AddedToken("<right>", rstrip=True, normalized=False)])
    add_language_tags(tokenizer, ["de", "fr"])
    tokenizer.add_tokens([AddedToken("dog runs", normalized=False), AddedToken("(?:.*)[a|b]$^\\", normalized=False)])
    return tokenizer


@pytest.fixture(scope="module")
def tokenizers() -> dict[str, PreTrainedTokenizerFast]:
    composed = train_tokenizer(CORPUS * 3, 420)
    composed.init_kwargs["unicode_normal_form"] = "NFC"
    decomposed = train_tokenizer(CORPUS * 3, 420)
    decomposed.init_kwargs["unicode_normal_form"] = "NFD"
    return {
        "composed": composed,
        "decomposed": decomposed,
        "with_added_tokens": with_added_tokens(),
        "gpt2_like": gpt2_like_tokenizer(),
    }


def page_tokenizer(tokenizer: PreTrainedTokenizerFast) -> dict:
    model = VanillaTransformerForConditionalGeneration(one_layer_config(tokenizer)).eval()
    return make_payload(model, tokenizer)[0]["tokenizer"]


def assigned(text: str) -> bool:
    """Whether this Python knows all characters: the normal form of a newer one is that of nothing yet."""
    return all(unicodedata.category(character) != "Cn" for character in text)


def test_ids_and_texts_are_those_of_the_library(run_engine, tokenizers) -> None:
    choose = random.Random(1)
    id_lists, jobs = {}, []
    for name, tokenizer in tokenizers.items():
        random_ids = [[choose.randrange(len(tokenizer) + 2) for _ in range(12)] for _ in range(100)]
        id_lists[name] = [*tokenizer(TEXTS[:100])["input_ids"], *random_ids]
        jobs.append(
            {"run": "tokenize", "tokenizer": page_tokenizer(tokenizer), "texts": TEXTS, "id_lists": id_lists[name]}
        )
    for (name, tokenizer), found in zip(tokenizers.items(), run_engine(*jobs), strict=True):
        expected = tokenizer(TEXTS)["input_ids"]
        assert [text for text, a, b in zip(TEXTS, found["ids"], expected, strict=True) if a != b] == []
        assert found["texts"] == tokenizer.batch_decode(id_lists[name], skip_special_tokens=True)
        form = tokenizer.init_kwargs.get("unicode_normal_form")
        known = [i for i, text in enumerate(TEXTS) if assigned(text)]
        sources = [TEXTS[i] if form is None else unicodedata.normalize(form, TEXTS[i]) for i in known]
        assert [found["source_ids"][i] for i in known] == tokenizer(sources)["input_ids"]
    assert len(known) > 500 and len(TEXTS) == 1000


def test_half_a_surrogate_pair_is_the_replacement_character(run_engine, tokenizers) -> None:
    """Only JavaScript's strings can hold one; encoded as UTF-8, as browsers do, it is U+FFFD."""
    tokenizer = tokenizers["composed"]
    texts = {
        "\ud800": "\ufffd",
        "a\udfffb": "a\ufffdb",
        "\udc00\ud800 x": "\ufffd\ufffd x",
        "\ud83d\ud83d": "\ufffd\ufffd",
    }
    job = {"run": "tokenize", "tokenizer": page_tokenizer(tokenizer), "texts": [*texts], "id_lists": []}
    (found,) = run_engine(job)
    assert found["ids"] == tokenizer([*texts.values()])["input_ids"]
    assert found["source_ids"] == found["ids"]


def test_pieces_can_be_read(run_engine, tokenizers) -> None:
    tokenizer = tokenizers["with_added_tokens"]
    texts = ["two dogs", "한👍", "a<2de>", "\ufeff"]
    ids = tokenizer(texts)["input_ids"]
    job = {"run": "tokenize", "tokenizer": page_tokenizer(tokenizer), "texts": [], "id_lists": [*ids, [0, 1, 9999]]}
    (found,) = run_engine(job)
    assert "".join(found["pieces"][0]) == "two dogs</s>"
    assert "".join(found["pieces"][2]) == "a<2de></s>"
    assert found["pieces"][4] == ["<s>", "<pad>", "[9999]"]
    # What is no whole character is shown as bytes: together they are those of the text.
    for text, pieces in ((texts[1], found["pieces"][1]), (texts[3], found["pieces"][3])):
        assert all(len(piece) > 0 for piece in pieces)
        written = "".join(pieces).removesuffix("</s>")
        for byte in set(text.encode()):
            written = written.replace(f"<0x{byte:02X}>", chr(byte) if byte < 128 else bytes([byte]).decode("latin-1"))
        assert written in (text, text.encode().decode("latin-1"))


def test_character_classes_are_near_those_of_python() -> None:
    """Versions of Unicode differ in some characters, not in these, nor in many."""
    classes = {
        name: {point for first, last in zip(ends[::2], ends[1::2], strict=True) for point in range(first, last + 1)}
        for name, ends in character_classes().items()
    }
    for name in "LMN":
        python = {p for p in range(0x110000) if unicodedata.category(chr(p))[0] == name}
        assert len(python ^ classes[name]) < 0.1 * len(python)
        assert not any(assigned(chr(p)) for p in python ^ classes[name] if p < 0x3000)
    assert {ord(c) for c in " \t\n\x0b\x0c\r\x85\xa0\u2028\u3000"} <= classes["s"]
    assert not classes["s"] & {0x200B, 0xFEFF, 0x1C}
