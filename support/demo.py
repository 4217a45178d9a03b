"""Shows the answers of a teacher and its students to a sentence of yours, side by side.

    python -m support.demo "the surgeon [MASK] the wound ." --run runs/toy
    python -m support.demo "i found the song superb ." --text_b "the music was good ." --task mnli

Without --task, every model fills in each [MASK]. With --task, the models fine-tuned on that task
classify the sentence. --run is the folder of an experiment (`make ablation` writes runs/toy), or
of a single model. Read next: RESULTS.md, for what the differences between the models amount to.
"""
import sys
from pathlib import Path

import torch

from data import collate, encode
from load_hf_weights import load_model, load_tokenizer, read_config
from model import Classifier
from support.cli import Parser, command_line, in_range, one_of
from support.errors import InputError
from support.files import read_json
from support.tasks import TASKS, Example


def find_models(run, task, seed):
    """The models of an experiment, or the one model whose folder is `run`.

    task: None for the students and their teacher, else the models fine-tuned on this task.
    Returns {name: folder}: the teacher, the student `full`, then the others by name.
    Raises InputError if there are none."""
    run = Path(run)
    if (run / "config.json").exists():
        return {run.name: run}
    found = {}
    for seed_folder in run.glob(f"*/seed{seed}"):
        name, folder = seed_folder.parent.name, seed_folder / (task or "")
        archived = "~" in name
        if not archived and (folder / "config.json").exists():
            found[name] = folder
    if not found:
        wanted = f"model fine-tuned on {task}" if task else "student"
        raise InputError(f"{run}: holds no {wanted} of seed {seed}; run make ablation first")
    order = sorted(found, key=lambda name: (name != "teacher", name != "full", name))
    models = {name: found[name] for name in order}
    teacher = None if task else teacher_of(models.values())
    if teacher and (teacher / "config.json").exists():
        models = {"teacher": teacher, **models}
    return models


def teacher_of(students):
    """The folder of these students' teacher, which their run.json names; None if none is finished.

    Raises InputError if a run.json does not name it."""
    for student in students:
        path = student / "run.json"
        if path.exists():
            arguments = read_json(path).get("arguments")
            if isinstance(arguments, dict) and isinstance(arguments.get("teacher"), str):
                return Path(arguments["teacher"])
            raise InputError(f"{path}: does not say which teacher the student was distilled from")
    return None


@torch.inference_mode()
def fill_in(models, text, count):
    """The `count` likeliest words of each model for each [MASK] of the text.

    Returns {name: [[(word, probability)], a list for each [MASK]]}. Raises InputError."""
    answers = {}
    for name, folder in models.items():
        tokenizer, model = load_tokenizer(folder), load_model(folder)
        rows = encode_text(tokenizer, model, Example(text, None, 0))
        ids = torch.tensor(rows[0][0])
        masked = ids == tokenizer.token_to_id("[MASK]")
        if not masked.any():
            raise InputError("the text has no [MASK] to fill in; give --task to classify it")
        logits = model(*collate(rows, model.config.pad_token_id))[0, masked]  # (masks, vocab)
        probabilities = logits.softmax(-1)
        best = probabilities.topk(min(count, probabilities.shape[-1]))
        answers[name] = []
        for values, words in zip(best.values.tolist(), best.indices.tolist()):
            answers[name].append(list(zip(map(tokenizer.id_to_token, words), values)))
    return answers


@torch.inference_mode()
def classify(models, text_a, text_b):
    """The probability of each label, by each model. text_b: None, or the second sentence.

    Returns {name: [[(label, probability)]]}, the likeliest label first. Raises InputError."""
    answers = {}
    for name, folder in models.items():
        config = read_config(folder)
        labels = config.id2label
        if labels is None:
            raise InputError(
                f"{folder / 'config.json'}: names no labels (id2label); give a model that "
                "finetune.py has fine-tuned")
        if len(labels) == 1:
            raise InputError(
                f"{folder}: predicts a score, not one of several labels; the scores are in its "
                "predictions.tsv")
        if text_b is not None and config.type_vocab_size < 2:
            raise InputError(f"{folder}: its model cannot tell two texts apart (type_vocab_size 1)")
        tokenizer = load_tokenizer(folder)
        model = load_model(folder, Classifier, num_labels=len(labels))
        rows = encode_text(tokenizer, model, Example(text_a, text_b, 0))
        probabilities = model(*collate(rows, model.config.pad_token_id))[0].softmax(-1).tolist()
        ranked = sorted(zip(labels.values(), probabilities), key=lambda pair: -pair[1])
        answers[name] = [ranked]
    return answers


def encode_text(tokenizer, model, example):
    """The one row of this example, in a list. Raises InputError if it is too long."""
    positions = model.config.max_position_embeddings
    [(ids, _)] = rows = encode([example], tokenizer, max_length=1 << 20)
    if len(ids) > positions:
        raise InputError(
            f"the text has {len(ids)} tokens, [CLS] and [SEP] included; "
            f"the model has {positions} positions")
    return rows


def unknown_words(folder, text):
    """The words of the text that the tokenizer in this folder reads as [UNK]."""
    tokenizer = load_tokenizer(folder)
    unknown = tokenizer.token_to_id("[UNK]")
    words = text.split()
    return [w for w in words if unknown in tokenizer.encode(w, add_special_tokens=False).ids]


def show(answers):
    """Print a table for each blank, with a column for each model."""
    blanks = len(next(iter(answers.values())))
    for blank in range(blanks):
        columns = []
        for name, rows in answers.items():
            cells = [name, *(f"{100 * p:5.1f} %  {word}" for word, p in rows[blank])]
            width = max(map(len, cells))
            columns.append([cell.ljust(width) for cell in cells])
        print()
        for line in zip(*columns):
            print("   ".join(line).rstrip())


def read_arguments(arguments):
    parser = Parser(__doc__)
    parser.add_argument(
        "text", help="a sentence, in quotes; write [MASK] in place of each word to fill in")
    parser.add_argument("--text_b", help="the second sentence, for a --task on pairs")
    parser.add_argument(
        "--run", default="runs/toy",
        help="folder of an experiment (such as make ablation leaves), or of one model")
    parser.add_argument(
        "--task", type=one_of(TASKS, "task"),
        help="classify the text, with the models fine-tuned on this task, such as cola or mnli "
        "(default: fill in [MASK])")
    parser.add_argument(
        "--seed", type=in_range(int, 0), default=0,
        help="which seed of the experiment to show")
    parser.add_argument(
        "--best", type=in_range(int, 1), default=5,
        help="how many words to show for each [MASK]")
    args = parser.parse_args(arguments)
    try:
        f"{args.text} {args.text_b}".encode()
    except UnicodeEncodeError:
        raise InputError("the text is not UTF-8") from None
    if args.task == "squad":
        raise InputError(
            "--task squad: its answers stand in a text; the demo shows only labels, or words for "
            "[MASK]; choose another task")
    if args.task:
        is_pair = len(TASKS[args.task].text) == 2
        if is_pair and args.text_b is None:
            raise InputError(f"--task {args.task} reads two sentences: give --text_b too")
        if not is_pair and args.text_b is not None:
            raise InputError(f"--task {args.task} reads one text: leave --text_b out")
    return args


def main(arguments):
    args = read_arguments(arguments)
    models = find_models(args.run, args.task, args.seed)
    first_model = next(iter(models.values()))
    unknown = unknown_words(first_model, f"{args.text} {args.text_b or ''}")
    if unknown:
        print(f"not in the vocabulary, read as [UNK]: {', '.join(unknown)}", file=sys.stderr)
    if args.task:
        show(classify(models, args.text, args.text_b))
    else:
        show(fill_in(models, args.text, args.best))


if __name__ == "__main__":
    command_line(main)
