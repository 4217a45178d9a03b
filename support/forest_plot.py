"""The report's headline as a picture: each variant's change against the baseline, as a forest plot.

One line a variant, a point and its 95 % interval. Above, the main score with the paper's own values
as hollow marks, and beside it the same score of the frozen students' probes and what became of the
student as a language model; below, each task.
What support/statistics.py computed is drawn, nothing else. The same numbers give the same bytes.
"""
from support.figures import colour_of_each, plt, save_figure
from support.statistics import changes_of_variants, summary_of_probes

LANGUAGE_MODEL = {  # figure: (title of its panel, factor)
    "teacher_agreement": ("agreement with teacher, points", 100),
    "kl": ("KL from the teacher", 1),
}


def plot_forest(summary, title, path):
    """Draw the changes of all variants. summary: see support.statistics.summarize."""
    names, columns = list(changes_of_variants(summary)), summary["columns"]
    main = summary["main_column"]
    tasks = [column for column in columns if column != main]
    height = 2.1 + 0.62 * max(1, len(names)) + 0.35 * bool(tasks)
    figure = plt.figure(figsize=(11, height), layout="constrained")
    top, bottom = figure.subfigures(2, 1, height_ratios=(3, 2)) if tasks else (figure, None)

    shown = [(column_of(summary, main), heading(summary, main))]
    if probes := summary_of_probes(summary):
        column = probes["main_column"]
        shown.append((column_of(probes, column), f"{probes['columns'][column]}, linear probes"))
    for key, (panel_title, factor) in LANGUAGE_MODEL.items():
        of_key = {name: scaled(summary["heldout_change"][name][key], factor) for name in names}
        shown.append((of_key, panel_title))
    panels = top.subplots(1, len(shown), sharey=True, width_ratios=[2] + [1] * (len(shown) - 1))
    papers = {name: summary["paper_table_4"].get(name) for name in names}
    for axes, (changes, panel_title) in zip(panels, shown):
        draw_panel(axes, summary, changes, panel_title, papers if axes is panels[0] else None)
    if tasks:
        panels = bottom.subplots(1, len(tasks), sharey=True, squeeze=False)[0]
        for axes, task in zip(panels, tasks):
            draw_panel(axes, summary, column_of(summary, task), columns[task])
    figure.suptitle(subtitle(summary, title), fontsize=10)
    save_figure(figure, path)


def column_of(summary, column):
    """{name: interval} of the variants' changes in one column."""
    changes = changes_of_variants(summary)
    return {name: by_column[column] for name, by_column in changes.items()}


def heading(summary, column):
    if column == "macro":
        return f"macro of {', '.join(summary['macro_of'])}, points"
    return f"{summary['columns'][column]}, points"


def subtitle(summary, title):
    seeds = len(summary["seeds"])
    if seeds == 1:
        return f"{title}\nsmoke test, one seed: change against the full loss, without intervals"
    return (f"{title}\nchange against the full loss, n = {seeds} seeds, 95 % intervals; "
            "hollow: the paper's Table 4, at full scale")


def scaled(change, factor):
    return {key: None if value is None else factor * value for key, value in change.items()}


def draw_panel(axes, summary, changes, title, papers=None):
    """One line for each variant. changes: {name: interval}. papers: {name: the paper's value}.

    The variants whose intervals are adjusted set the scale. One that is far outside, as random
    initialisation is, becomes an arrow with its number: else the others could not be told apart."""
    papers, colours = papers or {}, colour_of_each(changes)
    low, high = axis_limits([name for name in summary["family"] if name in changes] or changes,
                            changes, papers)
    axes.set_xlim(low, high)
    axes.axvline(0, color="#888888", linewidth=0.8)
    for place, (name, change) in enumerate(changes.items()):
        colour, value = colours[name], change["difference"]
        if low <= value <= high:
            if change["low"] is not None:
                axes.hlines(place, change["low"], change["high"], color=colour, linewidth=2)
            axes.plot(value, place, "o", color=colour, markersize=6)
        else:
            draw_arrow(axes, value, place, colour, low if value < low else high)
        if papers.get(name) is not None and low <= papers[name] <= high:
            axes.plot(papers[name], place - 0.28, "D", markerfacecolor="white",
                      markeredgecolor=colour, markersize=5.5)
    axes.set_yticks(range(len(changes)), [summary["titles"][name] for name in changes])
    axes.set_ylim(len(changes) - 0.4, -0.6)
    axes.set_title(title, fontsize=9)
    axes.tick_params(labelsize=8.5)
    axes.spines[["top", "right", "left"]].set_visible(False)
    axes.tick_params(axis="y", length=0, pad=8)
    axes.grid(axis="x", color="#e5e5e5", linewidth=0.6)
    axes.set_axisbelow(True)


def axis_limits(names, changes, papers):
    """(left, right): room for these variants' intervals, the paper's values and zero."""
    ends = [0.0]
    for name in names:
        ends += [value for value in changes[name].values() if value is not None]
    ends += [value for value in papers.values() if value is not None]
    margin = 0.1 * (max(ends) - min(ends)) or 1.0
    return min(ends) - margin, max(ends) + margin


def draw_arrow(axes, value, place, colour, edge):
    """A mark at the edge for a value beyond it, with the value beside it."""
    at_left = edge > value
    axes.plot(edge, place, "<" if at_left else ">", color=colour, markersize=7, clip_on=False)
    axes.annotate(f"{value:+.1f}", (edge, place), xytext=(9 if at_left else -9, 0),
                  textcoords="offset points", ha="left" if at_left else "right", va="center",
                  fontsize=8.5, color=colour)
