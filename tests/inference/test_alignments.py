"""Word alignments: from attention of one forward pass, the same for each search, batch and attention implementation."""

import copy
from concurrent.futures import ThreadPoolExecutor

import pytest
import torch
from accelerate import cpu_offload
from helpers import SENTENCES, SHORT, wordy_model

from vanilla_transformer import gnmt_beam_search
from vanilla_transformer.data.tokenization import dictionary_tokenizer, subword_nmt_tokenizer, train_tokenizer
from vanilla_transformer.errors import UserError
from vanilla_transformer.inference import alignments
from vanilla_transformer.inference.alignments import (
    format_alignment,
    split_into_words,
    target_token_spans,
)
from vanilla_transformer.inference.translate import translate

TEXTS = [*SENTENCES, "été, naïve\u00a0dog 🐕 ", "猫がいる。cat"]


@pytest.fixture(scope="module")
def model(tokenizer):
    """A model of three layers, whose attention differs from layer to layer."""
    return wordy_model(tokenizer, decoder_layers=3, dropout=0.5)


def aligned(model, tokenizer, sentences=TEXTS, **settings):
    results = translate(model, tokenizer, sentences, alignments=True, **(SHORT | settings))
    return [[(each.text, each.alignment) for each in translations] for translations in results]


def owners(text: str, spans: list[tuple[int, int]]) -> list[dict[int, float]]:
    """For each token the words of its characters, with their shares, by looking for each character's word."""
    word_of, word = {}, -1
    rest = split_into_words(text)
    index = 0
    for word, piece in enumerate(rest):
        index = text.index(piece, index)
        word_of |= dict.fromkeys(range(index, index + len(piece)), word)
        index += len(piece)
    result = []
    for start, end in spans:
        words = [word_of[place] for place in range(start, end) if place in word_of]
        result.append({word: words.count(word) / len(words) for word in words})
    return result


def slowly(model, tokenizer, source: str, ids: list[int], text: str) -> list[tuple[int, int]]:
    """One sentence alone, by the definition, with sums written out."""
    eager = copy.deepcopy(model).eval()
    eager.set_attn_implementation("eager")
    encoding = tokenizer(source, return_offsets_mapping=True)
    with torch.no_grad():
        outputs = eager(
            torch.tensor([encoding["input_ids"]]), decoder_input_ids=torch.tensor([ids[:-1]]), output_attentions=True
        )
    heads = outputs.cross_attentions[-2][0]
    weights = (sum(heads) / len(heads)).tolist()
    sources = owners(source, encoding["offset_mapping"])
    targets = owners(text, target_token_spans(tokenizer, ids[1:])[1])
    found = []
    for target in range(len(split_into_words(text))):
        scores = dict.fromkeys(range(len(split_into_words(source))), 0.0)
        for row, of_target in zip(weights, targets, strict=True):
            for weight, of_source in zip(row, sources, strict=True):
                for word, share in of_source.items():
                    scores[word] += of_target.get(target, 0) * share * weight
        found.append((max(scores, key=scores.get), target))
    return found


def test_greedy_alignments_are_those_of_attention_alone(model, tokenizer):
    found = aligned(model, tokenizer, num_beams=1)
    assert len({alignment for ((_, alignment),) in found}) > 3
    for source, ((text, alignment),) in zip(TEXTS, found, strict=True):
        if not source.strip():
            assert (text, alignment) == ("", ())
            continue
        inputs = tokenizer(source, return_tensors="pt")
        output = copy.deepcopy(model).eval().generate(**inputs, num_beams=1, **SHORT)[0]
        assert tokenizer.decode(output, skip_special_tokens=True) == text
        assert list(alignment) == slowly(model, tokenizer, source, output.tolist(), text)


@pytest.mark.parametrize("beams", [1, 3])
def test_alignments_depend_on_neither_batch_nor_attention_nor_search(model, tokenizer, beams):
    settings = {"num_beams": beams, "num_return_sequences": beams}
    found = aligned(model, tokenizer, **settings)
    assert [[text for text, _ in each] for each in found] == [
        [each.text for each in translations] for translations in translate(model, tokenizer, TEXTS, **SHORT, **settings)
    ]
    alone = [aligned(model, tokenizer, [text], **settings)[0] for text in TEXTS]
    assert found == alone
    eager = copy.deepcopy(model)
    eager.set_attn_implementation("eager")
    assert aligned(eager, tokenizer, **settings) == found
    assert aligned(model, tokenizer, batch_tokens=8, **settings) == found
    if beams == 1:
        assert aligned(model, tokenizer, search=None, **settings) == found


def test_alignments_do_not_depend_on_how_many_weights_are_held_at_once(model, tokenizer, monkeypatch):
    expected = aligned(model, tokenizer, num_return_sequences=3)
    monkeypatch.setattr(alignments, "MAX_WEIGHTS", 1)
    assert aligned(model, tokenizer, num_return_sequences=3) == expected


def test_each_of_several_translations_has_its_own_alignment(model, tokenizer):
    model = copy.deepcopy(model).eval()
    search = {"num_beams": 4, "num_return_sequences": 4}
    several = set()
    for source in ("a dog runs", "été, naïve\u00a0dog 🐕 ", "猫がいる。cat"):
        inputs = tokenizer(source, return_tensors="pt")
        sequences = model.generate(**inputs, **search, **SHORT, length_penalty=0.6, custom_generate=gnmt_beam_search)
        ((*found,),) = aligned(model, tokenizer, [source], **search)
        several |= {alignment for _, alignment in found}
        for (text, alignment), ids in zip(found, sequences.tolist(), strict=True):
            ids = ids[: ids.index(2) + 1] if 2 in ids else [each for each in ids if each != 1]
            assert list(alignment) == slowly(model, tokenizer, source, ids, text)
    assert len(several) > 2


def test_the_model_and_other_threads_do_not_notice(model, tokenizer):
    model = copy.deepcopy(model).train()
    hooks = []
    for module in model.modules():  # transformers records outputs by hooks, once they were asked for
        hooks.append(len(module._forward_hooks))
    expected, plain = aligned(model, tokenizer), list(translate(model, tokenizer, TEXTS, **SHORT))
    with ThreadPoolExecutor(4) as threads:
        jobs = [threads.submit(aligned, model, tokenizer) for _ in range(4)]
        jobs += [threads.submit(lambda: list(translate(model, tokenizer, TEXTS, **SHORT))) for _ in range(4)]
    assert [job.result() for job in jobs] == [expected] * 4 + [plain] * 4
    assert model.training and model.config._attn_implementation == "sdpa"
    assert [len(module._forward_hooks) for module in model.modules()] == hooks


def test_hooks_count_and_see_the_model(model, tokenizer):
    model = copy.deepcopy(model).eval()
    plain = aligned(model, tokenizer, num_beams=1)
    calls = []

    def backwards(module, args, output):
        calls.append(module)
        return -output

    hook = model.model.decoder.layers[1].encoder_attn.q_proj.register_forward_hook(backwards)
    hooked = aligned(model, tokenizer, num_beams=1)
    source = "two dogs run on the green grass"
    ids = model.generate(**tokenizer(source, return_tensors="pt"), num_beams=1, **SHORT)[0].tolist()
    ((text, alignment),) = hooked[TEXTS.index(source)]
    assert calls and hooked != plain
    assert list(alignment) == slowly(model, tokenizer, source, ids, text)
    hook.remove()
    assert aligned(model, tokenizer, num_beams=1) == plain


def test_a_model_whose_weights_come_when_they_are_needed(model, tokenizer):
    expected = aligned(model, tokenizer)
    offloaded = copy.deepcopy(model).eval()
    cpu_offload(offloaded.model.decoder.layers[1])
    assert aligned(offloaded, tokenizer) == expected


def test_a_model_without_attention_weights_is_refused(model, tokenizer):
    model = copy.deepcopy(model).eval()
    forward = model.forward

    def without(**inputs):
        outputs = forward(**inputs)
        outputs.cross_attentions = None
        return outputs

    model.forward = without
    with pytest.raises(UserError, match="the model gives no attention weights, so there are no alignments"):
        aligned(model, tokenizer)


def test_a_source_that_is_cut_is_aligned_as_far_as_it_was_read(model, tokenizer):
    ((_, alignment),) = aligned(model, tokenizer, ["a cat the dog runs"], max_source_length=4)[0]
    read = tokenizer.decode(tokenizer("a cat the dog runs")["input_ids"][:3])
    assert {source for source, _ in alignment} <= set(range(len(read.split())))


@pytest.mark.parametrize(
    ("text", "words"),
    [
        ("a  dog,\trun ", ["a", "dog,", "run"]),
        ("", []),
        ("\u00a0 \u2028", []),
        ("caf\u0065\u0301 \u0301x", ["caf\u0065\u0301", "\u0301x"]),
        ("我用Python写。", ["我", "用", "Python", "写", "。"]),
        ("猫が いる", ["猫", "が", "い", "る"]),
        ("か\u3099ん", ["か\u3099", "ん"]),
        ("ที่นี่", ["ที่", "นี่"]),
        ("고양이가 달린다", ["고양이가", "달린다"]),
        ("🐕‍🦺 dog", ["🐕‍🦺", "dog"]),
        ("\U00020000x", ["\U00020000", "x"]),
    ],
)
def test_words_are_between_spaces_or_characters_of_scripts_without(text, words):
    assert split_into_words(text) == words


def test_words_are_those_that_python_splits_at_spaces():
    for text in TEXTS[:-1]:
        assert split_into_words(text) == text.split()


def test_the_pharaoh_format():
    assert format_alignment(((0, 0), (2, 1))) == "0-0 2-1" and format_alignment(()) == ""


def test_tokens_of_a_translation_are_found_in_its_text(tokenizer):
    subwords = subword_nmt_tokenizer(["#version: 0.2", "d o", "do g</w>"], ["a dog runs", "do"])
    dictionary = dictionary_tokenizer(["<s>", "<pad>", "</s>", "<unk>", "do@@", "gs", "run", "a"])
    for each, text in (
        *((tokenizer, text) for text in TEXTS),
        (subwords, "a dog runs do dog"),
        (dictionary, "a dogs run dogs"),
    ):
        ids = each(text)["input_ids"] if each is not dictionary else [7, 4, 5, 6, 4, 5, 2, 1, 1]
        decoded, spans = target_token_spans(each, ids)
        assert (
            decoded == text and len(spans) == len(ids) and spans[ids.index(2) :] == [(0, 0)] * len(ids[ids.index(2) :])
        )
        covered = {place for start, end in spans for place in range(start, end)}
        assert covered == set(range(len(text)))
        for token_id, (start, end) in zip(ids, spans, strict=True):
            alone = each.decode([token_id], skip_special_tokens=True).strip()
            assert "\ufffd" in alone or alone.removesuffix("@@") in text[start:end]
            assert alone == "" or start < end


def test_a_tag_that_is_put_before_is_no_word_of_the_source(tokenizer):
    tagged = copy.deepcopy(tokenizer)
    tagged.add_tokens([">>de<<", ">>fr<<"])
    model = wordy_model(tagged, decoder_layers=3)
    sentences = ["a dog runs on the grass", ">>de<< a dog"]
    (((text, alignment),), other) = aligned(model, tagged, sentences, target_lang="fr", num_beams=1)
    (((own_text, own_alignment),), same) = aligned(model, tagged, [f">>fr<< {sentences[0]}", sentences[1]], num_beams=1)
    assert (text, other) == (own_text, same)
    assert len(alignment) == len(own_alignment) and {source for source, _ in alignment} <= set(range(6))
    for (source, _), (with_tag, _) in zip(alignment, own_alignment, strict=True):
        assert source == with_tag - 1 or with_tag == 0


def test_alignments_in_bfloat16(model, tokenizer):
    half = copy.deepcopy(model).bfloat16()
    for ((text, alignment),) in aligned(half, tokenizer):
        assert [target for _, target in alignment] == list(range(len(split_into_words(text))))


def test_a_source_of_nothing_but_unknown_characters_is_aligned(tokenizer):
    training = ["ab", "a"]
    small = train_tokenizer(training, 262)
    model = wordy_model(small)
    ((_, alignment),) = aligned(model, small, ["\u200b"])[0]
    assert {source for source, _ in alignment} <= {0}
