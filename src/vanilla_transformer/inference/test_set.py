"""What systems are scored on: sentences to translate, and references."""

from collections.abc import Sequence
from dataclasses import dataclass

from datasets import Dataset

from ..data.limits import take_pairs
from ..data.numbers import number_pairs
from ..data.text_files import read_lines, table_format
from ..errors import UserError


@dataclass
class TestSet:
    """Sentences with one or several references each.

    Attributes:
        name: What to call it in a report.
        size: How many sentences it has.
        max_samples: How many of them are scored, the first ones; None for all.
        sources: The sentences to translate, the first `max_samples`; None if they are not known.
        references: For each file or column of references those of these sentences.
    """

    __test__ = False  # no test, whatever pytest thinks of its name

    name: str
    size: int
    max_samples: int | None
    sources: Sequence[str] | None
    references: list[Sequence[str]]

    def read_translations(self, path: str) -> list[str]:
        """Read a file with a line for each sentence; return those that are scored.

        Raises:
            UserError: It can't be read, is a table, or has another number of lines than the test set.
        """
        if table := table_format(path):
            raise UserError(f"{path} is a {table} table, and each of its lines would count as a text; give plain text")
        lines = read_lines(path)
        if len(lines) != self.size:
            raise UserError(
                f"{path} has {len(lines):,} lines but {self.name} has {self.size:,}; line n of one must translate line "
                "n of the other"
            )
        return lines[: self.max_samples]

    def add_references(self, paths: Sequence[str]) -> None:
        """Add files of further references, with a line for each sentence."""
        self.references += [self.read_translations(path) for path in paths]

    def references_per_sentence(self) -> list[list[str]]:
        """Return the references of each sentence."""
        return [list(alternatives) for alternatives in zip(*self.references, strict=True)]


def take_test_set(name: str, pairs: Dataset, max_samples: int | None) -> TestSet:
    """Make a test set of sentence pairs, columns "source" and "target"."""
    taken = take_pairs(pairs, max_samples, "max_predict_samples")
    return TestSet(name, len(pairs), max_samples, taken["source"], [list(taken["target"])])


def make_numbers(source_lang: str, target_lang: str, size: int) -> TestSet:
    """Make a test set of so many unseen numbers of the embedded corpus.

    Raises:
        UserError: There is no such language, or there are not as many numbers.
    """
    try:
        pairs = number_pairs(source_lang, target_lang, "test", size)
    except UserError as error:
        raise UserError(f"can't make numbers to translate, with max_predict_samples {size:,}: {error}") from error
    return take_test_set(f"numbers {source_lang}-{target_lang}", pairs, None)


def read_references(paths: Sequence[str], max_samples: int | None) -> TestSet:
    """Make a test set of files of references alone, a line in each for each sentence.

    Raises:
        UserError: A file can't be read, they are empty, or they differ in their numbers of lines.
    """
    first, *others = paths
    lines = read_lines(first)  # once: it may be a pipe
    if not lines:
        raise UserError(f"{first} is empty; give references, at least one line of them")
    test_set = TestSet(first, len(lines), max_samples, None, [lines[:max_samples]])
    test_set.add_references(others)
    return test_set
