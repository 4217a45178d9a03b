"""finetune.py, run for real on the miniature world's tasks."""
import re
import shutil

import numpy as np
import pytest
import scipy.special
import scipy.stats
import torch
import transformers
from conftest import TINY, no_dropout
from safetensors.torch import load_file, save_file
from short_runs import finetune_arguments, log_of

import finetune
from data import collate, encode, length_bucketed_batches
from finetune import predict
from load_hf_weights import load_model, read_config
from model import Classifier
from support.errors import InputError
from support.files import read_json
from support.seeds import NEW_WEIGHTS, seed_torch
from support.task_setup import new_model
from support.tasks import Example, read_dev, read_train

INPUTS = ("input_ids", "attention_mask", "token_type_ids")
FILES = ["config.json", "log.jsonl", "model.safetensors", "predictions.tsv", "results.json",
         "run.json", "tokenizer.json", "tokenizer_config.json", "vocab.txt"]


@pytest.fixture
def tune(world, tmp_path):
    """tune(name, task, more arguments) -> the results; the run's folder is tmp_path / name."""
    def run(name, task, *more):
        return finetune.main(finetune_arguments(world, tmp_path / name, task, *more))
    return run


def table(path):
    """The lines of a .tsv file, its header first: lists of strings."""
    return [line.split("\t") for line in path.read_text().splitlines()]


def weights(folder):
    return (folder / "model.safetensors").read_bytes()


def opened_by_transformers(folder):
    return transformers.AutoModelForSequenceClassification.from_pretrained(folder).eval()


@torch.no_grad()
def their_logits(reference, rows):
    """What a model of transformers makes of encoded rows, (rows, classes)."""
    return reference(**dict(zip(INPUTS, collate(rows, 0)))).logits


# ---- Tasks ----

@pytest.mark.check
def test_it_learns_what_can_be_learned(tune):
    assert tune("run", "sst2", "--epochs", 12, "--lr", "3e-3")["score"] > 70  # by chance: 50


@pytest.mark.parametrize("task, sets, metrics", [
    ("cola", ["dev"],                           ["matthews"]),
    ("sst2", ["dev"],                           ["accuracy"]),
    ("imdb", ["test"],                          ["accuracy"]),
    ("mnli", ["dev_matched", "dev_mismatched"], ["accuracy"]),
    ("mrpc", ["dev"],                           ["f1", "accuracy"]),
    ("qnli", ["dev"],                           ["accuracy"]),
    ("qqp",  ["dev"],                           ["f1", "accuracy"]),
    ("rte",  ["dev"],                           ["accuracy"]),
    ("stsb", ["dev"],                           ["pearson", "spearman"]),
    ("wnli", ["dev"],                           ["accuracy"]),
])
def test_every_task_runs_and_leaves_its_results(tune, tmp_path, task, sets, metrics):
    results = tune("run", task, "--epochs", 1)
    assert results == read_json(tmp_path / "run" / "results.json")
    assert list(results["sets"]) == sets
    for of_set in results["sets"].values():
        assert list(of_set) == ["rows", *metrics]
    lines = table(tmp_path / "run" / "predictions.tsv")
    assert lines[0] == ["set", "index", "prediction", "label"]
    assert len(lines) == 1 + sum(of_set["rows"] for of_set in results["sets"].values())
    if metrics == ["accuracy"]:  # of equally large sets
        right = [prediction == label for _, _, prediction, label in lines[1:]]
        assert results["score"] == pytest.approx(100 * np.mean(right))
    assert sorted(path.name for path in (tmp_path / "run").iterdir()) == FILES


def test_a_regression_is_learned_and_opened_by_transformers(tune, tokenizer, world, tmp_path):
    results = tune("run", "stsb", "--epochs", 20, "--lr", "3e-3")
    lines = table(tmp_path / "run" / "predictions.tsv")[1:]
    predictions = np.array([float(line[2]) for line in lines])
    targets = np.array([float(line[3]) for line in lines])
    assert set(targets) == {0.5, 4.75} and 0 < predictions.mean() < 5
    correlations = (scipy.stats.pearsonr(predictions, targets)[0],
                    scipy.stats.spearmanr(predictions, targets)[0])
    assert results["score"] == pytest.approx(100 * np.mean(correlations))
    losses = [line["loss"] for line in log_of(tmp_path / "run")]
    assert losses[-1] < 0.75 * losses[0]

    reference = opened_by_transformers(tmp_path / "run")
    rows = encode(read_dev("stsb", world / "data")["dev"][:9], tokenizer, 32)
    theirs = their_logits(reference, rows)[:, 0].numpy()
    assert theirs == pytest.approx(predictions[:9], abs=1e-4)
    assert reference.config.problem_type == "regression"


def test_train_rows_are_drawn_from_all_classes(tune):
    """The reviews' files are all of one class, then all of the other."""
    assert tune("run", "imdb", "--epochs", 1, "--train_rows", 16)["train_rows"] == 16


def test_tune_scores_a_tenth_of_train_and_never_opens_the_dev_set(tune, world, tmp_path):
    data_dir = shutil.copytree(world / "data", tmp_path / "data")
    (data_dir / "glue_data" / "CoLA" / "dev.tsv").unlink()
    more = ("--epochs", 1, "--data_dir", data_dir)
    results = tune("out", "cola", *more, "--tune")
    assert results["train_rows"] == 58
    assert list(results["sets"]) == ["train_tenth"]
    assert results["sets"]["train_tenth"]["rows"] == 6
    with pytest.raises(InputError, match="dev.tsv: no such file"):
        tune("other", "cola", *more)


# ---- Predictions ----

def test_predictions_do_not_depend_on_batches_and_keep_the_files_order(
        tune, tokenizer, world, tmp_path):
    tune("run", "cola", "--epochs", 1)
    model = load_model(tmp_path / "run", Classifier)
    rows = encode(read_dev("cola", world / "data")["dev"], tokenizer, 32)
    with torch.no_grad():
        one_by_one = [int(model(*collate([row], 0)).argmax()) for row in rows]
        ours = model(*collate(rows[:9], 0))
    for batch_size in (1, 7, 64):
        predictions = predict(model, rows, 0, torch.device("cpu"), "fp32", batch_size)
        assert predictions.tolist() == one_by_one
    names = [line[2] for line in table(tmp_path / "run" / "predictions.tsv")[1:]]
    assert names == [("unacceptable", "acceptable")[number] for number in one_by_one]

    reference = opened_by_transformers(tmp_path / "run")
    assert (their_logits(reference, rows[:9]) - ours).abs().max() < 1e-5
    assert reference.config.id2label == {0: "unacceptable", 1: "acceptable"}


ENTAILMENT = ("entailment", "not_entailment")


@pytest.mark.parametrize("task, names, words", [
    ("cola", ["CoLA"],              ("0", "1")),
    ("mnli", ["MNLI-m", "MNLI-mm"], ("entailment", "neutral", "contradiction")),
    ("mrpc", ["MRPC"],              ("0", "1")),
    ("qnli", ["QNLI"],              ENTAILMENT),
    ("qqp",  ["QQP"],               ("0", "1")),
    ("rte",  ["RTE"],               ENTAILMENT),
    ("sst2", ["SST-2"],             ("0", "1")),
    ("stsb", ["STS-B"],             None),
    ("wnli", ["WNLI"],              ("0", "1")),
])
def test_glues_test_files_are_predicted_in_its_layout(
        tune, world, tokenizer, tmp_path, task, names, words):
    """Against transformers' logits on the texts of the lines, which are read anew here."""
    more = ("--epochs", 2, "--lr", "3e-3")
    results = tune("run", task, *more)
    assert tune("run", task, *more, "--predict") == results  # of the finished run
    submission = tmp_path / "run" / "submission"
    assert sorted(path.stem for path in submission.iterdir()) == names
    reference = opened_by_transformers(tmp_path / "run")
    files = {"MNLI-m": "MNLI/test_matched.tsv", "MNLI-mm": "MNLI/test_mismatched.tsv"}
    for name in names:
        path = world / "data" / "glue_data" / files.get(name, f"{name}/test.tsv")
        lines = table(path)[1:]
        if task in ("cola", "sst2"):
            examples = [Example(line[-1], None, 0) for line in lines]
        else:
            examples = [Example(line[-2], line[-1], 0) for line in lines]
        logits = their_logits(reference, encode(examples, tokenizer, 32))
        header, *predicted = table(submission / f"{name}.tsv")
        assert header == ["index", "prediction"]
        assert [line[0] for line in predicted] == [line[0] for line in lines]
        if words:
            assert [line[1] for line in predicted] == [words[i] for i in logits.argmax(-1)]
        else:
            clamped = logits[:, 0].clamp(0, 5).tolist()
            assert [float(line[1]) for line in predicted] == pytest.approx(clamped, abs=1e-3)


# ---- The model ----

def test_the_same_command_gives_the_same_bytes_and_another_seed_others(tune, tmp_path):
    for name, seed in (("a", 0), ("b", 0), ("c", 1)):
        tune(name, "cola", "--epochs", 1, "--seed", seed)
    a, b, c = (weights(tmp_path / name) for name in "abc")
    assert a == b != c


def test_a_folders_own_pooler_is_kept(world, tmp_path):
    """As transformers keeps it; a folder without one, as every MaskedLM, gets a new one."""
    config = transformers.BertConfig.from_pretrained(world / "teacher")
    torch.manual_seed(1)
    theirs = transformers.BertForPreTraining(config)
    theirs.save_pretrained(tmp_path / "pooled")
    kept = new_model(tmp_path / "pooled", "cola")
    assert torch.equal(kept.pooler.dense.weight, theirs.bert.pooler.dense.weight)
    assert torch.equal(kept.pooler.dense.bias, theirs.bert.pooler.dense.bias)

    torch.manual_seed(0)
    first, second = (new_model(world / "teacher", "cola").pooler.dense.weight for _ in range(2))
    torch.manual_seed(0)
    again = new_model(world / "teacher", "cola").pooler.dense.weight
    assert torch.equal(first, again) and not torch.equal(first, second)


def test_half_a_pooler_is_an_error(world, tmp_path):
    folder = shutil.copytree(world / "teacher", tmp_path / "half")
    stored = load_file(folder / "model.safetensors")
    stored["bert.pooler.dense.weight"] = torch.ones(32, 32)
    save_file(stored, folder / "model.safetensors")
    with pytest.raises(InputError, match="lacks bert.pooler.dense.bias"):
        new_model(folder, "cola")


def test_attention_dropout_is_set_and_the_config_kept(tune, tmp_path):
    tune("run", "cola", "--epochs", 1, "--attention_dropout", 0)
    tune("other", "cola", "--epochs", 1)
    dropout = read_config(tmp_path / "run").attention_probs_dropout_prob
    assert dropout == TINY.attention_probs_dropout_prob
    assert weights(tmp_path / "run") != weights(tmp_path / "other")


# ---- The second distillation ----

@pytest.fixture
def taught(tune, world, tmp_path):
    """The arguments of a fine-tuning with a teacher. Both models are without dropout."""
    plain = no_dropout(world, tmp_path / "plain")
    tune("teacher", "sst2", "--epochs", 15, "--lr", "3e-3", "--model", plain)
    alone = ("--model", plain, "--epochs", 1, "--log_every", 1)
    return alone, (*alone, "--teacher", tmp_path / "teacher", "--temperature", 3)


def test_the_second_distillation_learns_from_the_teachers_logits(
        tune, taught, world, tokenizer, tmp_path):
    """Both losses of the first step against transformers' logits, in numpy."""
    tune("student", "sst2", *taught[1], "--alpha_ce", 0.25)
    logged = log_of(tmp_path / "student")[0]

    examples = read_train("sst2", world / "data")
    batch = length_bucketed_batches(encode(examples, tokenizer, 32), 8, 0, 0)[0]
    rows = encode([examples[i] for i in batch], tokenizer, 32)
    seed_torch(NEW_WEIGHTS, 0)
    student = load_model(tmp_path / "plain", Classifier, new=("pooler", "classifier"),
                         num_labels=2)
    with torch.no_grad():
        s = student(*collate(rows, 0)).double().numpy()
    t = their_logits(opened_by_transformers(tmp_path / "teacher"), rows).double().numpy()
    log_s = scipy.special.log_softmax(s / 3, axis=1)
    log_t = scipy.special.log_softmax(t / 3, axis=1)
    kl = (np.exp(log_t) * (log_t - log_s)).sum(1)
    soft = 9 * kl.mean()
    assert logged["soft"] == pytest.approx(soft, rel=1e-3)
    log_p = scipy.special.log_softmax(s, axis=1)
    labels = [examples[i].label for i in batch]
    hard = -log_p[range(8), labels].mean()
    assert logged["hard"] == pytest.approx(hard, rel=1e-3)
    assert logged["loss"] == pytest.approx(0.75 * hard + 0.25 * soft, rel=1e-3)


def test_alpha_ce_is_the_share_of_the_teachers_loss(tune, taught, tmp_path):
    alone, with_teacher = taught
    tune("alone", "sst2", *alone)
    tune("student", "sst2", *with_teacher, "--alpha_ce", 0.25)
    tune("zero", "sst2", *with_teacher, "--alpha_ce", 0)  # logged, but without weight
    first = {name: log_of(tmp_path / name)[0] for name in ("alone", "student", "zero")}
    assert first["alone"]["loss"] == first["student"]["hard"] == first["zero"]["loss"]
    assert "soft" not in first["alone"] and first["zero"]["soft"] == first["student"]["soft"]
    assert weights(tmp_path / "zero") == weights(tmp_path / "alone")
    assert weights(tmp_path / "student") != weights(tmp_path / "alone")


def test_the_share_and_the_temperature_have_defaults(world, tmp_path):
    def read(*more):
        return finetune.read_arguments(finetune_arguments(world, tmp_path / "x", "sst2", *more))
    assert (read().alpha_ce, read().temperature) == (None, None)
    args = read("--teacher", "folder")
    assert (args.alpha_ce, args.temperature) == (0.5, 2.0)


def test_a_teacher_must_have_the_same_labels_and_the_same_vocabulary(
        tune, world, tmp_path):
    tune("teacher", "sst2", "--epochs", 1)
    with pytest.raises(InputError, match="--teacher .*teacher: its labels are negative, positive, "
                                         "not not_equivalent, equivalent"):
        tune("other", "mrpc", "--teacher", tmp_path / "teacher")
    other_words = shutil.copytree(tmp_path / "teacher", tmp_path / "other_words")
    for file in ("vocab.txt", "tokenizer.json"):
        text = (other_words / file).read_text(encoding="utf-8")
        (other_words / file).write_text(text.replace("film", "movie"), encoding="utf-8")
    with pytest.raises(InputError, match="other_words: its vocabulary differs from the model's"):
        tune("other", "sst2", "--teacher", other_words)


# ---- The command ----

def test_a_finished_run_is_kept_and_another_one_refused(tune, capsys):
    results = tune("run", "cola", "--epochs", 1)
    assert tune("run", "cola", "--epochs", 1) == results
    assert "done before" in capsys.readouterr().out
    with pytest.raises(InputError, match="holds another run .*task was 'cola', is now 'sst2'"):
        tune("run", "sst2", "--epochs", 1)


@pytest.mark.parametrize("more, message", [
    ("--model nowhere",         "nowhere: no such folder"),
    ("--data_dir nowhere",      "nowhere: holds no folder CoLA"),
    ("--task colla",            "--task: unknown task .colla.; did you mean cola"),
    ("--out_dir TEACHER",       "--out_dir .*teacher, which is read; choose another"),
    ("--epochs 0",              "--epochs: 0 is not a number at least 1"),
    ("--task imdb --predict",   "imdb has no test set without labels"),
    ("--alpha_ce 0.5",          "--alpha_ce and --temperature work with --teacher only"),
    ("--temperature 2",         "--alpha_ce and --temperature work with --teacher only"),
    ("--stride 8",              "--stride works with --task squad only"),
    ("--task stsb --teacher x", "--teacher: stsb is a regression"),
    ("--teacher x",             "x: no such folder"),
    ("--lr 0",                  "--lr: 0 is not a number above 0"),
    ("--max_length 4",          "--max_length: 4 is not a number at least 5"),
    ("--max_length 65",         "--max_length 65: .*teacher has 64 positions"),
    ("--train_rows 1",          "all have the same label"),
])
def test_wrong_arguments_end_in_one_line_and_status_2(
        world, tmp_path, monkeypatch, refused, more, message):
    monkeypatch.chdir(tmp_path)
    words = more.replace("TEACHER", str(world / "teacher")).split()
    line = refused(finetune, "--model", world / "teacher", "--task", "cola",
                   "--data_dir", world / "data", "--out_dir", "out", "--max_length", 32, *words)
    assert re.search(message, line), line
    assert not (tmp_path / "out").exists()


def test_a_run_that_cannot_write_leaves_one_line(world, tmp_path, refused):
    (tmp_path / "file").write_text("")
    line = refused(finetune, *finetune_arguments(world, tmp_path / "file" / "x", "cola"))
    assert "file/x: Not a directory" in line
