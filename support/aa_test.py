"""The A/A test: experiments in which all variants are the same; do the intervals find an effect?

    python -m support.aa_test [--students 60]

Distils and fine-tunes the baseline under many seeds, and deals these students to experiments of
one baseline and three "variants". Every effect that an interval finds there is false: about one
in twenty may be. The students are kept in --out_dir; after an interruption, the same command
resumes.
"""
from pathlib import Path

import numpy as np

import ablation
from support import toy
from support.cli import Parser, command_line, in_range, shell_words
from support.errors import InputError
from support.files import locked_folder, write_file
from support.intervals import compare_with_first
from support.outcomes import PROBE, read_outcomes, task_folders
from support.report import is_noise, table
from support.scheduler import pending
from support.statistics import column_headings, resample, row_variances, scores_by_column

FIRST_SEED = 100  # far from the seeds of the report
VARIANTS = 3
DEALS = 1000


# ---- The students ----

def train_students(args):
    """Distil, fine-tune and probe the baseline under every seed, as ablation.py does.

    args: those of ablation.py."""
    if args.world:
        toy.main([*args.world, "--overwrite"])
    of_teacher = Path(args.out_dir, "teacher")
    steps = []
    for module, arguments in ablation.commands(args):
        out_dir = Path(module.read_arguments(arguments).out_dir)
        if of_teacher not in out_dir.parents:  # it is not needed here
            steps.append((module, arguments))
    with locked_folder(args.out_dir):
        to_run = pending(steps)
        print(f"{len(args.seeds)} students: {len(steps)} runs, of which {len(to_run)} are to do. "
              f"Results: {args.out_dir}", flush=True)
        ablation.run_pending(args, to_run)


def read_students(args, suffix):
    """(columns, scores, resampled): {column: heading}, {column: (students,)} and {task: (students,
    resamples)}, after fine-tuning, or with the suffix PROBE of the probes."""
    name = ablation.BASELINE
    folders = task_folders(args.out_dir, [name], args.tasks, args.seeds, suffix)
    outcomes = read_outcomes(folders[name])
    columns = column_headings(outcomes, list(outcomes))
    return columns, scores_by_column(columns, outcomes), resample(columns, outcomes)


# ---- The experiments ----

def deal(order, seeds):
    """Disjoint experiments: lists of (1 + VARIANTS, seeds) numbers of students."""
    size = (1 + VARIANTS) * seeds
    count = len(order) // size
    return list(order[:count * size].reshape(count, 1 + VARIANTS, seeds))


def false_effects(columns, scores, resampled, experiment):
    """{column: (adjusted, unadjusted)}: which changes exclude zero, two lists of VARIANTS.

    The arms of an experiment share no seeds, so nothing is gained by blocks; the intervals are
    right all the same. unadjusted: as if each comparison were the only one."""
    shares = []
    baseline, *variants = experiment
    of_baseline = {task: values[baseline] for task, values in resampled.items()}
    for variant in variants:
        of_variant = {task: values[variant] for task, values in resampled.items()}
        shares.append(row_variances(columns, of_baseline, of_variant))
    found = {}
    for column in columns:
        of_rows = [of_variant[column] for of_variant in shares]
        arms = scores[column][experiment]
        found[column] = []
        for comparisons in (VARIANTS, 1):
            intervals = compare_with_first(arms, of_rows, comparisons)
            found[column].append([not is_noise(value) for value in intervals])
    return found


def count_effects(columns, scores, resampled, experiments):
    """{column: (experiments with an adjusted effect, unadjusted effects)}, numbers of them."""
    found = [false_effects(columns, scores, resampled, experiment) for experiment in experiments]
    counts = {}
    for column in columns:
        families = sum(any(of_experiment[column][0]) for of_experiment in found)
        counts[column] = families, sum(sum(of_experiment[column][1]) for of_experiment in found)
    return counts


# ---- The command ----

def table_of_counts(columns, counts, experiments):
    """The lines of a Markdown table. counts: see count_effects; experiments: how many."""
    def row(heading, found, total):
        shares = [f"{count} of {of} ({100 * count / of:.1f} %)"
                  for count, of in zip(found, (total, total * VARIANTS))]
        return [heading, *shares]
    rows = [row(columns[column], found, experiments) for column, found in counts.items()]
    rows.append(row("all", np.sum(list(counts.values()), axis=0), experiments * len(columns)))
    return table(["column", "experiments with a false effect, adjusted",
                  "comparisons with one, unadjusted"], rows)


def report(kind, columns, scores, resampled, seeds, deals):
    """A part of aa.md. kind: what kind of scores these are."""
    students = len(next(iter(scores.values())))
    experiments = deal(np.arange(students), seeds)
    once = count_effects(columns, scores, resampled, experiments)
    rng, redealt = np.random.default_rng(0), []
    while len(redealt) < deals:
        redealt += deal(rng.permutation(students), seeds)
    redealt = redealt[:deals]
    often = count_effects(columns, scores, resampled, redealt)
    return "\n".join([
        f"# A/A test, {kind}: {students} students that differ in their seeds alone", "",
        f"Experiments of one baseline and {VARIANTS} variants, {seeds} seeds each, evaluated like "
        "the report. Nothing differs, so every effect is false; 5 % are expected in both columns.",
        "",
        f"## {len(experiments)} experiments that share no student: "
        f"{len(experiments) * VARIANTS * len(columns)} comparisons", "",
        *table_of_counts(columns, once, len(experiments)), "",
        f"## {deals} random deals of the same students", "",
        "They are not independent: they show more exactly what holds for these students, not for "
        "others.", "",
        *table_of_counts(columns, often, deals), ""])


def read_arguments(arguments):
    parser = Parser(__doc__)
    add = parser.add_argument
    add("--students", type=in_range(int, 1), default=60, help="how many to train")
    add("--seeds", type=in_range(int, 2), default=5, help="students of each arm of an experiment")
    add("--deals", type=in_range(int, 1), default=DEALS, help="random deals")
    add("--out_dir", default="runs/toy-aa", help="folder for all runs and for aa.md")
    add("--ablation_args", type=shell_words, default=[],
        help='more arguments for ablation.py: --ablation_args="--tasks cola --jobs 1"')
    args = parser.parse_args(arguments)
    needed = (1 + VARIANTS) * args.seeds
    if args.students < needed:
        raise InputError(f"--students: one experiment of {args.seeds} seeds takes {needed}")
    return args


def main(arguments):
    args = read_arguments(arguments)
    of_ablation = ablation.read_arguments([
        *args.ablation_args, "--variants", ablation.BASELINE, "--out_dir", args.out_dir,
        "--seeds", str(args.students), "--first_seed", str(FIRST_SEED)])
    train_students(of_ablation)
    parts = []
    for kind, suffix in (("fine-tuned", ""), ("linear probes", PROBE)):
        columns, *scores = read_students(of_ablation, suffix)
        if columns:
            parts.append(report(kind, columns, *scores, args.seeds, args.deals))
    text = "\n".join(parts)
    write_file(Path(args.out_dir) / "aa.md", text)
    print(f"\n{text}\n{Path(args.out_dir) / 'aa.md'}")


if __name__ == "__main__":
    command_line(main)
