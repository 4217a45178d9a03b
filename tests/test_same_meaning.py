"""Folders that say the same as others in other words: the same model, and the same token ids."""
import json
import shutil

import pytest
import torch
import transformers
from conftest import TINY
from safetensors.torch import load_file, save_file

import finetune
import pretrain
from load_hf_weights import load_model, load_tokenizer, read_config, save_model
from model import Bert, Classifier
from support import demo, probe
from support.corpus import token_dtype
from support.errors import InputError
from support.task_setup import load_teacher
from support.wordpiece import id_count

IDS = torch.arange(5, 25).view(2, 10)
WORDS = "bert.embeddings.word_embeddings.weight"
DECODER = "cls.predictions.decoder.weight"
TEXT = "good film , bad unknownword"


@pytest.fixture
def folder(world, tmp_path):
    """A copy of the teacher's folder."""
    return shutil.copytree(world / "teacher", tmp_path / "teacher")


def set_fields(folder, **fields):
    file = folder / "config.json"
    file.write_text(json.dumps({**json.loads(file.read_text()), **fields}))


def set_weights(folder, change):
    """change: {name: tensor} -> {name: tensor}."""
    weights = change(load_file(folder / "model.safetensors"))
    contiguous = {name: tensor.clone().contiguous() for name, tensor in weights.items()}
    save_file(contiguous, folder / "model.safetensors")


def logits(folder):
    with torch.no_grad():
        return load_model(folder)(IDS)


# ---- config.json ----

@pytest.mark.parametrize("fields", [
    {"hidden_act": "gelu_python"}, {"pad_token_id": None}, {"classifier_dropout": None},
    {"tie_word_embeddings": None}, {"model_type": None},
    {"id2label": {"0": 1, "1": 2.5}}])
def test_other_values_of_the_same_meaning(world, folder, fields):
    set_fields(folder, **fields)
    assert torch.equal(logits(folder), logits(world / "teacher"))


def test_labels_that_are_numbers_become_names(folder):
    set_fields(folder, id2label={"0": 1, "1": 2.5})
    assert read_config(folder).id2label == {"0": "1", "1": "2.5"}
    set_fields(folder, id2label={str(number): f"name {number}" for number in reversed(range(11))})
    assert list(read_config(folder).id2label.values()) == [f"name {i}" for i in range(11)]


def test_a_decoder_that_equals_the_embeddings_may_be_called_untied(world, folder):
    set_fields(folder, tie_word_embeddings=False)
    set_weights(folder, lambda weights: {**weights, DECODER: weights[WORDS]})
    assert torch.equal(logits(folder), logits(world / "teacher"))
    set_weights(folder, lambda weights: {**weights, DECODER: weights[WORDS] + 1})
    with pytest.raises(InputError, match="a decoder that is not tied"):
        load_model(folder)


def test_sinusoidal_positions_are_in_the_file(world, tmp_path):
    torch.manual_seed(0)
    reference = transformers.DistilBertForMaskedLM(transformers.DistilBertConfig(
        vocab_size=TINY.vocab_size, dim=32, n_layers=2, n_heads=4, hidden_dim=64,
        max_position_embeddings=64, sinusoidal_pos_embds=True)).eval()
    reference.save_pretrained(tmp_path)
    shutil.copy(world / "teacher" / "vocab.txt", tmp_path)
    with torch.no_grad():
        assert (logits(tmp_path) - reference(input_ids=IDS).logits).abs().max() < 1e-5
    positions = load_model(tmp_path).bert.embeddings.position.weight
    assert (positions[1, 0] - torch.tensor(1.0).sin()).abs() < 1e-6


@pytest.mark.parametrize("more", [1, 7, 64])
def test_more_rows_than_tokens_in_any_number(world, folder, more):
    def lengthen(weights):
        zeros = {name: torch.zeros(more, *tensor.shape[1:]) for name, tensor in weights.items()
                 if len(tensor) == TINY.vocab_size}
        return {**weights, **{name: torch.cat([weights[name], zeros[name]]) for name in zeros}}
    set_fields(folder, vocab_size=TINY.vocab_size + more)
    set_weights(folder, lengthen)
    assert id_count(load_tokenizer(folder)) == TINY.vocab_size
    assert torch.equal(logits(folder)[..., :TINY.vocab_size], logits(world / "teacher"))


# ---- vocab.txt ----

@pytest.mark.parametrize("change", [
    lambda text: "\ufeff" + text, lambda text: text + "\n", lambda text: text.rstrip("\n"),
    lambda text: text.replace("\n", "\r\n")],
    ids=["byte-order mark", "blank last line", "no last newline", "CRLF"])
def test_a_vocabulary_written_otherwise(world, folder, change):
    expected = load_tokenizer(folder).get_vocab()
    (folder / "tokenizer.json").unlink()
    text = (folder / "vocab.txt").read_text()
    (folder / "vocab.txt").write_bytes(change(text).encode())
    assert load_tokenizer(folder).get_vocab() == expected


def test_one_token_on_two_lines(world, folder, tmp_path):
    """The later line counts, and every other token keeps its id: here, saved, and elsewhere."""
    (folder / "tokenizer.json").unlink()
    lines = (folder / "vocab.txt").read_text().split("\n")
    first = next(i for i, token in enumerate(lines) if token == "good")
    lines[first + 1] = "good"
    (folder / "vocab.txt").write_text("\n".join(lines))
    tokenizer = load_tokenizer(folder)
    assert tokenizer.token_to_id("good") == first + 1
    assert id_count(tokenizer) == TINY.vocab_size == tokenizer.get_vocab_size() + 1
    save_model(load_model(folder), tokenizer, tmp_path / "saved")
    ids = tokenizer.encode(TEXT).ids
    assert load_tokenizer(tmp_path / "saved").encode(TEXT).ids == ids
    (tmp_path / "saved" / "tokenizer.json").unlink()
    assert load_tokenizer(tmp_path / "saved").encode(TEXT).ids == ids
    for place in (folder, tmp_path / "saved"):
        assert transformers.AutoTokenizer.from_pretrained(place)(TEXT)["input_ids"] == ids


def test_ids_beyond_the_count_of_tokens_fit_their_array(world):
    class Tokenizer:
        """65,536 tokens, of which the last has the id 65,536: a gap."""
        def get_vocab(self):
            return {str(i): i + (i == 65_535) for i in range(65_536)}
    assert token_dtype(Tokenizer()).itemsize == 4


def test_a_corpus_of_the_last_id_is_trained_on(world, folder, tmp_path, monkeypatch):
    """The largest id is beyond the count of tokens if one of them has two lines."""
    (folder / "tokenizer.json").unlink()
    lines = (folder / "vocab.txt").read_text().rstrip("\n").split("\n")
    lines[-2] = lines[6]
    (folder / "vocab.txt").write_text("\n".join(lines) + "\n")
    (tmp_path / "corpus.txt").write_text(f"{lines[-1]} {lines[8]} {lines[-1]} .\n\n" * 200)
    pretrain.main([
        "--teacher", str(folder), "--corpus", str(tmp_path / "corpus.txt"), "--steps", "2",
        "--batch_size", "2", "--max_length", "16", "--out_dir", str(tmp_path / "student"),
        "--cache_dir", str(tmp_path / "cache"), "--device", "cpu"])
    assert load_tokenizer(tmp_path / "student").get_vocab() == load_tokenizer(folder).get_vocab()


# ---- The encoder alone ----

def test_an_encoder_alone_is_loaded_and_saved(world, folder, tmp_path):
    encoder = load_model(folder, Bert)
    mask, types = torch.ones_like(IDS), torch.zeros_like(IDS)
    mask[1, 6:] = 0
    reference = transformers.BertModel.from_pretrained(folder, add_pooling_layer=False).eval()
    with torch.no_grad():
        expected = reference(input_ids=IDS, attention_mask=mask).last_hidden_state
        ours = encoder(IDS, mask, types)
        last = ours[-1] if isinstance(ours, (list, tuple)) else ours
        assert ((last - expected) * mask[..., None]).abs().max() < 1e-5
    save_model(encoder, load_tokenizer(folder), tmp_path / "encoder")
    again = load_model(tmp_path / "encoder", Bert).state_dict()
    assert all(torch.equal(again[name], weight) for name, weight in encoder.state_dict().items())


# ---- Refusals that name the cause ----

def test_one_token_type_is_too_few_for_pairs(world, folder, tmp_path, refused):
    set_fields(folder, type_vocab_size=1)
    set_weights(folder, lambda weights: {
        name: tensor[:1] if "token_type" in name else tensor for name, tensor in weights.items()})
    for command, more in ((finetune, ("--max_length", 32)), (probe, ())):
        line = refused(command, "--model", folder, "--task", "mrpc", "--data_dir", world / "data",
                       "--out_dir", tmp_path / "out", *more)
        assert "type_vocab_size 1" in line and "MRPC" in line and not (tmp_path / "out").exists()
    with pytest.raises(InputError, match="type_vocab_size 1.*MRPC"):
        load_teacher(folder, "mrpc", load_tokenizer(folder))
    set_fields(folder, id2label={"0": "no", "1": "yes"})
    with pytest.raises(InputError, match="cannot tell two texts apart"):
        demo.classify({"it": folder}, "a", "b")


def test_a_hub_name_in_place_of_a_folder(world, tmp_path, refused):
    line = refused(pretrain, "--teacher", "google-bert/bert-base-uncased", "--corpus",
                   world / "corpus.txt", "--out_dir", tmp_path / "out")
    assert "google-bert/bert-base-uncased: no such folder" in line
    assert "python load_hf_weights.py NAME --out FOLDER" in line
    assert not (tmp_path / "out").exists()


def test_a_teacher_whose_labels_have_no_names(world, tmp_path):
    torch.manual_seed(0)
    tokenizer = load_tokenizer(world / "teacher")
    teacher = load_model(world / "teacher", Classifier, new=("pooler", "classifier"))
    save_model(teacher, tokenizer, tmp_path)
    set_fields(tmp_path, id2label={"0": "LABEL_0", "1": "LABEL_1"})
    with pytest.raises(InputError, match="its labels have no names .LABEL_0, LABEL_1."):
        load_teacher(tmp_path, "sst2", tokenizer)
