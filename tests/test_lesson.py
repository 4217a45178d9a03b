"""The lesson runs for real, with fewer steps, and LESSON.md is the page of today's lesson.py."""
import os
import re
import subprocess
import sys

import pytest
from conftest import ROOT

from support import lesson_page

# All 80 steps take a minute of one core. With 40 the words are back already.
ALL_STEPS, FEWER_STEPS = "STEPS = 80", "STEPS = 40"
OUTPUT = re.compile(r"```text\n(.*?)\n```\n\n", re.DOTALL)


def run(folder, *arguments):
    """What Python prints in this folder, without a display."""
    environment = {**os.environ, "PYTHONPATH": str(ROOT), "OMP_NUM_THREADS": "1"}
    for name in ("DISPLAY", "MPLBACKEND"):
        environment.pop(name, None)
    done = subprocess.run([sys.executable, *arguments], cwd=folder, env=environment,
                          capture_output=True, text=True)
    assert done.returncode == 0, done.stderr
    return done.stdout


def lesson_with(steps):
    source = (ROOT / "lesson.py").read_text()
    assert source.count(ALL_STEPS) == 1
    return source.replace(ALL_STEPS, steps)


@pytest.fixture(scope="module")
def folder(tmp_path_factory):
    """A folder with the teacher and a shorter lesson, and nothing else."""
    folder = tmp_path_factory.mktemp("lesson")
    (folder / "assets").mkdir()
    (folder / "assets" / "toy-teacher").symlink_to(ROOT / "assets" / "toy-teacher")
    (folder / "lesson.py").write_text(lesson_with(FEWER_STEPS))
    return folder


@pytest.fixture(scope="module")
def printed(folder):
    """What `make lesson` prints."""
    return run(folder, "-m", "support.lesson_page")


@pytest.fixture(scope="module")
def outputs(printed, folder):
    """What each code cell printed, from the page."""
    return OUTPUT.findall((folder / "LESSON.md").read_text())


@pytest.fixture(params=["the run", "LESSON.md"])
def each_outputs(request):
    """The outputs of a run with fewer steps, then those of the page in the repository."""
    if request.param == "LESSON.md":
        return OUTPUT.findall((ROOT / "LESSON.md").read_text())
    return request.getfixturevalue("outputs")


def table(text, heading):
    """{first word of a line: its numbers} of the lines below the heading, which is a line."""
    rows, lines = {}, text.splitlines()
    for line in lines[lines.index(heading) + 1:]:
        cells = line.split()
        if not re.fullmatch(r"\w+( +\d+\.\d{4}){2}", line):
            break
        rows[cells[0]] = [float(cell) for cell in cells[1:]]
    return rows


def percentages(text):
    return [int(number) for number in re.findall(r": (\d+) %", text)]


def test_every_step_prints_its_numbers(each_outputs):
    """One pattern for the lines of each code cell."""
    word, percent = r"[a-z.,]+", r"\d{1,3}\.\d %"
    heldout = (r"[a-z ]{14}  same first word as the teacher: \d+ %   right: \d+ %   "
               r"\(the teacher: \d+ %\)")
    loss_lines = r"(?:(?:ce|mlm|cos|total) +\d+\.\d{4} +\d+\.\d{4}\n){4}"
    step_line = r"step +\d+   total +\d+\.\d\d   ce \d\.\d\d   mlm \d\.\d\d   cos \d\.\d\d\n"
    patterns = [
        r"the surgeon .*\[MASK\].*\nword( +T = \d){3}\n(?:[a-z ]+(?: +\d+\.\d\d %){3}\n){12}",
        r"teacher: 6 layers, 282,597 parameters\nstudent: 3 layers, 182,181 parameters\n\n"
        rf"teacher +copied\n(?:(?: *{percent}  {word} *){{2}}\n){{5}}\n{heldout}\n",
        rf"loss +by hand +losses.py\n{loss_lines}",
        rf"(?:{step_line}){{3,5}}",
        rf"teacher +copied +trained\n(?:(?: *{percent}  {word} *){{3}}\n){{5}}\n{heldout}\n",
        rf"2048 tokens, \d+ of them masked, in 8 chunks\nloss +at once +in chunks\n{loss_lines}"
        r"relative difference of the gradients: \d\.\d{4}\n",
    ]
    assert len(each_outputs) == len(patterns)
    for text, pattern in zip(each_outputs, patterns):
        assert re.fullmatch(pattern, text + "\n"), text


def test_a_higher_temperature_takes_probability_from_the_first_word(each_outputs):
    lines = each_outputs[0].splitlines()
    first, others = (list(map(float, re.findall(r"(\d+\.\d\d) %", lines[i]))) for i in (2, -1))
    assert first[0] > 2 * first[1] > 4 * first[2]
    assert others == sorted(others)


def test_the_losses_by_hand_are_those_of_losses_py(each_outputs):
    rows = table(each_outputs[2], "loss       by hand   losses.py")
    assert set(rows) == {"ce", "mlm", "cos", "total"}
    for by_hand, by_losses_py in rows.values():
        # Four decimals are printed: equal but for the rounding of the last one.
        assert by_hand == pytest.approx(by_losses_py, rel=1e-5, abs=1.01e-4)


def test_the_chunked_evaluation_gives_the_same_values_and_gradients(each_outputs):
    rows = table(each_outputs[5], "loss       at once   in chunks")
    assert set(rows) == {"ce", "mlm", "cos", "total"}
    for at_once, in_chunks in rows.values():
        assert at_once == pytest.approx(in_chunks, rel=1e-5, abs=1.01e-4)
    assert each_outputs[5].endswith("relative difference of the gradients: 0.0000")


def test_the_copy_is_worse_and_training_brings_the_words_back(each_outputs):
    rows = [re.findall(r"%  (\S+)", line) for line in each_outputs[4].splitlines()[1:6]]
    teachers, copied, trained = zip(*rows)
    assert not set(copied) & set(teachers)
    assert len(set(trained) & set(teachers)) >= 2
    copied_agrees, copied_right, teacher_right = percentages(each_outputs[1])
    agrees, right, _ = percentages(each_outputs[4])
    assert copied_right < right - 5 and copied_right < teacher_right - 5
    assert copied_agrees < agrees - 5


def test_make_lesson_prints_the_text_and_the_results_and_writes_the_picture(printed, folder,
                                                                           outputs):
    for kind, text, _ in lesson_page.read_cells((folder / "lesson.py").read_text()):
        assert (text in printed) == (kind == "markdown")
    assert all(output in printed for output in outputs)
    for pictured in (folder, ROOT):
        picture = (pictured / "assets" / "lesson-losses.png").read_bytes()
        assert picture.startswith(b"\x89PNG") and len(picture) < 60_000


def test_the_script_alone_prints_the_results_and_writes_no_page(printed, outputs, folder):
    (folder / "short.py").write_text(lesson_with("STEPS = 1"))
    page = (folder / "LESSON.md").stat().st_mtime_ns
    alone = run(folder, "short.py")
    assert alone.startswith(outputs[0] + "\n" + outputs[1] + "\n" + outputs[2] + "\n")
    assert (folder / "LESSON.md").stat().st_mtime_ns == page


def test_the_page_in_the_repository_has_the_cells_of_lesson_py():
    cells = lesson_page.read_cells((ROOT / "lesson.py").read_text())
    committed = (ROOT / "LESSON.md").read_text()
    assert OUTPUT.sub("", committed) == lesson_page.page(cells, [""] * len(cells)), \
        "out of date: run make lesson, and commit LESSON.md and assets/lesson-losses.png"


def test_cells_are_text_and_code_with_the_lines_that_they_start_at():
    source = '"""Not a cell."""\n# %% [markdown]\n# # Title\n#\n# Text.\n\n# %%\nx = 1  # %% no\n'
    assert lesson_page.read_cells(source) == [
        ("markdown", "# Title\n\nText.", 3), ("code", "x = 1  # %% no", 8)]


def test_the_page_has_text_code_and_output(tmp_path, monkeypatch, capsys):
    monkeypatch.chdir(tmp_path)
    (tmp_path / "lesson.py").write_text(
        "# %% [markdown]\n# Text.\n# %%\nx = 1\n# %%\nprint(x + 1)\n")
    lesson_page.main([])
    assert (tmp_path / "LESSON.md").read_text() == (
        "<!-- Written by `make lesson` from lesson.py. -->\n\nText.\n\n"
        "```python\nx = 1\n```\n\n```python\nprint(x + 1)\n```\n\n```text\n2\n```\n")


def test_an_error_names_the_line_of_the_lesson_and_leaves_the_page(tmp_path, monkeypatch):
    monkeypatch.chdir(tmp_path)
    (tmp_path / "LESSON.md").write_text("before")
    (tmp_path / "lesson.py").write_text("# %% [markdown]\n# Text.\n# %%\nx = 1\nx / 0\n")
    with pytest.raises(ZeroDivisionError) as error:
        lesson_page.main([])
    assert error.traceback[-1].lineno + 1 == 5
    assert (tmp_path / "LESSON.md").read_text() == "before"
