"""Arguments of short runs on the miniature world of conftest.py, and readers of what they leave."""
import json

from load_hf_weights import load_model

# Pinned, so that the tests compute the same on every machine.
ON_CPU = ("--precision", "fp32", "--device", "cpu", "--max_length", 32, "--batch_size", 8)


def pretrain_arguments(world, out_dir, *more, teacher=None):
    """Of a distillation of four steps. More arguments override these."""
    arguments = ("--teacher", teacher or world / "teacher", "--corpus", world / "corpus.txt",
                 "--heldout", world / "heldout.txt", "--cache_dir", world / "cache",
                 "--out_dir", out_dir, "--steps", 4, "--chunk_tokens", 50, *ON_CPU, *more)
    return [str(argument) for argument in arguments]


def finetune_arguments(world, out_dir, task, *more):
    """Of a fine-tuning of the teacher. More arguments override these."""
    arguments = ("--model", world / "teacher", "--task", task, "--data_dir", world / "data",
                 "--out_dir", out_dir, *ON_CPU, *more)
    return [str(argument) for argument in arguments]


def log_of(folder):
    """The lines of log.jsonl: a list of objects."""
    return [json.loads(line) for line in (folder / "log.jsonl").read_text().splitlines()]


def weights_of(folder):
    """{name: tensor} of a MaskedLM."""
    return load_model(folder).state_dict()


def largest_difference(a, b):
    """Between two {name: tensor}."""
    return max((a[name] - b[name]).abs().max().item() for name in a)
