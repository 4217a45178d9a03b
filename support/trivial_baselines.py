"""Scores that need no BERT: always the majority answer, and TF-IDF with a linear model.

A fine-tuned model that does not beat them has not read the text, or the task needs no reading.
support/statistics.py adds them to the report's table of scores. The file floors.json keeps them.
"""
from pathlib import Path

import numpy as np
from scipy.sparse import hstack
from sklearn.feature_extraction.text import TfidfVectorizer
from sklearn.linear_model import LogisticRegression, Ridge

from finetune import score
from support.files import read_json, write_json
from support.fingerprint import code_fingerprint, files_fingerprint
from support.tasks import TASKS, read_dev, read_train, task_files


def measure_trivial_baselines(out_dir, data_dir, tasks):
    """{task: {"majority": points, "TF-IDF": points, "made_of": fingerprint}}, without SQuAD.

    They are kept in out_dir/floors.json, and measured again only if the task's files or this code
    have changed. Raises InputError if a task's files are missing or damaged."""
    path = Path(out_dir) / "floors.json"
    baselines = read_json(path) if path.exists() else {}
    for task in tasks:
        if task == "squad":  # its answers are spans of text, neither classes nor scores
            continue
        fingerprint = {
            "data": files_fingerprint(task_files(task, data_dir)),
            "code": code_fingerprint(__file__),
        }
        if baselines.get(task, {}).get("made_of") == fingerprint:
            continue
        scores = score_trivial_baselines(task, read_train(task, data_dir), read_dev(task, data_dir))
        baselines[task] = {"made_of": fingerprint, **scores}
        write_json(path, baselines)
    return baselines


def score_trivial_baselines(task, train, dev):
    """{"majority": points, "TF-IDF": points}. train: Examples. dev: {name of the set: Examples}."""
    targets = np.array([example.label for example in train])
    regression = TASKS[task].labels is None
    majority = targets.mean() if regression else np.bincount(targets).argmax()
    features = fit_features(train)
    model = Ridge() if regression else LogisticRegression(max_iter=1000)
    model.fit(features(train), targets)
    constant_answers, model_answers = {}, {}
    for name, examples in dev.items():
        truth = np.array([example.label for example in examples])
        constant_answers[name] = np.full(len(truth), majority), truth
        model_answers[name] = model.predict(features(examples)), truth
    return {"majority": score(task, constant_answers), "TF-IDF": score(task, model_answers)}


def fit_features(train):
    """A function from Examples to their TF-IDF features, (examples, features), sparse.

    The two sentences of a pair have separate features."""
    sides = ["text_a"] if train[0].text_b is None else ["text_a", "text_b"]
    vectorizers = {}
    for side in sides:
        vectorizer = TfidfVectorizer(sublinear_tf=True, ngram_range=(1, 2))
        vectorizers[side] = vectorizer.fit([getattr(example, side) for example in train])

    def features(examples):
        blocks = []
        for side, vectorizer in vectorizers.items():
            blocks.append(vectorizer.transform([getattr(example, side) for example in examples]))
        return hstack(blocks).tocsr()
    return features
