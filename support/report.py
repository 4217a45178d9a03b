"""The experiment's report: its numbers as Markdown tables, with the sentences that explain them.

support/statistics.py computes the numbers; forest_plot.py and figures.py draw the two pictures.
Nothing is trained here: ablation.py says which models are compared, and calls write_report.
"""
from pathlib import Path

from finetune import headline_metrics
from support.figures import plot_losses
from support.files import write_file, write_json
from support.forest_plot import plot_forest
from support.probe import TRAIN_ROWS
from support.statistics import changes_of_variants, describe_seeds, summary_of_probes

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
HELDOUT_CHANGES = {"agreement with teacher": 1, "KL from teacher": 4}  # heading: digits

SMOKE_TEST = (
    "**A smoke test**: one seed. It shows that everything runs. Another seed changes a score by as "
    "much as leaving out a loss does, so nothing is concluded here, and there are no intervals; "
    "SEEDS=5 has them.")
SEVERAL_SEEDS = (
    "n = {n}: {seeds}. Brackets hold a 95 % interval. It covers what a repetition would change: "
    "all that a seed sets (new weights, order, masks and dropout, in both trainings) "
    "and the draw of the dev rows. It does not cover another teacher, corpus or set of training "
    "rows. **noise** marks a change whose interval contains zero: it may be nothing, or anything "
    "in the brackets. Variances: of the differences over the seeds, each model's own, with {df} "
    "degrees of freedom; and of the dev rows, taken as known (support/intervals.py).")
ADJUSTED = (
    "{family}: Dunnett's critical values for {comparisons} comparisons with one baseline. All "
    "intervals of a column are meant to hold together in 95 of 100 repetitions (make coverage "
    "simulates whether they do); the columns are not adjusted for each other.")
UNADJUSTED = (
    "{others}: Student's critical values, not adjusted.")
PAPERS_COLUMN = (
    "The last column is the paper's own result, for the macro-score of GLUE's nine tasks after "
    "full pre-training: its size cannot be compared with the other columns.")
PROBES = (
    "Nothing in these models is trained further. A linear classifier with a strong penalty reads "
    "the labels off the mean of a row's last hidden states, after it was fitted to {rows} training "
    "rows at most (support/probe.py). Fine-tuning changes the encoder, so it can make up for what "
    "distillation did not give; a probe only weighs what is there. It has no seed of its own: the "
    "deviations and intervals come from the distillation's seed, and from the dev rows. The "
    "teacher has one score for all seeds.")
SINCE_EDIT = (
    "The difference from the latest outdated results, of every model that has them, seed by seed: "
    "Student's critical values, not adjusted. The older results are in folders whose names end in "
    "~1, ~2, ...; delete those, and this table disappears.")
HELDOUT = (
    "Before distillation (weights copied, or random) -> after it, mean ± standard deviation over "
    "the seeds. Accuracy and agreement are in % of the masked positions. The teacher's own MLM "
    "accuracy there is {teacher:.1f} %. KL is at temperature 1, in nats. The intervals are those "
    "of the scores, without the variance of the dev rows: they are about this held-out text.")


def write_report(out_dir, summary, title):
    """Write report.md, results.json, ablation.png and losses.png into out_dir, and print the text.

    summary: see support.statistics.summarize."""
    folder, text = Path(out_dir), report_text(summary, title)
    write_json(folder / "results.json", summary)
    plot_forest(summary, title, folder / "ablation.png")
    plot_losses(summary, out_dir, folder / "losses.png")
    pictures = "![change against the baseline](ablation.png)\n\n![loss curves](losses.png)\n"
    write_file(folder / "report.md", f"{text}\n{pictures}")
    print(f"\n{text}\n{folder / 'report.md'}, results.json, ablation.png, losses.png")


# ---- The text, part by part: lists of lines ----

def report_text(summary, title):
    """The report as Markdown, without the pictures."""
    n = len(summary["seeds"])
    minutes = [f"{part} {seconds / 60:.1f}" for part, seconds in summary["seconds"].items()]
    probes = summary_of_probes(summary)
    lines = [
        f"# {title}, " + (f"n = {n} seeds" if n > 1 else "smoke test, one seed"), "",
        *(conclusion(summary) if n > 1 else [SMOKE_TEST, ""]),
        "## Scores", "",
        explanation(summary), "",
        *scores_table(summary), "",
        "## Change against the baseline", "",
        f"{what_the_intervals_hold(summary)} {PAPERS_COLUMN}".strip(), "",
        *change_table(summary["change"], summary, paper=True), "",
    ]
    if probes:
        lines += ["## Linear probes of the frozen models", "", explain_probes(summary, probes), "",
                  *scores_table(probes), "", *change_table(probes["change"], probes), ""]
    changed = [part for part in (summary, probes) if part and part["since_edit"]]
    if changed:
        lines += ["## Change since the edit", "", SINCE_EDIT, ""]
    for part in changed:
        lines += ["Fine-tuned:" if part is summary else "Probes:", "",
                  *change_table(part["since_edit"], part), ""]
    lines += [
        "## The students as language models, on held-out text", "",
        HELDOUT.format(teacher=teacher_accuracy(summary)), "",
        *heldout_table(summary), "",
        f"Minutes, added up over the runs: {', '.join(minutes)}.", "",
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
    if len(summary["seeds"]) > 1:
        sentences.append("Mean ± standard deviation over the seeds.")
    if summary["left_out"]:
        left_out = ", ".join(summary["left_out"])
        sentences.append(
            f"**Left out**, because not finished for every model and seed: {left_out}.")
    if summary["mixed"]:
        sentences.append(
            "**Not repetitions of one another**, because arguments, code or files changed between "
            f"them: {', '.join(summary['mixed'])}. Run the experiment without --report_only.")
    return " ".join(sentences)


def explain_probes(summary, probes):
    """What the tables of probes show, and what they leave out."""
    missing = [heading for task, heading in summary["columns"].items()
               if task not in probes["columns"] and task != "squad"]
    text = PROBES.format(rows=TRAIN_ROWS)
    if missing:
        text += f" **Left out**, because not probed for every model and seed: {', '.join(missing)}."
    return text


def scores_table(summary):
    """The score of every model in every column."""
    columns, rows = summary["columns"], []
    for model, values in summary["scores"].items():
        if values:
            cells = [show_score(values[key]) if key in values else "" for key in columns]
            rows.append([model, *cells])
    return table(["model", *columns.values()], rows)


def what_the_intervals_hold(summary):
    """n, what the intervals cover, and which comparisons are adjusted; "" with one seed."""
    seeds, titles, family = summary["seeds"], summary["titles"], summary["family"]
    if len(seeds) == 1:
        return ""
    sentences = [
        SEVERAL_SEEDS.format(n=len(seeds), seeds=describe_seeds(seeds), df=len(seeds) - 1)]
    if family:
        sentences.append(ADJUSTED.format(family=", ".join(titles[name] for name in family),
                                         comparisons=len(family)))
    others = [titles[name] for name in summary["change"] if name not in family]
    if others:
        sentences.append(UNADJUSTED.format(others=", ".join(others)))
    return " ".join(sentences)


def change_table(changes, summary, paper=False):
    """One row for each model. changes: {name: {column: interval}}."""
    columns, papers = summary["columns"], summary["paper_table_4"]
    rows = []
    for name, values in changes.items():
        row = [summary["titles"][name], *(show_change(values[column]) for column in columns)]
        if paper:
            row.append(f"{papers[name]:+.2f}" if name in papers else "")
        rows.append(row)
    header = ["variant", *columns.values()]
    return table(header + ["paper's Table 4 (GLUE macro)"] * paper, rows)


def heldout_table(summary):
    """Every student before and after its distillation, and its change against the baseline."""
    rows = []
    for name, means in summary["heldout"].items():
        row = [summary["titles"][name]]
        for key, factor, digits in HELDOUT_COLUMNS.values():
            before, after = (factor * means[when][key] for when in ("before", "after"))
            deviation = summary["heldout_sd"][name][key]
            spread = "" if deviation is None else f" ± {factor * deviation:.{digits}f}"
            row.append(f"{before:.{digits}f} -> {after:.{digits}f}{spread}")
        change = summary["heldout_change"].get(name)
        for heading, digits in HELDOUT_CHANGES.items():
            key, factor, _ = HELDOUT_COLUMNS[heading]
            row.append(show_change(change[key], factor, digits) if change else "")
        rows.append(row)
    changes = [f"{heading}, change" for heading in HELDOUT_CHANGES]
    return table(["student", *HELDOUT_COLUMNS, *changes], rows)


def teacher_accuracy(summary):
    """The teacher's MLM accuracy on held-out text, in %."""
    return 100 * summary["heldout"][summary["baseline"]]["after"]["teacher_mlm_accuracy"]


# ---- What was found, in plain words ----

def conclusion(summary):
    """The lines of the section that says what was found, what was not, and how sure it is."""
    if not changes_of_variants(summary):
        return []
    paragraphs = [[*effects_on_the_score(summary), order_against_the_paper(summary)]]
    if probes := summary_of_probes(summary):
        paragraphs.append(effects_on_the_score(probes, " of the linear probes"))
    paragraphs.append([effects_on_the_language_model(summary)])
    lines = ["## What was found", ""]
    for sentences in paragraphs:
        if any(sentences):
            lines += [" ".join(filter(None, sentences)), ""]
    return lines


def effects_on_the_score(summary, kind=""):
    """Sentences about the changes of the main column. kind: words to tell it from other scores."""
    column, titles = summary["main_column"], summary["titles"]
    effects, real, unclear = changes_of_variants(summary), [], []
    for name, by_column in sorted(effects.items(), key=lambda item: change_in(item[1], column)):
        value = by_column[column]
        if is_noise(value):
            unclear.append(f"{titles[name]} {show_interval(value)}")
        else:
            real.append(f"{titles[name]} {value['difference']:+.1f} points {show_interval(value)}")
    sentences, score, baseline = [], score_name(column) + kind, titles[summary["baseline"]]
    if real:
        sentences.append(f"**The {score} differs from that of {baseline}: {', '.join(real)}**, "
                         "each with its 95 % interval.")
    if unclear:
        sentences.append(f"The {score} was not found to differ: {', '.join(unclear)}. With 95 % "
                         "confidence, what difference there is lies within the brackets.")
    return sentences


def change_in(by_column, column):
    return by_column[column]["difference"]


def order_against_the_paper(summary):
    """A sentence about the order of the losses' point estimates; "" unless all three are there."""
    losses = [name for name in ("no_ce", "no_cos", "no_mlm") if name in summary["change"]]
    if len(losses) < 3:
        return ""
    column, titles = summary["main_column"], summary["titles"]
    here = sorted(losses, key=lambda name: change_in(summary["change"][name], column))
    papers = sorted(losses, key=summary["paper_table_4"].get)
    order = ", ".join(titles[name] for name in here)
    same = "the paper's order" if here == papers else (
        f"not the paper's order ({', '.join(titles[name] for name in papers)})")
    return (f"From the lowest score to the highest, the point estimates are {order}: {same}. "
            "Where the intervals overlap, the order is not established.")


def effects_on_the_language_model(summary):
    """A sentence about agreement with the teacher and KL, of the variants that were adjusted.

    "" if no such variant was run."""
    if not summary["family"]:
        return ""
    parts, digits = [], HELDOUT_CHANGES["KL from teacher"]
    for name in summary["family"]:
        change, found = summary["heldout_change"][name], []
        if not is_noise(change["teacher_agreement"]):
            points = show_change(change["teacher_agreement"], 100)
            found.append(f"agreement with the teacher {points} points")
        if not is_noise(change["kl"]):
            found.append(f"KL {show_change(change['kl'], 1, digits)}")
        if found:
            parts.append(f"{summary['titles'][name]} ({', '.join(found)})")
    if not parts:
        return "As language models these students cannot be told from the baseline."
    return f"As language models these students differ from the baseline: {'; '.join(parts)}."


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


def show_change(value, factor=1, digits=1):
    """The difference with its interval, both times `factor`; with one seed the difference alone."""
    text = f"{factor * value['difference']:+.{digits}f}"
    if value["low"] is None:
        return text
    text = f"{text} {show_interval(value, factor, digits)}"
    return f"{text} noise" if is_noise(value) else text


def show_interval(value, factor=1, digits=1):
    return f"[{factor * value['low']:+.{digits}f}, {factor * value['high']:+.{digits}f}]"


def is_noise(value):
    """Whether a change's interval contains zero."""
    return value["low"] <= 0 <= value["high"]
