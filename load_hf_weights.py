"""Hugging Face's BERT folders, in and out: config.json, model.safetensors, vocab.txt, tokenizer.json, tokenizer_config.json.

What is special: every name of a weight stands in one table; a model is built without memory first, and each of its
weights must be found in the files, in its shape, or nothing is loaded. transformers opens what save_model writes.
Read next: pretrain.py.
"""
import dataclasses
import json
import os
import warnings
import zipfile
from pathlib import Path

import torch
from safetensors.torch import load_file, save
from tokenizers import Tokenizer, decoders, models, normalizers, pre_tokenizers, processors

from model import BertConfig, Classifier, MaskedLM
from run import InputError, read_json, write_file, write_json

# Our name of a weight -> Hugging Face's name, or the three that our one matrix holds below each other. {} is the layer.
BERT_NAMES = {
    "bert.embeddings.word.weight": "bert.embeddings.word_embeddings.weight",
    "bert.embeddings.position.weight": "bert.embeddings.position_embeddings.weight",
    "bert.embeddings.token_type.weight": "bert.embeddings.token_type_embeddings.weight",
    "bert.embeddings.norm.*": "bert.embeddings.LayerNorm.*",
    "bert.layers.{}.qkv.*": tuple(f"bert.encoder.layer.{{}}.attention.self.{part}.*" for part in ("query", "key", "value")),
    "bert.layers.{}.attention_out.*": "bert.encoder.layer.{}.attention.output.dense.*",
    "bert.layers.{}.attention_norm.*": "bert.encoder.layer.{}.attention.output.LayerNorm.*",
    "bert.layers.{}.ffn_in.*": "bert.encoder.layer.{}.intermediate.dense.*",
    "bert.layers.{}.ffn_out.*": "bert.encoder.layer.{}.output.dense.*",
    "bert.layers.{}.ffn_norm.*": "bert.encoder.layer.{}.output.LayerNorm.*",
}
HEAD_NAMES = {
    MaskedLM: {"head.dense.*": "cls.predictions.transform.dense.*", "head.norm.*": "cls.predictions.transform.LayerNorm.*",
               "head.bias": "cls.predictions.bias"},
    Classifier: {"pooler.dense.*": "bert.pooler.dense.*", "head.*": "classifier.*"},
}
ARCHITECTURES = {MaskedLM: "BertForMaskedLM", Classifier: "BertForSequenceClassification"}
PARTS = {"pooler": "pooler.", "classifier": "head."}  # what load_model's `new` can name: how our names of it begin


def weight_names(model):
    """{our name: (Hugging Face's names)} of every weight of a model."""
    table = {}
    for ours, theirs in {**BERT_NAMES, **HEAD_NAMES[type(model)]}.items():
        theirs = (theirs,) if isinstance(theirs, str) else theirs
        for layer in range(model.config.num_hidden_layers) if "{}" in ours else (None,):
            for kind in ("weight", "bias") if "*" in ours else (None,):
                def fill(name):
                    return name.replace("{}", str(layer)).replace("*", str(kind))
                table[fill(ours)] = tuple(fill(name) for name in theirs)
    return table


# ---- Reading ----

def read_config(folder):
    """BertConfig from a folder's config.json. Raises InputError for another architecture, or what we do not implement."""
    path = Path(folder) / "config.json"
    raw = read_json(path)
    if raw.get("model_type", "bert") != "bert":
        raise InputError(f"{path}: model_type is {raw['model_type']!r}; only BERT ('bert') can be loaded")
    for key, only in {"hidden_act": "gelu", "position_embedding_type": "absolute", "tie_word_embeddings": True,
                      "is_decoder": False, "add_cross_attention": False}.items():
        if raw.get(key, only) != only:
            raise InputError(f"{path}: {key} is {raw[key]!r}; only {only!r} is implemented")
    required = ("vocab_size", "hidden_size", "num_hidden_layers", "num_attention_heads", "intermediate_size")
    if missing := [key for key in required if key not in raw]:
        raise InputError(f"{path}: lacks {', '.join(missing)}")
    fields = {field.name: raw[field.name] for field in dataclasses.fields(BertConfig) if field.name in raw}
    try:
        config = BertConfig(**fields)
    except (ValueError, TypeError) as error:
        raise InputError(f"{path}: {error}") from None
    size, memory = 4 * count_weights(config), os.sysconf("SC_PAGE_SIZE") * os.sysconf("SC_PHYS_PAGES")
    if size > memory or config.num_hidden_layers > 1000:  # refused before anything of that size is made
        raise InputError(f"{path}: asks for {config.num_hidden_layers} layers and {size / 2 ** 30:,.1f} GiB of weights; this machine "
                         f"has {memory / 2 ** 30:,.1f} GiB of memory")
    return config


def count_weights(config):
    """Of a MaskedLM: embeddings, layers, head."""
    hidden, inner = config.hidden_size, config.intermediate_size
    embeddings = config.vocab_size + config.max_position_embeddings + config.type_vocab_size + 2
    return (embeddings * hidden + config.num_hidden_layers * (4 * hidden * hidden + 2 * hidden * inner + 9 * hidden + inner)
            + hidden * hidden + 3 * hidden + config.vocab_size)


def weight_files(folder):
    """The files that hold a folder's weights, and before them the index of the shards, if there is one. Raises InputError."""
    folder = Path(folder)
    for name in ("model.safetensors", "model.safetensors.index.json", "pytorch_model.bin", "pytorch_model.bin.index.json"):
        if (folder / name).exists():
            break
    else:
        raise InputError(f"{folder}: holds neither model.safetensors nor pytorch_model.bin")
    if not name.endswith(".index.json"):
        return [folder / name]
    weight_map = read_json(folder / name).get("weight_map")
    if not isinstance(weight_map, dict) or not all(isinstance(file, str) for file in weight_map.values()):
        raise InputError(f"{folder / name}: has no weight_map, the table of weights and their files")
    files = sorted(set(weight_map.values()))
    if any(Path(file).name != file or not file.isprintable() for file in files):
        raise InputError(f"{folder / name}: names a shard outside the folder, or one that cannot be a file's name")
    return [folder / name, *(folder / file for file in files)]


def model_files(folder, weights=True):
    """All files that a model of this folder is made of; weights False: its config and vocabulary alone. Raises InputError."""
    folder = Path(folder)
    if not (folder / "config.json").is_file():
        raise InputError(f"{folder / 'config.json'}: no such file")
    words = [folder / name for name in ("tokenizer.json", "vocab.txt", "tokenizer_config.json") if (folder / name).exists()]
    return [folder / "config.json", *words, *(weight_files(folder) if weights else [])]


def read_weights(folder):
    """{Hugging Face's name: tensor} from safetensors or .bin, whole or in shards; old names made new. Raises InputError."""
    weights = {}
    for file in weight_files(folder):
        if file.suffix != ".json":
            weights.update(read_weight_file(file))
    return {modern_name(name, weights): tensor for name, tensor in weights.items()}


def read_weight_file(path):
    if not path.is_file():
        raise InputError(f"{path}: no such file; this shard is missing")
    if path.suffix == ".safetensors":
        try:
            weights = load_file(path)
        except Exception as error:  # the library raises its own error, and torch's for numbers that it does not know
            raise unreadable(path, error) from None
    else:
        weights = read_torch_file(path)
    if not isinstance(weights, dict) or not all(isinstance(name, str) and is_stored(x) for name, x in weights.items()):
        raise InputError(f"{path}: does not hold a table of names and tensors, each number of them stored")
    return weights


def is_stored(x):
    """Whether x is a dense tensor, all of whose numbers are in the file: a view that repeats one of them may be of any size."""
    return (isinstance(x, torch.Tensor) and x.layout == torch.strided and x.device.type == "cpu"
            and x.numel() * x.element_size() <= x.untyped_storage().nbytes())


def read_torch_file(path):
    """What torch.save wrote: tensors and plain values. Raises InputError, also for a file that would run code or unpack to
    more than its own size."""
    try:
        if zipfile.is_zipfile(path):  # as torch.save writes since 1.6: records that are stored, not compressed
            with zipfile.ZipFile(path) as archive:
                if any(record.compress_type != zipfile.ZIP_STORED for record in archive.infolist()):
                    raise ValueError("its records are compressed, which torch.save never does")
                if damaged := archive.testzip():
                    raise ValueError(f"its record {damaged} is damaged")
        with warnings.catch_warnings():
            warnings.simplefilter("ignore")  # what follows is tensors or an error: no third
            # weights_only: it is a pickle, and a pickle may hold code
            return torch.load(path, map_location="cpu", weights_only=True)
    except (FileNotFoundError, PermissionError):
        raise
    except Exception as error:  # a pickle can make torch raise anything
        raise unreadable(path, error) from None


def unreadable(path, error):
    reason = str(error).splitlines()[0] if str(error) else type(error).__name__
    if "Weights only load failed" in reason:
        reason = "it is not a pickle of tensors and plain values alone; what else is in it, even code, is not run"
    return InputError(f"{path}: cannot be read as weights: {reason}")


def modern_name(name, weights):
    """bert-base-uncased's own files say gamma and beta; encoders saved alone have no `bert.` in front."""
    name = name.replace("LayerNorm.gamma", "LayerNorm.weight").replace("LayerNorm.beta", "LayerNorm.bias")
    if name.split(".")[0] in ("embeddings", "encoder", "pooler") and "embeddings.word_embeddings.weight" in weights:
        name = f"bert.{name}"
    return name


def load_model(folder, cls=MaskedLM, new=(), **kwargs):
    """A cls (MaskedLM or Classifier) with the weights of a folder in Hugging Face's layout: fp32, on the CPU, in eval mode.

    new: the parts that start at random, whether the folder has them or not: "pooler", "classifier". kwargs go to cls;
    num_labels, if not given, is what config.json says.
    Raises InputError: unreadable, another architecture, weights missing (all named), of a wrong shape, or not finite."""
    config = read_config(folder)
    if cls is Classifier:
        kwargs.setdefault("num_labels", len(config.id2label or (0, 1)))
    with torch.device("meta"):  # shapes without memory: whatever the config claims, nothing is allocated yet
        model = cls(config, **kwargs)
    weights, names = read_weights(folder), weight_names(model)
    check_decoder(folder, weights)

    state, missing, wrong = {}, [], []
    for ours, parameter in model.state_dict().items():
        found = [weights.get(theirs) for theirs in names[ours]]
        if cls is Classifier and ours.startswith(tuple(PARTS[part] for part in new)):
            std = 0.0 if ours.endswith("bias") else config.initializer_range
            state[ours] = torch.randn(parameter.shape) * std
            continue
        shape = (parameter.shape[0] // len(found), *parameter.shape[1:])
        missing += [theirs for theirs, x in zip(names[ours], found) if x is None]
        wrong += [f"{theirs} is {tuple(x.shape)}, not {shape}" for theirs, x in zip(names[ours], found)
                  if x is not None and x.shape != shape]
        if not missing and not wrong:
            state[ours] = torch.cat([x.float() for x in found])
            if not state[ours].isfinite().all():
                raise InputError(f"{folder}: {', '.join(names[ours])}: some of its numbers are not finite")
    if missing:
        raise InputError(f"{folder}: lacks {', '.join(missing)}, which {ARCHITECTURES[cls]} needs")
    if wrong:
        raise InputError(f"{folder}: does not fit its config.json: {', '.join(wrong)}")
    known = {theirs for group in names.values() for theirs in group}
    extra = [name for name in weights if name.startswith(("bert.embeddings.", "bert.encoder.")) and name not in known
             and not name.endswith("position_ids")]
    if extra:  # leaving out a part of the encoder would silently load another model
        raise InputError(f"{folder}: config.json has no place for {', '.join(extra)}")
    model.load_state_dict(state, assign=True)
    return model.requires_grad_().eval()


def check_decoder(folder, weights):
    """The decoder is the word embeddings, and has one bias. A checkpoint may repeat them, but not differ."""
    for copy, original in (("cls.predictions.decoder.weight", "bert.embeddings.word_embeddings.weight"),
                           ("cls.predictions.decoder.bias", "cls.predictions.bias")):
        if copy in weights and not torch.equal(weights[copy], weights.setdefault(original, weights[copy])):
            raise InputError(f"{folder}: {copy} differs from {original}; a decoder that is not tied is not implemented")


def load_tokenizer(folder):
    """tokenizers.Tokenizer from tokenizer.json, or from vocab.txt alone; truncation and padding off. Raises InputError."""
    folder = Path(folder)
    if (folder / "tokenizer.json").exists():
        try:
            tokenizer = Tokenizer.from_file(str(folder / "tokenizer.json"))
        except Exception as error:  # the library raises nothing narrower
            raise InputError(f"{folder / 'tokenizer.json'}: cannot be read ({error})") from None
    else:
        tokenizer = wordpiece_tokenizer(folder)
    tokenizer.no_truncation()
    tokenizer.no_padding()
    try:
        tokenizer.encode("\N{SNOWMAN}\U0010fffd")  # words that no vocabulary has
    except Exception as error:
        raise InputError(f"{folder}: its tokenizer cannot read unknown words ({error})") from None
    if absent := [token for token in ("[PAD]", "[UNK]", "[CLS]", "[SEP]", "[MASK]") if tokenizer.token_to_id(token) is None]:
        raise InputError(f"{folder}: its vocabulary lacks {', '.join(absent)}")
    if (folder / "config.json").exists():
        entries, vocab_size = max(tokenizer.get_vocab().values()) + 1, read_config(folder).vocab_size
        if vocab_size not in {-(-entries // multiple) * multiple for multiple in (1, 8, 64, 128)}:  # some models pad theirs
            raise InputError(f"{folder}: the vocabulary has {entries} entries, config.json says {vocab_size}")
    return tokenizer


def wordpiece_tokenizer(folder):
    """BERT's tokenizer from vocab.txt, a token a line; lower case unless tokenizer_config.json says otherwise."""
    path = folder / "vocab.txt"
    if not path.exists():
        raise InputError(f"{folder}: holds neither tokenizer.json nor vocab.txt")
    try:
        vocab = {token: i for i, token in enumerate(path.read_text(encoding="utf-8").removesuffix("\n").split("\n"))}
    except UnicodeDecodeError as error:
        raise InputError(f"{path}: not UTF-8 text (byte {error.start})") from None
    settings = read_json(folder / "tokenizer_config.json") if (folder / "tokenizer_config.json").exists() else {}
    tokenizer = Tokenizer(models.WordPiece(vocab, unk_token="[UNK]", max_input_chars_per_word=100))
    try:
        tokenizer.normalizer = normalizers.BertNormalizer(
            lowercase=settings.get("do_lower_case", True), strip_accents=settings.get("strip_accents"),
            handle_chinese_chars=settings.get("tokenize_chinese_chars", True))
    except TypeError:
        raise InputError(f"{folder / 'tokenizer_config.json'}: do_lower_case, strip_accents and tokenize_chinese_chars must be "
                         "true or false") from None
    tokenizer.pre_tokenizer = pre_tokenizers.BertPreTokenizer()
    tokenizer.decoder = decoders.WordPiece()
    special = [token for token in ("[PAD]", "[UNK]", "[CLS]", "[SEP]", "[MASK]") if token in vocab]
    tokenizer.add_special_tokens(special)
    if "[CLS]" in vocab and "[SEP]" in vocab:
        tokenizer.post_processor = processors.BertProcessing(("[SEP]", vocab["[SEP]"]), ("[CLS]", vocab["[CLS]"]))
    return tokenizer


# ---- Writing ----

def save_model(model, tokenizer, folder):
    """Write the model and its tokenizer in Hugging Face's layout, fp32. Each file is written whole or not at all, and
    model.safetensors last: a folder without it holds no model."""
    folder = Path(folder)
    folder.mkdir(parents=True, exist_ok=True)
    config = {"architectures": [ARCHITECTURES[type(model)]], "model_type": "bert", "hidden_act": "gelu",
              "position_embedding_type": "absolute",
              **{key: value for key, value in dataclasses.asdict(model.config).items() if value is not None}}
    if model.config.id2label:
        config["label2id"] = {name: int(number) for number, name in model.config.id2label.items()}
    write_json(folder / "config.json", config)
    vocab = tokenizer.get_vocab()
    write_file(folder / "vocab.txt", "".join(f"{token}\n" for token in sorted(vocab, key=vocab.get)))
    write_file(folder / "tokenizer.json", tokenizer.to_str(pretty=True))
    normalizer = json.loads(tokenizer.to_str())["normalizer"] or {}
    write_json(folder / "tokenizer_config.json", {
        "tokenizer_class": "BertTokenizer", "do_lower_case": normalizer.get("lowercase", True),
        "strip_accents": normalizer.get("strip_accents"),
        "tokenize_chinese_chars": normalizer.get("handle_chinese_chars", True),
        "model_max_length": model.config.max_position_embeddings,
        **{f"{name}_token": f"[{name.upper()}]" for name in ("pad", "unk", "cls", "sep", "mask")}})

    state, names = model.state_dict(), weight_names(model)
    tensors = {theirs: part.float().cpu().contiguous()
               for ours, group in names.items() for theirs, part in zip(group, state[ours].chunk(len(group)))}
    write_file(folder / "model.safetensors", save(tensors, metadata={"format": "pt"}))
