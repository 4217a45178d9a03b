"""The house rules that can be checked: imports, sizes, and lists that follow from the files."""
import ast
import re
import subprocess
import sys

import pytest
from conftest import ROOT

from support.fingerprint import imported_files

TOP = sorted(ROOT.glob("*.py"))
SUPPORT = sorted((ROOT / "support").glob("*.py"))
COMPREHENSIONS = (ast.ListComp, ast.SetComp, ast.DictComp, ast.GeneratorExp)


def relative(path):
    return str(path.relative_to(ROOT))


def functions(path):
    tree = ast.parse(path.read_text(encoding="utf-8"))
    return [node for node in ast.walk(tree) if isinstance(node, ast.FunctionDef)]


def lines_of(path, function):
    """The lines of a function's body, its docstring left out."""
    node, = [node for node in functions(path) if node.name == function]
    body = node.body[1:] if ast.get_docstring(node) else node.body
    return body[-1].end_lineno - body[0].lineno + 1


def test_the_files_to_be_read_are_the_ones_at_the_top():
    assert {path.stem for path in TOP} == {"losses", "model", "data", "load_hf_weights", "pretrain",
                                           "finetune", "ablation", "lesson"}


@pytest.mark.parametrize("path", [*TOP, *SUPPORT], ids=relative)
def test_no_file_imports_itself_through_others(path):
    for imported in imported_files(path) - {path}:
        assert path not in imported_files(imported), f"a circle through {relative(imported)}"


def test_the_objective_is_short_and_the_loops_can_be_read_aloud():
    assert len((ROOT / "losses.py").read_text().splitlines()) <= 130
    assert lines_of(ROOT / "losses.py", "triple_loss") <= 20
    assert lines_of(ROOT / "pretrain.py", "train") <= 40
    assert lines_of(ROOT / "finetune.py", "train") <= 40


@pytest.mark.parametrize("path", [*TOP, *SUPPORT], ids=relative)
def test_functions_fit_on_a_screen_and_files_have_one_concern(path):
    assert len(path.read_text().splitlines()) <= 400
    for function in functions(path):
        assert function.end_lineno - function.lineno < 60, function.name


@pytest.mark.parametrize("path", [*TOP, *SUPPORT, *sorted((ROOT / "tests").glob("*.py"))],
                         ids=relative)
def test_comprehensions_are_one_level_deep(path):
    tree = ast.parse(path.read_text(encoding="utf-8"))
    for outer in ast.walk(tree):
        if isinstance(outer, COMPREHENSIONS):
            inner = [node for node in ast.walk(outer) if isinstance(node, COMPREHENSIONS)]
            assert len(inner) == 1, f"line {outer.lineno}"


def test_the_readme_knows_how_long_the_files_are():
    rows = re.findall(r"^\| \[(\w+\.py)\]\(.*?\) \| (\d+) \|", (ROOT / "README.md").read_text(),
                      re.MULTILINE)
    assert len(rows) == 7
    for file, lines in rows:
        assert int(lines) == pytest.approx(len((ROOT / file).read_text().splitlines()), rel=0.1)


def test_the_readme_of_support_lists_every_file():
    listed = subprocess.run([sys.executable, "-m", "support"], cwd=ROOT, capture_output=True,
                            text=True, check=True).stdout
    written = (ROOT / "support" / "README.md").read_text()
    assert written == listed, "out of date: python -m support > support/README.md"
