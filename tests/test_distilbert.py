"""DistilBERT's folders: read as students, exported for transformers, refused where they do not fit;
and as a row of the report."""
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
from load_hf_weights import load_model, load_tokenizer, read_config, save_model
from model import Classifier, MaskedLM
from support.errors import InputError

MASK = torch.ones(3, 10, dtype=torch.long)
MASK[1, 6:] = MASK[2, 3:] = 0
ALL = torch.ones_like(MASK)  # no padding
IDS = torch.arange(5, 35).view(3, 10) * MASK
BOTH_PARTS = ("pooler", "classifier")  # all of a Classifier's head


# ---- Helpers ----

@pytest.fixture(scope="module")
def distilbert(world, tmp_path_factory):
    """(folder that transformers wrote, its model). The weights are random, and large enough that
    each of them has an effect."""
    torch.manual_seed(0)
    config = transformers.DistilBertConfig(
        vocab_size=TINY.vocab_size, dim=32, n_layers=2, n_heads=4, hidden_dim=64,
        max_position_embeddings=64)
    reference = enlarge(transformers.DistilBertForMaskedLM(config)).eval()
    folder = tmp_path_factory.mktemp("distilbert")
    reference.save_pretrained(folder)
    shutil.copy(world / "teacher" / "vocab.txt", folder)
    return folder, reference


@pytest.fixture(scope="module")
def exported(world, tmp_path_factory):
    """(model, folder of its export): a BERT whose token types have an effect."""
    torch.manual_seed(1)
    model, folder = enlarge(load_model(world / "teacher")), tmp_path_factory.mktemp("export")
    save_model(model, load_tokenizer(world / "teacher"), folder / "ours")
    run(load_hf_weights, folder / "ours", "--to", "distilbert", "--out", folder / "theirs")
    return model, folder / "theirs"


def enlarge(model):
    for parameter in model.parameters():
        parameter.data += torch.randn_like(parameter) * 0.2
    return model


def run(module, *arguments):
    return module.main([str(argument) for argument in arguments])


def read_json(path):
    return json.loads(path.read_text())


def changed(folder, to, config=(), weights=None, remove=()):
    """A copy of a folder with other fields in its config.json and changed weights.

    weights: {name: tensor} -> {name: tensor}; remove: fields to remove from config.json."""
    shutil.copytree(folder, to, dirs_exist_ok=True)
    fields = {**read_json(to / "config.json"), **dict(config)}
    for key in remove:
        fields.pop(key)
    (to / "config.json").write_text(json.dumps(fields))
    if weights:
        new = weights(load_file(to / "model.safetensors"))
        contiguous = {name: tensor.contiguous() for name, tensor in new.items()}
        save_file(contiguous, to / "model.safetensors")
    return to


def without(part):
    """A change of weights: drop each whose name contains this part."""
    return lambda weights: {name: x for name, x in weights.items() if part not in name}


def with_more(more):
    """A change of weights: add or replace these, {name: tensor}."""
    return lambda weights: {**weights, **more}


def without_prefix(weights):
    return {name.removeprefix("distilbert."): tensor for name, tensor in weights.items()}


def close(a, b, mask=MASK):
    return (a - b)[mask.bool()].abs().max() < 1e-4


def token_ids(tokenizer, texts):
    return [encoding.ids for encoding in tokenizer.encode_batch(texts)]


# ---- Reading ----

@torch.no_grad()
def test_a_folder_of_transformers_is_read_with_the_same_logits(distilbert):
    folder, reference = distilbert
    model = load_model(folder)
    expected = reference(input_ids=IDS, attention_mask=MASK).logits
    assert close(model(IDS), reference(input_ids=IDS).logits, ALL)
    assert close(model(IDS, MASK), expected)
    assert close(model(IDS, MASK, token_type_ids=MASK), expected)  # DistilBERT has no segments
    token_types = model.bert.embeddings.token_type.weight
    assert token_types.abs().sum() == 0 and token_types.requires_grad


def test_every_field_of_its_config_is_read(distilbert, tmp_path):
    fields = {
        "dropout": 0.3,
        "attention_dropout": 0.2,
        "initializer_range": 0.05,
        "pad_token_id": 3,
        "hidden_size": 7,       # not a field of DistilBERT
        "layer_norm_eps": 0.1,  # nor is this one
    }
    assert read_config(changed(distilbert[0], tmp_path, fields)) == replace(
        TINY, num_hidden_layers=2, hidden_dropout_prob=0.3, attention_probs_dropout_prob=0.2,
        initializer_range=0.05, pad_token_id=3)


PUBLISHED_CONFIG = {  # the fields of distilbert-base-uncased, in the size of the tests
    "activation": "gelu",
    "architectures": ["DistilBertForMaskedLM"],
    "attention_dropout": 0.1,
    "dropout": 0.1,
    "initializer_range": 0.02,
    "max_position_embeddings": 64,
    "model_type": "distilbert",
    "pad_token_id": 0,
    "qa_dropout": 0.1,
    "seq_classif_dropout": 0.2,
    "sinusoidal_pos_embds": False,
    "tie_weights_": True,
    "dim": 32,
    "n_layers": 2,
    "n_heads": 4,
    "hidden_dim": 64,
    "vocab_size": TINY.vocab_size,
}


def as_published(folder, to):
    """A copy of a folder with the files of distilbert-base-uncased: a .bin, a repeated decoder."""
    shutil.copytree(folder, to)
    weights = load_file(to / "model.safetensors")
    words = weights["distilbert.embeddings.word_embeddings.weight"]
    (to / "model.safetensors").unlink()
    (to / "config.json").write_text(json.dumps(PUBLISHED_CONFIG))
    torch.save({**weights, "vocab_projector.weight": words}, to / "pytorch_model.bin")
    return to


@torch.no_grad()
def test_other_names_and_extra_weights_load_the_same_model(distilbert, tmp_path):
    folder, _ = distilbert
    extras = {"distilbert.embeddings.position_ids": torch.arange(64)[None],
              "pre_classifier.bias": torch.ones(32)}
    variants = [
        as_published(folder, tmp_path / "published"),
        changed(folder, tmp_path / "old", weights=with_more(extras)),
        changed(folder, tmp_path / "bare", weights=without_prefix),
    ]
    expected = load_model(folder)(IDS)
    for variant in variants:
        assert torch.equal(load_model(variant)(IDS), expected)


KEY = "distilbert.transformer.layer.1.attention.k_lin"
DO_NOT_FIT = {
    "no head": (
        without("vocab_"),
        "lacks vocab_projector.bias, vocab_transform.*which DistilBertForMaskedLM needs"),
    "no key": (
        without("layer.1.attention.k_lin"),
        f"lacks {KEY}.weight, {KEY}.bias"),
    "a wrong shape": (
        with_more({"distilbert.transformer.layer.0.ffn.lin1.weight": torch.ones(3, 32)}),
        r"ffn.lin1.weight is \(3, 32\), not \(64, 32\)"),
    "a layer too many": (
        with_more({"distilbert.transformer.layer.2.ffn.lin2.bias": torch.ones(32)}),
        "no place for distilbert.transformer.layer.2.ffn.lin2.bias"),
    "token types": (
        with_more({"distilbert.embeddings.token_type_embeddings.weight": torch.ones(2, 32)}),
        "no place for distilbert.embeddings.token_type"),
    "an untied decoder": (
        with_more({"vocab_projector.weight": torch.ones(TINY.vocab_size, 32)}),
        "vocab_projector.weight differs from .* not tied"),
    "NaN": (
        with_more({"vocab_projector.bias": torch.full((TINY.vocab_size,), float("nan"))}),
        "not finite"),
}


@pytest.mark.parametrize("what", DO_NOT_FIT)
def test_weights_that_do_not_fit_are_named(distilbert, tmp_path, what):
    change, message = DO_NOT_FIT[what]
    with pytest.raises(InputError, match=message):
        load_model(changed(distilbert[0], tmp_path, weights=change))


@pytest.mark.parametrize("config, message", [
    ({"activation": "relu"}, "activation is 'relu'; only 'gelu'"),
    ({"tie_weights_": False}, "decoder is not tied to the word embeddings"),
    ({"tie_word_embeddings": False}, "decoder is not tied to the word embeddings"),
    ({"n_heads": 5}, "config.json: dim 32 is not divisible by n_heads 5"),
    ({"hidden_dim": "x"}, "config.json: hidden_dim must be a positive whole number, not 'x'"),
    ({"attention_dropout": 2}, "config.json: attention_dropout must be a number"),
    ({"model_type": "bert"}, "lacks hidden_size"),
])
def test_a_config_with_a_wrong_field_is_an_error(distilbert, tmp_path, config, message):
    with pytest.raises(InputError, match=message):
        load_model(changed(distilbert[0], tmp_path, config))


def test_a_config_without_its_sizes_is_an_error(distilbert, tmp_path):
    with pytest.raises(InputError, match="lacks dim, n_layers"):
        load_model(changed(distilbert[0], tmp_path, remove=("dim", "n_layers")))


def test_a_task_head_is_refused_but_its_encoder_can_be_loaded(
        distilbert, world, tmp_path, refused):
    folder = tmp_path / "tuned"
    reference = transformers.DistilBertForSequenceClassification(distilbert[1].config).eval()
    reference.save_pretrained(folder)
    shutil.copy(world / "teacher" / "vocab.txt", folder)
    message = "tuned: is a DistilBERT, whose task heads differ from BERT's"
    for new in ((), ("pooler",)):
        with pytest.raises(InputError, match=message):
            load_model(folder, Classifier, new=new)
    with pytest.raises(InputError, match="lacks vocab_projector.bias, vocab_.* which DistilBertFor"
                                         "MaskedLM needs"):
        load_model(folder)
    assert message in refused(
        finetune, "--model", world / "teacher", "--teacher", folder, "--task", "cola",
        "--data_dir", world / "data", "--out_dir", tmp_path / "run", "--max_length", 32)
    model = load_model(folder, Classifier, new=BOTH_PARTS, num_labels=3)
    with torch.no_grad():
        hidden = reference.distilbert(input_ids=IDS, attention_mask=MASK).last_hidden_state
        assert close(model.bert(IDS, MASK), hidden)
        assert model(IDS).shape == (3, 3)


# ---- Export ----

@torch.no_grad()
def test_transformers_opens_the_export_with_the_same_logits(exported):
    model, folder = exported
    reference, report = transformers.DistilBertForMaskedLM.from_pretrained(
        folder, output_loading_info=True)
    reference.eval()
    assert not any(report.values()), report
    ours = model(IDS, MASK)
    assert close(reference(input_ids=IDS, attention_mask=MASK).logits, ours)
    assert close(reference(input_ids=IDS).logits, model(IDS), ALL)
    assert close(load_model(folder)(IDS, MASK), ours)  # and read back
    # The token types do have an effect.
    token_types = model.bert.embeddings.token_type.weight
    assert token_types.abs().min(-1).values.max() > 0
    assert not close(model(IDS, MASK, token_type_ids=ALL), ours)


def test_the_export_has_the_five_files_and_the_depth(exported):
    _, folder = exported
    config = transformers.AutoConfig.from_pretrained(folder)
    assert config.n_layers == TINY.num_hidden_layers
    assert sorted(file.name for file in folder.iterdir()) == [
        "config.json", "model.safetensors", "tokenizer.json", "tokenizer_config.json", "vocab.txt"]


def test_the_exported_tokenizer_fits_the_exported_model(exported, tokenizer):
    _, folder = exported
    text = ["Good FILM , bad 'unknownword'", "banbinbads"]
    theirs = transformers.AutoTokenizer.from_pretrained(folder)
    model = transformers.AutoModelForMaskedLM.from_pretrained(folder)
    assert theirs(text)["input_ids"] == token_ids(tokenizer, text)
    batch = theirs(text, padding=True, return_tensors="pt")  # no token types: it takes none
    assert model(**batch).logits.isfinite().all()
    assert theirs(text)["input_ids"] == token_ids(load_tokenizer(folder), text)


def test_a_model_that_cannot_be_exported_is_an_error(
        world, tokenizer, distilbert, tmp_path, refused):
    tuned = tmp_path / "tuned"
    save_model(load_model(world / "teacher", Classifier, new=BOTH_PARTS), tokenizer, tuned)
    headless = changed(tuned, tmp_path / "headless", remove=("architectures",))
    other_eps = changed(world / "teacher", tmp_path / "eps", {"layer_norm_eps": 1e-5})
    errors = {
        tuned: "tuned: is fine-tuned (['BertForSequenceClassification']), and DistilBERT's task",
        headless: "lacks cls.predictions.bias",
        distilbert[0]: "is already a DistilBERT",
        other_eps: "config.json: layer_norm_eps is 1e-05, but DistilBERT's is always 1e-12",
        tmp_path / "absent": "absent: no such folder",
    }
    for folder, message in errors.items():
        line = refused(load_hf_weights, folder, "--to", "distilbert", "--out", tmp_path / "out")
        assert message in line
        assert not (tmp_path / "out").exists()


def test_wrong_arguments_of_the_command_are_an_error(world, tmp_path, refused):
    out = tmp_path / "out"
    (tmp_path / "full").mkdir()
    (tmp_path / "full" / "file").touch()
    to_distilbert = ("--to", "distilbert", "--out")
    errors = [
        ((*to_distilbert, tmp_path / "full"), "is there already, and not an empty folder"),
        ((*to_distilbert, world / "corpus.txt"), "is there already"),
        (("--out", out), "teacher: is a local folder; add --to distilbert to convert it"),
        (("--to", "roberta", "--out", out), "--to: invalid choice: 'roberta'"),
    ]
    for arguments, message in errors:
        assert message in refused(load_hf_weights, world / "teacher", *arguments)
        assert not out.exists()


# ---- In the other commands ----

def test_it_is_fine_tuned_and_learns_the_second_segment(distilbert, world, tmp_path):
    run(finetune, "--model", distilbert[0], "--task", "mrpc", "--data_dir", world / "data",
        "--out_dir", tmp_path / "run", "--epochs", 1, "--max_length", 32, "--device", "cpu",
        "--precision", "fp32")
    tuned = load_model(tmp_path / "run", Classifier)
    token_types = tuned.bert.embeddings.token_type.weight
    assert token_types.abs().min() > 0  # both rows started as zeros
    reference = transformers.AutoModelForSequenceClassification.from_pretrained(tmp_path / "run")
    assert reference.config.model_type == "bert"


def test_it_can_be_the_teacher(distilbert, world, tmp_path):
    record = run(
        pretrain, "--teacher", distilbert[0], "--corpus", world / "corpus.txt", "--out_dir",
        tmp_path / "run", "--steps", 2, "--batch_size", 4, "--max_length", 32, "--cache_dir",
        tmp_path / "cache", "--device", "cpu", "--precision", "fp32")
    assert record["heldout_after"]["kl"] > 0
    assert isinstance(load_model(tmp_path / "run"), MaskedLM)


def experiment(world, out_dir, *more):
    """The arguments of ablation.py for a small experiment of two variants and two tasks."""
    pretrain_args = ("--steps 2 --log_every 1 --batch_size 4 --max_length 32 "
                     f"--cache_dir {world / 'cache'}")
    finetune_args = "--epochs 1 --max_length 32 --train_rows 32"
    return ("--preset", "mini", "--teacher", world / "teacher", "--corpus", world / "corpus.txt",
            "--heldout", world / "heldout.txt", "--data_dir", world / "data",
            "--out_dir", out_dir, "--tasks", "cola,imdb", "--variants", "full,no_mlm",
            "--seeds", 1, "--precision", "fp32", "--device", "cpu",
            "--pretrain_args", pretrain_args, "--finetune_args", finetune_args, *more)


def first_columns(text):
    """For each section of a report, the first cells of its tables' rows."""
    return [re.findall(r"^\| ([^|]+?) \|", part, re.MULTILINE) for part in text.split("## ")]


def test_it_is_a_row_of_the_report(distilbert, world, tmp_path, capsys, monkeypatch):
    also = ("--also", f"published={distilbert[0]}", "--also", f"small={world / 'teacher'}")
    run(ablation, *experiment(world, tmp_path, *also))
    printed = capsys.readouterr().out
    assert printed.startswith("2 students to distil from")
    assert ("5 models to fine-tune and probe on cola, imdb, with seed 0: 22 runs, of which 22 are "
            "to do" in printed)

    tuned = tmp_path / "published" / "seed0" / "imdb"
    arguments = read_json(tuned / "run.json")["arguments"]
    assert arguments["model"] == str(distilbert[0]) and arguments["seed"] == 0

    text = (tmp_path / "report.md").read_text()
    _, scores, changes, probes, heldout = first_columns(text)
    assert scores == ["model", "---", "teacher", "full (baseline)", "no MLM loss", "published",
                      "small", "(majority)", "(TF-IDF)"]
    assert changes == ["variant", "---", "teacher", "no MLM loss", "published", "small"]
    assert probes == scores + changes
    assert heldout == ["student", "---", "full (baseline)", "no MLM loss"]
    assert re.search(r"students \d+\.\d, fine-tuning the other models \d+\.\d, probes \d+\.\d\.",
                     text)

    scores = read_json(tmp_path / "results.json")["scores"]
    score = read_json(tuned / "results.json")["score"]
    assert scores["published"]["imdb"]["mean"] == pytest.approx(score)
    assert scores["small"] == scores["teacher"]  # the same folder with the same seed

    monkeypatch.setattr("finetune.train", None)  # a call would fail: nothing is trained again
    run(ablation, *experiment(world, tmp_path, *also))
    assert (tmp_path / "report.md").read_text() == text
    run(ablation, *experiment(world, tmp_path))  # now without the further models
    assert "published" not in (tmp_path / "report.md").read_text()


@pytest.mark.parametrize("also, message", [
    (["x"], "--also: 'x' is not NAME=FOLDER"),
    (["=x"], "is not NAME=FOLDER"),
    (["../x=x"], "is not NAME=FOLDER"),
    (["x="], "is not NAME=FOLDER"),
    (["no_cos=x"], "the name no_cos is taken"),
    (["teacher=x"], "the name teacher is taken"),
    (["x=y", "x=z"], "--also: two models have the same name"),
    (["x=nowhere"], "nowhere: no such folder"),
])
def test_a_wrong_further_model_is_an_error(world, tmp_path, refused, also, message):
    line = refused(ablation, *experiment(world, tmp_path / "out", "--also", *also))
    assert message in line and not (tmp_path / "out").exists()


# ---- A real model ----

@pytest.mark.skipif(not (SHARED / "models").is_dir(), reason="the real models are not here")
def test_a_real_model_is_exported_with_the_same_logits(tmp_path):
    folder, out = SHARED / "models" / "minilm-l6-mlm", tmp_path / "out"
    run(load_hf_weights, folder, "--to", "distilbert", "--out", out)
    reference = transformers.DistilBertForMaskedLM.from_pretrained(out).eval()
    tokens = load_tokenizer(out).encode("The capital of France is [MASK].")
    input_ids = torch.tensor([tokens.ids])
    with torch.no_grad():
        expected = load_model(folder)(input_ids)
        assert (reference(input_ids=input_ids).logits - expected).abs().max() < 1e-4
