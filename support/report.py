"""What an experiment's folder shows: scores, differences with their intervals, held-out losses; two figures.

Nothing is trained here. ablation.py says which models there are and calls write_report.
"""
import io
import json
import textwrap
from pathlib import Path

import matplotlib

matplotlib.use("Agg")  # before pyplot: no screen is needed
import matplotlib.pyplot as plt
import numpy as np
from matplotlib.ticker import LogLocator, NullFormatter
from scipy.sparse import hstack
from scipy.stats import t as student_t
from sklearn.feature_extraction.text import TfidfVectorizer
from sklearn.linear_model import LogisticRegression, Ridge

from finetune import headline_metrics, score
from support.errors import InputError
from support.files import read_json, write_file, write_json
from support.fingerprint import code_fingerprint, files_fingerprint
from support.run_folder import archived_versions
from support.squad import f1_of_each
from support.tasks import TASKS, read_dev, read_train, task_files

# Sanh et al. 2019, Table 4: change of GLUE's macro-score against the full loss, at the paper's scale.
PAPER_TABLE_4 = {"no_ce": -2.96, "no_cos": -1.46, "no_mlm": -0.31, "random_init": -3.69}
COLOURS = {"full": "#000000", "no_cos": "#0072B2", "no_ce": "#D55E00", "no_mlm": "#009E73",
           "random_init": "#CC79A7"}  # Okabe and Ito 2008: told apart by the colour-blind too
MORE_COLOURS = ("#E69F00", "#56B4E9", "#F0E442", "#999999")  # of variants that are not the paper's
METRIC_TITLES = {"accuracy": "accuracy", "f1": "F1", "matthews": "Matthews correlation", "pearson": "Pearson's correlation",
                 "spearman": "Spearman's"}


# ---- From folders to numbers ----

def read_outcomes(folders):
    """{task: {"data": its name, "scores": points of each seed, "sets": [{set: (predictions, targets)} of each seed]}},
    of the tasks in folders, {task: [folder of a finished fine-tuning of each seed]}, that are done with every seed."""
    outcomes = {}
    for task, of_seeds in folders.items():
        if not all((folder / "run.json").exists() for folder in of_seeds):
            continue
        try:
            results = [read_json(folder / "results.json") for folder in of_seeds]
            outcomes[task] = {"data": results[0]["data"], "scores": np.array([result["score"] for result in results]),
                              "sets": [read_predictions(folder / "predictions.tsv", task) for folder in of_seeds]}
        except (KeyError, TypeError, ValueError, OSError) as error:
            raise InputError(f"{of_seeds[0].parent}: results.json or predictions.tsv of {task} is damaged ({error!r}); remove the folder "
                             f"{task}, and it is made again") from None
    return outcomes


def folder_before(folder):
    """A fine-tuning's folder as it was before it, or its model's folder, was set aside last; as it is, if neither was."""
    versions = [model / folder.name for model in archived_versions(folder.parent)] + archived_versions(folder)
    return next((version for version in reversed(versions) if (version / "run.json").exists()), folder)  # not one left unfinished


def read_predictions(path, task):
    """{name of the set: (predictions, targets)} from predictions.tsv, arrays; of squad in place of the answers their F1, and of the
    gold answers the JSON."""
    labels = TASKS[task].labels
    read = float if labels is None else json.loads if task == "squad" else list(labels.values()).index
    sets = {}
    for line in path.read_text(encoding="utf-8").splitlines()[1:]:
        name, _, prediction, target = line.split("\t")
        sets.setdefault(name, []).append((read(prediction), target if task == "squad" else read(target)))
    if task == "squad":
        return {name: (f1_of_each(answers, map(json.loads, gold_answers)), np.array(gold_answers)) for name, (answers, gold_answers) in
                ((name, tuple(zip(*pairs))) for name, pairs in sets.items())}
    return {name: tuple(np.array(pairs).T) for name, pairs in sets.items()}


def points(task, sets):
    """The task's score from what read_predictions gives."""
    return 100 * float(np.mean([pair[0].mean() for pair in sets.values()])) if task == "squad" else score(task, sets)


def differences(task, variant, baseline):
    """What an interval of the difference variant - baseline is made of, in points. With several seeds: the difference of
    each. With one: 1,000 differences on dev rows drawn with replacement, the same rows for both (a paired bootstrap)."""
    if len(variant["scores"]) > 1:
        return variant["scores"] - baseline["scores"]
    rng, drawn = np.random.default_rng(0), []
    for _ in range(1000):
        ours, theirs = {}, {}
        for name, (predictions, targets) in variant["sets"][0].items():
            rows = rng.integers(len(targets), size=len(targets))
            ours[name] = predictions[rows], targets[rows]
            theirs[name] = baseline["sets"][0][name][0][rows], targets[rows]
        drawn.append(points(task, ours) - points(task, theirs))
    return np.array(drawn)


def interval(difference, drawn, seeds):
    """95 %: {"difference", "low", "high"}. Over seeds a t interval of the mean; with one seed the bootstrap's middle 95 %."""
    if seeds > 1:
        half = student_t.ppf(0.975, seeds - 1) * drawn.std(ddof=1) / np.sqrt(seeds)
        low, high = difference - half, difference + half
    else:
        low, high = np.percentile(drawn, (2.5, 97.5))
    return {"difference": float(difference), "low": float(low), "high": float(high)}


def read_heldout(out_dir, name, seeds):
    """{"before" | "after": {figure: its mean over the seeds}} of a student's distillation, on held-out text."""
    runs = [read_json(Path(out_dir, name, f"seed{seed}", "run.json")) for seed in range(seeds)]
    return {when: {figure: float(np.mean([run[f"heldout_{when}"][figure] for run in runs]))
                   for figure in runs[0]["heldout_after"]} for when in ("before", "after")}


def measure_floors(out_dir, data_dir, tasks):
    """{task: {"majority": points, "TF-IDF": points, ...}}: what needs no BERT, of the tasks that have classes or scores. Measured
    once, kept in floors.json."""
    path = Path(out_dir) / "floors.json"
    floors = read_json(path) if path.exists() else {}
    for task in tasks:
        if task == "squad":
            continue
        fingerprint = {"data": files_fingerprint(task_files(task, data_dir)), "code": code_fingerprint(__file__)}
        if floors.get(task, {}).get("made_of") == fingerprint:
            continue
        train, dev = read_train(task, data_dir), read_dev(task, data_dir)
        targets = np.array([example.label for example in train])
        regression = TASKS[task].labels is None
        majority = targets.mean() if regression else np.bincount(targets).argmax()  # what to say without reading the text
        # Each sentence of a pair has features of its own: the words of one, and the words of the other.
        sides = ["text_a", "text_b"] if train[0].text_b is not None else ["text_a"]
        vectorizers = {side: TfidfVectorizer(sublinear_tf=True, ngram_range=(1, 2)).fit([getattr(e, side) for e in train])
                       for side in sides}

        def features(examples):
            return hstack([vectorizers[side].transform([getattr(e, side) for e in examples]) for side in sides]).tocsr()
        model = (Ridge() if regression else LogisticRegression(max_iter=1000)).fit(features(train), targets)
        truth = {name: np.array([example.label for example in examples]) for name, examples in dev.items()}
        floors[task] = {
            "made_of": fingerprint,
            "majority": score(task, {name: (np.full(len(labels), majority), labels) for name, labels in truth.items()}),
            "TF-IDF": score(task, {name: (model.predict(features(dev[name])), labels) for name, labels in truth.items()})}
        write_json(path, floors)
    return floors


def summarize(out_dir, data_dir, titles, baseline, all_tasks, seeds, also=()):
    """Everything the tables and the figures show, as plain numbers: what results.json holds.

    titles: {name of a model's folder: its heading}, in the report's order. also: the names of those that were only fine-tuned
    here: rows of the scores and changes, but like the teacher no variant of the loss. Raises InputError if there is nothing
    to compare."""
    folders = {name: {task: [Path(out_dir, name, f"seed{seed}", task) for seed in range(seeds)] for task in all_tasks}
               for name in titles}
    outcomes = {name: found for name in titles if (found := read_outcomes(folders[name]))}
    tasks = [task for task in all_tasks if all(task in found for found in outcomes.values())]
    if baseline not in outcomes or not tasks:
        raise InputError(f"{out_dir}: nothing to report yet: no task is done for {baseline} and the others, with all "
                         f"{seeds} seed(s)")
    others = [task for task in tasks if task in ("imdb", "squad")]  # no GLUE tasks, and not in the macro-score
    glue = [task for task in tasks if task not in others]
    headings = {task: outcomes[baseline][task]["data"] for task in tasks}
    columns = {**{task: headings[task] for task in glue}, **({"macro": "macro"} if glue else {}), **{task: headings[task] for task in others}}
    main_column = "macro" if glue else others[0]

    def with_macro(arrays):
        """{column: array}: the tasks' arrays, and their mean over GLUE's tasks."""
        return {column: np.mean([arrays[task] for task in glue], axis=0) if column == "macro" else arrays[column]
                for column in columns if column == "macro" or column in arrays}
    scores = {titles[name]: with_macro({task: found[task]["scores"] for task in tasks}) for name, found in outcomes.items()}
    drawn = {name: with_macro({task: differences(task, found[task], outcomes[baseline][task]) for task in tasks})
             for name, found in outcomes.items() if name != baseline}
    full = scores[titles[baseline]]
    change = {name: {column: interval(np.mean(scores[titles[name]][column] - full[column]), values, seeds)
                     for column, values in by_column.items()} for name, by_column in drawn.items()}
    since_edit = {}
    for name, found in outcomes.items():
        folders_before = {task: list(map(folder_before, folders[name][task])) for task in tasks}
        before = read_outcomes(folders_before)
        if any(folders_before[task] != folders[name][task] for task in tasks) and same_rows(before, found, tasks):
            drawn_since = with_macro({task: differences(task, found[task], before[task]) for task in tasks})[main_column]
            old = with_macro({task: before[task]["scores"] for task in tasks})[main_column]
            since_edit[name] = interval(np.mean(scores[titles[name]][main_column] - old), drawn_since, seeds)
    floors = measure_floors(out_dir, data_dir, tasks)
    for floor in ("majority", "TF-IDF"):
        scores[f"({floor})"] = with_macro({task: np.array([floors[task][floor]]) for task in tasks if task in floors})
    heldout = {name: read_heldout(out_dir, name, seeds) for name in outcomes if name not in ("teacher", *also)}
    left_out = [TASKS[task].title for task in all_tasks if task not in tasks] + [
        title for name, title in titles.items() if name not in outcomes]
    return {"seeds": seeds, "left_out": left_out, "baseline": baseline, "titles": titles, "also": list(also), "columns": columns,
            "macro_of": [columns[task] for task in glue],
            "scores": {title: {column: {"mean": float(x.mean()), "sd": float(x.std(ddof=1)) if len(x) > 1 else None}
                               for column, x in by_column.items()} for title, by_column in scores.items()},
            "change": change, "since_edit": since_edit, "main_column": main_column, "heldout": heldout,
            "seconds": measure_seconds(outcomes, folders, also), "paper_table_4": PAPER_TABLE_4}


def same_rows(before, now, tasks):
    """Whether two outcomes are of the same dev rows, and there for all tasks."""
    def targets(found):
        return [{name: pair[1].tolist() for name, pair in sets.items()} for sets in found["sets"]]
    return all(task in before and targets(before[task]) == targets(now[task]) for task in tasks)


def measure_seconds(outcomes, folders, also):
    """{part of the experiment: seconds its runs took}."""
    def of(runs):
        return sum(read_json(run / "run.json")["seconds"] for run in runs)
    tuned = {name: [folder for task in found for folder in folders[name][task]] for name, found in outcomes.items()}
    of_students = [folder for name, of_name in tuned.items() if name not in ("teacher", *also) for folder in of_name]
    of_others = [folder for name in also for folder in tuned.get(name, [])]
    return {"distillation": of({folder.parent for folder in of_students}), "fine-tuning the teacher": of(tuned.get("teacher", [])),
            "fine-tuning the students": of(of_students), **({"fine-tuning the other models": of(of_others)} if of_others else {})}


# ---- From numbers to text ----

def table(header, rows):
    """Lines of a Markdown table, the first column left, the others right."""
    return ["| " + " | ".join(row) + " |" for row in (header, ["---"] + ["---:"] * (len(header) - 1), *rows)]


def show_score(value):
    return f"{value['mean']:.1f}" + ("" if value["sd"] is None else f" ± {value['sd']:.1f}")


def is_noise(value):
    return value["low"] <= 0 <= value["high"]


def show_change(value):
    text = f"{value['difference']:+.1f} [{value['low']:+.1f}, {value['high']:+.1f}]"
    return f"{text} noise" if is_noise(value) else text


ONE_SEED = (
    "In brackets the 95 % interval over the dev rows alone (paired bootstrap); **noise** marks a difference whose interval "
    "holds zero. How much another seed would change is not in it, and one seed cannot tell: on small tasks it is often "
    "several points (Dodge et al. 2020), so a small difference that is not marked may be noise as well.")
SEVERAL_SEEDS = (
    "In brackets the 95 % paired t interval over n = {seeds} seeds; **noise** marks a difference whose interval holds zero.")
PAPERS_COLUMN = (
    "The last column is the paper's own figure, for the macro-score of GLUE's nine tasks after full pre-training: "
    "its sizes cannot be compared with the others.")
SINCE_EDIT = (
    "Change since the edit: against the results that were out of date and have been set aside last, in the folders whose names end "
    "in ~1, ~2, ...; the column goes when they are deleted.")
HELDOUT_COLUMNS = {  # heading: (figure, factor, digits)
    "MLM loss": ("mlm_loss", 1, 2), "MLM accuracy": ("mlm_accuracy", 100, 1),
    "agreement with teacher": ("teacher_agreement", 100, 1),
    "KL from teacher": ("kl", 1, 3), "cosine distance": ("cosine_distance", 1, 3)}


def changed_by_variants(summary):
    """{name: {column: change}} of the variants alone: the teacher and the models of --also are no answer to what a loss is worth."""
    return {name: by_column for name, by_column in summary["change"].items() if name not in ("teacher", *summary.get("also", ()))}


def conclusion(summary):
    """The one sentence that the changes of the main column bear, with its uncertainty."""
    changes = {summary["titles"][name]: by_column[summary["main_column"]]
               for name, by_column in changed_by_variants(summary).items()}
    real = {title: value for title, value in changes.items() if not is_noise(value)}
    over = f"n = {summary['seeds']} seeds" if summary["seeds"] > 1 else "the dev rows; one seed"
    main_column = summary["main_column"]
    what = "macro-score" if main_column == "macro" else METRIC_TITLES[headline_metrics(main_column)[0].__name__]
    told = "; ".join(f"{title} changes the {what} by {value['difference']:+.1f} points "
                     f"[{value['low']:+.1f}, {value['high']:+.1f}]" for title, value in sorted(real.items(), key=lambda x: x[1]["difference"]))
    noise = ", ".join(title for title in changes if title not in real)
    parts = ([f"{told} (95 % interval over {over})"] if told else []) + (
        [f"what {noise} changes cannot be told from noise here"] if noise else [])
    return f"Against {summary['titles'][summary['baseline']]}: {'; '.join(parts)}." if parts else ""


def report_text(summary, title):
    """The report as Markdown."""
    columns, titles, seeds = summary["columns"], summary["titles"], summary["seeds"]
    metrics = [f"{heading}: {' and '.join(METRIC_TITLES[metric.__name__] for metric in headline_metrics(task))}"
               for task, heading in columns.items() if task != "macro"]
    since = {titles[name]: show_change(value) for name, value in summary["since_edit"].items()}
    scores = [[row, *(show_score(values[column]) if column in values else "" for column in columns), *([since.get(row, "")] if since else [])]
              for row, values in summary["scores"].items() if values]
    minutes = ", ".join(f"{part} {seconds / 60:.1f}" for part, seconds in summary["seconds"].items())
    change = [[titles[name], *(show_change(values[column]) for column in columns),
               f"{PAPER_TABLE_4[name]:+.2f}" if name in PAPER_TABLE_4 else ""] for name, values in summary["change"].items()]
    heldout = [[titles[name], *(" -> ".join(f"{factor * figures[when][key]:.{digits}f}" for when in ("before", "after"))
                                for key, factor, digits in HELDOUT_COLUMNS.values())]
               for name, figures in summary["heldout"].items()]
    teachers_accuracy = 100 * summary["heldout"][summary["baseline"]]["after"]["teacher_mlm_accuracy"]
    return "\n".join([
        f"# {title}, {seeds} seed{'s' if seeds > 1 else ''}", "",
        f"Points out of 100. {'; '.join(metrics)}; of two figures, or two dev sets, the mean."
        + (f" Macro: the mean of {', '.join(summary['macro_of'])}." if summary["macro_of"] else "")
        + (" Mean ± standard deviation over the seeds." if seeds > 1 else "")
        + (f" **Left out**, as not done yet for all: {', '.join(summary['left_out'])}." if summary["left_out"] else ""), "",
        *table(["model", *columns.values(), *([f"{columns[summary['main_column']]}, change since the edit"] if since else [])],
               scores), "",
        *([SINCE_EDIT, ""] if since else []), *([f"**{concluded}**", ""] if (concluded := conclusion(summary)) else []),
        "## Change against the baseline", "",
        f"{SEVERAL_SEEDS.format(seeds=seeds) if seeds > 1 else ONE_SEED} {PAPERS_COLUMN}", "",
        *table(["variant", *columns.values(), "paper's Table 4 (GLUE macro)"], change), "",
        "## The students as language models, on held-out text", "",
        "Before distillation (weights copied, or random) -> after it. Accuracy and agreement: % of the masked positions. "
        f"The teacher's own MLM accuracy there is {teachers_accuracy:.1f} %.", "",
        *table(["student", *HELDOUT_COLUMNS], heldout), "",
        f"Minutes that the runs took: {minutes}.", ""])


# ---- From numbers to pictures ----

def looks(names):
    """{name of a variant: (its colour, its kind of line)}; of more than four that are not the paper's the colours come again."""
    others, kinds = [name for name in names if name not in COLOURS], ("-", "--", ":", "-.")
    return {**{name: (colour, "-") for name, colour in COLOURS.items()},
            **{name: (MORE_COLOURS[i % 4], kinds[i // 4 % 4]) for i, name in enumerate(others)}}


def plot_change(summary, title, path):
    """Bars: each variant's change against the baseline, per task and of the macro-score; apart, faintly, the paper's. Variants that
    are not the paper's have panels of their own, and so has random initialisation: on one scale with it nothing could be seen of
    the losses."""
    columns, names = summary["columns"], list(changed_by_variants(summary))
    papers, others = [name for name in names if name in COLOURS], [name for name in names if name not in COLOURS]
    apart = [[name for name in papers if name != "random_init"], *(others[i:i + 4] for i in range(0, len(others), 4)),
             [name for name in papers if name == "random_init"]]
    groups = [group for group in apart if group] or [[]]
    figure, panels = plt.subplots(len(groups), 1, figsize=(11, 1.4 + 2.2 * len(groups)), sharex=True, squeeze=False,
                                  layout="constrained")
    paper_place = len(columns) + 0.3
    for axes, group in zip(panels.flat, groups):
        width = 0.8 / max(3, len(group))
        for i, name in enumerate(group):
            values = [summary["change"][name][column] for column in columns]
            points = np.array([value["difference"] for value in values])
            ends = np.array([[value["low"], value["high"]] for value in values]).T
            colour, offset = looks(names)[name][0], (i - (len(group) - 1) / 2) * width
            axes.bar(np.arange(len(columns)) + offset, points, width, color=colour, label=summary["titles"][name])
            axes.vlines(np.arange(len(columns)) + offset, *ends, color="#555555", linewidth=1.2)
            if name in PAPER_TABLE_4:
                axes.bar(paper_place + offset, PAPER_TABLE_4[name], width, color=colour, alpha=0.35, hatch="//")
        axes.axvline(len(columns) - 0.35, color="#999999", linewidth=0.8, linestyle=":")
        axes.axhline(0, color="black", linewidth=0.8)
        axes.spines[["top", "right"]].set_visible(False)
        axes.legend(loc="center left", bbox_to_anchor=(1, 0.5), frameon=False, fontsize=9)
    headings = [f"macro of {', '.join(summary['macro_of'])}" if column == "macro" else heading
                for column, heading in columns.items()]
    panels[-1, 0].set_xticks([*range(len(columns)), paper_place],
                             [textwrap.fill(text, 16) for text in (*headings, "the paper's Table 4 (GLUE macro, full scale)")])
    figure.supylabel("points against the full loss", fontsize=10)
    figure.suptitle(f"{title}, {summary['seeds']} seed{'s' if summary['seeds'] > 1 else ''}; lines: 95 % intervals", fontsize=11)
    save_figure(figure, path)


def plot_losses(summary, out_dir, path):
    """The three terms over the steps of seed 0, for the variants that train on them."""
    figure, panels = plt.subplots(1, 3, figsize=(11, 3.6), layout="constrained")
    terms = {"ce": "distillation (KL, T²)", "mlm": "masked language modelling", "cos": "cosine"}
    for axes, (term, title) in zip(panels, terms.items()):
        for name in summary["heldout"]:
            lines = map(json.loads, Path(out_dir, name, "seed0", "log.jsonl").read_text(encoding="utf-8").splitlines())
            points = [(line["step"], line[term]) for line in lines if term in line]
            if points:
                window = min(9, len(points))  # a batch's loss says more of the batch than of the student
                steps, values = (np.convolve(x, np.ones(window) / window, "valid") for x in zip(*points))
                colour, kind = looks(summary["heldout"])[name]
                axes.plot(steps, values, kind, color=colour, label=summary["titles"][name], linewidth=1.3)
        axes.set_title(title, fontsize=11)
        axes.set_yscale("log")
        axes.yaxis.set_major_locator(LogLocator(subs=(1, 2, 5)))
        axes.yaxis.set_major_formatter("{x:g}")
        axes.yaxis.set_minor_formatter(NullFormatter())
        axes.set_xlabel("step")
        axes.spines[["top", "right"]].set_visible(False)
    panels[0].set_ylabel("training loss, mean of 9 logged steps")
    handles = {label: handle for axes in panels for handle, label in zip(*axes.get_legend_handles_labels())}
    figure.legend(handles.values(), handles.keys(), loc="outside lower center", ncols=5, frameon=False, fontsize=9)
    save_figure(figure, path)


def save_figure(figure, path):
    picture = io.BytesIO()
    figure.savefig(picture, format="png", dpi=150)
    plt.close(figure)
    write_file(path, picture.getvalue())


def write_report(out_dir, summary, title):
    """report.md, results.json, ablation.png and losses.png in out_dir; the text is printed too."""
    text = report_text(summary, title)
    write_json(Path(out_dir) / "results.json", summary)
    plot_change(summary, title, Path(out_dir) / "ablation.png")
    plot_losses(summary, out_dir, Path(out_dir) / "losses.png")
    write_file(Path(out_dir) / "report.md",
               f"{text}\n![change against the baseline](ablation.png)\n\n![loss curves](losses.png)\n")
    print(f"\n{text}\n{Path(out_dir, 'report.md')}, results.json, ablation.png, losses.png")
