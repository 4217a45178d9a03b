"""The two pictures of the report: each variant's change as bars, and the training losses as curves.

They draw what support/statistics.py computed, and the losses in the students' log.jsonl.
The same numbers give the same bytes.
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

from support.files import write_file
from support.statistics import changes_of_variants

COLOURS = {  # Okabe and Ito 2008: distinguishable with colour blindness
    "full": "#000000",
    "no_cos": "#0072B2",
    "no_ce": "#D55E00",
    "no_mlm": "#009E73",
    "random_init": "#CC79A7",
}
MORE_COLOURS = ("#E69F00", "#56B4E9", "#F0E442", "#999999")  # of variants that are not in the paper
LINE_STYLES = ("-", "--", ":", "-.")
LOSS_TITLES = {"ce": "distillation (KL, T²)", "mlm": "masked language modelling", "cos": "cosine"}
SMOOTHING = 9  # logged steps


def curve_styles(names):
    """{name of a variant: (colour, line style)}.

    After four variants that are not in the paper the colours repeat, with another line style."""
    styles = {name: (colour, "-") for name, colour in COLOURS.items()}
    others = [name for name in names if name not in COLOURS]
    for i, name in enumerate(others):
        styles[name] = MORE_COLOURS[i % 4], LINE_STYLES[i // 4 % 4]
    return styles


# ---- Bars: the change against the baseline ----

def plot_change(summary, title, path):
    """Each variant's change against the baseline in every column, and the paper's, shaded.

    summary: see support.statistics.summarize."""
    columns = summary["columns"]
    groups = panels_of_variants(list(changes_of_variants(summary)))
    height = 1.4 + 2.2 * len(groups)
    figure, panels = plt.subplots(len(groups), 1, figsize=(11, height), sharex=True, squeeze=False,
                                  layout="constrained")
    for axes, group in zip(panels.flat, groups):
        draw_bars(axes, summary, group)
    labels = []
    for column, heading in columns.items():
        macro = f"macro of {', '.join(summary['macro_of'])}"
        labels.append(macro if column == "macro" else heading)
    labels.append("the paper's Table 4 (GLUE macro, full scale)")
    places = [*range(len(columns)), place_of_paper(columns)]
    panels[-1, 0].set_xticks(places, [textwrap.fill(label, 16) for label in labels])
    figure.supylabel("points against the full loss", fontsize=10)
    seeds = f"{summary['seeds']} seed{'s' if summary['seeds'] > 1 else ''}"
    figure.suptitle(f"{title}, {seeds}; lines: 95 % intervals", fontsize=11)
    save_figure(figure, path)


def panels_of_variants(names):
    """Lists of names, one for each panel; at least one list, which may be empty.

    Random initialisation has a panel of its own: on its scale the losses' effects would be
    invisible. Variants that are not in the paper have their own panels too, four in each."""
    losses = [name for name in names if name in COLOURS and name != "random_init"]
    others = [name for name in names if name not in COLOURS]
    groups = [losses]
    groups += [others[i:i + 4] for i in range(0, len(others), 4)]
    groups += [[name for name in names if name == "random_init"]]
    return [group for group in groups if group] or [[]]


def place_of_paper(columns):
    """Where the paper's bars are on the x axis: after the columns, at a small distance."""
    return len(columns) + 0.3


def draw_bars(axes, summary, group):
    """The bars of the variants in `group`, side by side, with their intervals."""
    columns, styles = summary["columns"], curve_styles(changes_of_variants(summary))
    width = 0.8 / max(3, len(group))
    for i, name in enumerate(group):
        values = [summary["change"][name][column] for column in columns]
        heights = np.array([value["difference"] for value in values])
        lows = np.array([value["low"] for value in values])
        highs = np.array([value["high"] for value in values])
        colour, _ = styles[name]
        offset = (i - (len(group) - 1) / 2) * width
        places = np.arange(len(columns)) + offset
        axes.bar(places, heights, width, color=colour, label=summary["titles"][name])
        axes.vlines(places, lows, highs, color="#555555", linewidth=1.2)
        if name in summary["paper_table_4"]:
            axes.bar(place_of_paper(columns) + offset, summary["paper_table_4"][name], width,
                     color=colour, alpha=0.35, hatch="//")
    axes.axvline(len(columns) - 0.35, color="#999999", linewidth=0.8, linestyle=":")
    axes.axhline(0, color="black", linewidth=0.8)
    axes.spines[["top", "right"]].set_visible(False)
    if group:
        axes.legend(loc="center left", bbox_to_anchor=(1, 0.5), frameon=False, fontsize=9)


# ---- Curves: the training losses ----

def plot_losses(summary, out_dir, path):
    """The three losses over the steps of seed 0, of the students that train on them."""
    figure, panels = plt.subplots(1, len(LOSS_TITLES), figsize=(11, 3.6), layout="constrained")
    names = list(summary["heldout"])
    styles = curve_styles(names)
    for axes, (loss, title) in zip(panels, LOSS_TITLES.items()):
        for name in names:
            steps, values = training_curve(Path(out_dir, name, "seed0", "log.jsonl"), loss)
            if len(steps):
                colour, line_style = styles[name]
                axes.plot(steps, values, line_style, color=colour, label=summary["titles"][name],
                          linewidth=1.3)
        axes.set_title(title, fontsize=11)
        axes.set_yscale("log")
        axes.yaxis.set_major_locator(LogLocator(subs=(1, 2, 5)))
        axes.yaxis.set_major_formatter("{x:g}")
        axes.yaxis.set_minor_formatter(NullFormatter())
        axes.set_xlabel("step")
        axes.spines[["top", "right"]].set_visible(False)
    panels[0].set_ylabel(f"training loss, mean of {SMOOTHING} logged steps")
    shared_legend(figure, panels)
    save_figure(figure, path)


def training_curve(log, loss):
    """(steps, values) of a loss in a log.jsonl, each the mean of several logged steps; empty if
    it was not trained on. The mean, because one batch's loss tells more about the batch."""
    steps, values = [], []
    for line in map(json.loads, log.read_text(encoding="utf-8").splitlines()):
        if loss in line:
            steps.append(line["step"])
            values.append(line[loss])
    if not steps:
        return steps, values
    window = min(SMOOTHING, len(steps))
    weights = np.ones(window) / window
    return np.convolve(steps, weights, "valid"), np.convolve(values, weights, "valid")


def shared_legend(figure, panels):
    """One legend below all panels; a label that several panels have appears once."""
    handles = {}
    for axes in panels:
        for handle, label in zip(*axes.get_legend_handles_labels()):
            handles[label] = handle
    figure.legend(handles.values(), handles.keys(), loc="outside lower center", ncols=5,
                  frameon=False, fontsize=9)


def save_figure(figure, path):
    """Write a figure as PNG, whole or not at all, and free it."""
    picture = io.BytesIO()
    figure.savefig(picture, format="png", dpi=150)
    plt.close(figure)
    write_file(path, picture.getvalue())
