"""A finished run is kept until something that it depends on changes; then it is archived."""
import contextlib
import os
import shutil
import signal

import pytest
from code_copy import CodeCopy
from short_runs import finetune_arguments, pretrain_arguments

import finetune
import pretrain
from load_hf_weights import load_model, load_tokenizer, save_model
from support.errors import InputError, Interrupted
from support.files import read_json
from support.run_folder import archived_versions
from support.training_run import Run

CE = "return temperature ** 2 * kl"
MLM = "return F.cross_entropy("
COS = "return (1 - F.cosine_similarity("


@pytest.fixture
def distil(world, tmp_path):
    """distil(name, more arguments) -> the record; the run's folder is tmp_path / name."""
    def run(name, *more, teacher=None):
        return pretrain.main(pretrain_arguments(world, tmp_path / name, *more, teacher=teacher))
    return run


@pytest.fixture
def code(tmp_path, monkeypatch):
    """A copy of the project's code, to be edited."""
    copy = CodeCopy(tmp_path / "project", monkeypatch)
    yield copy
    copy.forget()


@contextlib.contextmanager
def stop_at(step):
    """Within the block, a run gets SIGTERM after so many steps."""
    should_save = Run.should_save

    def signalled(run, steps_done):
        if steps_done == step:
            os.kill(os.getpid(), signal.SIGTERM)
        return should_save(run, steps_done)
    with pytest.MonkeyPatch.context() as patch:
        patch.setattr(Run, "should_save", signalled)
        yield


def test_a_finished_run_is_kept_and_another_one_refused(distil, tmp_path, capsys):
    record = distil("run")
    weights = tmp_path / "run" / "model.safetensors"
    written = weights.stat().st_mtime_ns
    assert distil("run") == record and "done before" in capsys.readouterr().out
    with pytest.raises(InputError, match=r"holds another run \(steps was 4, is now 5; "
                                         r"temperature was 2.0, is now 3.0\)"):
        distil("run", "--steps", 5, "--temperature", 3)
    assert weights.stat().st_mtime_ns == written


@pytest.mark.parametrize("more", [
    ["--log_every", 3], ["--checkpoint_steps", 2], ["--checkpoint_minutes", 3], ["--overwrite"]])
def test_arguments_that_change_no_result_start_nothing_again(distil, more):
    assert distil("run", *more) == distil("run")


def test_an_edit_of_a_formula_is_noticed_and_one_of_a_comment_is_not(distil, tmp_path, code):
    first = distil("run")
    code.replace("losses.py", CE, f"{CE}  # as Hinton has it")
    code.replace("losses.py", '"""L_ce: T² KL', '"""L_ce: T^2 KL')
    for file in ("losses.py", "model.py"):
        os.utime(code.folder / file)
    code.forget()
    assert distil("run") == first
    code.replace("losses.py", "temperature ** 2", "temperature ** 3")
    with pytest.raises(InputError, match=r"run holds another run \(the code has changed\); "
                                         r".*--overwrite"):
        distil("run")
    assert read_json(tmp_path / "run" / "run.json") == first
    assert not (tmp_path / "run~1").exists()


def test_overwrite_archives_the_run_that_is_out_of_date(distil, tmp_path, code, capsys):
    first = distil("run")
    written = (tmp_path / "run" / "model.safetensors").stat().st_mtime_ns
    code.replace("losses.py", CE, "return temperature ** 3 * kl")
    second = distil("run", "--overwrite")
    assert second["made_of"] != first["made_of"]
    assert "kept as" in capsys.readouterr().out
    assert read_json(tmp_path / "run~1" / "run.json") == first
    assert (tmp_path / "run~1" / "model.safetensors").stat().st_mtime_ns == written

    assert distil("run", "--overwrite") == second  # up to date: nothing is archived
    assert not (tmp_path / "run~2").exists()
    distil("run", "--overwrite", "--steps", 2)
    assert read_json(tmp_path / "run~2" / "run.json") == second
    assert not (tmp_path / "run~3").exists()


def test_after_an_edit_that_is_undone_the_archived_run_is_taken_back(
        distil, tmp_path, code, capsys):
    first = distil("run")
    weights = (tmp_path / "run" / "model.safetensors").read_bytes()
    code.replace("losses.py", CE, "return temperature ** 3 * kl")
    second = distil("run", "--overwrite")
    third = distil("run", "--overwrite", "--steps", 2)
    code.replace("losses.py", "return temperature ** 3 * kl", CE)
    with pytest.raises(InputError, match="--overwrite"):
        distil("run")
    capsys.readouterr()
    assert distil("run", "--overwrite") == first
    assert f"taken back from {tmp_path}/run~1" in capsys.readouterr().out
    assert (tmp_path / "run" / "model.safetensors").read_bytes() == weights
    assert read_json(tmp_path / "run~1" / "run.json") == second
    assert read_json(tmp_path / "run~2" / "run.json") == third  # the latest has the highest number
    assert not (tmp_path / "run~3").exists()
    shutil.rmtree(tmp_path / "run")  # the same where nothing is in the folder's place
    code.replace("losses.py", CE, "return temperature ** 3 * kl")
    assert distil("run/", "--overwrite", "--steps", 2) == third


def test_a_version_that_was_deleted_leaves_a_gap_and_no_confusion(distil, tmp_path, capsys):
    records = [distil("run", "--overwrite", "--steps", steps) for steps in (1, 2, 3, 4)]
    shutil.rmtree(tmp_path / "run~1")
    distil("run", "--overwrite", "--steps", 5)  # the newest has the highest number
    numbers = [2, 3, 4]
    assert archived_versions(tmp_path / "run") == [tmp_path / f"run~{n}" for n in numbers]
    assert [read_json(tmp_path / f"run~{n}" / "run.json") for n in numbers] == records[1:]
    assert distil("run", "--overwrite", "--steps", 3) == records[2]
    assert [read_json(version / "run.json")["arguments"]["steps"]
            for version in archived_versions(tmp_path / "run")] == [2, 4, 5]


def test_a_formula_concerns_only_the_students_that_use_it(distil, code):
    full = distil("full")
    no_cos = distil("no_cos", "--use_cos", 0)
    off = distil("off", "--alpha_cos", 0)
    assert off["arguments"]["weights"] == no_cos["arguments"]["weights"] == {"ce": 5.0, "mlm": 2.0}
    code.replace("losses.py", COS, COS.replace("(1 -", "2 * (1 -", 1))
    assert distil("no_cos", "--use_cos", 0) == no_cos
    assert distil("off", "--alpha_cos", 0) == off
    with pytest.raises(InputError, match=r"\(the code has changed\)"):
        distil("full")
    assert distil("full", "--overwrite")["made_of"] != full["made_of"]


def test_a_formula_concerns_a_fine_tuning_only_if_its_teacher_uses_it(world, tmp_path, code):
    def tune(name, *more):
        arguments = finetune_arguments(world, tmp_path / name, "sst2", "--epochs", 1, *more)
        return finetune.main(arguments), read_json(tmp_path / name / "run.json")
    with_teacher = ("--teacher", tmp_path / "alone")
    alone, student = tune("alone"), tune("student", *with_teacher)
    assert alone[1]["made_of"].keys() == {"code", "model", "data_dir"}
    assert student[1]["made_of"].keys() == {"code", "model", "data_dir", "teacher", "formula"}

    code.replace("losses.py", MLM, MLM.replace("return", "return 2 *"))
    assert tune("alone") == alone and tune("student", *with_teacher) == student
    code.replace("losses.py", CE, "return temperature ** 3 * kl")
    assert tune("alone") == alone
    with pytest.raises(InputError, match=r"\(the formula has changed\)"):
        tune("student", *with_teacher)


def test_another_text_or_teacher_in_the_same_place_is_noticed_and_the_same_elsewhere_is_not(
        distil, world, tmp_path):
    copy = shutil.copytree(world / "teacher", tmp_path / "copy")
    corpus = ("--corpus", world / "heldout.txt")
    record = distil("run", *corpus)
    assert distil("run", *corpus, teacher=copy) == record

    model = load_model(copy)
    model.head.bias.data[7] += 1
    save_model(model, load_tokenizer(copy), copy)
    with pytest.raises(InputError, match=r"\(the teacher has changed\)"):
        distil("run", *corpus, teacher=copy)

    (tmp_path / "longer.txt").write_text((world / "heldout.txt").read_text() + "good\n")
    with pytest.raises(InputError, match=r"\(the corpus has changed\)"):
        distil("run", "--corpus", tmp_path / "longer.txt")


# ---- Unfinished runs ----

def test_resuming_with_edited_code_is_marked(distil, code, capsys):
    """The mixture is up to date for neither code."""
    with stop_at(2), pytest.raises(Interrupted, match="run: stopped; the same command resumes "
                                                      "from step 2"):
        distil("run")
    code.replace("losses.py", CE, "return temperature ** 3 * kl")
    mixed = distil("run")
    assert ("run: resumes from step 2 under other conditions (the code has changed): not exactly "
            "the result of an uninterrupted run") in capsys.readouterr().out
    assert mixed["resumed"] == [{"from_step": 2, "changed": ["the code has changed"]}]
    with pytest.raises(InputError, match="the code has changed"):
        distil("run")
    code.replace("losses.py", "return temperature ** 3 * kl", CE)  # the old code again
    with pytest.raises(InputError, match="the code has changed"):
        distil("run")


def test_an_experiment_starts_an_unfinished_run_with_edited_code_anew(distil, tmp_path, code):
    """It passes --overwrite."""
    with stop_at(2), pytest.raises(Interrupted):
        distil("run")
    code.replace("losses.py", CE, "return temperature ** 3 * kl")
    assert "resumed" not in distil("run", "--overwrite")
    assert (tmp_path / "run~1" / "checkpoint.pt").exists()
