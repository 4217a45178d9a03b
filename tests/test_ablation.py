"""ablation.py: the whole experiment on the miniature world. Its report: test_report.py."""
import os
import re
import shlex
import signal
import subprocess
import sys
import time
from pathlib import Path

import pytest
from code_copy import copy_code, replace_once
from conftest import ROOT
from short_runs import log_of
from tiny_experiment import TASKS, arguments, read_json, run_experiment, score_of

import ablation
from load_hf_weights import read_config
from support.files import lock_file


@pytest.fixture(scope="module")
def experiment(world, tmp_path_factory):
    """(folder, what was printed) of the five variants on the four tasks, one seed."""
    out_dir = tmp_path_factory.mktemp("runs") / "mini"
    return out_dir, run_experiment(arguments(world, out_dir))


# ---- What it runs ----

def test_it_says_first_what_it_will_do_and_how_long_it_takes(experiment):
    _, printed = experiment
    first, smoke, second = printed.splitlines()[:3]
    assert re.match(r"5 students to distil from .*/teacher, "
                    r"6 models to fine-tune and probe on cola, mnli, mrpc, imdb, "
                    r"with seed 0: 53 runs, of which 53 are to do", first)
    assert smoke.startswith("A smoke test: one seed gives no intervals")
    assert re.match(r"About \d+ minutes on this machine .* Full commands: .*/commands.log", second)


def test_each_finished_run_is_one_short_line_with_its_score(experiment):
    out_dir, printed = experiment
    lines = [line for line in printed.splitlines() if re.match(r"\[\d+/53\] ", line)]
    assert [line.split("/")[0] for line in lines] == [f"[{n}" for n in range(1, 54)]
    assert all(len(line) <= 100 for line in lines)
    assert " $ " not in printed and "python" not in printed
    for variant in ablation.VARIANTS:
        for folder in ("mrpc", "mrpc-probe"):
            score = score_of(out_dir, variant, 0, folder)
            shown = rf"^\[\d+/53\] {variant}/seed0/{folder}: MRPC {score:.1f} \(\d+ s\)$"
            assert len(re.findall(shown, printed, re.MULTILINE)) == 1
        accuracy = read_json(out_dir, variant, "seed0", "run.json")["heldout_after"]["mlm_accuracy"]
        shown = rf"\] {variant}/seed0: fills in {100 * accuracy:.1f} % of the masked words"
        assert len(re.findall(shown, printed)) == 1


def test_every_student_every_fine_tuning_and_every_probe_is_there(experiment):
    out_dir, _ = experiment
    students = [out_dir / variant / "seed0" for variant in ablation.VARIANTS]
    for student in students:
        assert read_config(student).num_hidden_layers == 2
        assert (student / "tokenizer.json").exists()
    for model in (out_dir / "teacher" / "seed0", *students):
        for task in TASKS:
            for name in ("model.safetensors", "results.json", "predictions.tsv", "run.json"):
                assert (model / task / name).exists()
                of_probe = model / f"{task}-probe" / name
                assert of_probe.exists() == (name != "model.safetensors")


def test_every_variant_has_its_rows_in_the_report(experiment):
    out_dir, _ = experiment
    text = (out_dir / "report.md").read_text()
    for variant, (title, _) in ablation.VARIANTS.items():
        tables = 3 if variant == ablation.BASELINE else 5  # it is not compared with itself
        assert text.count(f"| {title} |") == tables


def test_each_variant_changes_exactly_one_thing(experiment):
    out_dir, _ = experiment
    runs = {variant: read_json(out_dir, variant, "seed0", "run.json")["arguments"]
            for variant in ablation.VARIANTS}
    changed = {}
    for variant, run in runs.items():
        changed[variant] = {key: value for key, value in run.items()
                            if key != "out_dir" and value != runs["full"][key]}
    assert changed == {
        "full": {},
        "no_cos": {"weights": {"ce": 5.0, "mlm": 2.0}},
        "no_ce": {"weights": {"mlm": 2.0, "cos": 1.0}},
        "no_mlm": {"weights": {"ce": 5.0, "cos": 1.0}},
        "random_init": {"init": "random"},
    }


def test_the_logged_commands_do_the_same_alone(experiment, tmp_path):
    out_dir, _ = experiment
    lines = (out_dir / "commands.log").read_text().splitlines()
    commands = [line.removeprefix("$ ") for line in lines if line.startswith("$ python ")]
    assert len(commands) == 5 + 2 * 6 * 4

    def same_bytes(command, folder, file):
        alone = tmp_path / folder.name
        words = [str(alone) if word == str(folder) else word for word in shlex.split(command)]
        subprocess.run([sys.executable, *words[1:]], check=True, capture_output=True, cwd=ROOT)
        assert (alone / file).read_bytes() == (folder / file).read_bytes()
    student = out_dir / "no_ce" / "seed0"
    same_bytes(next(c for c in commands if "pretrain.py" in c and "--use_ce 0" in c), student,
               "model.safetensors")
    of_probe = student / "mnli-probe"
    same_bytes(next(c for c in commands if f"--out_dir {of_probe} " in c), of_probe,
               "predictions.tsv")


def test_a_second_call_runs_nothing_and_reports_the_same(experiment, world, monkeypatch):
    out_dir, _ = experiment
    monkeypatch.setattr("pretrain.train", None)  # called, they would fail
    monkeypatch.setattr("finetune.train", None)
    before = (out_dir / "report.md").read_bytes()
    ablation.main(arguments(world, out_dir))
    assert (out_dir / "report.md").read_bytes() == before


def test_what_a_variants_heading_says_wins_over_the_users_arguments(world, tmp_path):
    args = ablation.read_arguments(arguments(
        world, tmp_path, "--variants", "full,T_1,steps_80",
        "--pretrain_args=--steps 320 --temperature 4 --max_length 32"))
    runs = {}
    for module, words in ablation.commands(args):
        if module.__name__ == "pretrain":
            run = module.read_arguments(words)
            runs[Path(run.out_dir).parent.name] = (run.steps, run.temperature)
    assert runs == {"full": (320, 4), "T_1": (320, 1), "steps_80": (80, 4)}


def test_the_extended_variants_leave_the_others_in(world, tmp_path):
    def variants(text):
        return ablation.read_arguments(arguments(world, tmp_path, "--variants", text)).variants
    extended = [*ablation.VARIANTS, *ablation.EXTENDED]
    assert variants("extended") == variants("full,extended") == extended
    assert variants("steps_0,extended") == [*extended, "steps_0"]


# ---- Edited code ----

class Copy:
    """A copy of the code, to be edited."""

    def __init__(self, world, folder):
        self.world, self.folder, self.runs = world, folder, folder / "runs"
        copy_code(folder)

    def replace(self, file, old, new):
        """Replace a text that occurs once."""
        replace_once(self.folder / file, old, new)

    def insert(self, file, before, new):
        """Insert a text before another one, which occurs once."""
        self.replace(file, before, new + before)

    def arguments(self, *more):
        return arguments(self.world, self.runs, *more)

    def run(self, *more):
        """([(module, out_dir) of each run], what was printed) of the copy's ablation.py."""
        printed = run_experiment(self.arguments("--verbose", *more), self.folder)
        return re.findall(r"^\$ python (?:-m support\.)?(\w+)(?:\.py)? .*--out_dir (\S+)", printed,
                          re.MULTILINE), printed


@pytest.fixture
def copy(world, tmp_path):
    return Copy(world, tmp_path)


def test_an_edited_formula_reruns_the_students_that_use_it_and_shows_what_it_did(copy):
    some = ("--tasks", "cola,imdb", "--variants", "full,no_cos")
    first, _ = copy.run(*some)
    assert len(first) == 2 + 2 * 3 * 2
    old = score_of(copy.runs, "full", 0, "cola")
    formula = "    return (1 - F.cosine_similarity(student_hidden"
    copy.replace("losses.py", formula, f"    # twice as much\n{formula.replace('(1', '2 * (1')}")

    again, printed = copy.run(*some)
    student = f"{copy.runs}/full/seed0"
    assert again == [("pretrain", student),
                     ("finetune", f"{student}/cola"), ("probe", f"{student}/cola-probe"),
                     ("finetune", f"{student}/imdb"), ("probe", f"{student}/imdb-probe")]
    kept = r"full/seed0: fills in .*; what it replaces is kept as .*full/seed0~1"
    assert re.search(kept, printed)
    log = (copy.runs / "commands.log").read_text()
    assert "full/seed0: out of date (the code has changed); kept as" in log
    assert read_json(copy.runs, "full", "seed0~1", "cola", "results.json")["score"] == old
    new = score_of(copy.runs, "full", 0, "cola")
    results = read_json(copy.runs, "results.json")
    since_edit = results["since_edit"]
    assert since_edit.keys() == results["probe"]["since_edit"].keys() == {"full"}
    assert since_edit["full"]["cola"] == {
        "difference": pytest.approx(new - old), "low": None, "high": None}
    assert "## Change since the edit" in (copy.runs / "report.md").read_text()
    assert copy.run(*some)[0] == []

    edited = formula.replace("(1", "2 * (1")
    for before, after in ((edited, formula), (formula, edited)):  # undone, and done again
        copy.replace("losses.py", before, after)
        done, printed = copy.run(*some)
        assert done == [] and "runs, of which 0 are to do" in printed
        assert f"{student}: up to date again; taken back from {student}~1" in printed
        assert score_of(copy.runs, "full", 0, "cola") == (old if after == formula else new)
    copy.replace("losses.py", edited, formula)
    with lock_file(copy.runs / ".lock"):  # beside another experiment nothing is taken back
        refused = subprocess.run([sys.executable, copy.folder / "ablation.py",
                                  *copy.arguments(*some)], capture_output=True, text=True)
    assert refused.returncode == 2 and "runs: another process is at work" in refused.stderr
    assert score_of(copy.runs, "full", 0, "cola") == new
    copy.replace("losses.py", formula, edited)

    copy.replace("finetune.py", "weight_decay=0.0", "weight_decay=0.01")
    done, _ = copy.run(*some)  # the students stay as they are
    assert [module for module, _ in done] == ["finetune", "probe"] * 6
    copy.replace("support/probe.py", "PENALTY = 100.0", "PENALTY = 10.0")
    done, _ = copy.run(*some)
    assert [module for module, _ in done] == ["probe"] * 6


def test_the_readmes_example_works_as_written(copy):
    some = ("--tasks", "cola", "--variants")
    first, _ = copy.run(*some, "full")
    assert len(first) == 5
    readme = (ROOT / "README.md").read_text()
    formula, line, variant = re.findall(r"```python\n(.*?)```", readme, re.DOTALL)
    copy.insert("losses.py", "# name: (formula, weight)", f"{formula}\n\n")
    copy.insert("losses.py", "}\nWEIGHTS", line)
    copy.insert("ablation.py", "}\n# More rows", variant)

    done, printed = copy.run(*some, "full,mse")
    student = f"{copy.runs}/mse/seed0"
    assert done == [("pretrain", student), ("finetune", f"{student}/cola"),
                    ("probe", f"{student}/cola-probe")]  # the rest is kept
    assert "| squared error of logits instead of KL |" in printed
    logged = log_of(copy.runs / "mse" / "seed0")
    for entry in logged:
        if "lr" in entry:
            assert set(entry) == {"step", "lr", "mlm", "cos", "mse"}
    assert logged[1]["mse"] > 0


# ---- Interrupted, and side by side ----

def start(command, root=ROOT):
    """A process that runs ablation.py of the project in `root`; its output can be read."""
    return subprocess.Popen([sys.executable, root / "ablation.py", *command],
                            stdout=subprocess.PIPE, text=True)


def kill(process):
    process.send_signal(signal.SIGKILL)
    process.wait()


def test_an_interrupted_experiment_resumes_where_it_stopped(copy):
    """Killed in the middle of a fine-tuning, for real."""
    more = ("--verbose", "--tasks", "cola,imdb", "--variants", "full",
            "--finetune_args", "--epochs 30 --max_length 32")
    process = start(copy.arguments(*more), copy.folder)
    for line in process.stdout:
        if "--task imdb" in line and "/teacher/" not in line.split("--out_dir")[1].split()[0]:
            break
    kill(process)
    assert copy.run(*more)[0] == [("finetune", f"{copy.runs}/full/seed0/imdb"),
                                  ("probe", f"{copy.runs}/full/seed0/imdb-probe")]


def test_side_by_side_gives_the_same_bytes_as_one_after_the_other(world, tmp_path):
    for jobs in (1, 2):
        command = arguments(world, tmp_path / str(jobs), "--jobs", jobs, "--tasks", "cola",
                            "--variants", "full,no_ce")
        printed = run_experiment(command, env={**os.environ, "OMP_NUM_THREADS": "1"})
        assert len(re.findall(r"^\[\d/8\] ", printed, re.MULTILINE)) == 8
    for file in ("full/seed0/model.safetensors", "no_ce/seed0/cola/model.safetensors",
                 "teacher/seed0/cola/predictions.tsv", "full/seed0/cola-probe/predictions.tsv"):
        assert (tmp_path / "1" / file).read_bytes() == (tmp_path / "2" / file).read_bytes()


def test_one_of_several_jobs_that_fails_ends_them_all_in_one_line(world, tmp_path):
    command = arguments(
        world, tmp_path, "--jobs", 2, "--tasks", "cola", "--variants", "full",
        ("--pretrain_args=--lr 1e30 --clip 1e30 --steps 9 --log_every 1 --max_length 32 "
         f"--cache_dir {world / 'cache'}"),
        "--finetune_args=--epochs 100000 --max_length 32")  # this one would take hours
    done = subprocess.run([sys.executable, ROOT / "ablation.py", *command],
                          capture_output=True, text=True, check=False, timeout=1200)
    assert done.returncode == 2
    assert "Traceback" not in done.stderr
    message = r"^ablation.py: error: step \d+: the (held-out )?loss is not a finite number"
    lines = done.stderr.replace("\r", "\n")  # the progress bar ends without a new line
    assert re.search(message, lines, re.MULTILINE)


@pytest.mark.skipif(not Path("/proc/self/task").exists(),
                    reason="asks /proc for the processes' children")
def test_jobs_end_with_the_process_that_started_them(world, tmp_path):
    process = start(arguments(
        world, tmp_path, "--jobs", 2, "--verbose", "--tasks", "cola", "--variants", "full",
        "--finetune_args=--epochs 100000 --max_length 32"))
    for line in process.stdout:
        if "finetune.py" in line:
            break
    children = Path(f"/proc/{process.pid}/task/{process.pid}/children").read_text().split()

    def alive(pid):
        try:
            status = Path(f"/proc/{pid}/stat").read_text()
        except FileNotFoundError:
            return False
        return status.rpartition(")")[2].split()[0] != "Z"  # a zombie has ended
    assert sum(map(alive, children)) >= 2
    kill(process)
    waited = time.monotonic()
    while any(map(alive, children)) and time.monotonic() - waited < 120:
        time.sleep(0.1)
    assert not any(map(alive, children))


# ---- The command line ----

@pytest.mark.parametrize("more, message", [
    (["--preset", "minni"], "unknown preset 'minni'; did you mean mini"),
    (["--variants", "full,no_coss"], "unknown variant 'no_coss'; did you mean no_cos"),
    (["--tasks", "cola,mrcp"], "unknown task 'mrcp'; did you mean mrpc"),
    (["--variants", "no_cos"], "--variants must contain full"),
    (["--seeds", "three"], "--seeds: invalid whole number value: 'three'"),
    (["--first_seed", "-1"], "--first_seed: -1 is not a number at least 0"),
    (["--teacher", "nowhere"], "nowhere: no such folder"),
    (["--data_dir", "nowhere"], "nowhere: holds no folder CoLA"),
    (["--heldout", "nowhere.txt"], "nowhere.txt: no such file or folder"),
    (["--pretrain_args", "--steps -1"], "--steps: -1 is not a number at least 0"),
    (["--finetune_args=--stepz=5"], "unrecognized arguments: --stepz=5"),
    (["--finetune_args", "--lr '1"], "--finetune_args: .*No closing quotation"),
    (["--finetune_args", "--epochs 1"], "--max_length 128: .*teacher has 64 positions"),
    (["--variants", "extended"], ("depth_6/seed0: the teacher has 4 layers, too few for evenly:6; "
                                  "leave this variant out of --variants")),
])
def test_wrong_arguments_end_in_one_line_and_status_2(world, tmp_path, refused, more, message):
    line = refused(ablation, *arguments(world, tmp_path / "out", *more))
    assert re.search(message, line), line
    assert not (tmp_path / "out").exists()  # before any work is done


def test_the_default_needs_no_data_and_is_done_once(tmp_path):
    command = ("--tasks", "cola,sst2", "--variants", "full,random_init", "--device", "cpu",
               "--seeds", "1", "--pretrain_args=--steps 2", "--finetune_args=--epochs 1")
    printed = run_experiment(command, cwd=tmp_path)
    assert "14 runs, of which 14 are to do" in printed
    assert "| toy CoLA |" in printed
    folder = tmp_path / "runs" / "toy"
    for name in ("world", "report.md", "ablation.png", "losses.png"):
        assert (folder / name).exists()
    assert "14 runs, of which 0 are to do" in run_experiment(command, cwd=tmp_path)
    assert read_config(folder / "full" / "seed0").num_hidden_layers == 3


def test_a_report_alone_leaves_the_data_as_they_are(tmp_path, monkeypatch, refused):
    monkeypatch.chdir(tmp_path)
    assert "nothing to report yet" in refused(ablation, "--report_only")
    assert not (tmp_path / "runs").exists()


def test_a_task_that_is_named_twice_is_one(world, tmp_path):
    args = ablation.read_arguments(arguments(world, tmp_path, "--tasks", "mrpc,cola,mrpc"))
    assert args.tasks == ["mrpc", "cola"]


def test_a_preset_without_a_world_of_its_own_needs_the_users(refused):
    line = refused(ablation, "--preset", "mini", "--teacher", "x")
    assert "--corpus: missing; preset mini needs --teacher, --corpus and --data_dir" in line
