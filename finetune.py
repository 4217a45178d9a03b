"""Fine-tuning on a task, teacher and students alike, and the metrics, by hand.

    python finetune.py --model FOLDER --task cola --data_dir FOLDER --out_dir FOLDER

With --teacher FOLDER, a model fine-tuned on the same task, its logits are learnt from too: a second step of distillation
(Sanh et al. 2019, section 3, and the (D) of its Table 2).

Devlin et al. 2018 (arXiv:1810.04805), sections 4.1 and 4.2; GLUE: Wang et al. 2018 (arXiv:1804.07461); SQuAD: squad.py.
Read next: ablation.py.
"""
import itertools
from dataclasses import replace
from math import sqrt
from pathlib import Path

import numpy as np
import torch
import torch.nn.functional as F
from torch import nn

import data
from data import collate, encode, length_bucketed_batches, prefetch, sorted_batches
from load_hf_weights import load_model, load_tokenizer, model_files, save_model
from losses import distillation_loss
from model import Classifier, SpanModel
from support import squad
from support.cli import (
    Parser,
    add_common_arguments,
    command_line,
    in_range,
    one_of,
    resolve,
)
from support.device import autocast
from support.distributed import (
    RANK,
    WORLD_SIZE,
    all_gather,
    broadcast,
    process_group,
    progress_bar,
    shard,
    wrap_ddp,
)
from support.errors import InputError
from support.files import write_file, write_json
from support.fingerprint import PROJECT, code_fingerprint, files_fingerprint
from support.run_folder import finished_run, open_run
from support.seeds import DROPOUT, NEW_WEIGHTS, seed_torch
from support.tasks import TASKS, read_test, task_files, task_title
from support.training_run import learning_rate



# ---- Metrics: (predictions, targets), equally long arrays of class numbers -> float ----

def accuracy(predictions, targets):
    """The share of predictions that are right."""
    return float(np.mean(np.equal(predictions, targets)))


def f1(predictions, targets):
    """The harmonic mean of precision and recall of class 1; 0 if class 1 is neither predicted nor there."""
    true_pos, false_pos, false_neg, _ = confusion(predictions, targets)
    return 2 * true_pos / (2 * true_pos + false_pos + false_neg) if true_pos else 0.0


def matthews(predictions, targets):
    """Matthews' correlation of two binary variables, -1 to 1; 0 if either is constant."""
    true_pos, false_pos, false_neg, true_neg = confusion(predictions, targets)
    margins = (true_pos + false_pos) * (true_pos + false_neg) * (true_neg + false_pos) * (true_neg + false_neg)
    return (true_pos * true_neg - false_pos * false_neg) / sqrt(margins) if margins else 0.0


def confusion(predictions, targets):
    """(true positives, false positives, false negatives, true negatives), Python ints: their products may pass 2**63."""
    predicted, is_there = np.equal(predictions, 1), np.equal(targets, 1)
    return (int((predicted & is_there).sum()), int((predicted & ~is_there).sum()),
            int((~predicted & is_there).sum()), int((~predicted & ~is_there).sum()))


def pearson(predictions, targets):
    """The linear correlation, -1 to 1; 0 if either is constant."""
    x, y = (np.asarray(values, float) - np.mean(values, dtype=float) for values in (predictions, targets))
    norms = sqrt((x @ x) * (y @ y))
    return float(x @ y) / norms if norms else 0.0


def spearman(predictions, targets):
    """The linear correlation of the ranks, equal values sharing the mean of theirs; 0 if either is constant."""
    return pearson(ranks(predictions), ranks(targets))


def ranks(values):
    _, places, counts = np.unique(values, return_inverse=True, return_counts=True)
    return (np.cumsum(counts) - (counts - 1) / 2)[places]


METRICS = {"cola": (matthews,), "mnli": (accuracy,), "mrpc": (f1, accuracy), "qnli": (accuracy,), "qqp": (f1, accuracy), "rte": (accuracy,),
           "sst2": (accuracy,), "stsb": (pearson, spearman), "wnli": (accuracy,), "imdb": (accuracy,), "squad": (squad.exact_match, squad.f1)}


def headline_metrics(task):
    """The metrics that a task's one figure is the mean of: all of them; for SQuAD F1 alone, of which exact match is a stricter form."""
    return (squad.f1,) if task == "squad" else METRICS[task]


def score(task, sets):
    """The task's one figure, in points out of 100: the mean over its metrics and dev sets, as on GLUE's leaderboard.

    sets: {name of the set: (predictions, targets)}."""
    return 100 * float(np.mean([metric(*pair) for pair in sets.values() for metric in headline_metrics(task)]))


# ---- The loop ----

def train(args, model, rows, labels, pad, device, run, teacher=None):
    """args.epochs times over the rows: AdamW, no weight decay, 10 % warm-up, then linear decay; from the first step or from the
    run's checkpoint on. teacher: a model of the same task. Raises InputError if the loss stops being a number."""
    optimizer = torch.optim.AdamW(model.parameters(), weight_decay=0.0, fused=True)
    steps_per_epoch = -(-len(rows) // args.batch_size)
    steps = steps_per_epoch * args.epochs
    first_step, recent = run.resume(model, optimizer), []
    batches = (batch for epoch in range(args.epochs) for batch in length_bucketed_batches(rows, args.batch_size, args.seed, epoch))
    batches = prefetch(((torch.tensor(share), *collate([rows[i] for i in own], pad), torch.tensor([labels[i] for i in own]))
                     for own, share in map(shard, itertools.islice(batches, first_step, None))), pin=device.type == "cuda")
    model.train()
    parallel = wrap_ddp(model)
    name = "/".join(Path(args.out_dir).parts[-3:])
    with run.defer_signals(), progress_bar(batches, total=steps, initial=first_step, desc=name, unit="step") as progress:
        for step, (share, *batch) in enumerate(progress, first_step):
            *inputs, targets = (x.to(device, non_blocking=True) for x in batch)
            seed_torch(DROPOUT, args.seed, step, RANK)
            with autocast(device, args.precision):
                logits = parallel(*inputs).flatten(0, -2)  # (batch, classes); of spans (2 batch, length), a start and an end each
            loss = task_loss(logits.float(), targets.flatten())
            terms = {"loss": loss}
            if teacher:
                with torch.no_grad(), autocast(device, args.precision):
                    teacher_logits = teacher(*inputs).flatten(0, -2)
                terms["ce"] = distillation_loss(logits.float(), teacher_logits.float(), args.temperature)
                loss = (1 - args.alpha_ce) * loss + args.alpha_ce * terms["ce"]
            (loss * (float(share) * WORLD_SIZE)).backward()  # the processes' mean is then the mean over the batch
            for group in optimizer.param_groups:
                group["lr"] = learning_rate(step, steps, args.lr, warmup=0.1)
            nn.utils.clip_grad_norm_(model.parameters(), 1.0)
            optimizer.step()
            optimizer.zero_grad()

            recent.append({name: term.detach() * float(share) for name, term in terms.items()})  # waited for only here:
            must_log, should_save = step % args.log_every == 0 or step == steps - 1, run.should_save(step + 1)
            if must_log or should_save:
                figures = run.check_losses(recent, step)
                recent.clear()
            if must_log:
                run.log.write(step=step, epoch=step // steps_per_epoch, lr=optimizer.param_groups[0]["lr"], **figures)
                progress.set_postfix({name: f"{value:.3f}" for name, value in figures.items()}, refresh=False)
            if should_save:
                run.save(step + 1, model, optimizer)




def task_loss(logits, targets):
    """logits: (rows, classes) with class numbers as targets, (rows,), a span's classes being the positions; or (rows, 1) with scores,
    a regression."""
    return F.mse_loss(logits.squeeze(1), targets) if targets.is_floating_point() else F.cross_entropy(logits, targets)


def predict(model, rows, pad, device, precision, batch_size=64):
    """The class number of every row, (rows,); its score, if the model has one output."""
    logits = np.stack(compute_logits(model, rows, pad, device, precision, batch_size))
    return logits[:, 0].astype(float) if logits.shape[1] == 1 else logits.argmax(-1)


@torch.inference_mode()
def compute_logits(model, rows, pad, device, precision, batch_size=64):
    """A list with the logits of every row, (classes,); of a SpanModel (2, length of the batch that the row was in)."""
    logits = []
    order = sorted_batches(rows, batch_size)[RANK::WORLD_SIZE]  # each process answers some, and learns what the others answered
    for batch in prefetch((collate([rows[i] for i in batch], pad) for batch in order), pin=device.type == "cuda"):
        with autocast(device, precision):
            logits.append(model(*(x.to(device, non_blocking=True) for x in batch)).float().cpu().numpy())
    logits, order = all_gather([of_row for batch in logits for of_row in batch]), all_gather([row for batch in order for row in batch])
    if not all(np.isfinite(of_row).all() for of_row in logits):  # the last step, which no loss was taken of, ruined the weights
        raise InputError("the trained model's logits are not finite numbers; lower --lr")
    return [logits[i] for i in np.argsort(order)]


# ---- What a task is to the loop: a new model, rows and targets, answers ----

def new_model(folder, task):
    """A model for this task with a folder's encoder; what stands on it is new, from torch's seed. Raises InputError."""
    if task == "squad":
        return load_model(folder, SpanModel, new=("qa_outputs",))
    return load_model(folder, Classifier, new=("pooler", "classifier"), num_labels=len(label_names(task)))


def label_names(task):
    """The names of a Classifier's outputs, in order."""
    return list((TASKS[task].labels or {"score": "score"}).values())


def training_rows(args, examples, tokenizer):
    """(rows, targets): (input_ids, token_type_ids) of each, and its class number or score, or a span's (start, end)."""
    if args.task == "squad":
        return squad.training_rows(examples, tokenizer, args.max_length, args.stride)
    return encode(examples, tokenizer, args.max_length), [example.label for example in examples]


def answer(args, model, examples, tokenizer):
    """(predictions, targets) of a set: class numbers or scores, arrays; or the answers, and the gold answers, of questions, lists."""
    device, pad = torch.device(args.device), model.config.pad_token_id
    if args.task == "squad":
        windows = list(squad.windows(examples, tokenizer, args.max_length, args.stride))
        logits = compute_logits(model, [window.row for window in windows], pad, device, args.precision)
        return squad.best_answers(examples, windows, logits), [question.gold_answers for question in examples]
    return (predict(model, encode(examples, tokenizer, args.max_length), pad, device, args.precision),
            np.array([example.label for example in examples]))


def read_arguments(arguments):
    parser = Parser(__doc__)
    parser.add_argument("--model", required=True, help="folder of a teacher or student")
    parser.add_argument("--task", required=True, type=one_of(TASKS, "task"), help=", ".join(TASKS))
    parser.add_argument("--data_dir", required=True, help="folder that holds CoLA/, MNLI/, ... or glue_data/, aclImdb/, squad/")
    parser.add_argument("--out_dir", required=True)
    parser.add_argument("--epochs", type=in_range(int, 1), default=3,
                        help="default 3; for squad Devlin et al. took --epochs 2 --lr 3e-5 (BERT's code: --batch_size 12)")
    parser.add_argument("--batch_size", type=in_range(int, 1), default=32)
    parser.add_argument("--lr", type=in_range(float, 0, open_low=True), default=2e-5, help="peak learning rate")
    parser.add_argument("--max_length", type=in_range(int, 5), help="tokens of a row at most; default 128, for imdb 256, for squad 384")
    parser.add_argument("--stride", type=in_range(int, 1), help="of squad: tokens from a window's start to the next one's; default 128")
    parser.add_argument("--attention_dropout", type=in_range(float, 0, 1),
                        help="default: as config.json says. 0 lets the fused attention of a CPU run, faster on long texts")
    parser.add_argument("--train_rows", type=in_range(int, 1), help="train on so many rows (of squad: questions) only, drawn at random")
    parser.add_argument("--teacher", help="folder of a model fine-tuned on the same task, to learn from its logits too")
    parser.add_argument("--alpha_ce", type=in_range(float, 0, 1), help="with --teacher: the share of its loss; default 0.5")
    parser.add_argument("--temperature", type=in_range(float, 0, 1e4, open_low=True), help="with --teacher; default 2")
    parser.add_argument("--tune", action="store_true", help="for choosing settings: leave a tenth of the training rows out, "
                        "score on it, and never open the dev set")
    parser.add_argument("--predict", action="store_true", help="answer GLUE's test files too, in its layout: OUT_DIR/submission/*.tsv")
    add_common_arguments(parser)
    args = resolve(parser.parse_args(arguments))
    args.max_length = args.max_length or TASKS[args.task].max_length
    if args.task == "squad":
        args.stride = args.stride or 128
    elif args.stride:
        raise InputError("--stride goes with --task squad")
    if args.teacher:
        if TASKS[args.task].labels is None:
            raise InputError(f"--teacher: {args.task} is a regression; one score is no distribution to be distilled")
        args.alpha_ce, args.temperature = 0.5 if args.alpha_ce is None else args.alpha_ce, args.temperature or 2.0
    elif args.alpha_ce is not None or args.temperature is not None:
        raise InputError("--alpha_ce and --temperature go with --teacher")
    return args


def fingerprint(args):
    """What the run depends on, besides its arguments: {what: digest}."""
    parts = {"code": code_fingerprint(__file__), "model": files_fingerprint(model_files(args.model)),
             "data_dir": files_fingerprint(task_files(args.task, args.data_dir, train_only=args.tune))}
    if args.teacher:
        parts |= {"teacher": files_fingerprint(model_files(args.teacher)), "formula": code_fingerprint(PROJECT / "losses.py", ("distillation_loss",), imports=False)}
    return parts


def load_teacher(folder, task, tokenizer):
    """A model fine-tuned on this task: with its labels, in this order, and this tokenizer's tokens. Raises InputError."""
    teacher = load_model(folder, SpanModel if task == "squad" else Classifier).requires_grad_(False)
    labels, names = teacher.config.id2label or {}, label_names(task)
    if task != "squad" and [labels.get(key) for key in sorted(labels, key=int)] != names:
        raise InputError(f"--teacher {folder}: answers with {', '.join(labels.values()) or 'nameless classes'}, not with {', '.join(names)}")
    if load_tokenizer(folder).get_vocab() != tokenizer.get_vocab():
        raise InputError(f"--teacher {folder}: has another vocabulary than the model")
    return teacher


def reader(task):
    """The module whose read_train and read_dev know this task's files."""
    return squad if task == "squad" else data


def load_data(args):
    """(training examples, {name of the set to score: examples}). Raises InputError."""
    train = reader(args.task).read_train(args.task, args.data_dir)
    if args.tune:
        order = np.random.default_rng(0).permutation(len(train))
        cut = len(train) - max(1, len(train) // 10)
        train, dev = [train[i] for i in order[:cut]], {"train_tenth": [train[i] for i in order[cut:]]}
    else:
        dev = reader(args.task).read_dev(args.task, args.data_dir)
    if args.train_rows:
        train = [train[i] for i in np.random.default_rng(1).permutation(len(train))[:args.train_rows]]
    if args.task != "squad" and len({example.label for example in train}) < 2:
        raise InputError(f"{args.data_dir}: the training rows of {args.task} all have the same label; nothing can be learnt")
    return train, dev


def main(arguments):
    """Run one fine-tuning, unless --out_dir holds it already. Returns its results, what results.json holds."""
    args = read_arguments(arguments)
    sources = fingerprint(args)
    tests = read_test(args.task, args.data_dir) if args.predict else {}
    with process_group(args):
        reads = (args.model, args.teacher, args.data_dir)
        record = broadcast(finished_run(args, sources, reads) if RANK == 0 else None) or fine_tune(args, sources)
        for name, rows in tests.items():
            write_submission(args, name, *zip(*rows))
    return record["results"]


def fine_tune(args, sources):
    """The run that main was asked for. Returns its record."""
    with open_run(args, sources) as run:
        device = torch.device(args.device)
        train_set, dev_sets = load_data(args)
        seed_torch(NEW_WEIGHTS, args.seed)
        model = new_model(args.model, args.task).to(device)
        tokenizer = load_tokenizer(args.model)
        teacher = load_teacher(args.teacher, args.task, tokenizer).to(device) if args.teacher else None
        for folder, one in ((args.model, model), (args.teacher, teacher)):
            if one and args.max_length > one.config.max_position_embeddings:
                raise InputError(f"--max_length {args.max_length}: {folder} has {one.config.max_position_embeddings} positions")
        if args.attention_dropout is not None:
            for layer in model.bert.layers:
                layer.attention_dropout = args.attention_dropout

        train(args, model, *training_rows(args, train_set, tokenizer), model.config.pad_token_id, device, run, teacher)

        model.eval()
        sets = {name: answer(args, model, examples, tokenizer) for name, examples in dev_sets.items()}
        figures = {name: {"rows": len(pair[1]), **{metric.__name__: metric(*pair) for metric in METRICS[args.task]}}
                   for name, pair in sets.items()}
        results = {"task": args.task, "data": task_title(args.task, args.data_dir), "seed": args.seed,
                   "score": score(args.task, sets), "train_rows": len(train_set), "sets": figures}
        if RANK == 0:
            write_results(args, model, tokenizer, dev_sets, sets, results)
        record = run.finish(results=results)
    print(f"{args.out_dir}: {results['data']} {results['score']:.1f} ({results['sets']})")
    return record


def write_results(args, model, tokenizer, dev_sets, sets, results):
    """The fine-tuned model, predictions.tsv and results.json."""
    if args.task == "squad":
        model.config = replace(model.config, id2label=None, problem_type=None)
        lines = squad.write_predictions(args.out_dir, dev_sets, sets)
    else:
        names, regression = label_names(args.task), TASKS[args.task].labels is None
        model.config = replace(model.config, id2label=dict(enumerate(names)), problem_type="regression" if regression else None)
        lines = [(name, index, *(pair if regression else (names[number] for number in pair)))
                 for name, both in sets.items() for index, pair in enumerate(zip(*both))]
    save_model(model, tokenizer, args.out_dir)
    write_file(Path(args.out_dir) / "predictions.tsv",
               "".join("\t".join(map(str, line)) + "\n" for line in (("set", "index", "prediction", "label"), *lines)))
    write_json(Path(args.out_dir) / "results.json", results)


def write_submission(args, name, indices, examples):
    """The fine-tuned model's answers to a test file, as GLUE's server wants them: index and prediction, the task's own words for
    labels, scores within 0 and 5."""
    task, device, model = TASKS[args.task], torch.device(args.device), load_model(args.out_dir, Classifier)
    rows = encode(examples, load_tokenizer(args.out_dir), args.max_length)
    answers = predict(model.to(device), rows, model.config.pad_token_id, device, args.precision)
    answers = [f"{min(5.0, max(0.0, answer)):.3f}" for answer in answers] if task.labels is None else [list(task.labels)[answer] for answer in answers]
    path = Path(args.out_dir, "submission", task.title + {"test_matched.tsv": "-m", "test_mismatched.tsv": "-mm"}.get(name, "") + ".tsv")
    if RANK:
        return
    path.parent.mkdir(exist_ok=True)
    write_file(path, "index\tprediction\n" + "".join(f"{index}\t{answer}\n" for index, answer in zip(indices, answers)))
    print(f"{path}: {len(answers)} answers")


if __name__ == "__main__":
    command_line(main, several=True)
