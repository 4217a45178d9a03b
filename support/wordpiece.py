"""BERT's WordPiece tokenizer: read from a folder as transformers reads it, checked, and written.

transformers makes BERT's tokenizer from the vocabulary and the settings of tokenizer_config.json.
It takes what else tokenizer.json says only if the folder asks for PreTrainedTokenizerFast.
What we do not implement is refused by its name.
"""
import json

from tokenizers import (
    AddedToken,
    Tokenizer,
    decoders,
    models,
    normalizers,
    pre_tokenizers,
    processors,
)

from support.errors import InputError
from support.files import read_json, write_file, write_json

# What read_tokenizer may read, beside config.json.
TOKENIZER_FILES = ("tokenizer.json", "vocab.txt", "tokenizer_config.json", "added_tokens.json",
                   "special_tokens_map.json")
SPECIAL_TOKENS = ("[PAD]", "[UNK]", "[CLS]", "[SEP]", "[MASK]")
BERT_CLASSES = ("BertTokenizer", "BertTokenizerFast", "DistilBertTokenizer",
                "DistilBertTokenizerFast")
# Classes that take tokenizer.json as it is: today's name, and the one that all versions know.
AS_IT_IS = ("TokenizersBackend", "PreTrainedTokenizerFast")
ADDED_TOKEN_FIELDS = ("content", "single_word", "lstrip", "rstrip", "normalized", "special")


# ---- Reading ----

def read_tokenizer(folder):
    """The Tokenizer of a folder, with the ids that transformers' AutoTokenizer gives.

    Raises InputError, also for another class of tokenizer."""
    path = folder / "tokenizer_config.json"
    settings, json_file = optional_json(path), folder / "tokenizer.json"
    its_class = (settings.get("tokenizer_class")
                 or optional_json(folder / "config.json").get("tokenizer_class")
                 or BERT_CLASSES[0])
    whole = tokenizer_from_json(json_file) if json_file.exists() else None
    if whole is not None:
        check_unknown_words(folder, whole)
    if its_class in AS_IT_IS and whole is not None:
        tokenizer = whole
    elif its_class in BERT_CLASSES:
        vocab = read_vocab(folder) if whole is None else vocab_of(json_file, whole)
        tokenizer = bert_tokenizer(vocab, read_normalizer(path, settings))
    else:
        raise InputError(f"{folder}: its tokenizer is a {its_class}; only BERT's is implemented, "
                         f"or {AS_IT_IS[1]} with a tokenizer.json")
    check_settings(path, settings)
    add_later_tokens(folder, tokenizer, whole, settings)
    return tokenizer


def optional_json(path):
    return read_json(path) if path.exists() else {}


def tokenizer_from_json(path):
    """The Tokenizer in a tokenizer.json. Raises InputError."""
    try:
        return Tokenizer.from_file(str(path))
    except Exception as error:  # the library raises nothing narrower
        raise InputError(f"{path}: cannot be read ({error})") from None


def vocab_of(path, tokenizer):
    """{token: its id} of a tokenizer.json that is BERT's. Raises InputError for another kind.

    Versions of transformers differ in what they make of that, but for BERT's two settings."""
    kinds = {"model": (tokenizer.model, models.WordPiece),
             "normalizer": (tokenizer.normalizer, normalizers.BertNormalizer),
             "pre_tokenizer": (tokenizer.pre_tokenizer, pre_tokenizers.BertPreTokenizer)}
    for part, (value, kind) in kinds.items():
        if not isinstance(value, kind):
            raise InputError(f"{path}: its {part} is {type(value).__name__}, not {kind.__name__}, "
                             f"but tokenizer_config.json asks for a {BERT_CLASSES[0]}; if it is to "
                             f"be read as it is, the tokenizer_class is {AS_IT_IS[1]}")
    return tokenizer.get_vocab(with_added_tokens=False)


def bert_tokenizer(vocab, normalizer):
    """BERT's Tokenizer for {token: its id}."""
    tokenizer = Tokenizer(
        models.WordPiece(vocab, unk_token="[UNK]", max_input_chars_per_word=100))
    tokenizer.normalizer = normalizer
    tokenizer.pre_tokenizer = pre_tokenizers.BertPreTokenizer()
    tokenizer.decoder = decoders.WordPiece()
    tokenizer.add_special_tokens([token for token in SPECIAL_TOKENS if token in vocab])
    if "[CLS]" in vocab and "[SEP]" in vocab:
        tokenizer.post_processor = processors.BertProcessing(
            ("[SEP]", vocab["[SEP]"]), ("[CLS]", vocab["[CLS]"]))
    return tokenizer


def read_vocab(folder):
    """{token: its id} from vocab.txt: the id is the number of the line, from 0."""
    path = folder / "vocab.txt"
    if not path.exists():
        raise InputError(f"{folder}: holds neither tokenizer.json nor vocab.txt")
    try:
        text = path.read_text(encoding="utf-8-sig")  # without a byte-order mark
    except UnicodeDecodeError as error:
        raise InputError(f"{path}: not UTF-8 text (byte {error.start})") from None
    lines = text.rstrip("\n").split("\n")
    return {token: number for number, token in enumerate(lines)}


def read_normalizer(path, settings):
    """BERT's normalizer with the settings of a tokenizer_config.json.

    Text is lower-cased unless they say otherwise, whatever tokenizer.json says."""
    try:
        return normalizers.BertNormalizer(
            lowercase=settings.get("do_lower_case", True),
            strip_accents=settings.get("strip_accents"),
            handle_chinese_chars=settings.get("tokenize_chinese_chars", True))
    except TypeError:
        raise InputError(f"{path}: do_lower_case, strip_accents and tokenize_chinese_chars must be "
                         "true or false") from None


def check_settings(path, settings):
    """Raises InputError for a setting that we do not implement."""
    if settings.get("do_basic_tokenize", True) is not True:
        raise InputError(f"{path}: do_basic_tokenize is {settings['do_basic_tokenize']!r}; only "
                         "True is implemented")
    for token in SPECIAL_TOKENS:
        key = f"{token.strip('[]').lower()}_token"
        value = settings.get(key) or token
        name = value.get("content") if isinstance(value, dict) else value
        if name != token:
            raise InputError(f"{path}: {key} is {name!r}; only {token!r} is implemented")


def add_later_tokens(folder, tokenizer, whole, settings):
    """Add the tokens that a folder records beside its vocabulary, in any of the known ways.

    whole: the Tokenizer in tokenizer.json, or None. Raises InputError if a record cannot be read,
    or if a token's recorded id is not the next one: transformers would give it another."""
    try:
        later = later_tokens(folder, whole, settings)
    except (AttributeError, KeyError, TypeError, ValueError) as error:
        raise InputError(f"{folder}: its record of added tokens cannot be read "
                         f"({type(error).__name__}: {error})") from None
    for number, token in sorted(later, key=lambda pair: (pair[0] is None, pair[0] or 0)):
        tokenizer.add_tokens([token])
        given = tokenizer.token_to_id(token.content)
        if number not in (None, given):
            raise InputError(f"{folder}: the added token {token.content!r} has the id {number}, "
                             f"but the next free one is {given}: there is a gap in its ids")


def later_tokens(folder, whole, settings):
    """The tokens of add_later_tokens, each once: pairs (its recorded id or None, AddedToken)."""
    later = {}
    if whole is not None:
        for number, token in whole.get_added_tokens_decoder().items():
            later[token.content] = number, token
    for number, fields in settings.get("added_tokens_decoder", {}).items():
        later.setdefault(fields["content"], (int(number), added_token(fields)))
    for name, number in optional_json(folder / "added_tokens.json").items():
        later.setdefault(name, (int(number), AddedToken(name)))
    special = optional_json(folder / "special_tokens_map.json")
    for source in (special, settings):
        for value in source.get("additional_special_tokens") or []:
            fields = value if isinstance(value, dict) else {"content": value, "normalized": False}
            later.setdefault(fields["content"], (None, added_token({**fields, "special": True})))
    return later.values()


def added_token(fields):
    """An AddedToken from JSON, which old files give a "__type" as well."""
    return AddedToken(**{name: fields[name] for name in ADDED_TOKEN_FIELDS if name in fields})


def check_unknown_words(folder, tokenizer):
    """Raises InputError unless unknown words can be encoded."""
    try:
        tokenizer.encode("\N{SNOWMAN}\U0010fffd")  # words that no vocabulary has
    except Exception as error:  # the library raises nothing narrower
        raise InputError(f"{folder}: its tokenizer cannot read unknown words ({error})") from None


def check_tokenizer(folder, tokenizer):
    """Raises InputError unless unknown words can be encoded and all special tokens exist."""
    check_unknown_words(folder, tokenizer)
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


# ---- Writing ----

def write_tokenizer(tokenizer, folder, tokenizer_class, max_length):
    """Write vocab.txt, tokenizer.json and tokenizer_config.json.

    tokenizer_class: the class that transformers makes of them, such as "BertTokenizer". It would
    lose whatever BERT's settings cannot say, so another kind keeps its tokenizer.json."""
    vocab = tokenizer.get_vocab(with_added_tokens=False)
    token_of = {number: token for token, number in vocab.items()}
    # A token's id is its line, so an id without a token keeps its line.
    lines = [token_of.get(i, f"[no token {i}]") for i in range(max(vocab.values()) + 1)]
    write_file(folder / "vocab.txt", "".join(f"{token}\n" for token in lines))
    write_file(folder / "tokenizer.json", tokenizer.to_str(pretty=True))
    is_bert = (isinstance(tokenizer.normalizer, normalizers.BertNormalizer)
               and isinstance(tokenizer.pre_tokenizer, pre_tokenizers.BertPreTokenizer))
    normalizer = json.loads(tokenizer.to_str())["normalizer"] if is_bert else {}
    special = {f"{token.strip('[]').lower()}_token": token for token in SPECIAL_TOKENS}
    added = {str(number): fields_of(token)
             for number, token in tokenizer.get_added_tokens_decoder().items()
             if token.content not in vocab}
    write_json(folder / "tokenizer_config.json", {
        "tokenizer_class": tokenizer_class if is_bert else AS_IT_IS[1],
        "do_lower_case": normalizer.get("lowercase", True),
        "strip_accents": normalizer.get("strip_accents"),
        "tokenize_chinese_chars": normalizer.get("handle_chinese_chars", True),
        "model_max_length": max_length,
        **({"added_tokens_decoder": added} if added else {}),
        **special})


def fields_of(token):
    """An AddedToken as JSON."""
    return {name: getattr(token, name) for name in ADDED_TOKEN_FIELDS}
