"""Shells and machines that lack something: each in a process of its own."""
import json
import os
import shutil
import signal
import subprocess
import sys
from pathlib import Path

import pytest
from conftest import ROOT


def python(code, **environment):
    """Run this code from the project's folder. Returns the finished process."""
    return subprocess.run([sys.executable, "-c", code], cwd=ROOT, capture_output=True, text=True,
                          env={**os.environ, **environment})


@pytest.mark.parametrize("module", ["support.figures", "support.forest_plot", "lesson", "ablation"])
def test_a_notebooks_backend_is_not_asked_for(module):
    """A notebook's shell commands inherit a backend that only the notebook's environment has."""
    code = (f"import {module}" if module != "lesson" else
            "import ast, pathlib\n"  # the imports alone: the rest is a minute of work
            "tree = ast.parse(pathlib.Path('lesson.py').read_text())\n"
            "kinds = ast.Import, ast.ImportFrom\n"
            "imports = [node for node in tree.body if isinstance(node, kinds)]\n"
            "exec(compile(ast.Module(imports, []), 'lesson.py', 'exec'))")
    run = python(code, MPLBACKEND="module://no_such_package.backend_inline")
    assert run.returncode == 0, run.stderr


def test_a_stream_of_a_notebook_cannot_be_reconfigured():
    run = python("import io, runpy, sys\n"
                 "real, sys.stdout = sys.stdout, io.StringIO()\n"
                 "sys.argv = ['pretrain.py', '--help']\n"
                 "try:\n    runpy.run_path('pretrain.py', run_name='__main__')\n"
                 "finally:\n    real.write(sys.stdout.getvalue())")
    assert run.returncode == 0, run.stderr
    assert "--teacher" in run.stdout


def test_proc_without_the_peak_of_memory():
    run = python("from pathlib import Path\nfrom support.device import peak_memory\n"
                 "Path.read_text = lambda self, *_, **__: 'VmRSS:\\t 1024 kB\\n'\n"
                 "print(peak_memory())")
    assert run.returncode == 0, run.stderr
    assert 0.01 < float(run.stdout) < 100


@pytest.mark.parametrize("module", ["fcntl", "resource"])
def test_windows_gets_one_line(module):
    run = python(f"import sys\nsys.modules[{module!r}] = None\nsys.argv = ['ablation.py']\n"
                 "import runpy\nrunpy.run_path('ablation.py', run_name='__main__')")
    assert run.returncode == 2
    assert run.stdout == ""
    assert run.stderr.count("\n") == 1 and "WSL" in run.stderr


@pytest.mark.skipif(not shutil.which("make"), reason="make is not here")
@pytest.mark.parametrize("words, expected", [
    (["demo", "TEXT=it's \"$b\" `c` $(d) \\\\ e  f"],
     ["-m", "support.demo", "it's \"$b\" `c` $(d) \\\\ e  f", "--run", "runs/toy"]),
    (["demo", "TEXT=a", "TEXT_B=b $5", "TASK=mnli", "RUN=my runs/x"],
     ["-m", "support.demo", "a", "--run", "my runs/x", "--task", "mnli", "--text_b", "b $5"]),
    (["download", "NAMES=cola"], ["-m", "support.download", "cola"]),  # which asks for --data_dir
    (["download", "NAMES=cola", "DATA=my  data"],
     ["-m", "support.download", "cola", "--data_dir", "my  data"]),
    (["report", "PRESET=mini", "TEACHER=~/a b", "CORPUS=c d", "HELDOUT=e'f", "DATA=~/g"],
     ["ablation.py", "--preset", "mini", "--seeds", "5", "--first_seed", "0", "--tasks",
      "cola,sst2,mnli", "--teacher", "/home/me/a b", "--corpus", "c d", "--heldout", "e'f",
      "--data_dir", "/home/me/g", "--report_only"]),
])
def test_make_passes_on_what_was_typed(tmp_path, words, expected):
    """Spaces, quotes and dollars reach the command; ~ is the home folder."""
    show = tmp_path / "show"
    show.write_text(f"#!{sys.executable}\nimport json, sys\nprint(json.dumps(sys.argv[1:]))\n")
    show.chmod(0o755)
    run = subprocess.run(["make", "-s", "-o", ".venv/ready", *words, f"python={show}"], cwd=ROOT,
                         capture_output=True, text=True, env={**os.environ, "HOME": "/home/me"})
    assert run.returncode == 0, run.stderr
    assert json.loads(run.stdout) == expected


def test_a_rank_that_is_left_in_the_environment_is_ignored():
    code = "from support.distributed import LOCAL_RANK, RANK; print(RANK, LOCAL_RANK)"
    done = subprocess.run([sys.executable, "-c", code], cwd=ROOT, capture_output=True, text=True,
                          env={**os.environ, "RANK": "1", "LOCAL_RANK": "1"})
    assert done.stdout == "0 0\n"


@pytest.mark.parametrize("command", [
    ["ablation.py"], ["pretrain.py"], ["finetune.py"], ["load_hf_weights.py"],
    ["-m", "support.demo"], ["-m", "support.probe"]])
def test_ctrl_c_during_the_imports_leaves_no_traceback(command):
    process = subprocess.Popen([sys.executable, "-X", "importtime", *command, "--help"], cwd=ROOT,
                               stdout=subprocess.PIPE, stderr=subprocess.PIPE, text=True)
    for line in process.stderr:  # a line for each module that has been loaded
        if " torch._" in line:
            break
    process.send_signal(signal.SIGINT)
    printed, errors = process.communicate(timeout=60)
    assert process.returncode == -signal.SIGINT and printed == ""
    assert "Traceback" not in errors and "KeyboardInterrupt" not in errors


@pytest.mark.skipif(not Path("/dev/full").exists(), reason="needs /dev/full")
def test_output_that_cannot_be_written_ends_in_one_line_and_status_2():
    code = ("from support.cli import command_line\n"
            "command_line(lambda arguments: print('a table'))")
    with open("/dev/full", "w") as full:
        done = subprocess.run([sys.executable, "-c", code], cwd=ROOT, stdout=full, text=True,
                              stderr=subprocess.PIPE)
    assert done.returncode == 2
    assert done.stderr == "-c: error: file error: No space left on device\n"


@pytest.mark.parametrize("code", [
    "import pretrain", "import support.probe",
    "import sys, types\nsys.modules['IPython'] = types.ModuleType('IPython')\n"
    "sys.argv = ['pretrain.py']\nimport pretrain"])  # as after %run in a notebook
def test_a_program_that_imports_the_project_keeps_its_handler_of_ctrl_c(code):
    run = python(f"{code}\nimport signal\n"
                 "print(signal.getsignal(signal.SIGINT) is signal.default_int_handler)")
    assert run.returncode == 0, run.stderr
    assert run.stdout == "True\n"
