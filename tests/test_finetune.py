"""finetune.py: the metrics against scikit-learn, the loop on the miniature world's tasks."""
import json
import re
import shutil

import numpy as np
import pytest
import scipy.special
import scipy.stats
import sklearn.metrics
import torch
import transformers
from conftest import TINY, no_dropout
from safetensors.torch import load_file, save_file

import finetune
from data import collate, encode, length_bucketed_batches
from finetune import accuracy, f1, matthews, pearson, predict, score, spearman
from load_hf_weights import load_model
from model import Classifier
from support.errors import InputError
from support.seeds import NEW_WEIGHTS, seed_torch
from support.tasks import Example, read_dev, read_train

RANDOM = np.random.default_rng(0)
PAIRS = {
    "random": (RANDOM.integers(0, 2, 500), RANDOM.integers(0, 2, 500)),
    "mostly right": ((RANDOM.random(500) < 0.9) * RANDOM.integers(0, 2, 500), RANDOM.integers(0, 2, 500)),
    "all right": (np.array([0, 1, 1]), np.array([0, 1, 1])),
    "all wrong": (np.array([1, 0, 0]), np.array([0, 1, 1])),
    "predicted constant 0": (np.zeros(9, int), RANDOM.integers(0, 2, 9)),
    "predicted constant 1": (np.ones(9, int), RANDOM.integers(0, 2, 9)),
    "no positive at all": (np.zeros(4, int), np.zeros(4, int)),
    "large": (RANDOM.integers(0, 2, 400_000), RANDOM.integers(0, 2, 400_000)),  # the margins' product passes 2**63
}


@pytest.mark.parametrize("pair", PAIRS)
def test_metrics_against_scikit_learn(pair):
    predictions, targets = PAIRS[pair]
    assert accuracy(predictions, targets) == pytest.approx(sklearn.metrics.accuracy_score(targets, predictions), abs=1e-12)
    assert f1(predictions, targets) == pytest.approx(sklearn.metrics.f1_score(targets, predictions, zero_division=0), abs=1e-12)
    if len(set(predictions) | set(targets)) > 1:
        assert matthews(predictions, targets) == pytest.approx(sklearn.metrics.matthews_corrcoef(targets, predictions), abs=1e-12)


@pytest.mark.parametrize("pair", [(RANDOM.normal(size=300), RANDOM.normal(size=300)), (np.arange(9.0), np.arange(9.0) ** 3), (np.arange(5.0), -np.arange(5.0)),
                                  (RANDOM.integers(0, 6, 300) / 2, RANDOM.integers(0, 6, 300)), (1e8 + RANDOM.normal(size=50), RANDOM.normal(size=50))])
def test_correlations_against_scipy(pair):
    predictions, targets = pair
    assert pearson(predictions, targets) == pytest.approx(scipy.stats.pearsonr(predictions, targets)[0], abs=1e-9)
    assert spearman(predictions, targets) == pytest.approx(scipy.stats.spearmanr(predictions, targets)[0], abs=1e-12)
    assert pearson(np.ones(5), np.arange(5)) == spearman(np.ones(5), np.arange(5)) == 0


def test_a_regression_is_learnt_and_opened_by_transformers(tune, tokenizer, world, tmp_path):
    results = tune("run", "stsb", "--epochs", 20, "--lr", "3e-3")
    lines = [line.split("\t") for line in (tmp_path / "run" / "predictions.tsv").read_text().splitlines()[1:]]
    predictions, targets = np.array([[float(line[2]), float(line[3])] for line in lines]).T
    assert results["score"] == pytest.approx(50 * (scipy.stats.pearsonr(predictions, targets)[0] + scipy.stats.spearmanr(predictions, targets)[0]))
    assert set(targets) == {0.5, 4.75} and 0 < predictions.mean() < 5
    logged = [json.loads(line)["loss"] for line in (tmp_path / "run" / "log.jsonl").read_text().splitlines()]
    assert logged[-1] < 0.75 * logged[0]
    reference = transformers.AutoModelForSequenceClassification.from_pretrained(tmp_path / "run").eval()
    rows = encode(read_dev("stsb", world / "data")["dev"][:9], tokenizer, 32)
    with torch.no_grad():
        theirs = reference(**dict(zip(("input_ids", "attention_mask", "token_type_ids"), collate(rows, 0)))).logits[:, 0]
    assert theirs.numpy() == pytest.approx(predictions[:9], abs=1e-4) and reference.config.problem_type == "regression"


def test_scores_are_means_as_gluess_leaderboard_forms_them():
    predictions, targets = PAIRS["random"]
    assert score("mrpc", {"dev": (predictions, targets)}) == pytest.approx(50 * (f1(predictions, targets) + accuracy(predictions, targets)))
    assert score("mnli", {"m": (targets, targets), "mm": (1 - targets, targets)}) == pytest.approx(50)
    assert score("cola", {"dev": (targets, targets)}) == pytest.approx(100)


@pytest.fixture
def tune(world, tmp_path):
    """tune(name, task, more arguments) -> the results; the run's folder is tmp_path / name."""
    def run(name, task, *more):
        return finetune.main([str(x) for x in (
            "--model", world / "teacher", "--task", task, "--data_dir", world / "data", "--out_dir", tmp_path / name,
            "--max_length", 32, "--batch_size", 8, "--precision", "fp32", "--device", "cpu", *more)])
    return run


@pytest.mark.parametrize("task, sets, metrics", [
    ("cola", ["dev"], ["matthews"]), ("sst2", ["dev"], ["accuracy"]), ("imdb", ["test"], ["accuracy"]),
    ("mnli", ["dev_matched", "dev_mismatched"], ["accuracy"]), ("mrpc", ["dev"], ["f1", "accuracy"]), ("qnli", ["dev"], ["accuracy"]),
    ("qqp", ["dev"], ["f1", "accuracy"]), ("rte", ["dev"], ["accuracy"]), ("stsb", ["dev"], ["pearson", "spearman"]), ("wnli", ["dev"], ["accuracy"])])
def test_every_task_runs_and_leaves_its_results(tune, tmp_path, task, sets, metrics):
    results = tune("run", task, "--epochs", 1)
    assert results == json.loads((tmp_path / "run" / "results.json").read_text())
    assert list(results["sets"]) == sets and all(list(figures) == ["rows", *metrics] for figures in results["sets"].values())
    lines = (tmp_path / "run" / "predictions.tsv").read_text().splitlines()
    assert len(lines) == 1 + sum(figures["rows"] for figures in results["sets"].values())
    right = [line.split("\t")[2] == line.split("\t")[3] for line in lines[1:]]
    if metrics == ["accuracy"]:
        assert results["score"] == pytest.approx(100 * np.mean(right))  # equally large sets
    assert sorted(f.name for f in (tmp_path / "run").iterdir()) == [
        "config.json", "log.jsonl", "model.safetensors", "predictions.tsv", "results.json", "run.json", "tokenizer.json",
        "tokenizer_config.json", "vocab.txt"]


def test_it_learns_what_can_be_learnt(tune):
    assert tune("run", "sst2", "--epochs", 30, "--lr", "3e-3")["score"] > 70  # by chance: 50


def test_predictions_do_not_depend_on_batches_and_stand_in_the_files_order(tune, tokenizer, world, tmp_path):
    tune("run", "cola", "--epochs", 1)
    model = load_model(tmp_path / "run", Classifier)
    rows = encode(read_dev("cola", world / "data")["dev"], tokenizer, 32)
    with torch.no_grad():
        one_by_one = [int(model(*collate([row], 0)).argmax()) for row in rows]
    for batch_size in (1, 7, 64):
        assert predict(model, rows, 0, torch.device("cpu"), "fp32", batch_size).tolist() == one_by_one
    names = [line.split("\t")[2] for line in (tmp_path / "run" / "predictions.tsv").read_text().splitlines()[1:]]
    assert names == [("unacceptable", "acceptable")[i] for i in one_by_one]
    reference = transformers.AutoModelForSequenceClassification.from_pretrained(tmp_path / "run").eval()
    inputs = collate(rows[:9], 0)
    with torch.no_grad():
        assert (reference(**dict(zip(("input_ids", "attention_mask", "token_type_ids"), inputs))).logits - model(*inputs)).abs().max() < 1e-5
    assert reference.config.id2label == {0: "unacceptable", 1: "acceptable"}


def test_the_same_command_gives_the_same_bytes_and_another_seed_others(tune, tmp_path):
    for name, seed in (("a", 0), ("b", 0), ("c", 1)):
        tune(name, "cola", "--epochs", 1, "--seed", seed)
    files = [(tmp_path / name / "model.safetensors").read_bytes() for name in "abc"]
    assert files[0] == files[1] != files[2]


def test_tune_scores_a_tenth_of_train_and_never_opens_the_dev_set(world, tmp_path):
    data_dir = shutil.copytree(world / "data", tmp_path / "data")
    dev = data_dir / "glue_data" / "CoLA" / "dev.tsv"
    dev.unlink()
    arguments = ["--model", str(world / "teacher"), "--task", "cola", "--data_dir", str(data_dir), "--epochs", "1", "--max_length", "32",
                 "--out_dir"]
    results = finetune.main([*arguments, str(tmp_path / "out"), "--tune"])
    assert results["train_rows"] == 58 and list(results["sets"]) == ["train_tenth"] and results["sets"]["train_tenth"]["rows"] == 6
    with pytest.raises(InputError, match="dev.tsv: no such file"):
        finetune.main([*arguments, str(tmp_path / "other")])


def test_the_pooler_starts_new_for_the_teacher_too(world, tokenizer, tmp_path):
    """A teacher with a pooler of its own, as bert-base-uncased has, gets the same start as a student without."""
    weights = []
    for name in ("without", "with"):
        folder = shutil.copytree(world / "teacher", tmp_path / name)
        if name == "with":
            stored = load_file(folder / "model.safetensors")
            save_file({**stored, "bert.pooler.dense.weight": torch.ones(32, 32), "bert.pooler.dense.bias": torch.ones(32)},
                      folder / "model.safetensors")
        torch.manual_seed(0)
        weights.append(load_model(folder, Classifier, new=("pooler", "classifier")).state_dict())
    assert all(torch.equal(weights[0][name], weights[1][name]) for name in weights[0])
    assert torch.equal(load_model(tmp_path / "with", Classifier, new=("classifier",)).pooler.dense.bias, torch.ones(32))


def test_the_second_distillation_learns_from_the_teachers_logits(tune, world, tokenizer, tmp_path):
    """Both terms of the first steps against transformers' logits, in numpy."""
    plain = no_dropout(world, tmp_path / "plain")
    tune("teacher", "sst2", "--epochs", 15, "--lr", "3e-3", "--model", plain)
    more = ("--model", plain, "--epochs", 1, "--teacher", tmp_path / "teacher", "--temperature", 3, "--alpha_ce", 0.25, "--log_every", 1)
    tune("student", "sst2", *more)
    logged = json.loads((tmp_path / "student" / "log.jsonl").read_text().splitlines()[0])
    train = read_train("sst2", world / "data")
    first = length_bucketed_batches(encode(train, tokenizer, 32), 8, 0, 0)[0]
    inputs = dict(zip(("input_ids", "attention_mask", "token_type_ids"), collate([encode([train[i]], tokenizer, 32)[0] for i in first], 0)))
    seed_torch(NEW_WEIGHTS, 0)
    student = load_model(plain, Classifier, new=("pooler", "classifier"), num_labels=2)
    teacher = transformers.AutoModelForSequenceClassification.from_pretrained(tmp_path / "teacher").eval()
    with torch.no_grad():
        s, t = student(*inputs.values()).double().numpy(), teacher(**inputs).logits.double().numpy()
    soft_s, soft_t = scipy.special.log_softmax(s / 3, axis=1), scipy.special.log_softmax(t / 3, axis=1)
    assert logged["ce"] == pytest.approx(9 * np.mean((np.exp(soft_t) * (soft_t - soft_s)).sum(1)), rel=1e-3)
    labels = [train[i].label for i in first]
    assert logged["loss"] == pytest.approx(-scipy.special.log_softmax(s, axis=1)[range(8), labels].mean(), rel=1e-3)
    tune("alone", "sst2", *more[:4], "--log_every", 1)
    hard = [json.loads(line) for line in (tmp_path / "alone" / "log.jsonl").read_text().splitlines()]
    assert hard[0]["loss"] == logged["loss"] and "ce" not in hard[0]
    tune("zero", "sst2", *more, "--alpha_ce", 0)  # the teacher's loss is shown, and has no weight
    assert (tmp_path / "zero" / "model.safetensors").read_bytes() == (tmp_path / "alone" / "model.safetensors").read_bytes()
    assert (tmp_path / "student" / "model.safetensors").read_bytes() != (tmp_path / "alone" / "model.safetensors").read_bytes()
    with pytest.raises(InputError, match="teacher: answers with negative, positive, not with not_equivalent, equivalent"):
        tune("other", "mrpc", "--teacher", tmp_path / "teacher")


@pytest.mark.parametrize("task, names, words", [
    ("cola", ["CoLA"], "01"), ("mnli", ["MNLI-m", "MNLI-mm"], ("entailment", "neutral", "contradiction")), ("mrpc", ["MRPC"], "01"),
    ("qnli", ["QNLI"], ("entailment", "not_entailment")), ("qqp", ["QQP"], "01"), ("rte", ["RTE"], ("entailment", "not_entailment")), ("sst2", ["SST-2"], "01"),
    ("stsb", ["STS-B"], None), ("wnli", ["WNLI"], "01")])
def test_glues_test_files_are_answered_in_its_layout(tune, world, tokenizer, tmp_path, task, names, words):
    """Against transformers' answers to the texts of the lines, read by another road."""
    results = tune("run", task, "--epochs", 2, "--lr", "3e-3")
    assert tune("run", task, "--epochs", 2, "--lr", "3e-3", "--predict") == results  # the run is done before
    assert sorted(path.name for path in (tmp_path / "run" / "submission").iterdir()) == [f"{name}.tsv" for name in names]
    model = transformers.AutoModelForSequenceClassification.from_pretrained(tmp_path / "run").eval()
    for name in names:
        file = {"MNLI-m": "MNLI/test_matched", "MNLI-mm": "MNLI/test_mismatched"}.get(name, f"{name}/test")
        lines = [line.split("\t") for line in (world / "data" / "glue_data" / f"{file}.tsv").read_text().splitlines()[1:]]
        texts = [Example(line[-1], None, 0) if task in ("cola", "sst2") else Example(line[-2], line[-1], 0) for line in lines]
        with torch.no_grad():
            logits = model(**dict(zip(("input_ids", "attention_mask", "token_type_ids"), collate(encode(texts, tokenizer, 32), 0)))).logits
        header, *answers = [line.split("\t") for line in (tmp_path / "run" / "submission" / f"{name}.tsv").read_text().splitlines()]
        assert header == ["index", "prediction"] and [index for index, _ in answers] == [line[0] for line in lines]
        if words:
            assert [answer for _, answer in answers] == [words[i] for i in logits.argmax(-1)]
        else:
            assert [float(answer) for _, answer in answers] == pytest.approx(logits[:, 0].clamp(0, 5).tolist(), abs=1e-3)


def test_train_rows_are_drawn_from_all_classes(tune):
    assert tune("run", "imdb", "--epochs", 1, "--train_rows", 16)["train_rows"] == 16  # its files: all of one class, then the other


def test_attention_dropout_is_set_and_the_config_kept(tune, world, tmp_path):
    tune("run", "cola", "--epochs", 1, "--attention_dropout", 0)
    assert json.loads((tmp_path / "run" / "config.json").read_text())["attention_probs_dropout_prob"] == TINY.attention_probs_dropout_prob
    tune("other", "cola", "--epochs", 1)
    assert (tmp_path / "run" / "model.safetensors").read_bytes() != (tmp_path / "other" / "model.safetensors").read_bytes()


def test_a_finished_run_is_kept_and_another_one_refused(tune, capsys):
    results = tune("run", "cola", "--epochs", 1)
    assert tune("run", "cola", "--epochs", 1) == results and "done before" in capsys.readouterr().out
    with pytest.raises(InputError, match="holds another run .*task was 'cola', is now 'sst2'"):
        tune("run", "sst2", "--epochs", 1)


@pytest.mark.parametrize("more, message", [
    (["--model", "nowhere"], "nowhere/config.json: no such file"),
    (["--data_dir", "nowhere"], "nowhere: holds no folder CoLA"),
    (["--task", "colla"], "--task: unknown task .colla.; did you mean cola"),
    (["--out_dir", "TEACHER"], "--out_dir .*teacher, which is read; choose another"),
    (["--epochs", "0"], "--epochs: 0 is not a number at least 1"),
    (["--task", "imdb", "--predict"], "imdb has no test set without labels"),
    (["--alpha_ce", "0.5"], "--alpha_ce and --temperature go with --teacher"),
    (["--task", "stsb", "--teacher", "x"], "--teacher: stsb is a regression"),
    (["--teacher", "x"], "x/config.json: no such file"),
    (["--lr", "0"], "--lr: 0 is not a number above 0"),
    (["--max_length", "4"], "--max_length: 4 is not a number at least 5"),
    (["--max_length", "65"], "--max_length 65: .*teacher has 64 positions"),
    (["--train_rows", "1"], "all have the same label"),
])
def test_wrong_arguments_end_in_one_line_and_status_2(world, tmp_path, monkeypatch, refused, more, message):
    monkeypatch.chdir(tmp_path)
    line = refused(finetune, "--model", world / "teacher", "--task", "cola", "--data_dir", world / "data", "--out_dir", "out",
                   "--max_length", 32, *(world / "teacher" if word == "TEACHER" else word for word in more))
    assert re.search(message, line), line
    assert not (tmp_path / "out").exists()


def test_a_run_that_cannot_write_leaves_one_line(world, tmp_path, refused):
    (tmp_path / "file").write_text("")
    line = refused(finetune, "--model", world / "teacher", "--task", "cola", "--data_dir", world / "data", "--out_dir", tmp_path / "file" / "x",
                   "--max_length", 32)
    assert "file/x: Not a directory" in line
