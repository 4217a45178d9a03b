"""DistilBERT's folders: read in as students, written for transformers, refused where they are another model; a row of the report."""
import json
import re
import shutil
from dataclasses import replace

import pytest
import torch
import transformers
from conftest import SHARED, TINY
from safetensors.torch import load_file, save_file

import ablation
import finetune
import load_hf_weights
import pretrain
from load_hf_weights import load_model, load_tokenizer, save_model
from model import Classifier, MaskedLM
from support.errors import InputError

MASK = torch.ones(3, 10, dtype=torch.long)
MASK[1, 6:] = MASK[2, 3:] = 0
IDS = torch.arange(5, 35).view(3, 10) * MASK


@pytest.fixture(scope="module")
def distilbert(world, tmp_path_factory):
    """(folder that transformers wrote, its model): at random, but with weights and biases large enough that none is without effect."""
    torch.manual_seed(0)
    config = transformers.DistilBertConfig(vocab_size=TINY.vocab_size, dim=32, n_layers=2, n_heads=4, hidden_dim=64, max_position_embeddings=64)
    reference = enlarge(transformers.DistilBertForMaskedLM(config)).eval()
    folder = tmp_path_factory.mktemp("distilbert")
    reference.save_pretrained(folder)
    shutil.copy(world / "teacher" / "vocab.txt", folder)
    return folder, reference


def enlarge(model):
    for parameter in model.parameters():
        parameter.data += torch.randn_like(parameter) * 0.2
    return model


@pytest.fixture(scope="module")
def exported(world, tmp_path_factory):
    """(model, folder of its export): a BERT whose token types count."""
    torch.manual_seed(1)
    model, folder = enlarge(load_model(world / "teacher")), tmp_path_factory.mktemp("export")
    save_model(model, load_tokenizer(world / "teacher"), folder / "ours")
    load_hf_weights.main([str(folder / "ours"), "--to", "distilbert", "--out", str(folder / "theirs")])
    return model, folder / "theirs"


def changed(folder, to, config=(), weights=None, without=()):
    """A copy of a folder, with other fields in its config.json and its weights gone through `weights`."""
    shutil.copytree(folder, to, dirs_exist_ok=True)
    fields = {key: value for key, value in {**json.loads((to / "config.json").read_text()), **dict(config)}.items() if key not in without}
    (to / "config.json").write_text(json.dumps(fields))
    if weights:
        save_file({k: v.contiguous() for k, v in weights(load_file(to / "model.safetensors")).items()}, to / "model.safetensors")
    return to


def close(a, b, mask=MASK):
    return (a - b)[mask.bool()].abs().max() < 1e-4


@torch.no_grad()
def test_a_folder_of_transformers_is_read_with_the_same_logits(distilbert):
    folder, reference = distilbert
    model, whole = load_model(folder), torch.ones_like(MASK)
    assert close(model(IDS), reference(input_ids=IDS).logits, whole) and close(model(IDS, MASK), reference(input_ids=IDS, attention_mask=MASK).logits)
    assert close(model(IDS, MASK, MASK), reference(input_ids=IDS, attention_mask=MASK).logits)  # it has no segments
    assert model.bert.embeddings.token_type.weight.abs().sum() == 0 and model.bert.embeddings.token_type.weight.requires_grad


def test_every_field_of_its_config_is_read(distilbert, tmp_path):
    folder, _ = distilbert
    config = load_hf_weights.read_config(changed(folder, tmp_path, {"dropout": 0.3, "attention_dropout": 0.2, "initializer_range": 0.05, "pad_token_id": 3,
                                                                   "hidden_size": 7, "layer_norm_eps": 0.1}))  # the last two it does not have
    assert config == replace(TINY, num_hidden_layers=2, hidden_dropout_prob=0.3, attention_probs_dropout_prob=0.2, initializer_range=0.05, pad_token_id=3)


PUBLISHED = {"activation": "gelu", "architectures": ["DistilBertForMaskedLM"], "attention_dropout": 0.1, "dropout": 0.1, "initializer_range": 0.02,
             "max_position_embeddings": 64, "model_type": "distilbert", "pad_token_id": 0, "qa_dropout": 0.1, "seq_classif_dropout": 0.2,
             "sinusoidal_pos_embds": False, "tie_weights_": True, "dim": 32, "n_layers": 2, "n_heads": 4, "hidden_dim": 64, "vocab_size": TINY.vocab_size}


@torch.no_grad()
def test_names_and_extras(distilbert, tmp_path):
    folder, _ = distilbert
    expected = load_model(folder)(IDS)
    weights = load_file(folder / "model.safetensors")
    words = weights["distilbert.embeddings.word_embeddings.weight"]
    shutil.copytree(folder, tmp_path / "bin")  # as distilbert-base-uncased was published
    (tmp_path / "bin" / "model.safetensors").unlink()
    (tmp_path / "bin" / "config.json").write_text(json.dumps(PUBLISHED))
    torch.save({**weights, "vocab_projector.weight": words}, tmp_path / "bin" / "pytorch_model.bin")
    old = changed(folder, tmp_path / "old", weights=lambda w: {**w, "distilbert.embeddings.position_ids": torch.arange(64)[None], "pre_classifier.bias": torch.ones(32)})
    bare = changed(folder, tmp_path / "bare", weights=lambda w: {k.removeprefix("distilbert."): v for k, v in w.items()})
    for other in (tmp_path / "bin", old, bare):
        assert torch.equal(load_model(other)(IDS), expected)


def drop(part):
    return lambda w: {k: v for k, v in w.items() if part not in k}


@pytest.mark.parametrize("weights, message", [
    (drop("vocab_"), "lacks vocab_projector.bias, vocab_transform.*which DistilBertForMaskedLM needs"),
    (drop("layer.1.attention.k_lin"), "lacks distilbert.transformer.layer.1.attention.k_lin.weight, distilbert.transformer.layer.1.attention.k_lin.bias"),
    (lambda w: {**w, "distilbert.transformer.layer.0.ffn.lin1.weight": torch.ones(3, 32)}, r"ffn.lin1.weight is \(3, 32\), not \(64, 32\)"),
    (lambda w: {**w, "distilbert.transformer.layer.2.ffn.lin2.bias": torch.ones(32)}, "no place for distilbert.transformer.layer.2.ffn.lin2.bias"),
    (lambda w: {**w, "distilbert.embeddings.token_type_embeddings.weight": torch.ones(2, 32)}, "no place for distilbert.embeddings.token_type"),
    (lambda w: {**w, "vocab_projector.weight": torch.ones(TINY.vocab_size, 32)}, "vocab_projector.weight differs from .* not tied"),
    (lambda w: {**w, "vocab_projector.bias": torch.full((TINY.vocab_size,), float("nan"))}, "not finite"),
])
def test_weights_that_do_not_fit_are_named(distilbert, tmp_path, weights, message):
    with pytest.raises(InputError, match=message):
        load_model(changed(distilbert[0], tmp_path, weights=weights))


@pytest.mark.parametrize("config, message", [
    ({"activation": "relu"}, "activation is 'relu'; only 'gelu'"),
    ({"sinusoidal_pos_embds": True}, "sinusoidal_pos_embds is True"),
    ({"tie_weights_": False}, "tie_weights_ is False"),
    ({"tie_word_embeddings": False}, "tie_word_embeddings is False"),
    ({"n_heads": 5}, "config.json: dim 32 is not divisible by n_heads 5"),
    ({"hidden_dim": "x"}, "config.json: hidden_dim must be a positive whole number, not 'x'"),
    ({"attention_dropout": 2}, "config.json: attention_dropout must be a number"),
    ({"model_type": "bert"}, "lacks hidden_size"),
])
def test_configs_that_are_not_ours(distilbert, tmp_path, config, message):
    with pytest.raises(InputError, match=message):
        load_model(changed(distilbert[0], tmp_path, config))
    with pytest.raises(InputError, match="lacks dim, n_layers"):
        load_model(changed(distilbert[0], tmp_path, {"model_type": "distilbert"}, without=("dim", "n_layers")))


def test_a_head_for_a_task_is_refused_and_its_encoder_taken(distilbert, world, tmp_path, refused):
    reference = transformers.DistilBertForSequenceClassification(distilbert[1].config).eval()
    reference.save_pretrained(tmp_path / "tuned")
    shutil.copy(world / "teacher" / "vocab.txt", tmp_path / "tuned")
    for new in ((), ("pooler",)):
        with pytest.raises(InputError, match="tuned: a DistilBERT, whose head for a task is another one than BERT's"):
            load_model(tmp_path / "tuned", Classifier, new=new)
    with pytest.raises(InputError, match="lacks vocab_projector.bias, vocab_.* which DistilBertForMaskedLM needs"):
        load_model(tmp_path / "tuned")
    line = refused(finetune, "--model", world / "teacher", "--teacher", tmp_path / "tuned", "--task", "cola", "--data_dir", world / "data",
                   "--out_dir", tmp_path / "run", "--device", "cpu")
    assert "tuned: a DistilBERT, whose head" in line
    model = load_model(tmp_path / "tuned", Classifier, new=("pooler", "classifier"), num_labels=3)
    with torch.no_grad():
        assert close(model.bert(IDS, MASK), reference.distilbert(input_ids=IDS, attention_mask=MASK).last_hidden_state) and model(IDS).shape == (3, 3)


def test_transformers_opens_the_export_with_the_same_logits(exported):
    model, folder = exported
    reference, report = transformers.DistilBertForMaskedLM.from_pretrained(folder, output_loading_info=True)
    assert not any(report.values()), report
    whole = torch.ones_like(MASK)
    with torch.no_grad():
        ours, types = model(IDS, MASK), model.bert.embeddings.token_type.weight
        assert close(reference.eval()(input_ids=IDS, attention_mask=MASK).logits, ours) and close(reference(input_ids=IDS).logits, model(IDS), whole)
        assert close(load_model(folder)(IDS, MASK), ours)  # and back
        assert types.abs().min(-1).values.max() > 0 and not close(model(IDS, MASK, whole), ours)  # they do count
    assert transformers.AutoConfig.from_pretrained(folder).n_layers == TINY.num_hidden_layers
    assert sorted(file.name for file in folder.iterdir()) == ["config.json", "model.safetensors", "tokenizer.json", "tokenizer_config.json", "vocab.txt"]


def test_its_tokenizer_goes_with_the_model(exported, tokenizer):
    _, folder = exported
    text = ["Good FILM , bad 'unknownword'", "banbinbads"]
    theirs, model = transformers.AutoTokenizer.from_pretrained(folder), transformers.AutoModelForMaskedLM.from_pretrained(folder)
    assert theirs(text)["input_ids"] == [e.ids for e in tokenizer.encode_batch(text)]
    assert model(**theirs(text, padding=True, return_tensors="pt")).logits.isfinite().all()  # no token types, which it would not take
    assert [e.ids for e in load_tokenizer(folder).encode_batch(text)] == theirs(text)["input_ids"]


def test_what_cannot_be_exported(world, tokenizer, distilbert, tmp_path, refused):
    def line(folder, *more):
        said = refused(load_hf_weights, folder, *(more or ("--to", "distilbert", "--out", tmp_path / "out")))
        assert not (tmp_path / "out").exists()
        return said
    save_model(load_model(world / "teacher", Classifier, new=("pooler", "classifier")), tokenizer, tmp_path / "tuned")
    assert "tuned: is fine-tuned (['BertForSequenceClassification']), and DistilBERT's head" in line(tmp_path / "tuned")
    assert "lacks cls.predictions.bias" in line(changed(tmp_path / "tuned", tmp_path / "bare", without=("architectures",)))
    assert "is a DistilBERT already" in line(distilbert[0])
    assert "config.json: layer_norm_eps is 1e-05, DistilBERT's is always 1e-12" in line(changed(world / "teacher", tmp_path / "eps", {"layer_norm_eps": 1e-5}))
    assert "absent: no such folder" in line(tmp_path / "absent")
    assert "is there already, and not an empty folder" in line(world / "teacher", "--to", "distilbert", "--out", tmp_path / "tuned")
    assert "is there already" in line(world / "teacher", "--to", "distilbert", "--out", world / "corpus.txt")
    assert "a folder here already; what can be made of it is --to distilbert" in line(world / "teacher", "--out", tmp_path / "out")
    assert "--to: invalid choice: 'roberta'" in line(world / "teacher", "--to", "roberta", "--out", tmp_path / "out")


def test_it_is_fine_tuned_and_learns_the_second_segment(distilbert, world, tmp_path):
    finetune.main([str(x) for x in ("--model", distilbert[0], "--task", "mrpc", "--data_dir", world / "data", "--out_dir", tmp_path / "run", "--epochs", 1,
                                    "--max_length", 32, "--device", "cpu", "--precision", "fp32")])
    tuned = load_model(tmp_path / "run", Classifier)
    assert tuned.bert.embeddings.token_type.weight.abs().min() > 0  # of zeros, both rows
    assert transformers.AutoModelForSequenceClassification.from_pretrained(tmp_path / "run").config.model_type == "bert"


def test_it_can_be_the_teacher(distilbert, world, tmp_path):
    record = pretrain.main([str(x) for x in ("--teacher", distilbert[0], "--corpus", world / "corpus.txt", "--out_dir", tmp_path / "run", "--steps", 2, "--batch_size", 4,
                                             "--max_length", 32, "--cache_dir", tmp_path / "cache", "--device", "cpu", "--precision", "fp32")])
    assert record["heldout_after"]["kl"] > 0 and isinstance(load_model(tmp_path / "run"), MaskedLM)


def experiment(world, out_dir, *more):
    return [str(x) for x in (
        "--preset", "mini", "--teacher", world / "teacher", "--corpus", world / "corpus.txt", "--heldout", world / "heldout.txt", "--data_dir", world / "data",
        "--out_dir", out_dir, "--tasks", "cola,imdb", "--variants", "full,no_mlm", "--precision", "fp32", "--device", "cpu",
        "--pretrain_args", f"--steps 2 --log_every 1 --batch_size 4 --max_length 32 --cache_dir {world / 'cache'}",
        "--finetune_args", "--epochs 1 --max_length 32 --train_rows 32", *more)]


def test_a_row_of_the_report(distilbert, world, tmp_path, capsys, monkeypatch):
    also = ("--also", f"published={distilbert[0]}", "--also", f"small={world / 'teacher'}")
    ablation.main(experiment(world, tmp_path, *also))
    printed = capsys.readouterr().out
    assert printed.startswith("2 students to distil from") and "5 models to fine-tune on cola, imdb, with 1 seed(s): 12 runs, of which 12 are to do" in printed
    tuned = json.loads((tmp_path / "published" / "seed0" / "imdb" / "run.json").read_text())
    assert tuned["arguments"]["model"] == str(distilbert[0]) and tuned["arguments"]["seed"] == 0
    text, summary = (tmp_path / "report.md").read_text(), json.loads((tmp_path / "results.json").read_text())
    scores, changes, heldout = (re.findall(r"^\| ([^|]+?) \|", part, re.MULTILINE) for part in text.split("## "))
    assert scores == ["model", "---", "teacher", "full (baseline)", "no MLM loss", "published", "small", "(majority)", "(TF-IDF)"]
    assert changes == ["variant", "---", "teacher", "no MLM loss", "published", "small"] and heldout == ["student", "---", "full (baseline)", "no MLM loss"]
    score = json.loads((tmp_path / "published" / "seed0" / "imdb" / "results.json").read_text())["score"]
    assert summary["scores"]["published"]["imdb"]["mean"] == pytest.approx(score)
    assert "published changes" not in text and re.search(r"students \d+\.\d, fine-tuning the other models \d+\.\d\.", text)  # it is no variant of the loss
    assert summary["scores"]["small"] == summary["scores"]["teacher"]  # the same folder, the same seed: nothing else differs
    monkeypatch.setattr("finetune.train", None)  # called, it would fail
    ablation.main(experiment(world, tmp_path, *also))
    assert (tmp_path / "report.md").read_text() == text
    ablation.main(experiment(world, tmp_path))  # and without them
    assert "published" not in (tmp_path / "report.md").read_text()


@pytest.mark.parametrize("also, message", [
    (["x"], "--also: 'x' is not NAME=FOLDER"), (["=x"], "is not NAME=FOLDER"), (["../x=x"], "is not NAME=FOLDER"), (["x="], "is not NAME=FOLDER"),
    (["no_cos=x"], "the name no_cos is taken"), (["teacher=x"], "the name teacher is taken"), (["x=y", "x=z"], "--also: two models of the same name"),
    (["x=nowhere"], "nowhere/config.json: no such file"),
])
def test_further_models_that_cannot_be(world, tmp_path, refused, also, message):
    line = refused(ablation, *experiment(world, tmp_path / "out", "--also", *also))
    assert message in line and not (tmp_path / "out").exists()


@pytest.mark.skipif(not (SHARED / "models").is_dir(), reason="the real models do not lie beside the project")
def test_a_real_model(tmp_path):
    folder = SHARED / "models" / "minilm-l6-mlm"
    load_hf_weights.main([str(folder), "--to", "distilbert", "--out", str(tmp_path / "out")])
    reference = transformers.DistilBertForMaskedLM.from_pretrained(tmp_path / "out").eval()
    input_ids = torch.tensor([load_tokenizer(tmp_path / "out").encode("The capital of France is [MASK].").ids])
    with torch.no_grad():
        assert (reference(input_ids=input_ids).logits - load_model(folder)(input_ids)).abs().max() < 1e-4
