"""probe.py against transformers' hidden states, scikit-learn's metrics, and the optimum itself."""
import json
import re
import shutil
from dataclasses import replace

import numpy as np
import pytest
import sklearn.metrics
import torch
import transformers
from conftest import BAD, GOOD
from scipy import special

from data import encode
from load_hf_weights import load_model, load_tokenizer, save_model
from support import probe, tasks


def arguments(world, out_dir, task, *more):
    words = ("--model", world / "teacher", "--task", task, "--data_dir", world / "data",
             "--out_dir", out_dir, "--device", "cpu", *more)
    return [str(word) for word in words]


def states_of(world, task, examples):
    """(examples, hidden): what the probe's linear model sees."""
    args = probe.read_arguments(arguments(world, "unused", task))
    model = probe.load_frozen(world / "teacher", "cpu")
    return probe.mean_states(args, model, examples, load_tokenizer(world / "teacher"))


def read_tsv(folder):
    """[[set, index, prediction, label]]"""
    return [line.split("\t") for line in
            (folder / "predictions.tsv").read_text().splitlines()[1:]]


def test_a_row_is_the_mean_of_transformers_last_hidden_states(world):
    examples = tasks.read_train("mnli", str(world / "data"))[:20]
    ours = states_of(world, "mnli", examples)
    tokenizer = transformers.AutoTokenizer.from_pretrained(world / "teacher")
    reference = transformers.BertModel.from_pretrained(world / "teacher").eval()
    for state, example in zip(ours, examples):  # one by one: without padding
        inputs = tokenizer(example.text_a, example.text_b, return_tensors="pt")
        with torch.no_grad():
            mean = reference(**inputs).last_hidden_state[0].mean(0)
        assert state == pytest.approx(mean.numpy(), abs=1e-5)


def test_the_linear_model_is_the_optimum_of_the_penalized_likelihood(world):
    """Where the gradient of sum of -log p + penalty / 2 · |w|² is zero, by numpy."""
    examples = tasks.read_train("mnli", str(world / "data"))
    states, labels = states_of(world, "mnli", examples), np.array([e.label for e in examples])
    fitted = probe.linear_model("mnli").fit(states, labels)
    x = (states - states.mean(0)) / states.std(0)
    weights, bias = fitted[-1].coef_, fitted[-1].intercept_
    error = special.softmax(x @ weights.T + bias, axis=1) - np.eye(3)[labels]
    assert np.abs(error.T @ x + probe.PENALTY * weights).max() < 1e-2
    assert np.abs(error.sum(0)).max() < 1e-2
    assert np.abs(error.T @ x).max() > 1  # without the penalty it is not


def test_the_results_are_those_of_scikit_learns_metrics(world, tmp_path, capsys):
    results = probe.main(arguments(world, tmp_path / "cola", "cola"))
    assert re.search(r"data, cola: 2 files, [\d,]+ bytes\n", capsys.readouterr().out)
    rows = read_tsv(tmp_path / "cola")
    score = sklearn.metrics.matthews_corrcoef([row[3] for row in rows], [row[2] for row in rows])
    assert results["score"] == pytest.approx(100 * score)
    assert results["sets"]["dev"]["rows"] == len(rows) == 64 and results["train_rows"] == 64
    assert json.loads((tmp_path / "cola" / "results.json").read_text()) == results
    labels = [example.label for example in tasks.read_dev("cola", str(world / "data"))["dev"]]
    names = list(tasks.TASKS["cola"].labels.values())
    assert [row[3] for row in rows] == [names[label] for label in labels]


def test_a_regression_predicts_scores(world, tmp_path):
    results = probe.main(arguments(world, tmp_path / "stsb", "stsb"))
    predictions = [float(row[2]) for row in read_tsv(tmp_path / "stsb")]
    assert len(set(predictions)) > 32
    targets = [float(row[3]) for row in read_tsv(tmp_path / "stsb")]
    pearson = np.corrcoef(predictions, targets)[0, 1]
    assert results["sets"]["dev"]["pearson"] == pytest.approx(pearson)


def test_only_the_encoder_counts_and_the_same_model_gives_the_same_bytes(world, tmp_path):
    probe.main(arguments(world, tmp_path / "first", "sst2"))
    again = shutil.copytree(world / "teacher", tmp_path / "model")
    model = load_model(again)
    model.head.bias.data += torch.randn_like(model.head.bias)
    save_model(model, load_tokenizer(again), again)
    probe.main(arguments(world, tmp_path / "second", "sst2", "--model", again))
    first, second = ((tmp_path / name / "predictions.tsv").read_bytes()
                     for name in ("first", "second"))
    assert first == second


def test_what_the_encoder_knows_decides_the_score(world, tmp_path):
    """SST-2's label is a word of praise or blame; one of two models has a vector for each kind."""
    score = probe.main(arguments(world, tmp_path / "not", "sst2"))["score"]
    knowing = shutil.copytree(world / "teacher", tmp_path / "model")
    model, tokenizer = load_model(knowing), load_tokenizer(knowing)
    vectors = model.bert.embeddings.word.weight.data
    direction = torch.randn(vectors.shape[1], generator=torch.Generator().manual_seed(0))
    for words, sign in ((GOOD, 1), (BAD, -1)):
        vectors[[tokenizer.token_to_id(word) for word in words]] = sign * 20 * direction
    save_model(model, tokenizer, knowing)
    of_knowing = probe.main(arguments(world, tmp_path / "knows", "sst2", "--model", knowing))
    assert score < 70 and of_knowing["score"] > 85


def test_a_finished_probe_is_kept_and_another_models_is_another(world, tmp_path, capsys):
    first = probe.main(arguments(world, tmp_path / "run", "cola"))
    assert probe.main(arguments(world, tmp_path / "run", "cola")) == first
    assert "done before" in capsys.readouterr().out
    probe.main(arguments(world, tmp_path / "run", "cola", "--train_rows", 20, "--overwrite"))
    assert json.loads((tmp_path / "run~1" / "results.json").read_text()) == first


def test_with_tune_the_dev_set_is_never_opened(world, tmp_path):
    shutil.copytree(world / "data" / "glue_data" / "CoLA", tmp_path / "data" / "CoLA")
    (tmp_path / "data" / "CoLA" / "dev.tsv").unlink()
    results = probe.main(arguments(world, tmp_path / "run", "cola", "--tune",
                                   "--data_dir", tmp_path / "data"))
    assert results["sets"]["train_tenth"]["rows"] == 6 and results["train_rows"] == 58


def test_long_rows_are_cut_at_the_models_positions(world):
    examples = tasks.read_train("imdb", str(world / "data"))[:2]
    long = [replace(example, text_a=" ".join([example.text_a] * 20)) for example in examples]
    tokenizer = load_tokenizer(world / "teacher")
    assert max(len(ids) for ids, _ in encode(long, tokenizer, 10000)) > 64
    assert np.isfinite(states_of(world, "imdb", long)).all()


@pytest.mark.parametrize("more, message", [
    (["--task", "squad"], "--task: unknown task 'squad'"),
    (["--model", "nowhere"], "nowhere: no such folder"),
    (["--data_dir", "nowhere"], "nowhere: holds no folder CoLA"),
    (["--train_rows", "0"], "--train_rows: 0 is not a number at least 1"),
])
def test_wrong_arguments_end_in_one_line_and_status_2(world, tmp_path, refused, more, message):
    assert message in refused(probe, *arguments(world, tmp_path / "out", "cola", *more))
    assert not (tmp_path / "out").exists()
