"""The experiment at bert-base's full size, on random weights: 5 steps of every variant, a fine-tuning epoch on 200 rows of CoLA.

    python tests/bert_base_size.py --config FOLDER --corpus FILE --data_dir FOLDER --out_dir FOLDER

Not a test that pytest collects: it takes minutes and gigabytes. It prints its peak memory, and fails above 6 GB.
"""
import argparse
import sys
from pathlib import Path

sys.path.insert(0, str(Path(__file__).parent.parent))
import ablation
from load_hf_weights import load_tokenizer, read_config, save_model
from model import BertConfig, MaskedLM
from support.device import peak_memory
from support.seeds import seed_torch

parser = argparse.ArgumentParser(description=__doc__.split("\n")[0])
parser.add_argument("--config", required=True, help="folder with bert-base-uncased's config.json and vocab.txt; no weights are needed")
parser.add_argument("--corpus", required=True)
parser.add_argument("--data_dir", required=True, help="folder that holds CoLA/, or glue_data/ with it")
parser.add_argument("--out_dir", required=True)
args = parser.parse_args()

teacher = Path(args.out_dir) / "random-bert-base"
if not (teacher / "model.safetensors").exists():
    seed_torch(0)
    assert read_config(args.config) == BertConfig(), "this is not bert-base-uncased's configuration"
    save_model(MaskedLM(BertConfig()), load_tokenizer(args.config), teacher)
ablation.main(["--preset", "base", "--teacher", str(teacher), "--corpus", args.corpus, "--data_dir", args.data_dir, "--tasks", "cola",
               "--out_dir", args.out_dir, "--pretrain_args", "--steps 5 --batch_size 8 --grad_accum 1",
               "--finetune_args", "--epochs 1 --train_rows 200"])
peak = peak_memory()
print(f"peak memory: {peak:.2f} GiB")
sys.exit(peak * 1.073741824 > 6)
