"""The embedded corpus: written as num2words writes, the splits disjoint, small numbers well represented."""

from collections import Counter

import pytest
from num2words import num2words

from vanilla_transformer.data import numbers as number_corpus
from vanilla_transformer.data.numbers import number_pairs, write_number
from vanilla_transformer.errors import UserError


@pytest.mark.parametrize("languages", [("en", "fr"), ("de", "ko")])
def test_numbers_are_written_as_num2words_writes_them(languages):
    numbers = number_corpus._sample_numbers("train", 300, seed=1)
    pairs = number_pairs(*languages, "train", 300, seed=1)
    assert pairs.to_list() == [
        {"source": num2words(n, lang=languages[0]), "target": num2words(n, lang=languages[1])} for n in numbers
    ]


def read_korean(words: str) -> int:
    """Read a number as a Korean does: 만 is ten thousand of what stands before it."""
    digits, units = "일이삼사오육칠팔구", {"십": 10, "백": 100, "천": 1_000}
    total = part = digit = 0
    for character in words.replace(" ", ""):
        if character in digits:
            digit = digits.index(character) + 1
        elif character in units:
            part, digit = part + (digit or 1) * units[character], 0
        elif character == "만":
            total, part, digit = total + (part + digit or 1) * 10_000, 0, 0
    return total + part + digit


def test_korean_numbers_can_be_read_back():
    numbers = [*range(200), *range(9_990, 10_120), *range(0, 1_000_000, 997), 100_000, 110_000, 999_999]
    assert [read_korean(write_number(number, "ko")) for number in numbers] == numbers


def test_splits_are_disjoint_whatever_their_sizes_and_seeds():
    drawn = {
        split: {n for seed, size in enumerate((500, 20_000)) for n in number_corpus._sample_numbers(split, size, seed)}
        for split in ("train", "validation", "test")
    }
    assert drawn["train"] | drawn["validation"] | drawn["test"] <= set(range(1_000_000))
    assert drawn["train"].isdisjoint(drawn["validation"] | drawn["test"])
    assert drawn["validation"].isdisjoint(drawn["test"])


def test_small_numbers_are_well_represented():
    train = Counter(number_corpus._sample_numbers("train", 12_000, seed=0))
    assert train.total() == 12_000
    assert {train[n] for n in range(10)} == {100}  # the most copies
    assert {train[n] for n in range(10, 100)} == {24}  # as many whole copies as fit into the class's share
    assert {train[n] for n in train if 100 <= n < 1_000} == {3}
    for low in (1_000, 10_000, 100_000):
        assert 2_200 <= sum(low <= n < 10 * low for n in train) <= 2_220
    assert max(train[n] for n in train if n >= 1_000) == 1
    test = number_corpus._sample_numbers("test", 500, seed=0)
    assert min(test) >= 100
    assert len(set(test)) == 500
    assert 60 <= sum(n < 1_000 for n in test) <= 125


def test_numbers_depend_on_the_seed_alone():
    assert number_corpus._sample_numbers("test", 100, seed=0) == number_corpus._sample_numbers("test", 100, seed=0)
    assert number_corpus._sample_numbers("test", 100, seed=0) != number_corpus._sample_numbers("test", 100, seed=1)
    train = number_corpus._sample_numbers("train", 1000, seed=0)
    assert train != sorted(train)


def test_a_split_gives_all_its_numbers_and_no_more():
    available = sum(number_corpus._assign_split(n) == "test" for n in range(1_000_000))
    assert len(set(number_corpus._sample_numbers("test", available, 0))) == available > 90_000
    with pytest.raises(UserError, match=f"size is {available + 1:,}, but the test split can have 1 to {available:,}"):
        number_pairs("en", "fr", "test", available + 1)
    with pytest.raises(UserError, match="size is 0"):
        number_pairs("en", "fr", "train", 0)


def test_unknown_language_or_split():
    with pytest.raises(UserError, match="does not know the language 'xx'; choose from .*de.*en.*ko"):
        number_pairs("en", "xx", "train", 10)
    with pytest.raises(UserError, match="no split 'dev'; choose from train, validation, test"):
        number_pairs("en", "fr", "dev", 10)


def test_language_in_which_num2words_fails():
    with pytest.raises(UserError, match=r"num2words can't write \d+ in 'am' \(TypeError\); choose another language"):
        number_pairs("en", "am", "train", 1000)
