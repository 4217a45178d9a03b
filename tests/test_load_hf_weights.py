"""Hugging Face's BERT folders: every trap of the layout, and both directions with transformers."""
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
WORDS = "bert.embeddings.word_embeddings.weight"
MLM_BIAS = "cls.predictions.bias"
BOTH_PARTS = ("pooler", "classifier")  # all of a Classifier's head


# ---- Helpers ----

def rewrite(world, folder, change):
    """A copy of the teacher with changed weights. change: {name: tensor} -> {name: tensor}."""
    shutil.copytree(world / "teacher", folder, dirs_exist_ok=True)
    weights = change(load_file(folder / "model.safetensors"))
    contiguous = {name: tensor.contiguous() for name, tensor in weights.items()}
    save_file(contiguous, folder / "model.safetensors")
    return folder


def teacher_without_weights(world, folder):
    shutil.copytree(world / "teacher", folder)
    (folder / "model.safetensors").unlink()
    return folder


def logits(folder, cls=MaskedLM, **kwargs):
    with torch.no_grad():
        return load_model(folder, cls, **kwargs)(IDS)


def renamed(*replacements):
    """A change of weights: (old, new) in every name."""
    def change(weights):
        result = {}
        for name, tensor in weights.items():
            for old, new in replacements:
                name = name.replace(old, new)
            result[name] = tensor
        return result
    return change


def without(*parts):
    """A change of weights: drop each whose name contains one of the parts."""
    def change(weights):
        kept = dict(weights)
        for part in parts:
            kept = {name: tensor for name, tensor in kept.items() if part not in name}
        return kept
    return change


def with_more(more):
    """A change of weights: add or replace these, {name: tensor}."""
    return lambda weights: {**weights, **more}


# ---- Reading weights ----

def without_bert_prefix(weights):
    return {name.removeprefix("bert."): tensor for name, tensor in weights.items()}


def with_decoder_repeated(weights):
    return {**weights, "cls.predictions.decoder.weight": weights[WORDS].clone(),
            "cls.predictions.decoder.bias": weights[MLM_BIAS].clone()}


TRAPS = {
    "gamma and beta": renamed(("LayerNorm.weight", "LayerNorm.gamma"),
                              ("LayerNorm.bias", "LayerNorm.beta")),
    "no bert. prefix": without_bert_prefix,
    "decoder repeated": with_decoder_repeated,
    "bias under the decoder's name alone": renamed(
        ("predictions.bias", "predictions.decoder.bias")),
    "buffers": with_more({"bert.embeddings.position_ids": torch.arange(64)[None]}),
    "next-sentence head and pooler": with_more({
        "cls.seq_relationship.weight": torch.ones(2, 32),
        "cls.seq_relationship.bias": torch.ones(2),
        "bert.pooler.dense.weight": torch.ones(32, 32),
        "bert.pooler.dense.bias": torch.ones(32)}),
}


@pytest.mark.parametrize("trap", TRAPS)
def test_other_names_and_extra_weights_load_the_same_model(world, tmp_path, trap):
    folder = rewrite(world, tmp_path, TRAPS[trap])
    assert torch.equal(logits(folder), logits(world / "teacher"))


@pytest.mark.parametrize("dtype, error", [(torch.float16, 1e-2), (torch.bfloat16, 1e-1)])
def test_half_precision_becomes_full(world, tmp_path, dtype, error):
    def to_half(weights):
        return {name: tensor.to(dtype) for name, tensor in weights.items()}
    folder = rewrite(world, tmp_path, to_half)
    assert load_model(folder).head.dense.weight.dtype == torch.float32
    assert (logits(folder) - logits(world / "teacher")).abs().max() < error


def write_shards(folder, halves, stem, suffix, save):
    """Two shards and their index. Returns (index, shards)."""
    files = [f"{stem}-0000{i}-of-00002.{suffix}" for i in (1, 2)]
    weight_map = {}
    for file, half in zip(files, halves):
        save(half, folder / file)
        weight_map |= dict.fromkeys(half, file)
    index = folder / f"{stem}.{suffix}.index.json"
    index.write_text(json.dumps({"weight_map": weight_map}))
    return index, [folder / file for file in files]


def test_bin_files_and_shards_load_the_same_model(world, tmp_path):
    weights = load_file(world / "teacher" / "model.safetensors")
    items = list(weights.items())
    halves = dict(items[::2]), dict(items[1::2])
    whole, bin_shards, shards = (
        teacher_without_weights(world, tmp_path / name) for name in ("bin", "bin shards", "shards"))
    torch.save(weights, whole / "pytorch_model.bin")
    write_shards(bin_shards, halves, "pytorch_model", "bin", torch.save)
    write_shards(shards, halves, "model", "safetensors", save_file)
    for folder in (whole, bin_shards, shards):
        assert torch.equal(logits(folder), logits(world / "teacher"))


def test_a_missing_shard_or_a_wrong_index_is_an_error(world, tmp_path):
    items = list(load_file(world / "teacher" / "model.safetensors").items())
    folder = teacher_without_weights(world, tmp_path / "shards")
    halves = dict(items[::2]), dict(items[1::2])
    index, shards = write_shards(folder, halves, "model", "safetensors", save_file)
    shards[1].unlink()
    with pytest.raises(InputError, match="00002-of-00002.*shard is missing"):
        load_model(folder)
    index.write_text(json.dumps({"weight_map": {"x": "../elsewhere.safetensors"}}))
    with pytest.raises(InputError, match="outside the folder"):
        load_model(folder)
    index.write_text(json.dumps({"weight_map": ["x"]}))
    with pytest.raises(InputError, match="has no weight_map"):
        load_model(folder)


def test_a_pickle_with_code_is_refused_and_its_code_does_not_run(world, tmp_path):
    class Code:
        def __reduce__(self):
            return (open, (str(tmp_path / "written"), "w"))

    file = teacher_without_weights(world, tmp_path / "model") / "pytorch_model.bin"
    torch.save({"x": Code()}, file)
    with pytest.raises(InputError, match="cannot be read as weights"):
        load_model(tmp_path / "model")
    file.write_bytes(pickle.dumps(Code()))
    with pytest.raises(InputError, match="cannot be read as weights"):
        load_model(tmp_path / "model")
    assert not (tmp_path / "written").exists()


def with_another_decoder(weights):
    return {**weights, "cls.predictions.decoder.weight": torch.ones_like(weights[WORDS])}


def with_nan_bias(weights):
    return {**weights, MLM_BIAS: torch.full_like(weights[MLM_BIAS], float("nan"))}


KEY = "bert.encoder.layer.2.attention.self.key"
DO_NOT_FIT = {
    "no head": (
        without("cls."),
        "lacks cls.predictions.bias, cls.predictions.transform.*which BertForMaskedLM needs"),
    "no key": (
        without("layer.2.attention.self.key"),
        f"lacks {KEY}.weight, {KEY}.bias"),
    "a wrong shape": (
        with_more({"bert.encoder.layer.0.intermediate.dense.weight": torch.ones(3, 32)}),
        r"intermediate.dense.weight is \(3, 32\), not \(64, 32\)"),
    "a layer too many": (
        with_more({"bert.encoder.layer.4.output.dense.bias": torch.ones(32)}),
        "no place for bert.encoder.layer.4.output.dense.bias"),
    "an untied decoder": (with_another_decoder, "not tied"),
    "NaN": (with_nan_bias, "not finite"),
}


@pytest.mark.parametrize("what", DO_NOT_FIT)
def test_weights_that_do_not_fit_are_named(world, tmp_path, what):
    change, message = DO_NOT_FIT[what]
    with pytest.raises(InputError, match=message):
        load_model(rewrite(world, tmp_path, change))


@pytest.mark.parametrize("content", [
    b"", b"\x10", b"\xff" * 100, b"\x08\0\0\0\0\0\0\0{\"a\": 1}"])
def test_damaged_safetensors_are_an_error(world, tmp_path, content):
    shutil.copytree(world / "teacher", tmp_path, dirs_exist_ok=True)
    file = tmp_path / "model.safetensors"
    complete = file.read_bytes()
    file.write_bytes(content)
    with pytest.raises(InputError, match="model.safetensors: cannot be read as weights"):
        load_model(tmp_path)
    file.write_bytes(complete[:-50])
    with pytest.raises(InputError, match="cannot be read as weights"):
        load_model(tmp_path)


def test_only_the_named_parts_start_at_random(world, tmp_path):
    teacher = world / "teacher"
    architecture = "BertForSequenceClassification"
    with pytest.raises(InputError, match=f"lacks bert.pooler.dense.weight.*{architecture} needs"):
        load_model(teacher, Classifier)
    with pytest.raises(InputError, match="lacks classifier.weight, classifier.bias"):
        load_model(teacher, Classifier, new=("pooler",))
    torch.manual_seed(3)
    first = load_model(teacher, Classifier, new=BOTH_PARTS, num_labels=3)
    assert first.head.weight.shape == (3, 32) and first.head.bias.abs().sum() == 0
    assert 0 < first.pooler.dense.weight.std() < 0.03
    assert all(parameter.requires_grad for parameter in first.parameters()) and not first.training
    torch.manual_seed(3)
    second = load_model(teacher, Classifier, new=BOTH_PARTS, num_labels=3)
    assert torch.equal(first.head.weight, second.head.weight)


# ---- Reading config.json ----

NOT_IMPLEMENTED = [
    ({"model_type": "roberta"}, "model_type is 'roberta'; only BERT"),
    ({"model_type": "distilbert"}, "lacks dim, n_layers, n_heads, hidden_dim"),
    ({"hidden_act": "relu"}, "hidden_act is 'relu'; only 'gelu'"),
    ({"position_embedding_type": "relative_key"}, "position_embedding_type"),
    ({"tie_word_embeddings": False}, "decoder is not tied to the word embeddings"),
    ({"num_attention_heads": 5}, "hidden_size 32 is not divisible by num_attention_heads 5"),
    ({"hidden_dropout_prob": "x"},
     "hidden_dropout_prob must be a number from 0 to below 1, not 'x'"),
    ({"attention_probs_dropout_prob": 1.5}, "attention_probs_dropout_prob must be"),
    ({"id2label": 5}, "id2label must map class numbers to names"),
    ({"pad_token_id": "x"}, "pad_token_id must be"),
    ({"num_hidden_layers": "four"},
     "num_hidden_layers must be a positive whole number, not 'four'"),
    ({"intermediate_size": True}, "intermediate_size must be a positive whole number, not True"),
    ({"vocab_size": 10 ** 15},
     "asks for 4 layers and 122,934,579.8 GiB of weights; this machine has"),
    ({"vocab_size": 10 ** 4}, "does not fit its config.json"),
]


@pytest.mark.parametrize("change, message", NOT_IMPLEMENTED)
def test_a_config_with_a_wrong_field_is_an_error(world, tmp_path, change, message):
    shutil.copytree(world / "teacher", tmp_path, dirs_exist_ok=True)
    config = json.loads((tmp_path / "config.json").read_text())
    (tmp_path / "config.json").write_text(json.dumps({**config, **change}))
    with pytest.raises(InputError, match=message):
        load_model(tmp_path)


@pytest.mark.parametrize("text, message", [
    ("{", "not JSON"), ("[]", "not a JSON object"), ("{}", "lacks vocab_size, hidden_size")])
def test_a_file_that_is_no_config_is_an_error(tmp_path, text, message):
    (tmp_path / "config.json").write_text(text)
    with pytest.raises(InputError, match=message):
        read_config(tmp_path)
    with pytest.raises(InputError, match="absent: no such folder"):
        read_config(tmp_path / "absent")
    (tmp_path / "config.json").unlink()
    with pytest.raises(InputError, match="config.json: no such file"):
        read_config(tmp_path)


# ---- Writing, for transformers ----

TEXT = ["Good FILM , bad 'unknownword'", "banbinbads"]


def token_ids(tokenizer, texts):
    return [encoding.ids for encoding in tokenizer.encode_batch(texts)]


def open_with(auto_class, folder):
    """transformers' model from a folder, which must have all of its weights and no others."""
    reference, report = auto_class.from_pretrained(folder, output_loading_info=True)
    assert not report["missing_keys"] and not report["unexpected_keys"]
    return reference.eval()


def test_transformers_opens_a_student_with_the_same_logits(world, tokenizer, tmp_path):
    torch.manual_seed(0)
    student = make_student(load_model(world / "teacher")).eval()
    for parameter in student.parameters():
        parameter.data += torch.randn_like(parameter) * 0.1
    save_model(student, tokenizer, tmp_path)
    reference = open_with(transformers.BertForMaskedLM, tmp_path)
    with torch.no_grad():
        assert (reference(input_ids=IDS).logits - student(IDS)).abs().max() < 1e-5
    assert transformers.AutoConfig.from_pretrained(tmp_path).num_hidden_layers == 2
    their_tokenizer = transformers.AutoTokenizer.from_pretrained(tmp_path)
    assert their_tokenizer(TEXT)["input_ids"] == token_ids(tokenizer, TEXT)


def test_transformers_opens_a_classifier_with_the_same_logits_and_labels(
        world, tokenizer, tmp_path):
    model = load_model(world / "teacher", Classifier, new=BOTH_PARTS, num_labels=3)
    labels = {0: "entailment", 1: "neutral", 2: "contradiction"}
    model.config = dataclasses.replace(model.config, id2label=labels)
    save_model(model, tokenizer, tmp_path)
    reference = open_with(transformers.AutoModelForSequenceClassification, tmp_path)
    assert reference.config.id2label[2] == "contradiction"
    assert reference.config.label2id["neutral"] == 1
    with torch.no_grad():
        assert (reference(input_ids=IDS).logits - model(IDS)).abs().max() < 1e-5
        # num_labels comes from config.json
        assert torch.equal(load_model(tmp_path, Classifier)(IDS), model(IDS))


def test_saving_writes_the_five_files_and_nothing_else(world, tokenizer, tmp_path):
    folder = tmp_path / "a" / "b"
    save_model(load_model(world / "teacher"), tokenizer, folder)
    assert sorted(file.name for file in folder.iterdir()) == [
        "config.json", "model.safetensors", "tokenizer.json", "tokenizer_config.json", "vocab.txt"]
    original = (world / "teacher" / "model.safetensors").read_bytes()
    assert (folder / "model.safetensors").read_bytes() == original


# ---- Tokenizers ----

def test_padding_and_truncation_in_tokenizer_json_are_ignored(world, tmp_path):
    shutil.copytree(world / "teacher", tmp_path, dirs_exist_ok=True)
    tokenizer = load_tokenizer(tmp_path)
    tokenizer.enable_padding(length=40)
    tokenizer.enable_truncation(6)
    tokenizer.save(str(tmp_path / "tokenizer.json"))
    loaded = load_tokenizer(tmp_path)
    assert len(loaded.encode("good").ids) == 3
    assert len(loaded.encode("good " * 50).ids) == 52


@pytest.mark.parametrize("lower", [True, False])
def test_a_tokenizer_from_vocab_txt_equals_that_of_transformers(world, tmp_path, lower):
    for name in ("vocab.txt", "config.json"):
        shutil.copy(world / "teacher" / name, tmp_path)
    if not lower:
        (tmp_path / "tokenizer_config.json").write_text(json.dumps({"do_lower_case": False}))
    tokens = (tmp_path / "vocab.txt").read_text().split()
    vocab = {token: number for number, token in enumerate(tokens)}
    reference = transformers.BertTokenizer(vocab=vocab, do_lower_case=lower)
    text = ["Good films, BAD'a films.", "bànbàns", "good[MASK]bad", ""]
    assert token_ids(load_tokenizer(tmp_path), text) == reference(text)["input_ids"]


def test_a_vocabulary_that_does_not_fit_is_an_error(world, tmp_path):
    shutil.copy(world / "teacher" / "config.json", tmp_path)
    with pytest.raises(InputError, match="neither tokenizer.json nor vocab.txt"):
        load_tokenizer(tmp_path)
    vocab = (world / "teacher" / "vocab.txt").read_text()
    (tmp_path / "vocab.txt").write_text(vocab + "onemore\n")
    with pytest.raises(InputError, match="but config.json has a vocab_size of"):
        load_tokenizer(tmp_path)
    (tmp_path / "vocab.txt").write_text(vocab.replace("[MASK]", "mask"))
    with pytest.raises(InputError, match=r"lacks \[MASK\]"):
        load_tokenizer(tmp_path)
    (tmp_path / "tokenizer.json").write_text("nonsense")
    with pytest.raises(InputError, match="tokenizer.json: cannot be read"):
        load_tokenizer(tmp_path)


# ---- Real models ----

@pytest.mark.skipif(not (SHARED / "models").is_dir(), reason="the real models are not here")
def test_real_checkpoints_give_the_logits_and_tokens_of_transformers():
    folder = SHARED / "models" / "minilm-l6-mlm"
    reference = transformers.BertForMaskedLM.from_pretrained(folder, dtype=torch.float32).eval()
    tokenizer = load_tokenizer(folder)
    input_ids = torch.tensor([tokenizer.encode("The capital of France is [MASK].").ids])
    with torch.no_grad():
        ours, theirs = load_model(folder)(input_ids), reference(input_ids=input_ids).logits
    assert (ours - theirs).abs().max() < 1e-4
    text = "Naïve café-goers don't like 北京's \"tests\"?"
    other = load_tokenizer(SHARED / "models" / "bert-base-uncased")
    assert tokenizer.encode(text).ids == other.encode(text).ids
