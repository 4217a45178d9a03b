"""Tokenizers of all kinds of folders: the ids that transformers' AutoTokenizer gives, before and
after saving, or a refusal in one line."""
import dataclasses
import json

import pytest
import torch
import transformers
from conftest import TINY
from tokenizers import Tokenizer, models, normalizers, pre_tokenizers, processors

from load_hf_weights import load_tokenizer, save_model
from model import MaskedLM
from support.errors import InputError

VOCAB = ["[PAD]", "[UNK]", "[CLS]", "[SEP]", "[MASK]", "good", "Good", "film", "bad", "##s", "bàn",
         "ban", ".", "a", "京", "do"]
NEXT = len(VOCAB)
TEXTS = ["Good films bàn <x> newtok newtoks Good[MASK].", "北京 a京 don't", "a newtok<x> BAD  ", ""]
BERT = {"tokenizer_class": "BertTokenizer"}
AS_IT_IS = {"tokenizer_class": "PreTrainedTokenizerFast"}


def whole(lowercase=True, normalizer=None, pre_tokenizer=None, added=()):
    """The content of a tokenizer.json."""
    vocab = {token: number for number, token in enumerate(VOCAB)}
    tokenizer = Tokenizer(models.WordPiece(vocab, unk_token="[UNK]"))
    tokenizer.normalizer = normalizer or normalizers.BertNormalizer(lowercase=lowercase)
    tokenizer.pre_tokenizer = pre_tokenizer or pre_tokenizers.BertPreTokenizer()
    tokenizer.post_processor = processors.BertProcessing(("[SEP]", 3), ("[CLS]", 2))
    tokenizer.add_special_tokens(VOCAB[:5])
    tokenizer.add_tokens(list(added))
    return tokenizer.to_str()


def added_decoder(number, **flags):
    fields = {"content": "newtok", "lstrip": False, "rstrip": False, "normalized": False,
              "single_word": False, "special": False, **flags}
    return {"added_tokens_decoder": {str(number): fields}}


SEQUENCE = normalizers.Sequence([normalizers.NFC(), normalizers.Lowercase()])
CASED_SEQUENCE = normalizers.Sequence([normalizers.NFC()])
MORE = {"additional_special_tokens": ["<x>"]}
# {name: the files of a folder}. A value is the file's text, or an object to be written as JSON.
SAME_IDS = {
    "vocab.txt alone": {},
    "vocab.txt, cased": {"tokenizer_config.json": {"do_lower_case": False}},
    "vocab.txt, accents kept": {"tokenizer_config.json": {**BERT, "strip_accents": False}},
    "vocab.txt, Chinese joined": {
        "tokenizer_config.json": {**BERT, "tokenize_chinese_chars": False}},
    "tokenizer.json alone": {"vocab.txt": None, "tokenizer.json": whole()},
    "cased, and settings that do not say so": {
        "tokenizer.json": whole(lowercase=False), "tokenizer_config.json": BERT},
    "lower case, and settings that say cased": {
        "tokenizer.json": whole(), "tokenizer_config.json": {**BERT, "do_lower_case": False}},
    "cased, and settings that say lower case": {
        "tokenizer.json": whole(lowercase=False),
        "tokenizer_config.json": {"tokenizer_class": "BertTokenizerFast", "do_lower_case": True}},
    "cased, as it is": {
        "tokenizer.json": whole(lowercase=False), "tokenizer_config.json": AS_IT_IS},
    "a sequence of normalizers": {
        "tokenizer.json": whole(normalizer=SEQUENCE), "tokenizer_config.json": AS_IT_IS},
    "a cased sequence of normalizers": {
        "tokenizer.json": whole(normalizer=CASED_SEQUENCE), "tokenizer_config.json": AS_IT_IS},
    "cut at white space": {
        "tokenizer.json": whole(lowercase=False, pre_tokenizer=pre_tokenizers.Whitespace()),
        "tokenizer_config.json": AS_IT_IS},
    "added_tokens.json": {"added_tokens.json": {"newtok": NEXT}, "tokenizer_config.json": BERT},
    "added_tokens.json alone": {"added_tokens.json": {"newtok": NEXT}},
    "added_tokens.json beside tokenizer.json": {
        "tokenizer.json": whole(), "added_tokens.json": {"newtok": NEXT}},
    "added_tokens_decoder": {"tokenizer_config.json": {**BERT, **added_decoder(NEXT)}},
    "added_tokens_decoder, whole words": {
        "tokenizer_config.json": {**BERT, **added_decoder(NEXT, single_word=True)}},
    "special_tokens_map.json": {"special_tokens_map.json": MORE, "tokenizer_config.json": BERT},
    "special tokens of an old version": {"special_tokens_map.json": {"additional_special_tokens": [
        {"__type": "AddedToken", "content": "<x>", "lstrip": False, "rstrip": False,
         "normalized": False, "single_word": False}]}},
    "special tokens in the settings": {"tokenizer_config.json": {**BERT, **MORE}},
    "special tokens beside tokenizer.json": {
        "tokenizer.json": whole(), "special_tokens_map.json": MORE, "tokenizer_config.json": BERT},
    "added in tokenizer.json": {"tokenizer.json": whole(added=["newtok", "<x>"])},
    "added, as it is": {
        "tokenizer.json": whole(added=["newtok", "<x>"]), "tokenizer_config.json": AS_IT_IS},
    "added in two ways": {
        "added_tokens.json": {"newtok": NEXT}, "special_tokens_map.json": MORE,
        "tokenizer_config.json": BERT},
}
REFUSED = {
    "Japanese": (
        {"tokenizer_config.json": {"tokenizer_class": "BertJapaneseTokenizer",
                                   "word_tokenizer_type": "mecab"}},
        "its tokenizer is a BertJapaneseTokenizer; only BERT's is implemented"),
    "a class named by config.json": (
        {"config.json": {"model_type": "bert", "tokenizer_class": "RobertaTokenizer"}},
        "its tokenizer is a RobertaTokenizer"),
    "nothing to take as it is": (
        {"tokenizer_config.json": AS_IT_IS}, "is a PreTrainedTokenizerFast; only BERT's"),
    "a sequence of normalizers, called BERT's": (
        {"tokenizer.json": whole(normalizer=SEQUENCE), "tokenizer_config.json": BERT},
        "tokenizer.json: its normalizer is Sequence, not BertNormalizer"),
    "cut at white space, called BERT's": (
        {"tokenizer.json": whole(pre_tokenizer=pre_tokenizers.Whitespace())},
        "tokenizer.json: its pre_tokenizer is Whitespace, not BertPreTokenizer"),
    "a gap before an added id": (
        {"added_tokens.json": {"newtok": NEXT + 3}},
        f"'newtok' has the id {NEXT + 3}, but the next free one is {NEXT}: there is a gap"),
    "a gap in the settings": (
        {"tokenizer_config.json": {**BERT, **added_decoder(NEXT + 1)}}, "there is a gap"),
    "ids that are none": (
        {"added_tokens.json": {"newtok": [1]}}, "its record of added tokens cannot be read"),
    "a token without its text": (
        {"tokenizer_config.json": {**BERT, "added_tokens_decoder": {"16": {"special": True}}}},
        "its record of added tokens cannot be read .KeyError"),
    "without BERT's cutting": (
        {"tokenizer_config.json": {**BERT, "do_basic_tokenize": False}},
        "do_basic_tokenize is False; only True is implemented"),
    "other special tokens": (
        {"tokenizer_config.json": {**BERT, "cls_token": "<s>"}}, "cls_token is '<s>'; only"),
}


def make_folder(folder, files):
    """Write these files, and vocab.txt and config.json unless they are among them."""
    folder.mkdir()
    config = {"vocab_size": NEXT + 4, "hidden_size": 8, "num_hidden_layers": 1,
              "num_attention_heads": 1, "intermediate_size": 8, "model_type": "bert"}
    files = {"vocab.txt": "\n".join(VOCAB) + "\n", "config.json": config, **files}
    for name, content in files.items():
        if content is not None:
            text = content if isinstance(content, str) else json.dumps(content)
            (folder / name).write_text(text, encoding="utf-8")
    return folder


def our_ids(folder):
    return [encoding.ids for encoding in load_tokenizer(folder).encode_batch(TEXTS)]


def their_ids(folder):
    return transformers.AutoTokenizer.from_pretrained(folder)(TEXTS)["input_ids"]


@pytest.mark.parametrize("name", SAME_IDS)
def test_the_ids_are_those_of_transformers_before_and_after_saving(tmp_path, name):
    folder = make_folder(tmp_path / "before", SAME_IDS[name])
    expected = their_ids(folder)
    assert our_ids(folder) == expected
    config = dataclasses.replace(TINY, vocab_size=NEXT + 4)
    torch.manual_seed(0)
    save_model(MaskedLM(config), load_tokenizer(folder), tmp_path / "after")
    assert our_ids(tmp_path / "after") == expected
    assert their_ids(tmp_path / "after") == expected


@pytest.mark.parametrize("name", REFUSED)
def test_other_tokenizers_are_refused_by_name(tmp_path, name):
    files, message = REFUSED[name]
    with pytest.raises(InputError, match=message) as refusal:
        load_tokenizer(make_folder(tmp_path / "folder", files))
    assert "\n" not in str(refusal.value)
