"""What a linear classifier reads off a frozen model: the probe of a task, beside its fine-tuning.

    python -m support.probe --model STUDENT --task cola --data_dir DATA --out_dir OUT

A row of the task is the mean of its last hidden states, over all of its tokens. A linear model is
fitted to these vectors; the encoder is not trained (Conneau et al. 2018, arXiv:1805.01070).
Fine-tuning changes the encoder, so it can make up for what distillation did not give. A probe only
weighs what is there. Its sample of training rows is always the same, so a model has one score.
Read next: support/outcomes.py, which reads the results.
"""
from pathlib import Path

import numpy as np
import torch
from sklearn.linear_model import LogisticRegression, Ridge
from sklearn.pipeline import make_pipeline
from sklearn.preprocessing import StandardScaler
from torch import nn

from data import encode
from finetune import compute_outputs, results_of
from load_hf_weights import load_model, load_tokenizer
from model import Bert
from support import task_setup, tasks
from support.cli import (
    Parser,
    add_device_argument,
    add_overwrite_argument,
    command_line,
    in_range,
    one_of,
)
from support.corpus import describe_files
from support.device import resolve_device
from support.files import write_json
from support.predictions import table_of_predictions, write_predictions
from support.run_folder import finished_run, open_run
from support.task_setup import check_segments, label_names, load_data
from support.tasks import TASKS

TRAIN_ROWS = 4000
# Strong: a direction in which the states differ little would need a large weight, which is costly.
# So the probe reads what the states show plainly. Chosen by measurement (RESULTS.md).
PENALTY = 100.0
PROBED = [task for task in TASKS if task != "squad"]  # its answers are spans, not classes


class MeanState(nn.Module):
    """The mean over a row's tokens, [CLS] and [SEP] included, of the last hidden states."""

    def __init__(self, bert):
        super().__init__()
        self.bert, self.config = bert, bert.config

    def forward(self, input_ids, attention_mask, token_type_ids):
        """(batch, hidden), from three tensors (batch, length)."""
        states = self.bert(input_ids, attention_mask, token_type_ids)
        is_token = attention_mask[..., None].to(states.dtype)
        return (states * is_token).sum(1) / is_token.sum(1)


def load_frozen(folder, device):
    """The encoder in a model's folder, as a MeanState. Raises InputError."""
    return MeanState(load_model(folder, Bert)).to(device).eval()


def linear_model(task):
    """Logistic regression, or ridge regression if the labels are scores, on scaled features."""
    if TASKS[task].labels is None:
        return make_pipeline(StandardScaler(), Ridge(PENALTY))
    return make_pipeline(StandardScaler(), LogisticRegression(C=1 / PENALTY, max_iter=1000))


def mean_states(args, model, examples, tokenizer):
    """(examples, hidden). Rows are cut at the task's length, or the model's if that is less."""
    length = min(TASKS[args.task].max_length, model.config.max_position_embeddings)
    rows = encode(examples, tokenizer, length)
    device, pad = torch.device(args.device), model.config.pad_token_id
    return np.stack(compute_outputs(model, rows, pad, device, "fp32"))


def fingerprint(args):
    """What the probe depends on, besides its arguments: {what: digest}."""
    return task_setup.fingerprint(__file__, args)


def read_arguments(arguments):
    parser = Parser(__doc__)
    add = parser.add_argument
    add("--model", required=True, help="folder of a teacher or student")
    add("--task", required=True, type=one_of(PROBED, "task"), help=", ".join(PROBED))
    add("--data_dir", required=True, help="folder that holds CoLA/, MNLI/, ... or glue_data/")
    add("--out_dir", required=True, help="folder for results.json and predictions.tsv")
    add("--train_rows", type=in_range(int, 1), default=TRAIN_ROWS,
        help="fit to a random sample of so many rows")
    add("--tune", action="store_true",
        help="for choosing settings: fit to nine tenths of the training rows, score on the last "
             "tenth, and never open the dev set")
    add_overwrite_argument(parser)
    add_device_argument(parser)
    args = parser.parse_args(arguments)
    args.device = resolve_device(args.device)
    return args


def main(arguments):
    """Probe a model, unless --out_dir holds the result already. Returns what results.json holds."""
    args = read_arguments(arguments)
    depends_on = fingerprint(args)
    record = finished_run(args, depends_on, (args.model, args.data_dir))
    return (record or probe(args, depends_on))["results"]


def probe(args, depends_on):
    """Fit the linear model and score it. Returns the run's record."""
    with open_run(args, depends_on) as run:
        train_set, dev_sets = load_data(args)
        files = tasks.task_files(args.task, args.data_dir, train_only=args.tune)
        print(f"{args.data_dir}, {args.task}: {describe_files(files)}", flush=True)
        check_segments(args.model, args.task)
        tokenizer = load_tokenizer(args.model)
        model = load_frozen(args.model, args.device)
        classifier = linear_model(args.task)
        classifier.fit(mean_states(args, model, train_set, tokenizer),
                       [example.label for example in train_set])
        sets = {}
        for name, examples in dev_sets.items():
            predictions = classifier.predict(mean_states(args, model, examples, tokenizer))
            sets[name] = predictions, np.array([example.label for example in examples])
        results = results_of(args, train_set, sets)
        names = label_names(args.task) if TASKS[args.task].labels else None
        write_predictions(args.out_dir, table_of_predictions(sets, names))
        write_json(Path(args.out_dir) / "results.json", results)
        record = run.finish(results=results)
    print(f"{args.out_dir}: {results['data']} {results['score']:.1f} ({results['sets']})")
    return record


if __name__ == "__main__":
    command_line(main)
