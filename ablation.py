"""The experiment: what each part of the triple loss, and the teacher's initialisation, is worth.

    python ablation.py --preset mini --teacher FOLDER --corpus FILE_OR_FOLDER --data_dir FOLDER

Distils one student per variant, fine-tunes the teacher and every student on every task, and reports the differences.
What is done already is not done again. Sanh et al. 2019 (arXiv:1910.01108), section 4.2 and Table 4.
"""
import argparse
import difflib
import json
import shlex
import textwrap
from pathlib import Path

import matplotlib
matplotlib.use("Agg")  # before pyplot: no screen is needed
import matplotlib.pyplot as plt
import numpy as np
from scipy.sparse import hstack
from scipy.stats import t as student_t
from sklearn.feature_extraction.text import TfidfVectorizer
from sklearn.linear_model import LogisticRegression

import finetune
import pretrain
from data import TASKS, read_dev, read_train
from run import InputError, command_line, number, read_json, write_file, write_json

# name: (heading, what it changes against the baseline, as arguments of pretrain.py). A line more is a variant more.
VARIANTS = {
    "full":        ("full (baseline)",       []),
    "no_cos":      ("no cosine loss",        ["--use_cos", "0"]),
    "no_ce":       ("no distillation loss",  ["--use_ce", "0"]),
    "no_mlm":      ("no MLM loss",           ["--use_mlm", "0"]),
    "random_init": ("random initialisation", ["--init", "random"]),
}
BASELINE = "full"
# Sanh et al. 2019, Table 4: change of GLUE's macro-score against the full loss, at the paper's scale.
PAPER_TABLE_4 = {"no_ce": -2.96, "no_cos": -1.46, "no_mlm": -0.31, "random_init": -3.69}

PRESETS = {
    "mini": {  # a small pretrained BERT on a CPU of two cores
        "pretrain": ["--steps", "200", "--batch_size", "16", "--lr", "5e-4", "--log_every", "5"],
        "finetune": ["--epochs", "3", "--batch_size", "32", "--lr", "1e-4", "--attention_dropout", "0"],
    },
    "base": {  # bert-base-uncased on a GPU
        "pretrain": ["--steps", "10000", "--batch_size", "256", "--grad_accum", "4", "--lr", "5e-4"],
        "finetune": ["--epochs", "3", "--batch_size", "32", "--lr", "2e-5"],
    },
}


# ---- Running what is missing ----

def run_experiment(args):
    for seed in range(args.seeds):
        fine_tune(args, "teacher", args.teacher, seed)
        for variant in args.variants:
            student = Path(args.out_dir, variant, f"seed{seed}")
            call(pretrain, ["--teacher", args.teacher, "--corpus", *args.corpus, *(["--heldout", *args.heldout] if args.heldout else []),
                            "--out_dir", str(student), "--seed", str(seed), *PRESETS[args.preset]["pretrain"], *VARIANTS[variant][1],
                            "--device", args.device, "--precision", args.precision, *shlex.split(args.pretrain_args)])
            fine_tune(args, variant, student, seed)


def fine_tune(args, name, model, seed):
    for task in args.tasks:
        call(finetune, ["--model", str(model), "--task", task, "--data_dir", args.data_dir,
                        "--out_dir", str(Path(args.out_dir, name, f"seed{seed}", task)), "--seed", str(seed),
                        *PRESETS[args.preset]["finetune"], "--device", args.device, "--precision", args.precision,
                        *shlex.split(args.finetune_args)])


def call(module, arguments):
    """Run a command in this process, and show it as a reader would type it."""
    print(f"\n$ {shlex.join(['python', f'{module.__name__}.py', *arguments])}", flush=True)
    module.main(arguments)


def measure_floors(args):
    """{task: {"majority": points, "TF-IDF": points}}: what needs no BERT. Measured once, kept in floors.json."""
    path = Path(args.out_dir) / "floors.json"
    floors = read_json(path) if path.exists() else {}
    for task in args.tasks:
        if task in floors:
            continue
        train, dev = read_train(task, args.data_dir), read_dev(task, args.data_dir)
        targets = np.array([example.label for example in train])
        majority = np.bincount(targets).argmax()
        # Each sentence of a pair has features of its own: the words of one, and the words of the other.
        sides = [lambda e: e.text_a] + ([lambda e: e.text_b] if train[0].text_b is not None else [])
        vectorizers = [TfidfVectorizer(sublinear_tf=True, ngram_range=(1, 2)).fit([side(e) for e in train]) for side in sides]

        def features(examples):
            return hstack([v.transform([side(e) for e in examples]) for v, side in zip(vectorizers, sides)]).tocsr()
        model = LogisticRegression(max_iter=1000).fit(features(train), targets)
        truth = {name: np.array([example.label for example in examples]) for name, examples in dev.items()}
        floors[task] = {
            "majority": finetune.score(task, {name: (np.full_like(labels, majority), labels) for name, labels in truth.items()}),
            "TF-IDF": finetune.score(task, {name: (model.predict(features(dev[name])), truth[name]) for name in dev})}
        write_json(path, floors)
    return floors


# ---- The report ----

def read_outcomes(args, name):
    """{task: {"data": its name, "scores": [points of each seed], "sets": [{set: (predictions, targets)} of each seed]}}, of the
    tasks on which the model `name` has been fine-tuned with every seed."""
    outcomes = {}
    for task in args.tasks:
        folders = [Path(args.out_dir, name, f"seed{seed}", task) for seed in range(args.seeds)]
        if all((folder / "run.json").exists() for folder in folders):
            results = [read_json(folder / "results.json") for folder in folders]
            outcomes[task] = {"data": results[0]["data"], "scores": np.array([result["score"] for result in results]),
                              "sets": [read_predictions(folder / "predictions.tsv", task) for folder in folders]}
    return outcomes


def read_predictions(path, task):
    """{name of the set: (predictions, targets)} from predictions.tsv."""
    classes = {name: number for number, name in enumerate(TASKS[task].labels.values())}
    sets = {}
    for line in path.read_text(encoding="utf-8").splitlines()[1:]:
        name, _, prediction, target = line.split("\t")
        sets.setdefault(name, []).append((classes[prediction], classes[target]))
    return {name: tuple(np.array(pairs).T) for name, pairs in sets.items()}


def differences(task, variant, baseline):
    """What an interval of the difference variant - baseline is made of: with several seeds the difference of each seed; with one,
    1,000 differences on dev rows drawn with replacement, the same rows for both (a paired bootstrap, Efron and Tibshirani 1993)."""
    if len(variant["scores"]) > 1:
        return variant["scores"] - baseline["scores"]
    rng, drawn = np.random.default_rng(0), []
    for _ in range(1000):
        ours, theirs = {}, {}
        for name, (predictions, targets) in variant["sets"][0].items():
            rows = rng.integers(len(targets), size=len(targets))
            ours[name] = predictions[rows], targets[rows]
            theirs[name] = baseline["sets"][0][name][0][rows], targets[rows]
        drawn.append(finetune.score(task, ours) - finetune.score(task, theirs))
    return np.array(drawn)


def interval(point, drawn, seeds):
    """95 %: {"difference", "low", "high"}. Over seeds a t interval of the mean; with one seed the bootstrap's middle 95 %."""
    if seeds > 1:
        half = student_t.ppf(0.975, seeds - 1) * drawn.std(ddof=1) / np.sqrt(seeds)
        low, high = point - half, point + half
    else:
        low, high = np.percentile(drawn, (2.5, 97.5))
    return {"difference": float(point), "low": float(low), "high": float(high)}


def summarize(args):
    """Everything the report and the figures show, as plain numbers: what results.json holds. Raises InputError if too little is done."""
    models = {name: outcomes for name in ("teacher", *args.variants) if (outcomes := read_outcomes(args, name))}
    tasks = [task for task in args.tasks if all(task in outcomes for outcomes in models.values())]
    if BASELINE not in models or not tasks:
        raise InputError(f"{args.out_dir}: nothing to report yet; no task is done for the baseline and the others")
    macro = [task for task in tasks if task != "imdb"]  # IMDb is no GLUE task
    summary = {"preset": args.preset, "seeds": args.seeds, "tasks": {task: models[BASELINE][task]["data"] for task in tasks},
               "macro_of": macro, "floors": measure_floors(args), "models": {}, "heldout": {}, "differences": {}, "paper_table_4": PAPER_TABLE_4}
    for name, outcomes in models.items():
        scores = {task: outcomes[task]["scores"] for task in tasks}
        if macro:
            scores["macro"] = np.mean([scores[task] for task in macro], axis=0)
        summary["models"][name] = {task: {"mean": float(x.mean()), "sd": float(x.std(ddof=1)) if args.seeds > 1 else None}
                                   for task, x in scores.items()}
        if name in VARIANTS:
            summary["heldout"][name] = [{key: record[key] for key in ("heldout_before", "heldout_after")} for record in (
                read_json(Path(args.out_dir, name, f"seed{seed}", "run.json")) for seed in range(args.seeds))]
    for name, outcomes in models.items():
        if name == BASELINE:
            continue
        drawn = {task: differences(task, outcomes[task], models[BASELINE][task]) for task in tasks}
        if macro:
            drawn["macro"] = np.mean([drawn[task] for task in macro], axis=0)
        own, baseline = summary["models"][name], summary["models"][BASELINE]
        summary["differences"][name] = {task: interval(own[task]["mean"] - baseline[task]["mean"], x, args.seeds)
                                        for task, x in drawn.items()}
    return summary


def heading(summary, column):
    return "macro" if column == "macro" else summary["tasks"][column]


def table(header, rows):
    """Lines of a Markdown table, first column left, the others right."""
    return ["| " + " | ".join(row) + " |" for row in (header, ["---"] + ["---:"] * (len(header) - 1), *rows)]


def show_difference(value):
    text = f"{value['difference']:+.1f} [{value['low']:+.1f}, {value['high']:+.1f}]"
    return text + " noise" if value["low"] <= 0 <= value["high"] else text


def write_report(args, summary):
    """report.md, results.json, ablation.png and losses.png in args.out_dir."""
    columns = [*summary["macro_of"], *(["macro"] if summary["macro_of"] else []), *(task for task in summary["tasks"] if task == "imdb")]
    titles = {"teacher": "teacher", **{name: VARIANTS[name][0] for name in summary["heldout"]}}
    header = [heading(summary, column) for column in columns]

    def show(value):
        return f"{value['mean']:.1f}" + (f" ± {value['sd']:.1f}" if value["sd"] is not None else "")
    floors = [[f"({floor})", *(f"{summary['floors'][c][floor]:.1f}" if c != "macro" else
                               f"{np.mean([summary['floors'][task][floor] for task in summary['macro_of']]):.1f}" for c in columns)]
              for floor in ("majority", "TF-IDF")]
    one_seed = summary["seeds"] == 1
    text = [
        f"# What each part of the loss is worth: preset {summary['preset']}, {summary['seeds']} seed{'' if one_seed else 's'}", "",
        "Points out of 100: " + "; ".join(f"{summary['tasks'][task]}: " + " and ".join(
            {"f1": "F1", "matthews": "Matthews correlation"}.get(metric.__name__, metric.__name__) for metric in finetune.METRICS[task])
            for task in summary["tasks"]) + ". Of two figures, or two dev sets, the mean. "
        "Macro: the mean of " + ", ".join(summary["tasks"][task] for task in summary["macro_of"]) + ".",
        "" if one_seed else "Mean ± standard deviation over the seeds.", "",
        *table(["model", *header], [[titles[name], *(show(scores[column]) for column in columns)]
                                    for name, scores in summary["models"].items()] + floors), "",
        "## Change against the baseline", "",
        "In brackets the 95 % interval: " + (
            "of the dev rows alone (paired bootstrap). **noise** marks a difference whose interval holds zero. With one seed the report "
            "cannot see how much another seed would change: on small tasks that is often several points (Dodge et al. 2020), so a "
            "difference of one or two points that is not marked may be noise as well." if one_seed else
            f"a paired t interval over n = {summary['seeds']} seeds. **noise** marks a difference whose interval holds zero.")
        + " The last column is the paper's own, for GLUE's nine tasks at full scale; only its signs and order can be compared.", "",
        *table(["variant", *header, "paper's Table 4 (GLUE macro)"],
               [[titles[name], *(show_difference(values[column]) for column in columns),
                 f"{PAPER_TABLE_4[name]:+.2f}" if name in PAPER_TABLE_4 else ""] for name, values in summary["differences"].items()]), "",
        "## The students as language models, on held-out text", "",
        "Before (copied or random weights) -> after distillation; mean over seeds. Accuracy and agreement: of the masked positions, in %.", "",
        *table(["student", "MLM loss", "MLM accuracy", "agreement with teacher", "CE loss", "cosine loss"],
               [[titles[name], *(f"{factor * np.mean([r['heldout_before'][key] for r in records]):.{digits}f} -> "
                                 f"{factor * np.mean([r['heldout_after'][key] for r in records]):.{digits}f}"
                                 for key, factor, digits in (("mlm", 1, 2), ("mlm_accuracy", 100, 1), ("teacher_agreement", 100, 1),
                                                             ("ce", 1, 3), ("cos", 1, 3)))] for name, records in summary["heldout"].items()]),
        "", f"The teacher's own MLM accuracy there: {100 * summary['heldout'][BASELINE][0]['heldout_after']['teacher_mlm_accuracy']:.1f} %.", "",
        "![change against the baseline](ablation.png)", "", "![loss curves](losses.png)"]
    write_file(Path(args.out_dir) / "report.md", "\n".join(text) + "\n")
    write_json(Path(args.out_dir) / "results.json", summary)
    plot_differences(summary, columns, titles, Path(args.out_dir) / "ablation.png")
    plot_losses(args, titles, Path(args.out_dir) / "losses.png")
    print("\n" + "\n".join(text[:-3]))
    print(f"\n{Path(args.out_dir, 'report.md')}, results.json, ablation.png, losses.png")


COLOURS = {"full": "#000000", "no_cos": "#0072B2", "no_ce": "#D55E00", "no_mlm": "#009E73", "random_init": "#CC79A7"}  # Okabe and Ito 2008


def plot_differences(summary, columns, titles, path):
    """Bars: each variant's difference to the baseline, per task and of the macro-score; faintly, apart, the paper's Table 4."""
    figure, axes = plt.subplots(figsize=(9, 4.5), layout="constrained")
    names = [name for name in summary["differences"] if name != "teacher"]
    width = 0.8 / max(1, len(names))
    for i, name in enumerate(names):
        values = [summary["differences"][name][column] for column in columns]
        places = np.arange(len(columns)) + (i - (len(names) - 1) / 2) * width
        points = np.array([value["difference"] for value in values])
        errors = np.abs(np.array([[value["low"], value["high"]] for value in values]).T - points)
        axes.bar(places, points, width, yerr=errors, color=COLOURS.get(name, "#999999"), label=titles[name], ecolor="#555555", capsize=2)
        if name in PAPER_TABLE_4:
            axes.bar(len(columns) + 0.3 + places[0], PAPER_TABLE_4[name], width, color=COLOURS.get(name, "#999999"), alpha=0.35, hatch="//")
    axes.axvline(len(columns) - 0.35, color="#999999", linewidth=0.8, linestyle=":")
    axes.axhline(0, color="black", linewidth=0.8)
    labels = [f"macro of\n{', '.join(summary['tasks'][task] for task in summary['macro_of'])}" if c == "macro" else heading(summary, c)
              for c in columns]
    axes.set_xticks([*range(len(columns)), len(columns) + 0.3], [*(wrap(label) for label in labels), "the paper's\nTable 4\n(GLUE macro,\nfull scale)"])
    axes.set_ylabel("points against the full loss")
    axes.set_title(f"What each part is worth (preset {summary['preset']}, {summary['seeds']} seed{'s' if summary['seeds'] > 1 else ''}; "
                   "bars: 95 % intervals)", fontsize=11)
    axes.legend(frameon=False, fontsize=9)
    axes.spines[["top", "right"]].set_visible(False)
    figure.savefig(path, dpi=150)
    plt.close(figure)


def wrap(label, width=18):
    return "\n".join(line for part in label.split("\n") for line in textwrap.wrap(part, width))


def plot_losses(args, titles, path):
    """The three terms over the steps of seed 0, for the variants that train on them."""
    figure, panels = plt.subplots(1, 3, figsize=(11, 3.6), layout="constrained")
    for term, title, axes in zip(("ce", "mlm", "cos"), ("distillation (KL, T\u00b2)", "masked language modelling", "cosine"), panels):
        for name in titles:
            log = Path(args.out_dir, name, "seed0", "log.jsonl")
            if name == "teacher" or not log.exists():
                continue
            points = [(line["step"], line[term]) for line in map(json.loads, log.read_text().splitlines()) if term in line]
            if points:
                axes.plot(*zip(*points), color=COLOURS.get(name, "#999999"), label=titles[name], linewidth=1.4)
        axes.set_title(title, fontsize=11)
        axes.set_xlabel("step")
        axes.spines[["top", "right"]].set_visible(False)
    panels[0].set_ylabel("training loss of a batch")
    handles = {label: handle for axes in panels for handle, label in zip(*axes.get_legend_handles_labels())}
    figure.legend(handles.values(), handles.keys(), loc="outside lower center", ncols=5, frameon=False, fontsize=9)
    figure.savefig(path, dpi=150)
    plt.close(figure)


# ---- The command ----

def one_of(known, what):
    """An argparse type: a name out of `known`, or the nearest one suggested."""
    def parse(text):
        if text not in known:
            near = difflib.get_close_matches(text, known, 1)
            raise argparse.ArgumentTypeError(f"unknown {what} {text!r}" + (f"; did you mean {near[0]}?" if near else "") + f" Known: {', '.join(known)}")
        return text
    return parse


def list_of(known, what):
    return lambda text: [one_of(known, what)(name) for name in text.split(",")]


def read_arguments(arguments):
    parser = argparse.ArgumentParser(description=__doc__.split("\n")[0], allow_abbrev=False)
    parser.add_argument("--preset", type=one_of(PRESETS, "preset"), default="mini", help=", ".join(PRESETS))
    parser.add_argument("--teacher", required=True, help="folder of a BERT with its MLM head, in Hugging Face's layout")
    parser.add_argument("--corpus", nargs="+", required=True, help="text files, or folders of them")
    parser.add_argument("--heldout", nargs="+", help="text to measure the students on; default: a slice of the corpus not trained on")
    parser.add_argument("--data_dir", required=True, help="folder that holds CoLA/, MNLI/, ... or glue_data/, and aclImdb/")
    parser.add_argument("--out_dir", help="default: runs/PRESET")
    parser.add_argument("--seeds", type=number(int, 1), default=1, help="repeat everything with seeds 0 to N - 1")
    parser.add_argument("--tasks", type=list_of(TASKS, "task"), default=["cola", "mnli", "mrpc", "imdb"], help="separated by commas")
    parser.add_argument("--variants", type=list_of(VARIANTS, "variant"), default=list(VARIANTS), help="separated by commas")
    parser.add_argument("--report_only", action="store_true", help="report what is done, run nothing")
    parser.add_argument("--pretrain_args", default="", help='more arguments for pretrain.py, in quotes: "--steps 5"')
    parser.add_argument("--finetune_args", default="", help='more arguments for finetune.py, in quotes: "--epochs 1"')
    parser.add_argument("--device", choices=("auto", "cpu", "cuda", "mps"), default="auto")
    parser.add_argument("--precision", choices=("auto", "fp32", "bf16"), default="auto")
    args = parser.parse_args(arguments)
    args.out_dir = args.out_dir or f"runs/{args.preset}"
    if BASELINE not in args.variants:
        raise InputError(f"--variants must hold {BASELINE}: the others are compared with it")
    return args


def main(arguments):
    args = read_arguments(arguments)
    if not args.report_only:
        print(f"{args.seeds} seed(s): {len(args.variants)} students to distil, {1 + len(args.variants)} models to fine-tune on "
              f"{', '.join(args.tasks)}. What is done already is kept. Results: {args.out_dir}", flush=True)
        run_experiment(args)
    write_report(args, summarize(args))


if __name__ == "__main__":
    command_line(main)
