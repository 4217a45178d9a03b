"""The experiment on the miniature world of conftest.py: its command line, in seconds."""
import json
import subprocess
import sys

from conftest import ROOT

TASKS = ("cola", "mnli", "mrpc", "imdb")


def arguments(world, out_dir, *more):
    """The arguments of ablation.py. If a flag is given twice, the last value counts."""
    words = (
        "--preset", "mini",
        "--teacher", world / "teacher",
        "--corpus", world / "corpus.txt",
        "--heldout", world / "heldout.txt",
        "--data_dir", world / "data",
        "--out_dir", out_dir,
        "--precision", "fp32",
        "--device", "cpu",
        "--seeds", 1,
        "--tasks", ",".join(TASKS),
        "--pretrain_args", ("--steps 3 --log_every 1 --batch_size 4 --max_length 32 "
                            f"--cache_dir {world / 'cache'}"),
        "--finetune_args", "--epochs 1 --max_length 32",
        *more)
    return [str(word) for word in words]


def run_experiment(command, root=ROOT, **options):
    """Run ablation.py of the project in `root`; it must succeed. Returns what it printed."""
    done = subprocess.run([sys.executable, root / "ablation.py", *command],
                          capture_output=True, text=True, check=False, **options)
    assert done.returncode == 0, done.stderr
    return done.stdout


def read_json(folder, *names):
    """The content of a JSON file."""
    return json.loads(folder.joinpath(*names).read_text())


def score_of(out_dir, model, seed, task):
    """The points in a fine-tuning's own results.json."""
    return read_json(out_dir, model, f"seed{seed}", task, "results.json")["score"]
