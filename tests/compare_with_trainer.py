"""finetune.py against the Hugging Face Trainer: the same encoder, data and settings, many seeds.

    pip install accelerate        # which the Trainer needs, beside requirements-test.txt
    python tests/compare_with_trainer.py --model FOLDER --data_dir FOLDER --out_dir runs/trainer

Run by hand: it takes hours on a CPU. FOLDER is a BERT with its pooler. What both have is the same:
epochs, rate, warm-up, batch size, lengths, AdamW, clipping, fp32, dropout. What differs is what
the two do by themselves: the Trainer draws each batch from all rows, ours from rows of like length;
and the random numbers. Finished runs are kept in --out_dir; the same command goes on.
"""
import json
import sys
from pathlib import Path

import numpy as np
import transformers
from scipy import stats

sys.path.insert(0, str(Path(__file__).parents[1]))
import finetune
from support.cli import Parser, command_line, in_range, list_of
from support.files import write_json
from support.report import table
from support.task_setup import label_names
from support.tasks import TASKS, read_dev, read_train

LENGTH, BATCH_SIZE = 128, 32


def run_ours(args, task, seed, folder):
    """The sets' metrics, {metric: value out of 100}."""
    results = finetune.main([
        "--model", args.model, "--task", task, "--data_dir", args.data_dir,
        "--out_dir", str(folder), "--seed", str(seed), "--epochs", str(args.epochs),
        "--lr", str(args.lr), "--batch_size", str(BATCH_SIZE), "--max_length", str(LENGTH),
        "--precision", "fp32", "--device", "cpu", "--overwrite"])
    [metrics] = results["sets"].values()
    return {name: 100 * value for name, value in metrics.items() if name != "rows"}


def run_theirs(args, task, seed, folder):
    """The same with the Trainer; the metrics are ours."""
    tokenizer = transformers.AutoTokenizer.from_pretrained(args.model)

    def rows(examples):
        encoded = []
        for example in examples:
            inputs = tokenizer(example.text_a, example.text_b, truncation=True, max_length=LENGTH)
            encoded.append({**inputs, "labels": example.label})
        return encoded
    regression = TASKS[task].labels is None
    transformers.set_seed(seed)
    model = transformers.AutoModelForSequenceClassification.from_pretrained(
        args.model, num_labels=1 if regression else len(label_names(task)))
    settings = transformers.TrainingArguments(
        output_dir=str(folder), num_train_epochs=args.epochs, learning_rate=args.lr,
        per_device_train_batch_size=BATCH_SIZE, per_device_eval_batch_size=64, warmup_steps=0.1,
        weight_decay=0.0, max_grad_norm=1.0, adam_beta2=0.999, adam_epsilon=1e-8, seed=seed,
        use_cpu=True, save_strategy="no", report_to=[], disable_tqdm=True)
    trainer = transformers.Trainer(
        model=model, args=settings, train_dataset=rows(read_train(task, args.data_dir)),
        data_collator=transformers.DataCollatorWithPadding(tokenizer))
    trainer.train()
    [examples] = read_dev(task, args.data_dir).values()
    logits = trainer.predict(rows(examples)).predictions
    predictions = logits[:, 0] if regression else logits.argmax(-1)
    targets = np.array([example.label for example in examples])
    metrics = finetune.METRICS[task]
    return {metric.__name__: 100 * metric(predictions, targets) for metric in metrics}


SIDES = {"ours": run_ours, "Trainer": run_theirs}


def result(args, side, task, seed):
    """The metrics of one run, from its file, or else from running it."""
    folder = Path(args.out_dir, side, f"{task}-{seed}")
    path = folder / "metrics.json"
    if not path.exists():
        metrics = SIDES[side](args, task, seed, folder)
        folder.mkdir(parents=True, exist_ok=True)
        write_json(path, metrics)
        print(f"{side} {task} seed {seed}: {metrics}", flush=True)
    return json.loads(path.read_text())


def rows_of_table(task, found):
    """The rows of the table for one task. found: {side: [metrics of each seed]}."""
    rows = []
    for metric in finetune.METRICS[task]:
        ours = [of_seed[metric.__name__] for of_seed in found["ours"]]
        theirs = [of_seed[metric.__name__] for of_seed in found["Trainer"]]
        test = stats.ttest_ind(ours, theirs, equal_var=False)  # Welch: two variances
        low, high = test.confidence_interval(0.95)
        sides = [f"{np.mean(side):.1f} ± {np.std(side, ddof=1):.1f}" for side in (ours, theirs)]
        difference = np.mean(ours) - np.mean(theirs)
        rows.append([f"{TASKS[task].title}, {metric.__name__}", str(len(ours)), *sides,
                     f"{difference:+.1f} [{low:+.1f}, {high:+.1f}]"])
    return rows


def main(arguments):
    parser = Parser(__doc__)
    add = parser.add_argument
    add("--model", required=True, help="folder of a BERT with its pooler")
    add("--data_dir", required=True, help="folder that holds the tasks")
    add("--out_dir", default="runs/trainer", help="folder for the runs")
    add("--tasks", type=list_of(TASKS, "task"), default="stsb,mrpc,cola", help="with one dev set")
    add("--seeds", type=in_range(int, 2), default=5, help="runs of each side and task")
    add("--epochs", type=in_range(int, 1), default=3, help="passes over the training rows")
    add("--lr", type=in_range(float, 0), default=5e-5, help="peak learning rate")
    args = parser.parse_args(arguments)
    rows = []
    for task in args.tasks:
        found = {side: [] for side in SIDES}
        for seed in range(args.seeds):
            for side in SIDES:
                found[side].append(result(args, side, task, seed))
        rows += rows_of_table(task, found)
    header = ["task, metric", "seeds", *SIDES, "difference, 95 % interval"]
    print("\n".join(table(header, rows)))


if __name__ == "__main__":
    command_line(main)
