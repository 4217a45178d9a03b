"""The pictures draw what the summary says: checked on matplotlib's artists, not on pixels."""
import json

import matplotlib.pyplot as plt
import numpy as np
import pytest
from made_summary import PROBE_CHANGES, make_probe, make_summary

from support import figures, forest_plot


@pytest.fixture
def drawn(monkeypatch, tmp_path):
    """drawn(summary) -> the panels of the forest plot, in reading order."""
    def draw(summary):
        kept = []
        monkeypatch.setattr(forest_plot, "save_figure", lambda figure, path: kept.append(figure))
        forest_plot.plot_forest(summary, "title", tmp_path / "plot.png")
        [figure] = kept
        figure.canvas.draw()
        return figure.axes
    yield draw
    plt.close("all")


def points_of(axes, marker):
    """{place: x} of the points with this marker."""
    lines = [line for line in axes.lines if line.get_marker() == marker]
    return {round(float(line.get_ydata()[0])): float(line.get_xdata()[0]) for line in lines}


def intervals_of(axes):
    """{place: (low, high)}"""
    found = {}
    for collection in axes.collections:
        (low, place), (high, _) = collection.get_segments()[0]
        found[round(float(place))] = (low, high)
    return found


def test_points_and_intervals_are_those_of_the_summary(drawn):
    summary = make_summary()
    macro, agreement, kl, *tasks = drawn(summary)
    names = ("no_cos", "no_ce", "no_mlm")
    assert [axes.get_title() for axes in tasks] == ["toy CoLA", "toy MNLI", "toy MRPC", "toy IMDb"]
    for axes, column in zip((macro, *tasks), ("macro", "cola", "mnli", "mrpc", "imdb")):
        points, intervals = points_of(axes, "o"), intervals_of(axes)
        for place, name in enumerate(names):
            change = summary["change"][name][column]
            assert points[place] == pytest.approx(change["difference"])
            assert intervals[place] == pytest.approx((change["low"], change["high"]))
    for axes, figure, factor in ((agreement, "teacher_agreement", 100), (kl, "kl", 1)):
        for place, name in enumerate(names):
            change = summary["heldout_change"][name][figure]
            assert points_of(axes, "o")[place] == pytest.approx(factor * change["difference"])
    assert points_of(macro, "D") == {0: -1.46, 1: -2.96, 2: -0.31, 3: -3.69}
    assert not points_of(tasks[0], "D")


def test_the_probes_have_a_panel_of_their_own(drawn):
    macro, agreement, *_ = drawn(make_summary())
    with_probes = drawn({**make_summary(), "probe": make_probe()})
    assert [axes.get_title() for axes in with_probes[:3]] == [
        macro.get_title(), "macro, linear probes", agreement.get_title()]
    points, intervals = points_of(with_probes[1], "o"), intervals_of(with_probes[1])
    for place, name in enumerate(("no_cos", "no_ce", "no_mlm")):
        change = PROBE_CHANGES[name]
        assert points[place] == pytest.approx(change)
        assert intervals[place] == pytest.approx((change - 0.5, change + 0.5))
    assert points_of(with_probes[1], "<") and not points_of(with_probes[1], "D")
    assert points_of(with_probes[0], "D") == points_of(macro, "D")


def test_random_initialisation_does_not_squash_the_others(drawn):
    macro = drawn(make_summary())[0]
    low, high = macro.get_xlim()
    assert high - low < 8 and points_of(macro, "<") == {3: low}
    assert [text.get_text() for text in macro.texts] == ["-28.8"]


def test_one_seed_has_points_without_intervals(drawn):
    panels = drawn(make_summary(seeds=1))
    assert all(not axes.collections for axes in panels)
    assert len(points_of(panels[0], "o")) >= 3


@pytest.mark.parametrize("variants, columns", [
    ((), {"cola": "CoLA", "macro": "macro"}),
    (("random_init",), {"imdb": "IMDb"}),
    (("no_ce", "T_1", "T_4", "T_8", "layers_even", "layers_odd", "layers_first", "weights_111"),
     {"cola": "CoLA", "macro": "macro"}),
])
def test_any_set_of_variants_can_be_drawn(drawn, variants, columns):
    panels = drawn(make_summary(variants=variants, columns=columns))
    assert len(panels) == (3 if "imdb" in columns else 4)
    for axes in panels:
        assert len(axes.get_yticks()) == len(variants)


def test_curves_that_coincide_are_told_apart():
    names = ["full", "no_cos", "no_ce", "no_mlm", "random_init", "T_1", "T_2", "T_4", "T_8", "x"]
    styles = figures.curve_styles(names)
    dashes = [styles[name]["linestyle"] for name in names[:5]]
    assert len({str(dash) for dash in dashes}) == 5
    assert styles["full"]["linewidth"] > max(styles[name]["linewidth"] for name in names[1:])
    looks = {(style["color"], str(style["linestyle"])) for style in styles.values()}
    assert len(looks) == len(names)


def test_the_curves_are_those_of_the_first_seed(tmp_path, monkeypatch):
    summary = make_summary(variants=("no_ce",))
    summary["seeds"] = [5, 6]
    for name, value in (("full", 2.0), ("no_ce", 3.0)):
        folder = tmp_path / name / "seed5"
        folder.mkdir(parents=True)
        lines = [json.dumps({"step": step, "mlm": value}) for step in range(20)]
        (folder / "log.jsonl").write_text("\n".join(lines))
    kept = []
    monkeypatch.setattr(figures, "save_figure", lambda figure, path: kept.append(figure))
    figures.plot_losses(summary, tmp_path, tmp_path / "losses.png")
    mlm = kept[0].axes[1]
    heights = {line.get_label(): float(np.mean(line.get_ydata())) for line in mlm.lines}
    assert heights == pytest.approx({"full (baseline)": 2, "no distillation loss": 3})
    plt.close("all")
