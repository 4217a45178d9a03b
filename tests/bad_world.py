"""The three commands on a miniature world that a test has spoiled: they must refuse, in one line.

The fixtures of test_bad_input.py and test_bad_models.py, which name this file as a plugin.
"""
import functools
import shutil

import pytest

import ablation
import finetune
import pretrain


@pytest.fixture
def place(world, tmp_path):
    """A copy of the miniature world, to spoil."""
    return shutil.copytree(world, tmp_path / "world")


@pytest.fixture
def command(place, refused):
    """command(module, *more) -> the line with which it refuses; nothing may be written."""
    return functools.partial(refusal, place, refused)


def working_arguments(module, place):
    """Arguments with which a command runs as long as the world in `place` is not spoiled."""
    teacher, corpus, data_dir = place / "teacher", place / "corpus.txt", place / "data"
    if module is pretrain:
        return ["--teacher", teacher, "--corpus", corpus, "--steps", 2, "--max_length", 32,
                "--cache_dir", place.parent / "cache"]
    if module is finetune:
        return ["--model", teacher, "--task", "cola", "--data_dir", data_dir,
                "--max_length", 32, "--epochs", 1]
    assert module is ablation
    return ["--preset", "mini", "--teacher", teacher, "--corpus", corpus, "--data_dir", data_dir,
            "--finetune_args=--max_length 32", "--pretrain_args=--max_length 32"]


def refusal(place, refused, module, *more):
    """The line with which a command refuses, given more arguments. It may not write anything."""
    out = place.parent / "out"
    arguments = [*working_arguments(module, place), "--out_dir", out, "--device", "cpu", *more]
    line = refused(module, *arguments)
    assert not out.exists()
    assert not list(place.parent.glob("cache/*.tmp*"))
    return line
