"""The experiment's report: its numbers as Markdown tables, with the sentences that explain them.

support/statistics.py computes the numbers, support/figures.py draws the two pictures.
Nothing is trained here: ablation.py says which models are compared, and calls write_report.
"""
from pathlib import Path

from finetune import headline_metrics
from support.figures import plot_change, plot_losses
from support.files import write_file, write_json
from support.statistics import changes_of_variants

METRIC_TITLES = {
    "accuracy": "accuracy",
    "f1": "F1",
    "matthews": "Matthews correlation",
    "pearson": "Pearson's correlation",
    "spearman": "Spearman's",
}
HELDOUT_COLUMNS = {  # heading: (key in "heldout", factor, digits)
    "MLM loss":               ("mlm_loss", 1, 2),
    "MLM accuracy":           ("mlm_accuracy", 100, 1),
    "agreement with teacher": ("teacher_agreement", 100, 1),
    "KL from teacher":        ("kl", 1, 3),
    "cosine distance":        ("cosine_distance", 1, 3),
}

ONE_SEED = (
    "Brackets hold the 95 % interval over the dev rows alone (paired bootstrap); **noise** marks a "
    "difference whose interval contains zero. The interval does not cover what another seed would "
    "change, and one seed cannot tell how much that is: on small tasks it is often several points "
    "(Dodge et al. 2020), so a small difference that is not marked may be noise as well.")
SEVERAL_SEEDS = (
    "Brackets hold the 95 % paired t interval over n = {seeds} seeds; **noise** marks a difference "
    "whose interval contains zero.")
PAPERS_COLUMN = (
    "The last column is the paper's own result, for the macro-score of GLUE's nine tasks after "
    "full pre-training: its size cannot be compared with the other columns.")
SINCE_EDIT = (
    "Change since the edit: the difference from the latest outdated results. They are kept in "
    "folders whose names end in ~1, ~2, ...; delete those, and the column disappears.")
HELDOUT = (
    "Before distillation (weights copied, or random) -> after it. Accuracy and agreement are in % "
    "of the masked positions. The teacher's own MLM accuracy there is {teacher:.1f} %.")


def write_report(out_dir, summary, title):
    """Write report.md, results.json, ablation.png and losses.png into out_dir, and print the text.

    summary: see support.statistics.summarize."""
    folder, text = Path(out_dir), report_text(summary, title)
    write_json(folder / "results.json", summary)
    plot_change(summary, title, folder / "ablation.png")
    plot_losses(summary, out_dir, folder / "losses.png")
    pictures = "![change against the baseline](ablation.png)\n\n![loss curves](losses.png)\n"
    write_file(folder / "report.md", f"{text}\n{pictures}")
    print(f"\n{text}\n{folder / 'report.md'}, results.json, ablation.png, losses.png")


# ---- The text, part by part: lists of lines ----

def report_text(summary, title):
    """The report as Markdown, without the pictures."""
    seeds = summary["seeds"]
    minutes = [f"{part} {seconds / 60:.1f}" for part, seconds in summary["seconds"].items()]
    lines = [
        f"# {title}, {seeds} seed{'s' if seeds > 1 else ''}", "",
        explanation(summary), "",
        *scores_table(summary), "",
    ]
    if summary["since_edit"]:
        lines += [SINCE_EDIT, ""]
    concluded = conclusion(summary)
    if concluded:
        lines += [f"**{concluded}**", ""]
    lines += [
        "## Change against the baseline", "",
        f"{SEVERAL_SEEDS.format(seeds=seeds) if seeds > 1 else ONE_SEED} {PAPERS_COLUMN}", "",
        *change_table(summary), "",
        "## The students as language models, on held-out text", "",
        HELDOUT.format(teacher=teacher_accuracy(summary)), "",
        *heldout_table(summary), "",
        f"Minutes that the runs took: {', '.join(minutes)}.", "",
    ]
    return "\n".join(lines)


def explanation(summary):
    """What the table of scores shows, and what it leaves out."""
    metrics = []
    for task, heading in summary["columns"].items():
        if task != "macro":
            titles = [METRIC_TITLES[metric.__name__] for metric in headline_metrics(task)]
            metrics.append(f"{heading}: {' and '.join(titles)}")
    sentences = [
        f"Points out of 100. {'; '.join(metrics)}; for two metrics, or two dev sets, their mean."]
    if summary["macro_of"]:
        sentences.append(f"Macro: the mean of {', '.join(summary['macro_of'])}.")
    if summary["seeds"] > 1:
        sentences.append("Mean ± standard deviation over the seeds.")
    if summary["left_out"]:
        left_out = ", ".join(summary["left_out"])
        sentences.append(
            f"**Left out**, because not finished for every model and seed: {left_out}.")
    return " ".join(sentences)


def scores_table(summary):
    """The score of every model in every column, and its change since the edit if there was one."""
    columns, titles = summary["columns"], summary["titles"]
    since = {titles[name]: show_change(value) for name, value in summary["since_edit"].items()}
    header = ["model", *columns.values()]
    if since:
        header.append(f"{columns[summary['main_column']]}, change since the edit")
    rows = []
    for model, values in summary["scores"].items():
        if not values:
            continue
        row = [model, *(show_score(values[key]) if key in values else "" for key in columns)]
        if since:
            row.append(since.get(model, ""))
        rows.append(row)
    return table(header, rows)


def change_table(summary):
    """The change of every model against the baseline, and the paper's."""
    columns, paper = summary["columns"], summary["paper_table_4"]
    rows = []
    for name, values in summary["change"].items():
        papers_change = f"{paper[name]:+.2f}" if name in paper else ""
        changes = [show_change(values[column]) for column in columns]
        rows.append([summary["titles"][name], *changes, papers_change])
    return table(["variant", *columns.values(), "paper's Table 4 (GLUE macro)"], rows)


def heldout_table(summary):
    """Every student before and after its distillation, on held-out text."""
    rows = []
    for name, figures in summary["heldout"].items():
        row = [summary["titles"][name]]
        for key, factor, digits in HELDOUT_COLUMNS.values():
            before, after = (factor * figures[when][key] for when in ("before", "after"))
            row.append(f"{before:.{digits}f} -> {after:.{digits}f}")
        rows.append(row)
    return table(["student", *HELDOUT_COLUMNS], rows)


def teacher_accuracy(summary):
    """The teacher's MLM accuracy on held-out text, in %."""
    return 100 * summary["heldout"][summary["baseline"]]["after"]["teacher_mlm_accuracy"]


def conclusion(summary):
    """One sentence that the intervals of the main column support; "" if there are no variants."""
    titles, main_column = summary["titles"], summary["main_column"]
    changes = {titles[name]: by_column[main_column]
               for name, by_column in changes_of_variants(summary).items()}
    real = {title: value for title, value in changes.items() if not is_noise(value)}
    noise = [title for title in changes if title not in real]
    parts = []
    if real:
        effects = []
        for title, value in sorted(real.items(), key=lambda item: item[1]["difference"]):
            effects.append(f"{title} changes the {score_name(main_column)} by "
                           f"{value['difference']:+.1f} points {show_interval(value)}")
        seeds = summary["seeds"]
        over = f"n = {seeds} seeds" if seeds > 1 else "the dev rows; one seed"
        parts.append(f"{'; '.join(effects)} (95 % interval over {over})")
    if noise:
        parts.append(f"the effect of {', '.join(noise)} cannot be told from noise here")
    return f"Against {titles[summary['baseline']]}: {'; '.join(parts)}." if parts else ""


def score_name(column):
    """What a column's score is called in a sentence."""
    if column == "macro":
        return "macro-score"
    return METRIC_TITLES[headline_metrics(column)[0].__name__]


# ---- Cells ----

def table(header, rows):
    """The lines of a Markdown table, the first column left-aligned, the others right-aligned."""
    alignment = ["---"] + ["---:"] * (len(header) - 1)
    return ["| " + " | ".join(row) + " |" for row in (header, alignment, *rows)]


def show_score(value):
    deviation = "" if value["sd"] is None else f" ± {value['sd']:.1f}"
    return f"{value['mean']:.1f}{deviation}"


def show_change(value):
    text = f"{value['difference']:+.1f} {show_interval(value)}"
    return f"{text} noise" if is_noise(value) else text


def show_interval(value):
    return f"[{value['low']:+.1f}, {value['high']:+.1f}]"


def is_noise(value):
    """Whether a change's interval contains zero."""
    return value["low"] <= 0 <= value["high"]
