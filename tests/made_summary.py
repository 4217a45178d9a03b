"""A summary as support.statistics.summarize returns it, with made-up but plausible numbers."""
COLUMNS = {"cola": "toy CoLA", "mnli": "toy MNLI", "mrpc": "toy MRPC", "macro": "macro",
           "imdb": "toy IMDb"}
LOSSES = {"no_cos": "no cosine loss", "no_ce": "no distillation loss", "no_mlm": "no MLM loss"}
TITLES = {"teacher": "teacher", "full": "full (baseline)", **LOSSES,
          "random_init": "random initialisation"}
PAPER = {"no_ce": -2.96, "no_cos": -1.46, "no_mlm": -0.31, "random_init": -3.69}
FULL = {"cola": 78.4, "mnli": 71.3, "mrpc": 74.1, "macro": 74.6, "imdb": 88.9}
CHANGES = {  # in the order of COLUMNS
    "teacher": (6.2, 7.9, 5.4, 6.5, 4.4),
    "no_cos": (-0.4, 0.3, -0.9, -0.3, 0.2),
    "no_ce": (-1.9, -3.1, -2.2, -2.4, -0.8),
    "no_mlm": (0.7, -1.4, -1.7, -0.8, 0.3),
    "random_init": (-41.2, -24.6, -20.7, -28.8, -30.3),
    "T_1": (-0.2, -0.6, -0.5, -0.4, -0.1),
    "T_4": (0.4, 0.1, 0.6, 0.4, 0.0),
    "T_8": (0.1, -0.4, -0.2, -0.2, -0.3),
    "depth_1": (-6.4, -5.2, -9.1, -6.9, -3.2),
    "depth_2": (-1.9, -2.2, -2.1, -2.1, -0.6),
    "layers_even": (-0.8, 0.4, -0.3, -0.2, 0.1),
    "layers_odd": (0.9, 0.2, 1.3, 0.8, 0.3),
    "layers_first": (-2.2, -1.8, -1.6, -1.9, -1.1),
    "layers_last": (-5.1, -4.4, -3.2, -4.2, -2.0),
    "weights_111": (0.4, -0.3, -0.2, 0.0, 0.1),
    "distilbert": (-3.3, 1.9, 2.2, 0.3, -2.6),
    "tinybert": (8.3, 9.1, 7.0, 8.1, 5.2),
}
PROBE_CHANGES = {"no_cos": -0.1, "no_ce": -2.7, "no_mlm": 0.4, "random_init": -29.3}
HALVES = (1.9, 1.6, 1.8, 1.0, 0.7)  # half of the width of a variant's interval, in each column
OWN_HALVES = (4.1, 3.0, 3.6, 2.2, 1.8)
MORE_TITLES = {
    "T_1": "temperature 1", "T_4": "temperature 4", "T_8": "temperature 8", "depth_1": "1 layer",
    "depth_2": "2 layers", "layers_even": "every second layer from the first on",
    "layers_odd": "every second layer up to the last",
    "layers_first": "the first half of the layers", "layers_last": "the last half of the layers",
    "weights_111": "weights 1, 1, 1",
}
BEFORE = {"mlm_loss": 3.21, "mlm_accuracy": 0.333, "teacher_mlm_accuracy": 0.762,
          "teacher_agreement": 0.351, "kl": 1.95, "cosine_distance": 0.31}
AFTER = {"mlm_loss": 0.98, "mlm_accuracy": 0.714, "teacher_mlm_accuracy": 0.762,
         "teacher_agreement": 0.823, "kl": 0.129, "cosine_distance": 0.074}
HELDOUT_CHANGES = {  # of the figures in AFTER but the teacher's own
    "no_cos": (0.004, -0.001, 0.002, -0.003, 0.121),
    "no_ce": (0.05, -0.011, -0.048, 0.156, -0.004),
    "no_mlm": (0.01, -0.003, 0.021, -0.014, -0.012),
    "random_init": (3.4, -0.51, -0.609, 1.31, 0.27),
}
HELDOUT_HALVES = (0.006, 0.002, 0.004, 0.005, 0.002)


def make_summary(seeds=5, variants=("no_cos", "no_ce", "no_mlm", "random_init"), also=(),
                 columns=COLUMNS):
    """The summary of an experiment with these many seeds.

    variants, also: names of CHANGES. columns: some of COLUMNS."""
    titles = {**TITLES, **MORE_TITLES}
    names = ["teacher", "full", *variants, *also]
    family = [name for name in variants if name != "random_init"]
    one = seeds == 1
    change = {}
    for name in names:
        if name != "full":
            halves = HALVES if name in family else OWN_HALVES
            of_all = dict(zip(COLUMNS, map(value, CHANGES[name], halves, [one] * 5)))
            change[name] = {column: of_all[column] for column in columns}
    return {
        "seeds": list(range(seeds)),
        "left_out": [],
        "mixed": [],
        "baseline": "full",
        "titles": {name: titles.get(name, name) for name in names},
        "also": list(also),
        "columns": dict(columns),
        "main_column": "macro" if "macro" in columns else next(iter(columns)),
        "macro_of": [heading for column, heading in columns.items()
                     if column not in ("macro", "imdb")],
        "scores": make_scores(names, columns, one),
        "family": family,
        "covariance": {},
        "change": change,
        "since_edit": {},
        "probe": {},
        **make_heldout(("full", *variants), one),
        "seconds": {"distillation": 251.0, "fine-tuning the teacher": 49.0,
                    "fine-tuning the students": 203.0},
        "paper_table_4": PAPER,
    }


def make_probe(seeds=5):
    """The part of a summary about the probes of toy CoLA, with the default variants."""
    columns, one = {"cola": "toy CoLA", "macro": "macro"}, seeds == 1
    change = {"teacher": dict.fromkeys(columns, value(8.1, 0.6, one))}
    for name, difference in PROBE_CHANGES.items():
        change[name] = dict.fromkeys(columns, value(difference, 0.5, one))
    scores = {}
    for name, by_column in (("full", None), *change.items()):
        mean = 41.2 + (by_column["cola"]["difference"] if by_column else 0)
        scores[TITLES[name]] = dict.fromkeys(columns, {"mean": mean, "sd": None if one else 0.4})
    return {"columns": columns, "main_column": "macro", "macro_of": ["toy CoLA"],
            "scores": scores, "covariance": {}, "change": change, "since_edit": {}}


def value(difference, half, one_seed=False):
    """A change with its interval."""
    if one_seed:
        return {"difference": difference, "low": None, "high": None}
    return {"difference": difference, "low": difference - half, "high": difference + half}


def make_scores(names, columns, one):
    """{heading: {column: mean and deviation}}, of the trivial baselines too."""
    titles, scores = {**TITLES, **MORE_TITLES}, {}
    for name in names:
        changes = dict(zip(COLUMNS, CHANGES.get(name, [0] * 5)))
        scores[titles.get(name, name)] = {
            column: {"mean": FULL[column] + changes[column], "sd": None if one else 0.7}
            for column in columns}
    for name, points in (("(majority)", 33.3), ("(TF-IDF)", 45.1)):
        scores[name] = {column: {"mean": points, "sd": None} for column in columns}
    return scores


def make_heldout(students, one):
    """The three parts of a summary about the students as language models."""
    figures = [figure for figure in AFTER if figure != "teacher_mlm_accuracy"]
    none = {"difference": 0.0, "low": None if one else 0.0, "high": None if one else 0.0}
    means, deviations, changes = {}, {}, {}
    for name in students:
        by_figure = dict(zip(figures, HELDOUT_CHANGES.get(name, [0.0] * 5)))
        before = {**BEFORE, "mlm_accuracy": 0.001} if name == "random_init" else BEFORE
        after = {figure: mean + by_figure.get(figure, 0.0) for figure, mean in AFTER.items()}
        means[name] = {"before": before, "after": after}
        deviations[name] = dict.fromkeys(AFTER, None if one else 0.0013)
        if name != "full":
            changes[name] = {figure: value(by_figure[figure], half, one)
                             for figure, half in zip(figures, HELDOUT_HALVES)}
            changes[name]["teacher_mlm_accuracy"] = none
    return {"heldout": means, "heldout_sd": deviations, "heldout_change": changes}
