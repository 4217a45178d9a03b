"""The training losses of the students as curves, and what all pictures of the report share.

The losses are those in the students' log.jsonl. The same numbers give the same bytes.
"""
import io
import json
import os
from pathlib import Path

# No screen is needed. A notebook names a backend here that exists in its own environment only.
os.environ["MPLBACKEND"] = "agg"
import matplotlib.pyplot as plt
import numpy as np
from matplotlib.ticker import LogLocator, NullFormatter

from support.files import write_file
from support.outcomes import damage_explained

COLOURS = {  # Okabe and Ito 2008: distinguishable with colour blindness
    "full": "#000000",
    "no_cos": "#0072B2",
    "no_ce": "#D55E00",
    "no_mlm": "#009E73",
    "random_init": "#CC79A7",
}
MORE_COLOURS = ("#E69F00", "#56B4E9", "#F0E442", "#999999")  # of variants that are not in the paper
# Lines that coincide are told apart: each has dashes of its own, the first, drawn below, has none
# and is the widest.
LINE_STYLES = ("-", (0, (5, 3)), (0, (1, 2)), (0, (7, 2, 1, 2)), (0, (3, 5)))
LOSS_TITLES = {"ce": "distillation (KL, T²)", "mlm": "masked language modelling", "cos": "cosine"}
SMOOTHING = 9  # logged steps


def colour_of_each(names):
    """{name of a variant: colour}; after four variants that are not in the paper they repeat."""
    others = [name for name in names if name not in COLOURS]
    more = {name: MORE_COLOURS[i % len(MORE_COLOURS)] for i, name in enumerate(others)}
    return {name: COLOURS.get(name) or more[name] for name in names}


def curve_styles(names):
    """{name of a variant: how its curve is drawn}, as arguments of matplotlib's plot."""
    styles = {}
    for i, (name, colour) in enumerate(colour_of_each(names).items()):
        styles[name] = {"color": colour, "linestyle": LINE_STYLES[i % len(LINE_STYLES)],
                        "linewidth": 3.2 if i == 0 else 1.8, "alpha": 0.35 if i == 0 else 1.0}
    return styles


# ---- Curves: the training losses ----

def plot_losses(summary, out_dir, path):
    """The three losses over the steps of the first seed, of the students that train on them."""
    figure, panels = plt.subplots(1, len(LOSS_TITLES), figsize=(11, 3.6), layout="constrained")
    names = list(summary["heldout"])
    styles = curve_styles(names)
    for axes, (loss, title) in zip(panels, LOSS_TITLES.items()):
        for name in names:
            log = Path(out_dir, name, f"seed{summary['seeds'][0]}", "log.jsonl")
            steps, values = training_curve(log, loss)
            if len(steps):
                axes.plot(steps, values, label=summary["titles"][name], **styles[name])
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
    with damage_explained(log.parent, log.name):
        for line in map(json.loads, log.read_text(encoding="utf-8").splitlines()):
            if loss in line:
                steps.append(line["step"])
                values.append(float(line[loss]))
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
