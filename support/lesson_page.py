"""Runs lesson.py cell by cell, as `make lesson` does, and writes LESSON.md.

    python -m support.lesson_page

A cell starts at a line `# %%` (code) or `# %% [markdown]` (text, in comments). Text and what the
code prints are shown as they come; the page has the code too. If a cell fails, the page stays.
"""
import contextlib
import io
import re
import sys
from pathlib import Path

from support.cli import Parser, command_line
from support.files import write_file

LESSON, PAGE = "lesson.py", "LESSON.md"


class Tee(io.StringIO):
    """Collects what is printed, and prints it too."""

    def write(self, text):
        sys.__stdout__.write(text)
        sys.__stdout__.flush()
        return super().write(text)


def read_cells(source):
    """[(kind, text, number of its first line)] of a script; kind is "markdown" or "code".

    What comes before the first cell, the script's docstring, is left out."""
    cells = []
    for number, line in enumerate(source.splitlines(), 1):
        start = re.fullmatch(r"# %%( \[markdown\])?", line)
        if start:
            cells.append(("markdown" if start[1] else "code", [], number + 1))
        elif cells:
            kind, lines, _ = cells[-1]
            lines.append(re.sub("^# ?", "", line) if kind == "markdown" else line)
    return [(kind, "\n".join(lines).strip("\n"), number) for kind, lines, number in cells]


def run_code(code, first_line, namespace):
    """Run a code cell. Returns what it printed."""
    padding = "\n" * (first_line - 1)  # so that an error names the line of the lesson
    with contextlib.redirect_stdout(Tee()) as printed:
        exec(compile(padding + code, LESSON, "exec"), namespace)
    return printed.getvalue()


def block(language, text):
    """A fenced block of markdown."""
    return f"```{language}\n{text.rstrip()}\n```"


def page(cells, outputs):
    """The page, from the cells and what each of them printed ("": no block for it)."""
    parts = [f"<!-- Written by `make lesson` from {LESSON}. -->"]
    for (kind, text, _), output in zip(cells, outputs):
        parts.append(text if kind == "markdown" else block("python", text))
        if output:
            parts.append(block("text", output))
    return "\n\n".join(parts) + "\n"


def main(arguments):
    """Run the lesson of the current folder, and write its page there."""
    Parser(__doc__).parse_args(arguments)
    cells = read_cells(Path(LESSON).read_text(encoding="utf-8"))
    namespace, outputs = {"__name__": "__main__"}, []
    for kind, text, first_line in cells:
        if kind == "markdown":
            print(f"{text}\n", flush=True)
            outputs.append("")
        else:
            outputs.append(run_code(text, first_line, namespace))
            print(flush=True)
    write_file(PAGE, page(cells, outputs))
    print(f"All of this, with the code, is now in {PAGE}; the code alone in {LESSON}.")


if __name__ == "__main__":
    command_line(main)
