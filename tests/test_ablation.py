"""ablation.py, the whole experiment on the miniature world; the report's arithmetic by another road."""
import json
import os
import re
import shlex
import shutil
import signal
import subprocess
import sys
import time
from pathlib import Path

import numpy as np
import pytest
import scipy.stats
import sklearn.metrics
from conftest import ROOT

import ablation
from load_hf_weights import load_model, read_config
from support import report
from support.errors import InputError


def arguments(world, out_dir, *more):
    return [str(x) for x in (
        "--preset", "mini", "--teacher", world / "teacher", "--corpus", world / "corpus.txt", "--heldout", world / "heldout.txt",
        "--data_dir", world / "data", "--out_dir", out_dir, "--precision", "fp32", "--device", "cpu",
        "--pretrain_args", f"--steps 3 --log_every 1 --batch_size 4 --max_length 32 --cache_dir {world / 'cache'}",
        "--finetune_args", "--epochs 1 --max_length 32", *more)]


@pytest.fixture(scope="module")
def experiment(world, tmp_path_factory):
    """(folder, what was printed) of the five variants on the four tasks, one seed."""
    out_dir = tmp_path_factory.mktemp("runs") / "mini"
    run = subprocess.run([sys.executable, ROOT / "ablation.py", *arguments(world, out_dir)], capture_output=True, text=True)
    assert run.returncode == 0, run.stderr
    return out_dir, run.stdout


def test_it_says_first_what_it_will_do_and_how_long_it_takes(experiment):
    _, printed = experiment
    first, second = printed.splitlines()[:2]
    assert re.match(r"5 students to distil from .*/teacher, 6 models to fine-tune on cola, mnli, mrpc, imdb, with 1 seed\(s\): "
                    r"29 runs, of which 29 are to do", first)
    assert re.match(r"About \d+ minutes on this machine", second)


def test_every_student_and_every_fine_tuning_is_there(experiment):
    out_dir, _ = experiment
    students = [out_dir / variant / "seed0" for variant in ablation.VARIANTS]
    for student in students:
        assert read_config(student).num_hidden_layers == 2 and (student / "tokenizer.json").exists()
    for model in (out_dir / "teacher" / "seed0", *students):
        for task in ("cola", "mnli", "mrpc", "imdb"):
            assert all((model / task / name).exists() for name in ("model.safetensors", "results.json", "predictions.tsv", "run.json"))


def test_each_variant_changes_exactly_one_thing(experiment):
    out_dir, _ = experiment
    runs = {variant: json.loads((out_dir / variant / "seed0" / "run.json").read_text())["arguments"] for variant in ablation.VARIANTS}
    changed = {variant: {key: value for key, value in run.items() if key != "out_dir" and value != runs["full"][key]} for variant, run in runs.items()}
    assert changed == {"full": {}, "no_cos": {"weights": {"ce": 5.0, "mlm": 2.0}}, "no_ce": {"weights": {"mlm": 2.0, "cos": 1.0}},
                       "no_mlm": {"weights": {"ce": 5.0, "cos": 1.0}}, "random_init": {"init": "random"}}


def test_the_printed_commands_do_the_same_alone(experiment, tmp_path):
    out_dir, printed = experiment
    commands = [line.split(" $ ")[1] for line in printed.splitlines() if " $ python " in line]
    assert len(commands) == 5 + 6 * 4
    command = next(c for c in commands if "pretrain.py" in c and "--use_ce 0" in c)
    words = [word if word != str(out_dir / "no_ce" / "seed0") else str(tmp_path / "alone") for word in shlex.split(command)]
    subprocess.run([sys.executable, str(ROOT / words[1]), *words[2:]], check=True, capture_output=True)
    assert (tmp_path / "alone" / "model.safetensors").read_bytes() == (out_dir / "no_ce" / "seed0" / "model.safetensors").read_bytes()


def test_a_second_call_runs_nothing_and_reports_the_same(experiment, world, monkeypatch):
    out_dir, _ = experiment
    monkeypatch.setattr("pretrain.train", None)  # called, they would fail
    monkeypatch.setattr("finetune.train", None)
    before = (out_dir / "report.md").read_bytes()
    ablation.main(arguments(world, out_dir))
    assert (out_dir / "report.md").read_bytes() == before


@pytest.fixture
def copy(world, tmp_path):
    """A copy of the code to edit: copy(file, where, what) puts `what` in front of `where`; copy.run(*more) runs its ablation.py."""
    for file in ROOT.glob("*.py"):
        shutil.copy(file, tmp_path)

    def edit(file, where, what, instead=False):
        text = (tmp_path / file).read_text()
        assert text.count(where) == 1
        (tmp_path / file).write_text(text.replace(where, what if instead else what + where))

    def run(*more):
        command = [sys.executable, tmp_path / "ablation.py", *arguments(world, tmp_path / "runs", *more)]
        done = subprocess.run(command, capture_output=True, text=True)
        assert done.returncode == 0, done.stderr
        return re.findall(r"\] \$ python (\w+).py .*--out_dir (\S+)", done.stdout), done.stdout
    edit.run, edit.runs, edit.arguments = run, tmp_path / "runs", lambda *more: arguments(world, tmp_path / "runs", *more)
    return edit


def test_an_edited_formula_reruns_the_students_that_use_it_and_shows_what_it_did(copy):
    some = ("--tasks", "cola,imdb", "--variants", "full,no_cos")
    first, _ = copy.run(*some)
    assert len(first) == 2 + 3 * 2
    old = json.loads((copy.runs / "full" / "seed0" / "cola" / "results.json").read_text())["score"]
    copy("losses.py", "    return (1 - F.cosine_similarity(student_hidden", "    # twice as much\n    return 2 * (1 - F.cosine_similarity(student_hidden", instead=True)
    again, printed = copy.run(*some)
    assert again == [("pretrain", f"{copy.runs}/full/seed0"), ("finetune", f"{copy.runs}/full/seed0/cola"), ("finetune", f"{copy.runs}/full/seed0/imdb")]
    assert "full/seed0: out of date (the code has changed); kept as" in printed
    assert json.loads((copy.runs / "full" / "seed0~1" / "cola" / "results.json").read_text())["score"] == old
    new = json.loads((copy.runs / "full" / "seed0" / "cola" / "results.json").read_text())["score"]
    summary = json.loads((copy.runs / "results.json").read_text())
    assert summary["since_edit"].keys() == {"full"} and summary["since_edit"]["full"]["difference"] == pytest.approx(new - old)
    assert "macro, change since the edit |" in (copy.runs / "report.md").read_text()
    assert copy.run(*some)[0] == []
    copy("finetune.py", "weight_decay=0.0", "weight_decay=0.01", instead=True)
    assert [module for module, _ in copy.run(*some)[0]] == ["finetune"] * 6  # the students stay as they are


def test_the_readmes_example_works_as_written(copy):
    some = ("--tasks", "cola", "--variants")
    assert len(copy.run(*some, "full")[0]) == 3
    formula, term, variant = re.findall(r"```python\n(.*?)```", (ROOT / "README.md").read_text(), re.DOTALL)
    copy("losses.py", "# name: (formula, weight)", formula + "\n\n")
    copy("losses.py", "}\nWEIGHTS", term)
    copy("ablation.py", "}\n# More rows", variant)
    done, printed = copy.run(*some, "full,mse")
    assert done == [("pretrain", f"{copy.runs}/mse/seed0"), ("finetune", f"{copy.runs}/mse/seed0/cola")]  # and the rest is kept
    assert "| squared error of logits for KL |" in printed
    logged = [json.loads(line) for line in (copy.runs / "mse" / "seed0" / "log.jsonl").read_text().splitlines()]
    assert all(set(line) == {"step", "lr", "mlm", "cos", "mse"} for line in logged if "lr" in line) and logged[1]["mse"] > 0


def test_an_interrupted_experiment_goes_on_where_it_stopped(copy):
    """Killed in the middle of a fine-tuning, for real."""
    more = ("--tasks", "cola,imdb", "--variants", "full", "--finetune_args", "--epochs 30 --max_length 32")
    process = subprocess.Popen([sys.executable, copy.runs.parent / "ablation.py", *copy.arguments(*more)], stdout=subprocess.PIPE, text=True)
    for line in process.stdout:
        if "--task imdb" in line and "/teacher/" not in line.split("--out_dir")[1].split()[0]:
            break
    process.send_signal(signal.SIGKILL)
    process.wait()
    assert copy.run(*more)[0] == [("finetune", f"{copy.runs}/full/seed0/imdb")]


def test_side_by_side_is_the_same_as_one_after_the_other(world, tmp_path):
    for jobs in (1, 2):
        done = subprocess.run([sys.executable, ROOT / "ablation.py", *arguments(world, tmp_path / str(jobs), "--jobs", jobs, "--tasks", "cola", "--variants", "full,no_ce")],
                              capture_output=True, text=True, env={**os.environ, "OMP_NUM_THREADS": "1"})
        assert done.returncode == 0, done.stderr
        assert len(re.findall(r"\[\d/5\] \$ python", done.stdout)) == 5
    for file in ("full/seed0/model.safetensors", "no_ce/seed0/cola/model.safetensors", "teacher/seed0/cola/predictions.tsv"):
        assert (tmp_path / "1" / file).read_bytes() == (tmp_path / "2" / file).read_bytes()


def test_one_of_several_jobs_that_fails_ends_them_all_in_one_line(world, tmp_path):
    more = ("--jobs", 2, "--tasks", "cola", "--variants", "full", f"--pretrain_args=--lr 1e30 --clip 1e30 --steps 9 --log_every 1 --max_length 32 --cache_dir {world / 'cache'}",
            "--finetune_args=--epochs 100000 --max_length 32")
    done = subprocess.run([sys.executable, ROOT / "ablation.py", *arguments(world, tmp_path, *more)], capture_output=True, text=True,
                          timeout=1200)  # the other one would take hours
    assert done.returncode == 2 and "Traceback" not in done.stderr
    assert re.search(r"^ablation.py: error: step \d+: the (held-out )?loss is not a finite number", done.stderr, re.MULTILINE)


@pytest.mark.skipif(not Path("/proc/self/task").exists(), reason="asks /proc for the processes' children")
def test_jobs_end_with_the_process_that_started_them(world, tmp_path):
    more = ("--jobs", 2, "--tasks", "cola", "--variants", "full", "--finetune_args=--epochs 100000 --max_length 32")
    process = subprocess.Popen([sys.executable, ROOT / "ablation.py", *arguments(world, tmp_path, *more)], stdout=subprocess.PIPE, text=True)
    for line in process.stdout:
        if "finetune.py" in line:
            break
    children = Path(f"/proc/{process.pid}/task/{process.pid}/children").read_text().split()

    def alive(pid):
        try:
            return Path(f"/proc/{pid}/stat").read_text().rpartition(")")[2].split()[0] != "Z"
        except FileNotFoundError:
            return False
    assert len([pid for pid in children if alive(pid)]) >= 2
    process.send_signal(signal.SIGKILL)
    process.wait()
    waited = time.monotonic()
    while any(map(alive, children)) and time.monotonic() - waited < 30:
        time.sleep(0.1)
    assert not any(map(alive, children))


def test_the_report_says_what_it_shows(experiment):
    out_dir, printed = experiment
    text = (out_dir / "report.md").read_text()
    assert "| model | CoLA | tiny pairs | MRPC | macro | IMDb |" in text  # MNLI's folder holds a stand-in, and says so
    assert "Macro: the mean of CoLA, tiny pairs, MRPC." in text
    assert "paper's Table 4 (GLUE macro)" in text and "| -2.96 |" in text and "one seed cannot tell" in text
    for title, _ in ablation.VARIANTS.values():
        assert text.count(f"| {title} |") in (2, 3)
    assert "(majority)" in text and "(TF-IDF)" in text and "| variant |" in printed
    for name in ("ablation.png", "losses.png"):
        assert (out_dir / name).read_bytes().startswith(b"\x89PNG") and (out_dir / name).stat().st_size > 20_000


def test_the_reports_numbers_are_those_of_the_runs(experiment):
    out_dir, _ = experiment
    summary = json.loads((out_dir / "results.json").read_text())
    for model in ("teacher", *ablation.VARIANTS):
        scores = {task: json.loads((out_dir / model / "seed0" / task / "results.json").read_text())["score"] for task in ("cola", "mnli", "mrpc", "imdb")}
        shown = {column: value["mean"] for column, value in summary["scores"][summary["titles"][model]].items()}
        assert shown == pytest.approx({**scores, "macro": np.mean([scores["cola"], scores["mnli"], scores["mrpc"]])})
        if model != "full":
            for column, value in summary["change"][model].items():
                assert value["difference"] == pytest.approx(shown[column] - summary["scores"]["full (baseline)"][column]["mean"])
                assert value["low"] <= value["high"]
    majority, tf_idf = summary["scores"]["(majority)"], summary["scores"]["(TF-IDF)"]
    assert majority["imdb"]["mean"] == 50 and majority["cola"]["mean"] == 0
    assert tf_idf["imdb"]["mean"] > 80  # the label is a word of praise or blame


def outcome(predictions, targets):
    return {"scores": np.array([100 * np.mean(predictions == targets)]), "sets": [{"dev": (predictions, targets)}]}


def test_the_bootstrap_interval_against_scipy():
    rng = np.random.default_rng(0)
    targets = rng.integers(0, 2, 400)
    strong = np.where(rng.random(400) < 0.9, targets, 1 - targets)
    weak = np.where(rng.random(400) < 0.8, targets, 1 - targets)
    drawn = report.differences("sst2", outcome(weak, targets), outcome(strong, targets))
    value = report.interval(100 * ((weak == targets).mean() - (strong == targets).mean()), drawn, seeds=1)
    reference = scipy.stats.bootstrap((100 * ((weak == targets).astype(float) - (strong == targets)),), np.mean, method="percentile").confidence_interval
    assert (value["low"], value["high"]) == pytest.approx((reference.low, reference.high), abs=0.6)
    assert "noise" not in report.show_change(value)
    same = report.interval(0.0, report.differences("sst2", outcome(weak, targets), outcome(weak, targets)), seeds=1)
    assert report.show_change(same) == "+0.0 [+0.0, +0.0] noise"


def test_the_t_interval_against_scipy():
    variant, baseline = {"scores": np.array([50.0, 53.0, 49.0])}, {"scores": np.array([55.0, 56.0, 55.5])}
    value = report.interval(-4.5 - 1 / 3, report.differences("sst2", variant, baseline), seeds=3)
    reference = scipy.stats.ttest_rel(variant["scores"], baseline["scores"]).confidence_interval(0.95)
    assert (value["low"], value["high"]) == pytest.approx((reference.low, reference.high))


@pytest.mark.parametrize("seeds, over", [(1, "the dev rows; one seed"), (3, "n = 3 seeds")])
def test_the_sentence_tells_effects_from_noise(seeds, over):
    def of(difference, low, high):
        return {"macro": {"difference": difference, "low": low, "high": high}}
    summary = {"titles": {"full": "full", "teacher": "teacher", "a": "no A", "b": "no B", "c": "no C"}, "baseline": "full",
               "main_column": "macro", "seeds": seeds, "change": {"teacher": of(9, 8, 10), "a": of(-1, -2, -0.5), "b": of(1, -1, 3), "c": of(-7, -9, -5)}}
    assert report.conclusion(summary) == (
        f"Against full: no C changes the macro-score by -7.0 points [-9.0, -5.0]; no A changes the macro-score by -1.0 points [-2.0, -0.5] "
        f"(95 % interval over {over}); what no B changes cannot be told from noise here.")
    summary["change"] = {"b": of(1, -1, 3)}
    assert report.conclusion(summary) == "Against full: what no B changes cannot be told from noise here."


def test_several_seeds(world, tmp_path):
    ablation.main(arguments(world, tmp_path, "--seeds", 2, "--tasks", "mrpc,stsb", "--variants", "full,no_mlm"))
    summary = json.loads((tmp_path / "results.json").read_text())
    scores = [json.loads((tmp_path / "no_mlm" / f"seed{k}" / "mrpc" / "results.json").read_text())["score"] for k in (0, 1)]
    assert summary["scores"]["no MLM loss"]["mrpc"] == pytest.approx({"mean": np.mean(scores), "sd": np.std(scores, ddof=1)})
    text = (tmp_path / "report.md").read_text()
    scores = [json.loads((tmp_path / "no_mlm" / f"seed{k}" / "stsb" / "results.json").read_text())["score"] for k in (0, 1)]
    assert summary["scores"]["no MLM loss"]["stsb"]["mean"] == pytest.approx(np.mean(scores)) and summary["scores"]["(majority)"]["stsb"]["mean"] == 0
    assert "STS-B: Pearson's correlation and Spearman's" in text
    assert "paired t interval over n = 2 seeds" in text and re.search(r"\| full \(baseline\) \| \d+\.\d ± \d+\.\d ", text)
    first, second = (load_model(tmp_path / "full" / f"seed{k}").bert.layers[0].qkv.weight for k in (0, 1))
    assert not first.equal(second)


def test_a_report_of_what_is_done_so_far(world, experiment, tmp_path, capsys):
    out_dir, _ = experiment
    with pytest.raises(InputError, match="nothing to report yet"):
        ablation.main(arguments(world, tmp_path, "--report_only"))
    (tmp_path / "full").symlink_to(out_dir / "full")
    (tmp_path / "no_ce").symlink_to(out_dir / "no_ce")
    ablation.main(arguments(world, tmp_path, "--report_only"))
    assert "no distillation loss" in capsys.readouterr().out and "cosine distance |" in (tmp_path / "report.md").read_text()
    assert "**Left out**, as not done yet for all: teacher, no cosine loss, no MLM loss, random init" in (tmp_path / "report.md").read_text()


def test_the_floor_against_scikit_learns_own_metrics(world, tmp_path):
    floors = report.measure_floors(tmp_path, str(world / "data"), ["mrpc"])
    ones = [1] * 32 + [0] * 32
    assert floors["mrpc"]["majority"] == pytest.approx(100 * np.mean([  # half of the rows are 1; argmax takes the first of equals, 0
        sklearn.metrics.f1_score(ones, [0] * 64, zero_division=0), sklearn.metrics.accuracy_score(ones, [0] * 64)]))


@pytest.mark.parametrize("more, message", [
    (["--preset", "minni"], "unknown preset 'minni'; did you mean mini"),
    (["--variants", "full,no_coss"], "unknown variant 'no_coss'; did you mean no_cos"),
    (["--tasks", "cola,mrcp"], "unknown task 'mrcp'; did you mean mrpc"),
    (["--variants", "no_cos"], "--variants must hold full"),
    (["--seeds", "three"], "--seeds: invalid whole number value: 'three'"),
    (["--teacher", "nowhere"], "nowhere/config.json: no such file"),
    (["--data_dir", "nowhere"], "nowhere: holds no folder CoLA"),
    (["--heldout", "nowhere.txt"], "nowhere.txt: no such file or folder"),
    (["--pretrain_args", "--steps 0"], "--steps: 0 is not a number at least 1"),
    (["--finetune_args=--stepz=5"], "unrecognized arguments: --stepz=5"),
    (["--finetune_args", "--lr '1"], "--finetune_args: .*No closing quotation"),
    (["--variants", "extended"], "depth_6/seed0: the teacher has 4 layers, too few for evenly:6; leave this variant out of --variants"),
])
def test_wrong_arguments_end_in_one_line_and_status_2(world, tmp_path, refused, more, message):
    line = refused(ablation, *arguments(world, tmp_path / "out", *more))
    assert re.search(message, line), line
    assert not (tmp_path / "out").exists()  # before any work is done


def test_the_default_needs_no_data_and_is_done_once(tmp_path):
    def experiment():
        done = subprocess.run([sys.executable, ROOT / "ablation.py", "--tasks", "cola,imdb", "--variants", "full,random_init", "--device", "cpu",
                               "--pretrain_args=--steps 2", "--finetune_args=--epochs 1"], cwd=tmp_path, capture_output=True, text=True)
        assert done.returncode == 0, done.stderr
        return done.stdout
    printed = experiment()
    assert "8 runs, of which 8 are to do" in printed and "| toy CoLA |" in printed
    assert {path.name for path in (tmp_path / "runs" / "toy").iterdir()} >= {"world", "report.md", "ablation.png", "losses.png"}
    assert "8 runs, of which 0 are to do" in experiment()
    student = read_config(tmp_path / "runs" / "toy" / "full" / "seed0")
    assert student.num_hidden_layers == 6


def test_a_preset_without_a_world_of_its_own_needs_the_users(refused):
    assert "--corpus: missing; preset mini needs --teacher, --corpus and --data_dir" in refused(ablation, "--preset", "mini", "--teacher", "x")
