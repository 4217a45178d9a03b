"""stability.py: one and the same model, fine-tuned under several seeds."""
import shlex

import numpy as np
import pytest
from tiny_experiment import arguments, run_experiment, score_of

from support import stability
from support.errors import InputError


def test_the_table_is_that_of_fine_tunings_of_the_same_students(world, tmp_path, capsys):
    experiment, out_dir = tmp_path / "experiment", tmp_path / "stability"
    tiny = arguments(world, experiment, "--tasks", "mrpc", "--variants", "full,no_ce")
    command = ["--out_dir", str(out_dir), "--tuning_seeds", "3",
               f"--ablation_args={shlex.join(tiny)}"]
    with pytest.raises(InputError, match="has no student .* run make ablation first"):
        stability.main(command)
    with pytest.raises(InputError, match="--ablation_args: its --variants must contain no_ce"):
        stability.main([f"--ablation_args={shlex.join([*tiny, '--variants', 'full'])}"])
    run_experiment(tiny)
    stability.main(command)
    lines = capsys.readouterr().out.splitlines()
    for model in ("teacher", "full", "no_ce"):
        scores = [score_of(out_dir, model, seed, "mrpc") for seed in range(3)]
        assert scores[0] == score_of(experiment, model, 0, "mrpc")  # the experiment's own seed
        assert (f"| {model} | {np.mean(scores):.1f} ± {np.std(scores, ddof=1):.1f} "
                f"(lowest {min(scores):.1f}) |") in lines
    before = (out_dir / "commands.log").read_bytes()
    stability.main(command)
    assert (out_dir / "commands.log").read_bytes() == before  # nothing ran again
