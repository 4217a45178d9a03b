"""What a task is to finetune.py's loop: its examples, a new model, and rows with their targets."""
import numpy as np

from data import encode
from load_hf_weights import load_model, load_tokenizer, model_files, read_config
from model import Classifier, SpanModel
from support import squad, tasks
from support.errors import InputError
from support.fingerprint import code_fingerprint, files_fingerprint
from support.tasks import TASKS


def reader(task):
    """The module whose read_train and read_dev know this task's files."""
    return squad if task == "squad" else tasks


def fingerprint(file, args):
    """What a run on a task depends on, besides its arguments: {what: digest}.

    file: the command's own, whose code counts with all that it imports."""
    data_files = tasks.task_files(args.task, args.data_dir, train_only=args.tune)
    return {"code": code_fingerprint(file),
            "model": files_fingerprint(model_files(args.model)),
            "data_dir": files_fingerprint(data_files)}


def label_names(task):
    """The names of a Classifier's outputs, in order."""
    return list((TASKS[task].labels or {"score": "score"}).values())


def new_model(folder, task):
    """A model for this task with a folder's encoder, and a head that starts at random.

    The folder's own pooler is kept; a MaskedLM, such as a student, has none, and gets a new one.
    Its random numbers are torch's: seed them before. Raises InputError."""
    check_segments(folder, task)
    if task == "squad":
        return load_model(folder, SpanModel, new=("qa_outputs",))
    num_labels = len(label_names(task))
    return load_model(folder, Classifier, new=("pooler", "classifier"), num_labels=num_labels)


def check_segments(folder, task):
    """Raise InputError if a folder's model has one segment, and the task's rows have two texts."""
    if read_config(folder).type_vocab_size < 2 and (task == "squad" or len(TASKS[task].text) == 2):
        raise InputError(f"{folder}: its config.json says type_vocab_size 1, so it cannot tell two "
                         f"texts apart, as {TASKS[task].title} needs")


def load_teacher(folder, task, tokenizer):
    """A model fine-tuned on this task, with the same labels and the same tokens.

    Raises InputError."""
    check_segments(folder, task)
    teacher = load_model(folder, SpanModel if task == "squad" else Classifier)
    names = label_names(task)
    labels = list((teacher.config.id2label or {}).values())
    if task != "squad" and labels != names:
        found = ", ".join(labels) or "nameless classes"
        if labels == [f"LABEL_{i}" for i in range(len(names))]:
            raise InputError(f"--teacher {folder}: its labels have no names ({found}); name them "
                             f"in its config.json, under id2label: {', '.join(names)}")
        raise InputError(f"--teacher {folder}: its labels are {found}, not {', '.join(names)}")
    if load_tokenizer(folder).get_vocab() != tokenizer.get_vocab():
        raise InputError(f"--teacher {folder}: its vocabulary differs from the model's")
    return teacher.requires_grad_(False)


def load_data(args):
    """(training examples, {name of the set to score: examples}). Raises InputError."""
    train_set = reader(args.task).read_train(args.task, args.data_dir)
    if args.tune:
        order = np.random.default_rng(0).permutation(len(train_set))
        cut = len(train_set) - max(1, len(train_set) // 10)
        dev_sets = {"train_tenth": [train_set[i] for i in order[cut:]]}
        train_set = [train_set[i] for i in order[:cut]]
    else:
        dev_sets = reader(args.task).read_dev(args.task, args.data_dir)
    if args.train_rows:
        order = np.random.default_rng(1).permutation(len(train_set))
        train_set = [train_set[i] for i in order[:args.train_rows]]
    if not train_set:
        raise InputError(f"{args.data_dir}: {args.task} has too few training rows for --tune")
    if args.task != "squad" and len({example.label for example in train_set}) < 2:
        raise InputError(f"{args.data_dir}: the training rows of {args.task} all have the same "
                         "label; nothing can be learned from them")
    return train_set, dev_sets


def training_rows(args, examples, tokenizer):
    """(rows, targets): (input_ids, token_type_ids) of each row, and its class number, its score,
    or its span (start, end)."""
    if args.task == "squad":
        return squad.training_rows(examples, tokenizer, args.max_length, args.stride)
    rows = encode(examples, tokenizer, args.max_length)
    return rows, [example.label for example in examples]
