"""How much the fine-tuning seed alone changes a score: the same model, fine-tuned many times.

    python -m support.stability

The teacher and two students of a finished `make ablation`, with the experiment's own settings.
Fine-tuning a BERT on few rows is known to fail for some seeds, or to stop at a plateau (Mosbach et
al., arXiv:2006.04884; Zhang et al., arXiv:2006.05987): then no experiment can tell small effects.
"""
from pathlib import Path

import numpy as np

import ablation
import finetune
from support.cli import Parser, command_line, in_range, shell_words
from support.errors import InputError
from support.files import locked_folder, read_json, write_file
from support.report import table
from support.scheduler import pending

MODELS = ("teacher", "full", "no_ce")


def stability_commands(experiment, out_dir, seeds):
    """{(model, task): its fine-tunings, one with each seed}, from the experiment's commands."""
    own = {}  # (model, task): the experiment's command
    for module, arguments in ablation.commands(experiment):
        folder = Path(module.read_arguments(arguments).out_dir)
        if module is finetune and folder.parts[-3] in MODELS:
            own[folder.parts[-3], folder.name] = arguments
    found = {}
    for (model, task), arguments in own.items():
        found[model, task] = []
        for seed in range(seeds):
            folder = Path(out_dir, model, f"seed{seed}", task)
            changed = with_option(arguments, "--seed", str(seed))
            changed = with_option(changed, "--out_dir", str(folder))
            found[model, task].append((finetune, changed))
    return found


def with_option(arguments, name, value):
    """A command's arguments, with another value of an option that it has."""
    place = arguments.index(name) + 1
    return [*arguments[:place], value, *arguments[place + 1:]]


def stability_table(commands, tasks):
    """The lines of a Markdown table: mean ± standard deviation over the seeds, and the lowest."""
    rows = []
    for model in MODELS:
        row = [model]
        for task in tasks:
            scores = []
            for _, arguments in commands[model, task]:
                folder = Path(finetune.read_arguments(arguments).out_dir)
                scores.append(read_json(folder / "results.json")["score"])
            row.append(f"{np.mean(scores):.1f} ± {np.std(scores, ddof=1):.1f} "
                       f"(lowest {min(scores):.1f})")
        rows.append(row)
    return table(["model", *tasks], rows)


def main(arguments):
    parser = Parser(__doc__)
    parser.add_argument("--out_dir", default="runs/toy-stability", help="folder for the runs")
    parser.add_argument("--tuning_seeds", type=in_range(int, 2), default=20,
                        help="fine-tunings of each model on each task")
    parser.add_argument("--ablation_args", type=shell_words, default=[],
                        help='the experiment\'s own: --ablation_args="--tasks cola --jobs 1"')
    args = parser.parse_args(arguments)
    experiment = ablation.read_arguments([*args.ablation_args, "--seeds", "1"])
    [seed] = experiment.seeds
    absent = [model for model in MODELS[1:] if model not in experiment.variants]
    if absent:
        raise InputError(f"--ablation_args: its --variants must contain {' and '.join(absent)}")
    for model in MODELS[1:]:
        if not Path(experiment.out_dir, model, f"seed{seed}", "run.json").exists():
            raise InputError(f"{experiment.out_dir}: has no student {model} with seed {seed}; run "
                             "make ablation first")
    commands = stability_commands(experiment, args.out_dir, args.tuning_seeds)
    experiment.out_dir = args.out_dir
    with locked_folder(args.out_dir):
        ablation.run_pending(experiment, pending(sum(commands.values(), [])))
    lines = stability_table(commands, experiment.tasks)
    write_file(Path(args.out_dir, "stability.md"), "\n".join(lines) + "\n")
    print("\n".join(lines))


if __name__ == "__main__":
    command_line(main)
