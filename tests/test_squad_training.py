"""SQuAD end to end: fine-tuning, a student of the fine-tuned model, resuming, the report."""
import contextlib
import io
import json
import os
import random
import re
import signal
from types import SimpleNamespace

import numpy as np
import pytest
import scipy.special
import torch
import transformers
from conftest import ROOT, no_dropout
from squad_helpers import soft_divergence, squad_file

import ablation
import finetune
from data import collate, length_bucketed_batches
from load_hf_weights import load_model, load_tokenizer
from model import SpanModel
from support import demo, squad
from support.bootstrap import RESAMPLES, resampled_scores
from support.errors import InputError, Interrupted
from support.fingerprint import imported_files
from support.outcomes import read_outcomes
from support.seeds import NEW_WEIGHTS, seed_torch
from support.training_run import Run

# ---- Fine-tuning ----

@pytest.fixture(scope="module")
def data_dir(tmp_path_factory):
    folder, rng = tmp_path_factory.mktemp("squad"), random.Random(5)
    (folder / "squad").mkdir()
    train = json.dumps(squad_file(rng, 400))
    dev = json.dumps(squad_file(rng, 60), ensure_ascii=False)
    (folder / "squad" / "train-v1.1.json").write_text(train)
    (folder / "squad" / "dev-v1.1.json").write_text(dev, encoding="utf-8")
    return folder


def squad_arguments(world, data_dir, out_dir, *more):
    return [str(x) for x in (
        "--model", world / "teacher", "--task", "squad", "--data_dir", data_dir,
        "--out_dir", out_dir, "--max_length", 40, "--stride", 20, "--batch_size", 16,
        "--precision", "fp32", "--device", "cpu", *more)]


@pytest.fixture
def arguments(world, data_dir, tmp_path):
    """arguments(name, ...) -> those of a run in tmp_path / name; later ones take precedence."""
    def make(name, *more):
        return squad_arguments(world, data_dir, tmp_path / name, *more)
    return make


@pytest.fixture(scope="module")
def teacher(world, data_dir, tmp_path_factory):
    """A fine-tuned model: .folder, .results; .plain is the folder of the model it started from."""
    folder = tmp_path_factory.mktemp("teacher")
    plain = no_dropout(world, folder / "plain")
    words = squad_arguments(world, data_dir, folder / "run", "--model", plain, "--epochs", 8,
                            "--lr", "2e-3")
    return SimpleNamespace(results=finetune.main(words), folder=folder / "run", plain=plain)


@pytest.fixture
def student(teacher, arguments, tmp_path):
    """The folder of a student that learnt from the teacher's logits for an epoch."""
    finetune.main(arguments("student", "--model", teacher.plain, "--epochs", 1, "--log_every", 1,
                            "--teacher", teacher.folder, "--alpha_ce", 0.25))
    return tmp_path / "student"


def dev_questions(data_dir):
    """{id: (context, list of gold answers)}, straight from the file."""
    text = (data_dir / "squad" / "dev-v1.1.json").read_text(encoding="utf-8")
    questions = {}
    for article in json.loads(text)["data"]:
        for paragraph in article["paragraphs"]:
            for qa in paragraph["qas"]:
                gold_answers = [answer["text"] for answer in qa["answers"]]
                questions[qa["id"]] = paragraph["context"], gold_answers
    return questions


def read_table(path):
    """The rows of a predictions.tsv, its header first."""
    return [line.split("\t") for line in path.read_text().splitlines()]


def test_it_learns_to_answer_from_the_context(teacher, data_dir):
    answers = json.loads((teacher.folder / "predictions.json").read_text())
    questions = dev_questions(data_dir)
    assert answers.keys() == questions.keys()
    assert all(answers[name] in context for name, (context, _) in questions.items())
    results = teacher.results
    assert results["score"] > 60
    assert results["data"] == "SQuAD" and results["train_rows"] == 400
    figures = results["sets"]["dev-v1.1"]
    assert list(figures) == ["rows", "exact_match", "f1"] and figures["rows"] == 60
    assert results["score"] == 100 * figures["f1"]
    matches = [answers[name] == gold_answers[0] for name, (_, gold_answers) in questions.items()]
    assert figures["exact_match"] == pytest.approx(np.mean(matches))


def test_predictions_tsv_holds_the_answers_and_the_gold_answers(teacher, data_dir):
    answers = json.loads((teacher.folder / "predictions.json").read_text())
    header, *rows = read_table(teacher.folder / "predictions.tsv")
    assert header == ["set", "index", "prediction", "label"]
    assert {row[1]: json.loads(row[2]) for row in rows} == answers
    expected = {name: gold_answers for name, (_, gold_answers) in dev_questions(data_dir).items()}
    assert {row[1]: json.loads(row[3]) for row in rows} == expected


def test_a_students_first_losses_are_those_of_numpy_with_the_teachers_logits(
        student, teacher, data_dir):
    logged = json.loads((student / "log.jsonl").read_text().splitlines()[0])
    questions = squad.read_questions(data_dir / "squad" / "train-v1.1.json")
    rows, targets = squad.training_rows(questions, load_tokenizer(teacher.plain), 40, 20)
    assert 400 < len(rows) and (0, 0) in targets

    first = length_bucketed_batches(rows, 16, 0, 0)[0]
    input_ids, attention_mask, token_type_ids = collate([rows[i] for i in first], 0)
    assert (attention_mask == 0).any()
    seed_torch(NEW_WEIGHTS, 0)
    new_student = load_model(teacher.plain, SpanModel, new=("qa_outputs",))
    reference = transformers.AutoModelForQuestionAnswering.from_pretrained(teacher.folder).eval()
    with torch.no_grad():
        ours = new_student(input_ids, attention_mask, token_type_ids).double().numpy()
        found = reference(input_ids=input_ids, attention_mask=attention_mask,
                          token_type_ids=token_type_ids)
    theirs = torch.stack((found.start_logits, found.end_logits), 1).double().numpy()

    soft, hard = [], []
    for row, (number, length) in enumerate(zip(first, attention_mask.sum(1))):
        for place in range(2):
            student_logits, teacher_logits = ours[row, place, :length], theirs[row, place, :length]
            soft.append(soft_divergence(student_logits, teacher_logits))
            log_probabilities = scipy.special.log_softmax(student_logits)
            hard.append(-log_probabilities[targets[number][place]])
    assert logged["soft"] == pytest.approx(np.mean(soft), rel=1e-3)
    assert logged["hard"] == pytest.approx(np.mean(hard), rel=1e-3)


def test_a_teacher_of_weight_zero_changes_nothing(student, teacher, arguments, tmp_path):
    more = ("--model", teacher.plain, "--epochs", 1, "--log_every", 1)
    finetune.main(arguments("alone", *more))
    finetune.main(arguments("zero", *more, "--teacher", teacher.folder, "--alpha_ce", 0))
    alone, zero = ((tmp_path / name / "model.safetensors").read_bytes()
                   for name in ("alone", "zero"))
    assert alone == zero != (student / "model.safetensors").read_bytes()


def test_a_teacher_of_another_kind_is_refused(teacher, arguments, world, tmp_path):
    missing = "plain: lacks qa_outputs.weight, qa_outputs.bias, which BertForQuestionAnswering"
    with pytest.raises(InputError, match=missing):
        finetune.main(arguments("other", "--teacher", teacher.plain))
    with pytest.raises(InputError, match="lacks .*classifier.weight"):
        finetune.main([str(x) for x in (
            "--model", teacher.plain, "--task", "cola", "--data_dir", world / "data",
            "--out_dir", tmp_path / "other", "--max_length", 32, "--teacher", teacher.folder)])


def test_a_stopped_run_resumes_to_the_same_bytes(arguments, tmp_path, monkeypatch):
    more = ("--epochs", 1, "--train_rows", 100, "--log_every", 3)
    finetune.main(arguments("whole", *more))
    should_save = Run.should_save

    def stop_after_step_4(run, steps_done):
        if steps_done == 4:
            os.kill(os.getpid(), signal.SIGTERM)
        return should_save(run, steps_done)
    monkeypatch.setattr(Run, "should_save", stop_after_step_4)
    with pytest.raises(Interrupted, match="from step 4"):
        finetune.main(arguments("run", *more))
    monkeypatch.undo()
    finetune.main(arguments("run", *more))

    whole, run = tmp_path / "whole", tmp_path / "run"
    names = sorted(file.name for file in whole.iterdir())
    assert names == ["config.json", "log.jsonl", "model.safetensors", "predictions.json",
                     "predictions.tsv", "results.json", "run.json", "tokenizer.json",
                     "tokenizer_config.json", "vocab.txt"]
    assert names == sorted(file.name for file in run.iterdir())
    for name in names:
        if name != "run.json":
            assert (whole / name).read_bytes() == (run / name).read_bytes(), name
    record = json.loads((run / "run.json").read_text())
    assert record["resumed"] == [{"from_step": 4, "changed": []}]


def test_tune_scores_on_a_tenth_of_train_and_never_opens_the_dev_set(
        arguments, data_dir, tmp_path, monkeypatch):
    name, only_train = "train-v1.1.json", tmp_path / "data"
    (only_train / "squad").mkdir(parents=True)
    (only_train / "squad" / name).write_bytes((data_dir / "squad" / name).read_bytes())
    more = ("--data_dir", only_train, "--epochs", 1)
    results = finetune.main(arguments("run", *more, "--tune", "--train_rows", 50))
    assert results["train_rows"] == 50 and results["sets"]["train_tenth"]["rows"] == 40
    with monkeypatch.context() as patch:
        patch.setattr("support.squad.read_train", lambda *_: ["one question"])
        with pytest.raises(InputError, match="squad has too few training rows for --tune"):
            finetune.main(arguments("one", *more, "--tune"))
    with pytest.raises(InputError, match="dev-v1.1.json: no such file"):
        finetune.main(arguments("other", *more))


def test_an_edit_of_squad_py_changes_the_fingerprint_of_finetune_py():
    files = imported_files(ROOT / "finetune.py")
    assert (ROOT / "support" / "squad.py").resolve() in files


@pytest.mark.parametrize("more, message", [
    (["--predict"], "squad has no test set without labels"),
    (["--data_dir", "nowhere"], "nowhere: holds no folder squad"),
    (["--task", "cola"], "--stride .*--task squad"),
    (["--stride", "0"], "--stride: 0 is not a number at least 1"),
    (["--max_length", "65"], "--max_length 65: .*teacher has 64 positions"),
    (["--temperature", "2"], "--alpha_ce and --temperature .*--teacher"),
])
def test_wrong_arguments_are_refused_in_one_line(arguments, tmp_path, refused, more, message):
    assert re.search(message, refused(finetune, *arguments("out", *more)))
    assert not (tmp_path / "out").exists()


def test_the_demo_does_not_answer_questions(refused):
    assert re.search("--task squad: .* text", refused(demo, "film", "--task", "squad"))


# ---- The report ----

def ablation_arguments(world, folder, tasks):
    pretrain_args = f"--steps 2 --max_length 32 --cache_dir {folder / 'cache'}"
    return [str(x) for x in (
        "--preset", "mini", "--teacher", world / "teacher", "--corpus", world / "corpus.txt",
        "--data_dir", folder / "data", "--out_dir", folder / "runs", "--tasks", tasks,
        "--variants", "full,no_cos", "--seeds", 1, "--device", "cpu", "--jobs", 1,
        "--pretrain_args", pretrain_args,
        "--finetune_args", "--epochs 1 --max_length 40 --train_rows 40")]


@pytest.fixture(scope="module")
def reports(world, data_dir, tmp_path_factory):
    """.with_cola and .alone: (results.json, the printed report), of two runs in .folder."""
    folder = tmp_path_factory.mktemp("ablation")
    (folder / "data").mkdir()
    (folder / "data" / "squad").symlink_to(data_dir / "squad")
    (folder / "data" / "CoLA").symlink_to(world / "data" / "glue_data" / "CoLA")

    def run(tasks):
        with contextlib.redirect_stdout(io.StringIO()) as printed:
            ablation.main(ablation_arguments(world, folder, tasks))
        return json.loads((folder / "runs" / "results.json").read_text()), printed.getvalue()
    return SimpleNamespace(folder=folder / "runs", with_cola=run("cola,squad"), alone=run("squad"))


def test_the_report_keeps_squad_out_of_the_macro_score(reports):
    results, text = reports.with_cola
    assert list(results["columns"].values()) == ["CoLA", "macro", "SQuAD"]
    assert results["main_column"] == "macro"
    assert "SQuAD: F1" in text and "(majority)" in text


def test_the_report_of_squad_alone_has_no_trivial_baseline(reports):
    results, text = reports.alone
    assert list(results["columns"].values()) == ["SQuAD"] and results["main_column"] == "squad"
    assert "SQuAD: F1" in text and "(majority)" not in text
    assert re.search(r"\| no cosine loss \| [+-]\d+\.\d \|", text)


def test_its_rows_are_resampled_as_questions(reports):
    folders = [reports.folder / name / "seed0" / "squad" for name in ("full", "no_cos")]
    full, no_cos = (read_outcomes({"squad": [folder]})["squad"] for folder in folders)
    full_rows, no_cos_rows = (read_table(folder / "predictions.tsv")[1:] for folder in folders)
    f1s, gold_answers = full["sets"][0]["dev-v1.1"]
    assert 100 * f1s.mean() == pytest.approx(full["scores"][0])
    assert list(gold_answers) == [row[3] for row in full_rows]

    gains = []  # of each question
    for row, other_row in zip(full_rows, no_cos_rows):
        full_f1 = squad.f1([json.loads(row[2])], [json.loads(row[3])])
        other_f1 = squad.words_f1(json.loads(other_row[2]), json.loads(other_row[3])[0])
        gains.append(other_f1 - full_f1)
    ours, theirs = resampled_scores("squad", [no_cos["sets"][0], full["sets"][0]])
    drawn = np.random.default_rng(0).integers(60, size=(RESAMPLES, 60))[0]
    expected = 100 * np.mean([gains[i] for i in drawn])
    assert (ours - theirs)[0] == pytest.approx(expected, abs=1e-9)

