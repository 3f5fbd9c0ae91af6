"""Sentence pairs that are hard to read, and functions that write them into files."""

import gzip
from pathlib import Path

ENGLISH = ['Two "men" walk.', "A dog,\u2028a cat\x0b and\x85 more", "", "  spaces  and a \r inside"]
GERMAN = ["Zwei 'Männer' gehen.", "Ein Hund\u2029 und mehr", "leer", "Leerzeichen 👍🏽"]
PAIRS = [{"source": source, "target": target} for source, target in zip(ENGLISH, GERMAN, strict=True)]


def write(path: Path, text: str) -> str:
    """Write a file without changing line ends, gzipped if its name says so; returns its path."""
    content = text.encode()
    path.write_bytes(gzip.compress(content) if path.suffix == ".gz" else content)
    return str(path)


def write_prefix(folder: Path, source: list[str], target: list[str], suffix: str = "", end: str = "\n") -> str:
    """Write train.en and train.de into a folder; returns their prefix."""
    write(folder / f"train.en{suffix}", "".join(line + end for line in source))
    write(folder / f"train.de{suffix}", "".join(line + end for line in target))
    return str(folder / "train")
