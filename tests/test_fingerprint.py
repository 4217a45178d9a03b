"""support/fingerprint.py: an edit makes exactly those runs out of date that depend on it."""
import ast
import os

import pytest
from code_copy import CodeCopy
from short_runs import finetune_arguments, pretrain_arguments

import finetune
import pretrain
from support.errors import InputError
from support.fingerprint import (
    canonical,
    code_fingerprint,
    files_fingerprint,
    imported_files,
    statements_reached,
)

# Four runs, each of which stands for its kind.
FULL, NO_CE = "distillation", "distillation without CE"
TASK, TASK_TEACHER = "fine-tuning", "fine-tuning with a teacher"
NOBODY = set()
STUDENTS = {FULL, NO_CE}
WITH_CE = {FULL, TASK_TEACHER}
TASKS = {TASK, TASK_TEACHER}
ALL = STUDENTS | TASKS

CE = "    return temperature ** 2 * kl\n"
MLM = "    return F.cross_entropy(student_logits, labels, ignore_index=-100)\n"
COS = "    return (1 - F.cosine_similarity("


EDITS = [  # what, file, old, new (old "": append), the runs that it makes out of date
    # What is not code, and what no run reads.
    ("a comment", "losses.py", CE, CE.rstrip() + "  # as Hinton has it\n", NOBODY),
    ("a docstring", "losses.py", '"""L_ce: T² KL', '"""L_ce: T^2 KL', NOBODY),
    ("the layout", "losses.py", CE, "    return (temperature ** 2\n            * kl)\n", NOBODY),
    ("a comment elsewhere", "model.py", "", "\n# Read next: data.py.\n", NOBODY),
    ("a helper that nobody calls", "losses.py", "", "\n\ndef entropy(t):\n    return 0\n", NOBODY),
    ("a default weight, an argument", "losses.py", "(cosine_loss, 1.0)", "(cosine_loss, 3.0)",
     NOBODY),
    ("the plain definition", "losses.py", "    total = sum(", "    total = 1 * sum(", NOBODY),
    ("the experiment", "ablation.py", "BASELINE = ", "BASE = BASELINE = ", NOBODY),
    ("the report", "support/report.py", "", "\nNEW = 1\n", NOBODY),
    # The formulas.
    ("L_ce", "losses.py", CE, CE.replace("2", "3"), WITH_CE),
    ("L_mlm", "losses.py", MLM, MLM.replace("return", "return 2 *"), STUDENTS),
    ("L_cos", "losses.py", COS, COS.replace("1", "2"), STUDENTS),
    ("what all formulas use", "losses.py", "import torch.nn.functional as F",
     "from torch.nn import functional as F", STUDENTS | WITH_CE),
    # The rest of the code.
    ("the model", "model.py", "", "\nNEW = 1\n", ALL),
    ("the data", "data.py", "", "\nNEW = 1\n", ALL),
    ("the weights' reader", "load_hf_weights.py", "", "\nNEW = 1\n", ALL),
    ("the distillation", "pretrain.py", "", "\nNEW = 1\n", STUDENTS),
    ("the fine-tuning", "finetune.py", "", "\nNEW = 1\n", TASKS),
    ("the seeds", "support/seeds.py", "", "\nNEW = 1\n", ALL),
    ("the chunks", "support/chunked_loss.py", "", "\nNEW = 1\n", STUDENTS),
    ("the held-out measures", "support/heldout.py", "", "\nNEW = 1\n", STUDENTS),
    ("SQuAD", "support/squad.py", "", "\nNEW = 1\n", TASKS),
]


@pytest.fixture
def code(tmp_path, monkeypatch):
    """A copy of the project's code, to be edited."""
    copy = CodeCopy(tmp_path / "project", monkeypatch)
    yield copy
    copy.forget()


@pytest.fixture(scope="session")
def fingerprints(world):
    """fingerprints() -> {run: what its command depends on}, of the code as it is now."""
    out_dir = world / "out"
    distillation = pretrain.read_arguments(pretrain_arguments(world, out_dir))
    without_ce = pretrain.read_arguments(pretrain_arguments(world, out_dir, "--use_ce", 0))
    alone = finetune.read_arguments(finetune_arguments(world, out_dir, "cola"))
    with_teacher = finetune.read_arguments(
        finetune_arguments(world, out_dir, "cola", "--teacher", world / "teacher"))

    def current():
        return {FULL: pretrain.fingerprint(distillation), NO_CE: pretrain.fingerprint(without_ce),
                TASK: finetune.fingerprint(alone),
                TASK_TEACHER: finetune.fingerprint(with_teacher)}
    return current


@pytest.fixture(scope="session")
def unedited(fingerprints):
    return fingerprints()


@pytest.fixture
def touched_by(code, fingerprints):
    """touched_by(file, old, new) -> the runs that this edit makes out of date."""
    def runs(file, old, new):
        before = fingerprints()
        code.replace(file, old, new)
        return differing(before, fingerprints())
    return runs


def differing(before, after):
    return {run for run in before if before[run] != after[run]}


@pytest.mark.parametrize("file, old, new, runs", [row[1:] for row in EDITS],
                         ids=[row[0] for row in EDITS])
def test_an_edit_touches_the_runs_that_depend_on_it(
        unedited, code, fingerprints, file, old, new, runs):
    code.replace(file, old, new)
    assert differing(unedited, fingerprints()) == runs


def test_times_and_places_of_files_do_not_count(unedited, code, fingerprints):
    for path in code.folder.rglob("*.py"):
        os.utime(path, (0, 0))
    assert fingerprints() == unedited


# ---- What a formula uses ----

F = "def f(x):\n    return 2 * x\n\n\n"
USES = [  # how distillation_loss uses f: definitions before it, what it returns, what follows it
    ("called", "", "f(kl)", ""),
    ("called by what is called", "def g(x):\n    return f(x)\n", "g(kl)", ""),
    ("a decorator", "@f\n", "kl", ""),
    ("in a constant", "C = f(1)\n", "C * kl", ""),
    ("in a constant that is changed later", "C = f(1)\nC = C + 1\n", "C * kl", ""),
    ("in an if", "if 1 < 2:\n    g = f\nelse:\n    g = abs\n", "g(kl)", ""),
    ("in a try", "try:\n    from fast import g\nexcept ImportError:\n    g = f\n", "g(kl)", ""),
    ("before the formula is wrapped", "", "f(kl)",
     "distillation_loss = torch.compile(distillation_loss)\n"),
]


@pytest.mark.parametrize("before, use, after", [row[1:] for row in USES],
                         ids=[row[0] for row in USES])
def test_what_a_formula_uses_counts_as_the_formula(code, touched_by, before, use, after):
    code.replace("losses.py", "def distillation_loss", f"{F}{before}def distillation_loss")
    code.replace("losses.py", CE, f"    return temperature ** 2 * {use}\n{after}")
    assert touched_by("losses.py", "return 2 * x", "return 3 * x") == WITH_CE


@pytest.mark.parametrize("line, use", [
    ("from my_losses import f", "f(kl)"),
    ("from my_losses import f as g", "g(kl)"),
    ("from my_losses import *", "f(kl)"),
    ("import my_losses", "my_losses.f(kl)"),
])
def test_a_module_of_ones_own_counts_wherever_losses_py_imports_it(code, touched_by, line, use):
    code.replace("my_losses.py", "", "def f(x):\n    return 2 * x\n")
    code.replace("losses.py", "import torch\n", f"import torch\n{line}\n")
    code.replace("losses.py", CE, CE.replace("kl", use))
    assert touched_by("my_losses.py", "2 * x", "3 * x") == ALL


def test_a_formula_from_a_module_of_ones_own(code, touched_by):
    """And what that module imports in turn."""
    code.replace("deeper.py", "", "C = 2\n")
    code.replace("my_losses.py", "", "from deeper import C\n\n\n"
                 "def distillation_loss(student_logits, teacher_logits):\n    return C\n")
    code.replace("losses.py", "def distillation_loss", "def the_old_formula")
    code.replace("losses.py", "import torch\n",
                 "import torch\nfrom my_losses import distillation_loss\n")
    assert touched_by("my_losses.py", "return C", "return C + 1") == ALL
    assert touched_by("deeper.py", "C = 2", "C = 3") == ALL
    assert touched_by("losses.py", CE, CE.replace("2", "3")) == NOBODY


def test_of_a_formula_that_is_not_found_the_whole_file_counts(code, touched_by, monkeypatch):
    """Such as a lambda, whose name is not that of a definition."""
    monkeypatch.setitem(pretrain.LOSSES, "mlm", (lambda student_logits, labels: 0, 2.0))
    assert touched_by("losses.py", CE, CE.replace("2", "3")) == ALL - {TASK}
    assert touched_by("losses.py", "", "\n\ndef unused():\n    return 0\n") == STUDENTS


@pytest.mark.parametrize("source, names, reached", [
    ("a = 1\nb = a\nc = 2", ["b"], "a = 1\nb = a"),
    ("a = 1\nb = 2", [], ""),
    ("print()\na = 1", [], "print()"),
    ("def a():\n    return a()\nb = 1", ["a"], "def a():\n    return a()"),
    ("a = 1\na += 1\nb = 2", ["a"], "a = 1\na += 1"),
    ("(a, b) = (1, 2)\nc = 3", ["b"], "(a, b) = (1, 2)"),
    ("a: int = 1\nb = 2", ["a"], "a: int = 1"),
    ("from x import y as a\nb = 1", ["a"], "from x import y as a"),
    ("import x.y\nb = 1", ["x"], "import x.y"),
    ("class a:\n    b = c\nc = 1\nd = 1", ["a"], "class a:\n    b = c\nc = 1"),
    ("a = 1\na = b\nb = 2\nc = 3", ["a"], "a = 1\na = b\nb = 2"),
    ("if b:\n    a = 1\nb = 2\nc = 3", ["a"], "if b:\n    a = 1\nb = 2"),
    ("try:\n    a\nexcept b:\n    a = 1\nb = 2\nc = 3", ["a"],
     "try:\n    a\nexcept b:\n    a = 1\nb = 2"),
    ("if __name__ == '__main__':\n    print(b)\nb = 2\na = 1", ["a"],
     "if __name__ == '__main__':\n    print(b)\na = 1"),
    ("a = 1\nb = 2", ["c"], "a = 1\nb = 2"),
])
def test_statements_reached(source, names, reached):
    found = statements_reached(ast.parse(source).body, names)
    assert [ast.unparse(node) for node in found] == [
        ast.unparse(node) for node in ast.parse(reached).body]


def test_the_digest_does_not_depend_on_the_version_of_python(monkeypatch):
    source = 'def f(x):\n    return f"{x!r} it\'s", (1, -2.5), None\n'
    text = canonical(ast.parse(source).body)
    assert text == (
        "[FunctionDef(name='f', args=arguments(args=[arg(arg='x')]), body=[Return(value=Tuple("
        "elts=[JoinedStr(values=[FormattedValue(value=Name(id='x', ctx=Load()), conversion=114), "
        "Constant(value=\" it's\")]), Tuple(elts=[Constant(value=1), UnaryOp(op=USub(), "
        "operand=Constant(value=2.5))], ctx=Load()), Constant()], ctx=Load()))])]")
    later = ast.parse(source).body  # 3.12 has given functions a new field, empty in most
    later[0].type_params = []
    monkeypatch.setattr(ast.FunctionDef, "_fields", (*ast.FunctionDef._fields, "type_params"))
    assert canonical(later) == text


TWO = """

def two_in_one(student_logits, teacher_logits, labels, temperature):
    return (distillation_loss(student_logits, teacher_logits, temperature)
            + mlm_loss(student_logits, labels))


LOSSES["two"] = (two_in_one, 0.0)
LOSSES["again"] = (distillation_loss, 0.0)
"""


def test_a_loss_that_calls_another_depends_on_it(code):
    """And two lines of the table may share a formula, one of them with weight 0."""
    code.replace("losses.py", "WEIGHTS = {", TWO.strip() + "\nWEIGHTS = {")
    code.forget()
    for name in ("two_in_one", "distillation_loss"):
        before = code_fingerprint(code.folder / "losses.py", (name,))
        other = code_fingerprint(code.folder / "losses.py", ("cosine_loss",))
        code.replace("losses.py", CE, CE.replace("2", "3"))
        assert code_fingerprint(code.folder / "losses.py", (name,)) != before
        assert code_fingerprint(code.folder / "losses.py", ("cosine_loss",)) == other
        code.replace("losses.py", CE.replace("2", "3"), CE)


# ---- The code of a process ----

def test_an_edit_while_a_process_runs_does_not_count_in_it(code, fingerprints, world, tmp_path):
    """The process has loaded the code as it was, for whatever it runs next."""
    without_cos = pretrain.read_arguments(
        pretrain_arguments(world, tmp_path / "out", "--use_cos", 0))
    old = pretrain.fingerprint(without_cos)
    code.forget()
    before = fingerprints()
    code.write("losses.py", code.read("losses.py").replace(CE, CE.replace("2", "3")))
    assert fingerprints() == before
    assert pretrain.fingerprint(without_cos) == old  # asked for the first time since the edit
    code.forget()  # as a new process
    assert pretrain.fingerprint(without_cos) != old


def test_imports_are_followed_wherever_they_stand(code):
    names = [path.name for path in imported_files(code.folder / "pretrain.py")]
    assert {"losses.py", "model.py", "seeds.py", "chunked_loss.py", "heldout.py"} <= set(names)
    assert not {"finetune.py", "ablation.py", "report.py", "toy.py"} & set(names)
    code.write("deferred.py", "def f():\n    import my_own\n    from support import seeds\n")
    code.write("my_own.py", "import os.path, json\nfrom pathlib import Path\n")
    names = [path.name for path in imported_files(code.folder / "deferred.py")]
    assert sorted(names) == ["deferred.py", "my_own.py", "seeds.py"]


# ---- Files ----

def test_files_count_by_their_contents_and_their_order(tmp_path):
    a, b, c = (tmp_path / name for name in "abc")
    a.write_text("one")
    b.write_text("two")
    c.write_text("one")
    first = files_fingerprint([a, b])
    os.utime(a, (0, 0))
    assert files_fingerprint([a, b]) == files_fingerprint([c, b]) == first
    assert files_fingerprint([b, a]) != first
    a.write_text("eno")  # of the same size
    assert files_fingerprint([a, b]) != first
    with pytest.raises(InputError, match="d: no such file"):
        files_fingerprint([a, tmp_path / "d"])
