"""Bring the line numbers in docs/tour.md and docs/tour.ko.md up to date with the code.

make docs

A link such as [`embed`](../src/vanilla_transformer/modeling_vanilla_transformer.py#L229) leads to the definition of
that name. A text that is no name is the beginning of a line, which must occur once in the file.
"""

import ast
import re
from pathlib import Path

DOCS = Path(__file__).resolve().parents[1] / "docs"
PAGES = (DOCS / "tour.md", DOCS / "tour.ko.md")
LINK = re.compile(r"\[`([^`]+)`\]\((\.\./src/[^)#]+\.py)#L\d+\)")


def definitions(source: str) -> dict[str, int]:
    """Map the qualified names of a module's classes and functions to their lines; of overloads the last one counts."""
    lines: dict[str, int] = {}

    def visit(node: ast.AST, prefix: str) -> None:
        for child in ast.iter_child_nodes(node):
            if isinstance(child, ast.ClassDef | ast.FunctionDef):
                lines[prefix + child.name] = child.lineno
                visit(child, f"{prefix}{child.name}.")

    visit(ast.parse(source), "")
    return lines


def find_line(text: str, file: Path) -> int:
    """Find the line of a definition, or the only line that begins with a text.

    Raises:
        ValueError: There is no such line, or there are several.
    """
    source = file.read_text(encoding="utf-8")
    if (line := definitions(source).get(text)) is not None:
        return line
    lines = [number for number, line in enumerate(source.splitlines(), 1) if line.strip().startswith(text)]
    if len(lines) != 1:
        raise ValueError(f"{file} has {len(lines)} lines that begin with {text!r}; the tour needs one")
    return lines[0]


def update_lines(page: str) -> str:
    """Write the right line number into each link of a page."""
    return LINK.sub(lambda link: f"[`{link[1]}`]({link[2]}#L{find_line(link[1], DOCS / link[2])})", page)


if __name__ == "__main__":
    for path in PAGES:
        path.write_text(update_lines(path.read_text(encoding="utf-8")), encoding="utf-8", newline="\n")
        print(f"The lines are in {path}")
