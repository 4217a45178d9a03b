"""Teacher and students side by side: fill in a blank, or classify a sentence.

    python demo.py "the dogs that [MASK] the cat are asleep" --run runs/toy
    python demo.py "every dog slept ." --text_b "some dogs slept ." --task mnli --run runs/toy

--run: the folder of an experiment, or of one model. Read next: nothing; this is the end of the road.
"""
import sys
from pathlib import Path

import torch

from ablation import VARIANTS
from data import collate, encode
from load_hf_weights import load_model, load_tokenizer, read_config
from model import Classifier
from support.cli import Parser, command_line, in_range, one_of
from support.errors import InputError
from support.files import read_json
from support.tasks import TASKS, Example


def find_models(run, task, seed):
    """{name: folder} of the models of an experiment, the teacher first, or of the one model in `run`. Raises InputError."""
    run = Path(run)
    if (run / "config.json").exists():
        return {run.name: run}
    if task:
        models = {name: run / name / f"seed{seed}" / task for name in ("teacher", *VARIANTS)}
    else:
        models = {name: run / name / f"seed{seed}" for name in VARIANTS}
        made = next((folder for folder in models.values() if (folder / "run.json").exists()), None)
        if made:
            arguments = read_json(made / "run.json").get("arguments")
            if not isinstance(arguments, dict) or not isinstance(arguments.get("teacher"), str):
                raise InputError(f"{made / 'run.json'}: does not say who the teacher was")
            models = {"teacher": Path(arguments["teacher"]), **models}
    models = {name: folder for name, folder in models.items() if (folder / "config.json").exists()}
    if not models:
        raise InputError(f"{run}: holds no {f'model fine-tuned on {task}' if task else 'student'} of seed {seed}; run make ablation first")
    return models


@torch.inference_mode()
def fill_in(models, text, count):
    """{name: [for each [MASK] the `count` best (word, probability)]}. Raises InputError."""
    answers = {}
    for name, folder in models.items():
        tokenizer, model = load_tokenizer(folder), load_model(folder).eval()
        mask = tokenizer.token_to_id("[MASK]")
        [(ids, _)] = rows = encode_text(tokenizer, model, Example(text, None, 0))
        if mask not in ids:
            raise InputError("the text has no [MASK] to fill in; give --task to classify it")
        probabilities = model(*collate(rows, model.config.pad_token_id))[0, torch.tensor(ids) == mask].softmax(-1)  # (masks, vocab)
        answers[name] = [[(tokenizer.id_to_token(int(word)), float(p)) for p, word in zip(*row.topk(min(count, len(row))))]
                         for row in probabilities]
    return answers


@torch.inference_mode()
def classify(models, text_a, text_b):
    """{name: [[(label, probability), the likeliest first]]}. Raises InputError."""
    answers = {}
    for name, folder in models.items():
        labels = read_config(folder).id2label
        if labels is None:
            raise InputError(f"{folder / 'config.json'}: names no labels (id2label); it is not fine-tuned by finetune.py")
        if len(labels) == 1:
            raise InputError(f"{folder}: answers with a score, not with one of several labels; its predictions.tsv has the scores")
        tokenizer = load_tokenizer(folder)
        model = load_model(folder, Classifier, num_labels=len(labels)).eval()
        rows = encode_text(tokenizer, model, Example(text_a, text_b, 0))
        probabilities = model(*collate(rows, model.config.pad_token_id))[0].softmax(-1).tolist()
        answers[name] = [sorted(zip(labels.values(), probabilities), key=lambda pair: -pair[1])]
    return answers


def encode_text(tokenizer, model, example):
    """The rows of encode, of one example. Raises InputError if it is too long."""
    positions = model.config.max_position_embeddings
    [(ids, _)] = rows = encode([example], tokenizer, max_length=1 << 20)
    if len(ids) > positions:
        raise InputError(f"the text has {len(ids)} tokens, [CLS] and [SEP] included; the model has {positions} positions")
    return rows


def unknown_words(folder, *texts):
    tokenizer = load_tokenizer(folder)
    unknown = tokenizer.token_to_id("[UNK]")
    return [word for word in " ".join(texts).split() if unknown in tokenizer.encode(word, add_special_tokens=False).ids]


def show(answers):
    """Columns of answers, a model each; a table for each blank."""
    for blank in range(len(next(iter(answers.values())))):
        columns = {name: [f"{100 * p:5.1f} %  {word}" for word, p in rows[blank]] for name, rows in answers.items()}
        widths = {name: max(map(len, [name, *cells])) for name, cells in columns.items()}
        print("\n" + "   ".join(f"{name:{widths[name]}}" for name in columns).rstrip())
        for row in zip(*columns.values()):
            print("   ".join(f"{cell:{width}}" for cell, width in zip(row, widths.values())).rstrip())


def main(arguments):
    parser = Parser(__doc__)
    parser.add_argument("text", help="a sentence; [MASK] stands for the word to fill in")
    parser.add_argument("--text_b", help="with --task: the second sentence of a pair")
    parser.add_argument("--run", default="runs/toy", help="folder of an experiment, or of one model")
    parser.add_argument("--task", type=one_of(TASKS, "task"), help="classify the text with the models fine-tuned on this task")
    parser.add_argument("--seed", type=in_range(int, 0), default=0, help="which of the experiment's seeds")
    parser.add_argument("--best", type=in_range(int, 1), default=5, help="how many words to show")
    args = parser.parse_args(arguments)
    try:
        f"{args.text} {args.text_b}".encode()
    except UnicodeEncodeError:
        raise InputError("the text is not UTF-8") from None
    if args.task == "squad":
        raise InputError("--task squad: its answers stand in a text; this shows labels and words to fill in alone")
    if args.task and bool(TASKS[args.task].text[1:]) != (args.text_b is not None):
        raise InputError(f"--task {args.task} reads {'two sentences: give --text_b too' if TASKS[args.task].text[1:] else 'one text: leave --text_b out'}")
    models = find_models(args.run, args.task, args.seed)
    if unknown := unknown_words(next(iter(models.values())), args.text, args.text_b or ""):
        print(f"not in the vocabulary, read as [UNK]: {', '.join(unknown)}", file=sys.stderr)
    show(classify(models, args.text, args.text_b) if args.task else fill_in(models, args.text, args.best))


if __name__ == "__main__":
    command_line(main)
