"""Prints support/README.md: `python -m support > support/README.md`."""
import ast
from pathlib import Path

HEAD = """\
# support/

May stay closed on a first reading. The first to open is chunked_loss.py: with it training computes
the loss that losses.py defines.
Each line is the first line of the file, made by `python -m support > support/README.md`.

| file | what it is |
|---|---|"""


def first_line(path):
    """The first line of a file's docstring."""
    return ast.get_docstring(ast.parse(path.read_text(encoding="utf-8"))).split("\n")[0]


if __name__ == "__main__":
    print(HEAD)
    for path in sorted(Path(__file__).parent.glob("*.py")):
        if not path.name.startswith("__"):
            print(f"| [{path.name}]({path.name}) | {first_line(path)} |")
