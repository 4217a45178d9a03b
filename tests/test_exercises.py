"""docs/exercises.md: every block of code is applied to a copy of the project, and run."""
import re
import shutil
import subprocess
import sys

import pytest
from code_copy import copy_code, replace_once
from conftest import ROOT
from short_runs import log_of

FENCE = re.compile(r"^```(\w+) ?(.*?)\n(.*?)^```", re.DOTALL | re.MULTILINE)


def exercise(number):
    """[(language, where, text)]: the code blocks of an exercise."""
    text = (ROOT / "docs" / "exercises.md").read_text()
    section = re.search(rf"^## {number}\. .*?(?=^## |\Z)", text, re.DOTALL | re.MULTILINE)[0]
    return FENCE.findall(section)


@pytest.fixture
def copy(tmp_path):
    """A folder with a copy of the project's code and of the tests."""
    copy_code(tmp_path)
    shutil.copytree(ROOT / "tests", tmp_path / "tests")
    shutil.copy(ROOT / "pytest.ini", tmp_path)
    return tmp_path


def apply_diff(path, block):
    """Replace the lines with - by those with +, between those with a space."""
    lines = block.splitlines(keepends=True)
    old = "".join(line[1:] for line in lines if line[0] in " -")
    new = "".join(line[1:] for line in lines if line[0] in " +")
    replace_once(path, old, new)


def distil(folder, world, *more):
    """Run pretrain.py in this copy; returns its log."""
    arguments = ["--teacher", world / "teacher", "--corpus", world / "corpus.txt",
                 "--out_dir", folder / "run", "--cache_dir", world / "cache", "--steps", 2,
                 "--max_length", 32, "--batch_size", 4, "--log_every", 1, "--device", "cpu", *more]
    done = subprocess.run([sys.executable, folder / "pretrain.py", *map(str, arguments)],
                          capture_output=True, text=True)
    assert done.returncode == 0, done.stderr
    return log_of(folder / "run")


def run_tests(folder, *selection):
    command = [sys.executable, "-m", "pytest", "-q", "-x", "-p", "no:cacheprovider", *selection]
    return subprocess.run(command, cwd=folder, capture_output=True, text=True)


def test_distilling_at_the_masked_positions_only(copy, world):
    blocks = {where: text for _, where, text in exercise(1)}
    replace_once(copy / "losses.py", "# name: (formula, weight).",
                 blocks["losses.py"] + "\n\n# name: (formula, weight).")
    replace_once(copy / "losses.py", "}\nWEIGHTS", blocks["LOSSES"] + "}\nWEIGHTS")
    replace_once(copy / "ablation.py", "}\n# More rows", blocks["VARIANTS"] + "}\n# More rows")
    log = distil(copy, world, "--use_ce", 0, "--alpha_ce_masked", 5)
    assert log[1]["ce_masked"] > 0 and "ce" not in log[1]


def test_comparing_the_hidden_states_of_all_layers(copy, world):
    before = distil(copy, world)
    shutil.rmtree(copy / "run")
    for _, where, text in exercise(2):
        apply_diff(copy / where, text)
    log = distil(copy, world)
    assert log[1]["ce"] == pytest.approx(before[1]["ce"], rel=1e-5)
    assert log[1]["cos"] != pytest.approx(before[1]["cos"], rel=1e-3)
    # The chunked evaluation still agrees with the definition.
    agreement = run_tests(copy, "tests/test_chunked_loss.py", "-k",
                          "test_chunks_change_neither and some-7")
    assert agreement.returncode == 0 and "7 passed" in agreement.stdout, agreement.stdout


def test_the_difference_of_normalised_vectors_changes_nothing(copy):
    (_, where, text), = exercise(3)
    assert where == "cosine_loss"
    replace_once(copy / "losses.py", "    return (1 - F.cosine_similarity(student_hidden, "
                                     "teacher_hidden, dim=-1)).mean()\n", text)
    same = run_tests(copy, "tests/test_losses.py")
    assert same.returncode == 0, same.stdout
