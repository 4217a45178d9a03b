"""aa_test.py: students that are alike give few false effects; those that are not give many."""
import re
import shlex

import numpy as np
import pytest
from tiny_experiment import arguments

from support import aa_test
from support.errors import InputError

COLUMNS = {"cola": "CoLA", "mrpc": "MRPC", "macro": "macro"}


def students(count, trend=0.0):
    """(scores, resampled) of made-up students, whose rows matter as much as their seeds."""
    rng, scores, resampled = np.random.default_rng(1), {}, {}
    for task in ("cola", "mrpc"):
        scores[task] = rng.normal(70, 2, count) + trend * np.arange(count)
        resampled[task] = scores[task][:, None] + rng.normal(0, 1, (count, 400))
    scores["macro"] = (scores["cola"] + scores["mrpc"]) / 2
    return scores, resampled


def false_effects(text):
    """[(adjusted, unadjusted) in %] of the rows named "all": of disjoint experiments, of deals."""
    rows = re.findall(r"^\| all \| .*?\(([\d.]+) %\) \| .*?\(([\d.]+) %\) \|$", text, re.MULTILINE)
    return [tuple(map(float, row)) for row in rows]


def test_an_experiment_deals_each_student_once():
    experiments = aa_test.deal(np.arange(50), 5)
    assert [experiment.shape for experiment in experiments] == [(4, 5)] * 2
    assert sorted(np.concatenate(experiments).ravel()) == list(range(40))


def test_of_equal_students_one_in_twenty_comparisons_is_called_real():
    text = aa_test.report("kind", COLUMNS, *students(4000), 5, 300)
    assert "200 experiments that share no student: 1800 comparisons" in text
    for adjusted, unadjusted in false_effects(text):
        assert adjusted == pytest.approx(5, abs=2.5)
        assert unadjusted == pytest.approx(5, abs=2)


def test_a_real_difference_is_found():
    text = aa_test.report("kind", COLUMNS, *students(80, 0.5), 5, 10)
    (adjusted, unadjusted), _ = false_effects(text)
    assert adjusted > 60 and unadjusted > 60


def test_the_command_trains_the_students_once_and_no_teacher(world, tmp_path, capsys):
    out_dir = tmp_path / "aa"
    tiny = shlex.join(arguments(world, out_dir, "--tasks", "mrpc"))
    command = ["--students", "8", "--seeds", "2", "--deals", "5", "--out_dir", str(out_dir),
               f"--ablation_args={tiny}"]
    aa_test.main(command)
    assert "8 students: 24 runs, of which 24 are to do" in capsys.readouterr().out
    assert {folder.name for folder in (out_dir / "full").iterdir()} == {
        f"seed{seed}" for seed in range(100, 108)}
    assert not (out_dir / "teacher").exists()
    text = (out_dir / "aa.md").read_text()
    fine_tuned, probes = text.split("# A/A test, linear probes: 8 students")
    assert fine_tuned.startswith("# A/A test, fine-tuned: 8 students that differ")
    for part in (fine_tuned, probes):
        assert "1 experiments that share no student: 6 comparisons" in part
    aa_test.main(command)
    assert "8 students: 24 runs, of which 0 are to do" in capsys.readouterr().out
    assert (out_dir / "aa.md").read_text() == text


def test_too_few_students_are_refused():
    with pytest.raises(InputError, match="one experiment of 5 seeds takes 20"):
        aa_test.main(["--students", "19"])
