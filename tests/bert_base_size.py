"""Runs the experiment at bert-base's full size, on random weights, and prints its peak memory.

    python tests/bert_base_size.py --config FOLDER --corpus FILE --data_dir FOLDER --out_dir FOLDER

5 steps of every variant, then an epoch of fine-tuning on 200 rows of CoLA. Pytest does not collect
it: it takes minutes and gigabytes. It fails if a process needs more than 6 GB.
"""
import argparse
import resource
import sys
from pathlib import Path

ROOT = Path(__file__).parent.parent
sys.path.insert(0, str(ROOT))

import ablation
from load_hf_weights import load_tokenizer, read_config, save_model
from model import BertConfig, MaskedLM
from support.device import peak_memory, peak_memory_of
from support.seeds import seed_torch

LIMIT = 6e9  # bytes


def main():
    parser = argparse.ArgumentParser(description=__doc__.split("\n")[0])
    parser.add_argument("--config", required=True,
                        help="folder with bert-base-uncased's config.json and vocab.txt; its "
                             "weights are not needed")
    parser.add_argument("--corpus", required=True, help="text file, or a folder of them")
    parser.add_argument("--data_dir", required=True,
                        help="folder that holds CoLA/, or glue_data/CoLA/")
    parser.add_argument("--out_dir", required=True, help="folder for the teacher and all runs")
    args = parser.parse_args()

    teacher = Path(args.out_dir) / "random-bert-base"
    if not (teacher / "model.safetensors").exists():
        seed_torch(0)
        config = read_config(args.config)
        assert config == BertConfig(), "this is not bert-base-uncased's configuration"
        save_model(MaskedLM(config), load_tokenizer(args.config), teacher)
    ablation.main(["--preset", "base", "--teacher", str(teacher), "--corpus", args.corpus,
                   "--data_dir", args.data_dir, "--tasks", "cola", "--out_dir", args.out_dir,
                   "--seeds", "1",
                   "--pretrain_args", "--steps 5 --batch_size 8 --grad_accum 1",
                   "--finetune_args", "--epochs 1 --train_rows 200"])
    peak = max(peak_memory(), peak_memory_of(resource.RUSAGE_CHILDREN))  # the runs are children
    print(f"peak memory of the largest process: {peak:.2f} GiB")
    sys.exit(peak * 2 ** 30 > LIMIT)


if __name__ == "__main__":  # the runs' processes load this file too
    main()
