"""BERT's WordPiece tokenizer: built from vocab.txt, checked, and written for transformers.

load_hf_weights.py decides which file of a folder is read.
"""
import json

from tokenizers import Tokenizer, decoders, models, normalizers, pre_tokenizers, processors

from support.errors import InputError
from support.files import read_json, write_file, write_json

SPECIAL_TOKENS = ("[PAD]", "[UNK]", "[CLS]", "[SEP]", "[MASK]")


def tokenizer_from_json(path):
    """The Tokenizer in a tokenizer.json. Raises InputError."""
    try:
        return Tokenizer.from_file(str(path))
    except Exception as error:  # the library raises nothing narrower
        raise InputError(f"{path}: cannot be read ({error})") from None


def tokenizer_from_vocab(folder):
    """BERT's Tokenizer from a folder's vocab.txt, which has one token a line. Raises InputError.

    Text is lower-cased unless the folder's tokenizer_config.json says otherwise."""
    vocab = read_vocab(folder)
    tokenizer = Tokenizer(
        models.WordPiece(vocab, unk_token="[UNK]", max_input_chars_per_word=100))
    tokenizer.normalizer = read_normalizer(folder / "tokenizer_config.json")
    tokenizer.pre_tokenizer = pre_tokenizers.BertPreTokenizer()
    tokenizer.decoder = decoders.WordPiece()
    tokenizer.add_special_tokens([token for token in SPECIAL_TOKENS if token in vocab])
    if "[CLS]" in vocab and "[SEP]" in vocab:
        tokenizer.post_processor = processors.BertProcessing(
            ("[SEP]", vocab["[SEP]"]), ("[CLS]", vocab["[CLS]"]))
    return tokenizer


def read_vocab(folder):
    """{token: its number} from vocab.txt: the number is that of the line, from 0."""
    path = folder / "vocab.txt"
    if not path.exists():
        raise InputError(f"{folder}: holds neither tokenizer.json nor vocab.txt")
    try:
        text = path.read_text(encoding="utf-8-sig")  # without a byte-order mark
    except UnicodeDecodeError as error:
        raise InputError(f"{path}: not UTF-8 text (byte {error.start})") from None
    lines = text.rstrip("\n").split("\n")
    return {token: number for number, token in enumerate(lines)}


def read_normalizer(path):
    """BERT's normalizer with the settings of a tokenizer_config.json, if that file exists."""
    settings = read_json(path) if path.exists() else {}
    try:
        return normalizers.BertNormalizer(
            lowercase=settings.get("do_lower_case", True),
            strip_accents=settings.get("strip_accents"),
            handle_chinese_chars=settings.get("tokenize_chinese_chars", True))
    except TypeError:
        raise InputError(f"{path}: do_lower_case, strip_accents and tokenize_chinese_chars must be "
                         "true or false") from None


def check_tokenizer(folder, tokenizer):
    """Raises InputError unless unknown words can be encoded and all special tokens exist."""
    try:
        tokenizer.encode("\N{SNOWMAN}\U0010fffd")  # words that no vocabulary has
    except Exception as error:  # the library raises nothing narrower
        raise InputError(f"{folder}: its tokenizer cannot read unknown words ({error})") from None
    missing = [token for token in SPECIAL_TOKENS if tokenizer.token_to_id(token) is None]
    if missing:
        raise InputError(f"{folder}: its vocabulary lacks {', '.join(missing)}")


def check_vocab_size(folder, tokenizer, vocab_size):
    """Raises InputError if the vocab_size of config.json is too small for the vocabulary.

    It may be larger: many models have rows to spare, for a round number or for later tokens."""
    if vocab_size < id_count(tokenizer):
        raise InputError(f"{folder}: the ids of the vocabulary go up to {id_count(tokenizer) - 1}, "
                         f"but config.json has a vocab_size of {vocab_size}")


def id_count(tokenizer):
    """The largest id + 1. Two lines of a vocab.txt may hold the same token, which has one id."""
    return max(tokenizer.get_vocab().values()) + 1


def write_tokenizer(tokenizer, folder, tokenizer_class, max_length):
    """Write vocab.txt, tokenizer.json and tokenizer_config.json.

    tokenizer_class: the class that transformers makes of them, such as "BertTokenizer"."""
    token_of = {number: token for token, number in tokenizer.get_vocab().items()}
    # A token's id is its line, so an id without a token keeps its line.
    lines = [token_of.get(i, f"[no token {i}]") for i in range(id_count(tokenizer))]
    write_file(folder / "vocab.txt", "".join(f"{token}\n" for token in lines))
    write_file(folder / "tokenizer.json", tokenizer.to_str(pretty=True))
    normalizer = json.loads(tokenizer.to_str())["normalizer"] or {}
    special = {f"{token.strip('[]').lower()}_token": token for token in SPECIAL_TOKENS}
    write_json(folder / "tokenizer_config.json", {
        "tokenizer_class": tokenizer_class,
        "do_lower_case": normalizer.get("lowercase", True),
        "strip_accents": normalizer.get("strip_accents"),
        "tokenize_chinese_chars": normalizer.get("handle_chinese_chars", True),
        "model_max_length": max_length,
        **special})
