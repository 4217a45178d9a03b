"""load_hf_weights.py: every trap of Hugging Face's layout, files that transformers wrote, and files that transformers reads."""
import dataclasses
import json
import pickle
import shutil

import pytest
import torch
import transformers
from conftest import SHARED
from safetensors.torch import load_file, save_file

from load_hf_weights import load_model, load_tokenizer, read_config, save_model
from model import Classifier, MaskedLM, make_student
from support.errors import InputError

IDS = torch.arange(5, 25).view(2, 10)


def rewrite(world, folder, change):
    """A copy of the teacher whose weights have gone through `change`: {name: tensor} -> {name: tensor}."""
    shutil.copytree(world / "teacher", folder, dirs_exist_ok=True)
    save_file({k: v.contiguous() for k, v in change(load_file(folder / "model.safetensors")).items()}, folder / "model.safetensors")
    return folder


def logits(folder, cls=MaskedLM, **kwargs):
    with torch.no_grad():
        return load_model(folder, cls, **kwargs)(IDS)


TRAPS = {
    "gamma and beta": lambda w: {k.replace("LayerNorm.weight", "LayerNorm.gamma").replace("LayerNorm.bias", "LayerNorm.beta"): v for k, v in w.items()},
    "no bert. prefix": lambda w: {k.removeprefix("bert."): v for k, v in w.items()},
    "decoder repeated": lambda w: {**w, "cls.predictions.decoder.weight": w["bert.embeddings.word_embeddings.weight"].clone(),
                                   "cls.predictions.decoder.bias": w["cls.predictions.bias"].clone()},
    "bias under the decoder's name alone": lambda w: {k.replace("predictions.bias", "predictions.decoder.bias"): v for k, v in w.items()},
    "buffers": lambda w: {**w, "bert.embeddings.position_ids": torch.arange(64)[None]},
    "next-sentence head and pooler": lambda w: {**w, "cls.seq_relationship.weight": torch.ones(2, 32), "cls.seq_relationship.bias": torch.ones(2),
                                                "bert.pooler.dense.weight": torch.ones(32, 32), "bert.pooler.dense.bias": torch.ones(32)},
}


@pytest.mark.parametrize("trap", TRAPS)
def test_names_and_extras(world, tmp_path, trap):
    assert torch.equal(logits(rewrite(world, tmp_path, TRAPS[trap])), logits(world / "teacher"))


@pytest.mark.parametrize("dtype, error", [(torch.float16, 1e-2), (torch.bfloat16, 1e-1)])
def test_half_precision_becomes_full(world, tmp_path, dtype, error):
    folder = rewrite(world, tmp_path, lambda w: {k: v.to(dtype) for k, v in w.items()})
    assert load_model(folder).head.dense.weight.dtype == torch.float32
    assert (logits(folder) - logits(world / "teacher")).abs().max() < error


def test_bin_and_shards(world, tmp_path):
    weights = load_file(world / "teacher" / "model.safetensors")
    halves = dict(list(weights.items())[::2]), dict(list(weights.items())[1::2])

    def folder(name):
        shutil.copytree(world / "teacher", tmp_path / name)
        (tmp_path / name / "model.safetensors").unlink()
        return tmp_path / name
    torch.save(weights, folder("bin") / "pytorch_model.bin")
    for name, suffix, save in (("bin shards", "bin", torch.save), ("safetensors shards", "safetensors", save_file)):
        stem = "pytorch_model" if suffix == "bin" else "model"
        files = [f"{stem}-0000{i}-of-00002.{suffix}" for i in (1, 2)]
        sharded = folder(name)
        for file, half in zip(files, halves):
            save(half, sharded / file)
        (sharded / f"{stem}.{suffix}.index.json").write_text(json.dumps(
            {"weight_map": {k: file for file, half in zip(files, halves) for k in half}}))
    for name in ("bin", "bin shards", "safetensors shards"):
        assert torch.equal(logits(tmp_path / name), logits(world / "teacher"))
    (sharded / files[1]).unlink()
    with pytest.raises(InputError, match="00002-of-00002.*shard is missing"):
        load_model(sharded)
    (sharded / "model.safetensors.index.json").write_text(json.dumps({"weight_map": {"x": "../elsewhere.safetensors"}}))
    with pytest.raises(InputError, match="outside the folder"):
        load_model(sharded)
    (sharded / "model.safetensors.index.json").write_text(json.dumps({"weight_map": ["x"]}))
    with pytest.raises(InputError, match="has no weight_map"):
        load_model(sharded)


def test_a_pickle_with_code_is_refused_and_its_code_not_run(world, tmp_path):
    class Code:
        def __reduce__(self):
            return (open, (str(tmp_path / "written"), "w"))
    shutil.copytree(world / "teacher", tmp_path / "model")
    (tmp_path / "model" / "model.safetensors").unlink()
    for dump in (lambda file: torch.save({"x": Code()}, file), lambda file: file.write_bytes(pickle.dumps(Code()))):
        dump(tmp_path / "model" / "pytorch_model.bin")
        with pytest.raises(InputError, match="cannot be read as weights"):
            load_model(tmp_path / "model")
    assert not (tmp_path / "written").exists()


def drop(*parts):
    return lambda w: {k: v for k, v in w.items() if not any(part in k for part in parts)}


@pytest.mark.parametrize("change, message", [
    (drop("cls."), "lacks cls.predictions.bias, cls.predictions.transform.*which BertForMaskedLM needs"),
    (drop("layer.2.attention.self.key"), r"lacks bert.encoder.layer.2.attention.self.key.weight, bert.encoder.layer.2.attention.self.key.bias"),
    (lambda w: {**w, "bert.encoder.layer.0.intermediate.dense.weight": torch.ones(3, 32)}, r"intermediate.dense.weight is \(3, 32\), not \(64, 32\)"),
    (lambda w: {**w, "bert.encoder.layer.4.output.dense.bias": torch.ones(32)}, "no place for bert.encoder.layer.4.output.dense.bias"),
    (lambda w: {**w, "cls.predictions.decoder.weight": torch.ones_like(w["bert.embeddings.word_embeddings.weight"])}, "not tied"),
    (lambda w: {**w, "cls.predictions.bias": torch.full_like(w["cls.predictions.bias"], float("nan"))}, "not finite"),
])
def test_weights_that_do_not_fit_are_named(world, tmp_path, change, message):
    with pytest.raises(InputError, match=message):
        load_model(rewrite(world, tmp_path, change))


@pytest.mark.parametrize("content", [b"", b"\x10", b"\xff" * 100, b"\x08\0\0\0\0\0\0\0{\"a\": 1}"])
def test_broken_safetensors(world, tmp_path, content):
    shutil.copytree(world / "teacher", tmp_path, dirs_exist_ok=True)
    (tmp_path / "model.safetensors").write_bytes(content)
    with pytest.raises(InputError, match="model.safetensors: cannot be read as weights"):
        load_model(tmp_path)
    (tmp_path / "model.safetensors").write_bytes((world / "teacher" / "model.safetensors").read_bytes()[:-50])
    with pytest.raises(InputError, match="cannot be read as weights"):
        load_model(tmp_path)


@pytest.mark.parametrize("change, message", [
    ({"model_type": "roberta"}, "model_type is 'roberta'; only BERT"),
    ({"model_type": "distilbert"}, "lacks dim, n_layers, n_heads, hidden_dim"),
    ({"hidden_act": "relu"}, "hidden_act is 'relu'; only 'gelu'"),
    ({"position_embedding_type": "relative_key"}, "position_embedding_type"),
    ({"tie_word_embeddings": False}, "tie_word_embeddings is False"),
    ({"num_attention_heads": 5}, "hidden_size 32 is not divisible by num_attention_heads 5"),
    ({"hidden_dropout_prob": "x"}, "hidden_dropout_prob must be a number from 0 to 1, not 'x'"),
    ({"attention_probs_dropout_prob": 1.5}, "attention_probs_dropout_prob must be"),
    ({"id2label": 5}, "id2label must be a table"),
    ({"pad_token_id": None}, "pad_token_id must be"),
    ({"num_hidden_layers": "four"}, "num_hidden_layers must be a positive whole number, not 'four'"),
    ({"intermediate_size": True}, "intermediate_size must be a positive whole number, not True"),
    ({"vocab_size": 10 ** 15}, "asks for 4 layers and 122,934,579.8 GiB of weights; this machine has"),
    ({"vocab_size": 10 ** 4}, "does not fit its config.json"),
])
def test_configs_that_are_not_ours(world, tmp_path, change, message):
    shutil.copytree(world / "teacher", tmp_path, dirs_exist_ok=True)
    config = json.loads((tmp_path / "config.json").read_text())
    (tmp_path / "config.json").write_text(json.dumps({**config, **change}))
    with pytest.raises(InputError, match=message):
        load_model(tmp_path)


@pytest.mark.parametrize("text, message", [("{", "not JSON"), ("[]", "not a JSON object"), ("{}", "lacks vocab_size, hidden_size")])
def test_configs_that_are_none(tmp_path, text, message):
    (tmp_path / "config.json").write_text(text)
    with pytest.raises(InputError, match=message):
        read_config(tmp_path)
    with pytest.raises(InputError, match="config.json: no such file"):
        read_config(tmp_path / "absent")


def test_only_what_is_named_starts_at_random(world, tmp_path):
    with pytest.raises(InputError, match="lacks bert.pooler.dense.weight.*which BertForSequenceClassification needs"):
        load_model(world / "teacher", Classifier)
    with pytest.raises(InputError, match="lacks classifier.weight, classifier.bias"):
        load_model(world / "teacher", Classifier, new=("pooler",))
    torch.manual_seed(3)
    first = load_model(world / "teacher", Classifier, new=("pooler", "classifier"), num_labels=3)
    assert first.head.weight.shape == (3, 32) and first.head.bias.abs().sum() == 0 and 0 < first.pooler.dense.weight.std() < 0.03
    assert all(parameter.requires_grad for parameter in first.parameters()) and not first.training
    torch.manual_seed(3)
    assert torch.equal(first.head.weight, load_model(world / "teacher", Classifier, new=("pooler", "classifier"), num_labels=3).head.weight)


def test_transformers_opens_a_student_with_the_same_logits(world, tokenizer, tmp_path):
    torch.manual_seed(0)
    student = make_student(load_model(world / "teacher")).eval()
    for parameter in student.parameters():
        parameter.data += torch.randn_like(parameter) * 0.1
    save_model(student, tokenizer, tmp_path)
    reference, report = transformers.BertForMaskedLM.from_pretrained(tmp_path, output_loading_info=True)
    assert not report["missing_keys"] and not report["unexpected_keys"]
    with torch.no_grad():
        assert (reference.eval()(input_ids=IDS).logits - student(IDS)).abs().max() < 1e-5
    assert transformers.AutoConfig.from_pretrained(tmp_path).num_hidden_layers == 2
    text = ["Good FILM , bad 'unknownword'", "banbinbads"]
    assert transformers.AutoTokenizer.from_pretrained(tmp_path)(text)["input_ids"] == [e.ids for e in tokenizer.encode_batch(text)]


def test_transformers_opens_a_classifier_with_the_same_logits_and_labels(world, tokenizer, tmp_path):
    model = load_model(world / "teacher", Classifier, new=("pooler", "classifier"), num_labels=3)
    model.config = dataclasses.replace(model.config, id2label={0: "entailment", 1: "neutral", 2: "contradiction"})
    save_model(model, tokenizer, tmp_path)
    reference, report = transformers.AutoModelForSequenceClassification.from_pretrained(tmp_path, output_loading_info=True)
    assert not report["missing_keys"] and not report["unexpected_keys"]
    assert reference.config.id2label[2] == "contradiction" and reference.config.label2id["neutral"] == 1
    with torch.no_grad():
        assert (reference.eval()(input_ids=IDS).logits - model(IDS)).abs().max() < 1e-5
        assert torch.equal(load_model(tmp_path, Classifier)(IDS), model(IDS))  # num_labels from config.json


def test_saving_leaves_nothing_behind_but_the_model(world, tokenizer, tmp_path):
    save_model(load_model(world / "teacher"), tokenizer, tmp_path / "a" / "b")
    assert sorted(f.name for f in (tmp_path / "a" / "b").iterdir()) == [
        "config.json", "model.safetensors", "tokenizer.json", "tokenizer_config.json", "vocab.txt"]
    assert (tmp_path / "a/b/model.safetensors").read_bytes() == (world / "teacher/model.safetensors").read_bytes()


def test_tokenizer_with_baked_in_padding_and_truncation(world, tmp_path):
    shutil.copytree(world / "teacher", tmp_path, dirs_exist_ok=True)
    tokenizer = load_tokenizer(tmp_path)
    tokenizer.enable_padding(length=40)
    tokenizer.enable_truncation(6)
    tokenizer.save(str(tmp_path / "tokenizer.json"))
    assert [len(load_tokenizer(tmp_path).encode(text).ids) for text in ("good", "good " * 50)] == [3, 52]


@pytest.mark.parametrize("lower", [True, False])
def test_tokenizer_from_vocab_alone_equals_transformers(world, tmp_path, lower):
    for name in ("vocab.txt", "config.json"):
        shutil.copy(world / "teacher" / name, tmp_path)
    if not lower:
        (tmp_path / "tokenizer_config.json").write_text(json.dumps({"do_lower_case": False}))
    vocab = {token: i for i, token in enumerate((tmp_path / "vocab.txt").read_text().split())}
    reference = transformers.BertTokenizer(vocab=vocab, do_lower_case=lower)
    text = ["Good films, BAD'a films.", "bànbàns", "good[MASK]bad", ""]
    assert [e.ids for e in load_tokenizer(tmp_path).encode_batch(text)] == reference(text)["input_ids"]


def test_vocabularies_that_do_not_fit(world, tmp_path):
    shutil.copy(world / "teacher" / "config.json", tmp_path)
    with pytest.raises(InputError, match="neither tokenizer.json nor vocab.txt"):
        load_tokenizer(tmp_path)
    vocab = (world / "teacher" / "vocab.txt").read_text()
    (tmp_path / "vocab.txt").write_text(vocab + "onemore\n")
    with pytest.raises(InputError, match="config.json says"):
        load_tokenizer(tmp_path)
    (tmp_path / "vocab.txt").write_text(vocab.replace("[MASK]", "mask"))
    with pytest.raises(InputError, match=r"lacks \[MASK\]"):
        load_tokenizer(tmp_path)
    (tmp_path / "tokenizer.json").write_text("nonsense")
    with pytest.raises(InputError, match="tokenizer.json: cannot be read"):
        load_tokenizer(tmp_path)


@pytest.mark.skipif(not (SHARED / "models").is_dir(), reason="the real models do not lie beside the project")
def test_real_checkpoints():
    folder = SHARED / "models" / "minilm-l6-mlm"
    reference = transformers.BertForMaskedLM.from_pretrained(folder, dtype=torch.float32).eval()
    input_ids = torch.tensor([load_tokenizer(folder).encode("The capital of France is [MASK].").ids])
    with torch.no_grad():
        ours, theirs = load_model(folder)(input_ids), reference(input_ids=input_ids).logits
    assert (ours - theirs).abs().max() < 1e-4
    text = "Naïve café-goers don't like 北京's \"tests\"?"
    assert load_tokenizer(folder).encode(text).ids == load_tokenizer(SHARED / "models" / "bert-base-uncased").encode(text).ids
