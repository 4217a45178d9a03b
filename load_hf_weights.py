"""Hugging Face's BERT folders, in and out: config.json, model.safetensors, vocab.txt, tokenizer.json, tokenizer_config.json.

    python load_hf_weights.py google-bert/bert-base-uncased --out FOLDER     fetch a teacher from the hub (download.py)
    python load_hf_weights.py FOLDER --to distilbert --out FOLDER            write a student for transformers' DistilBERT

What is special: every name of a weight stands in one table; a model is built without memory first, and each of its
weights must be found in the files, in its shape, or nothing is loaded. transformers opens what save_model writes.
DistilBERT's folders can be read too.
Read next: pretrain.py.
"""
import dataclasses
import json
import os
import shutil
from pathlib import Path

import torch
from safetensors.torch import save
from tokenizers import (
    Tokenizer,
    decoders,
    models,
    normalizers,
    pre_tokenizers,
    processors,
)

from model import BertConfig, Classifier, MaskedLM, SpanModel
from support.cli import Parser, command_line
from support.errors import InputError
from support.files import read_json, write_file, write_json
from support.hub import download_config, download_model
from support.weight_files import read_weight_file, weight_files

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
    SpanModel: {"head.*": "qa_outputs.*"},
}
ARCHITECTURES = {MaskedLM: "BertForMaskedLM", Classifier: "BertForSequenceClassification", SpanModel: "BertForQuestionAnswering"}
# The same for DistilBERT, in whose config.json the fields have names of their own. It is a BERT without token types, and with
# other heads for tasks, which are not read: a Classifier's pooler and head are not among these names.
DISTILBERT_NAMES = {
    "bert.embeddings.word.weight": "distilbert.embeddings.word_embeddings.weight",
    "bert.embeddings.position.weight": "distilbert.embeddings.position_embeddings.weight",
    "bert.embeddings.token_type.weight": (),  # none: zeros, when read
    "bert.embeddings.norm.*": "distilbert.embeddings.LayerNorm.*",
    "bert.layers.{}.qkv.*": tuple(f"distilbert.transformer.layer.{{}}.attention.{part}.*" for part in ("q_lin", "k_lin", "v_lin")),
    "bert.layers.{}.attention_out.*": "distilbert.transformer.layer.{}.attention.out_lin.*",
    "bert.layers.{}.attention_norm.*": "distilbert.transformer.layer.{}.sa_layer_norm.*",
    "bert.layers.{}.ffn_in.*": "distilbert.transformer.layer.{}.ffn.lin1.*",
    "bert.layers.{}.ffn_out.*": "distilbert.transformer.layer.{}.ffn.lin2.*",
    "bert.layers.{}.ffn_norm.*": "distilbert.transformer.layer.{}.output_layer_norm.*",
}
DISTILBERT_HEAD_NAMES = {
    MaskedLM: {"head.dense.*": "vocab_transform.*", "head.norm.*": "vocab_layer_norm.*", "head.bias": "vocab_projector.bias"},
}
DISTILBERT_FIELDS = {  # BertConfig's name of a field -> DistilBERT's. Its LayerNorm's epsilon is no field: always 1e-12.
    "vocab_size": "vocab_size", "hidden_size": "dim", "num_hidden_layers": "n_layers", "num_attention_heads": "n_heads",
    "intermediate_size": "hidden_dim", "max_position_embeddings": "max_position_embeddings", "hidden_dropout_prob": "dropout",
    "attention_probs_dropout_prob": "attention_dropout", "initializer_range": "initializer_range", "pad_token_id": "pad_token_id",
}
PARTS = {"pooler": "pooler.", "classifier": "head.", "qa_outputs": "head."}  # what load_model's `new` can name: how our names of it begin


def weight_names(model, layout="bert"):
    """{our name: (Hugging Face's names)} of every weight of a model that the layout, "bert" or "distilbert", has a name for."""
    table = {}
    encoder, heads = (BERT_NAMES, HEAD_NAMES) if layout == "bert" else (DISTILBERT_NAMES, DISTILBERT_HEAD_NAMES)
    for ours, theirs in {**encoder, **heads.get(type(model), {})}.items():
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
    layout = raw.get("model_type", "bert")
    if layout not in ("bert", "distilbert"):
        raise InputError(f"{path}: model_type is {layout!r}; only BERT ('bert') and DistilBERT ('distilbert') can be loaded")
    theirs = {field.name: field.name for field in dataclasses.fields(BertConfig)} if layout == "bert" else DISTILBERT_FIELDS
    implemented = {"hidden_act": "gelu", "position_embedding_type": "absolute", "is_decoder": False, "add_cross_attention": False}
    if layout == "distilbert":
        implemented = {"activation": "gelu", "sinusoidal_pos_embds": False, "tie_weights_": True}
    for key, only in {**implemented, "tie_word_embeddings": True}.items():
        if raw.get(key, only) != only:
            raise InputError(f"{path}: {key} is {raw[key]!r}; only {only!r} is implemented")
    required = ("vocab_size", "hidden_size", "num_hidden_layers", "num_attention_heads", "intermediate_size")
    if missing := [theirs[name] for name in required if theirs[name] not in raw]:
        raise InputError(f"{path}: lacks {', '.join(missing)}")
    try:
        config = BertConfig(**{name: raw[key] for name, key in theirs.items() if key in raw})
    except (ValueError, TypeError) as error:
        message = str(error)
        for name, key in theirs.items():  # it speaks of our fields, the file of its own
            message = message.replace(name, key)
        raise InputError(f"{path}: {message}") from None
    size, memory = 4 * count_weights(config), os.sysconf("SC_PAGE_SIZE") * os.sysconf("SC_PHYS_PAGES")
    if size > memory or config.num_hidden_layers > 1000:  # refused before anything of that size is made
        raise InputError(f"{path}: asks for {config.num_hidden_layers} layers and {size / 2 ** 30:,.1f} GiB of weights; this machine "
                         f"has {memory / 2 ** 30:,.1f} GiB of memory")
    return config


def read_layout(folder):
    """"bert" or "distilbert": by whose names a folder calls its weights. To be asked once read_config has accepted it."""
    return read_json(Path(folder) / "config.json").get("model_type", "bert")


def count_weights(config):
    """Of a MaskedLM: embeddings, layers, head."""
    hidden, inner = config.hidden_size, config.intermediate_size
    embeddings = config.vocab_size + config.max_position_embeddings + config.type_vocab_size + 2
    return (embeddings * hidden + config.num_hidden_layers * (4 * hidden * hidden + 2 * hidden * inner + 9 * hidden + inner)
            + hidden * hidden + 3 * hidden + config.vocab_size)




def model_files(folder, weights=True):
    """All files that a model of this folder is made of; weights False: its config and vocabulary alone. Raises InputError."""
    folder = Path(folder)
    if not (folder / "config.json").is_file():
        raise InputError(f"{folder / 'config.json'}: no such file")
    words = [folder / name for name in ("tokenizer.json", "vocab.txt", "tokenizer_config.json") if (folder / name).exists()]
    return [folder / "config.json", *words, *(weight_files(folder) if weights else [])]


def read_weights(folder, layout="bert"):
    """{Hugging Face's name: tensor} from safetensors or .bin, whole or in shards; old names made new. Raises InputError."""
    weights = {}
    for file in weight_files(folder):
        if file.suffix != ".json":
            weights.update(read_weight_file(file))
    return {modern_name(name, weights, layout): tensor for name, tensor in weights.items()}










def modern_name(name, weights, layout):
    """bert-base-uncased's own files say gamma and beta; encoders saved alone have no `bert.` (or `distilbert.`) in front."""
    name = name.replace("LayerNorm.gamma", "LayerNorm.weight").replace("LayerNorm.beta", "LayerNorm.bias")
    if name.split(".")[0] in ("embeddings", "encoder", "transformer", "pooler") and "embeddings.word_embeddings.weight" in weights:
        name = f"{layout}.{name}"
    return name


def load_model(folder, cls=MaskedLM, new=(), **kwargs):
    """A cls (MaskedLM, Classifier or SpanModel) with the weights of a folder in Hugging Face's layout: fp32, on the CPU, in eval mode.

    new: the parts that start at random, whether the folder has them or not: "pooler", "classifier", "qa_outputs". kwargs go to cls;
    num_labels, if not given, is what config.json says. From a DistilBERT folder the token types are zeros, which is its own
    arithmetic, and the head for a task must be new; dropout in training is BERT's, which has one more after the attention.
    Raises InputError: unreadable, another architecture, weights missing (all named), of a wrong shape, or not finite."""
    config, layout = read_config(folder), read_layout(folder)
    architecture = ARCHITECTURES[cls].replace("Bert", {"bert": "Bert", "distilbert": "DistilBert"}[layout])
    if cls is Classifier:
        kwargs.setdefault("num_labels", len(config.id2label or (0, 1)))
    with torch.device("meta"):  # shapes without memory: whatever the config claims, nothing is allocated yet
        model = cls(config, **kwargs)
    weights, names = read_weights(folder, layout), weight_names(model, layout)
    check_decoder(folder, weights)

    state, missing, wrong = {}, [], []
    for ours, parameter in model.state_dict().items():
        if cls is not MaskedLM and ours.startswith(tuple(PARTS[part] for part in new)):
            std = 0.0 if ours.endswith("bias") else config.initializer_range
            state[ours] = torch.randn(parameter.shape) * std
            continue
        if ours not in names:
            raise InputError(f"{folder}: a DistilBERT, whose head for a task is another one than BERT's and cannot be loaded; "
                             "fine-tune the folder with finetune.py, which gives it a new head")
        if not names[ours]:
            state[ours] = torch.zeros(parameter.shape)
            continue
        found = [weights.get(theirs) for theirs in names[ours]]
        shape = (parameter.shape[0] // len(found), *parameter.shape[1:])
        missing += [theirs for theirs, x in zip(names[ours], found) if x is None]
        wrong += [f"{theirs} is {tuple(x.shape)}, not {shape}" for theirs, x in zip(names[ours], found)
                  if x is not None and x.shape != shape]
        if not missing and not wrong:
            state[ours] = torch.cat([x.float() for x in found])
            if not state[ours].isfinite().all():
                raise InputError(f"{folder}: {', '.join(names[ours])}: some of its numbers are not finite")
    if missing:
        raise InputError(f"{folder}: lacks {', '.join(missing)}, which {architecture} needs")
    if wrong:
        raise InputError(f"{folder}: does not fit its config.json: {', '.join(wrong)}")
    known = {theirs for group in names.values() for theirs in group}
    encoder = tuple(f"{layout}.{part}." for part in ("embeddings", "encoder", "transformer"))
    extra = [name for name in weights if name.startswith(encoder) and name not in known and not name.endswith("position_ids")]
    if extra:  # leaving out a part of the encoder would silently load another model
        raise InputError(f"{folder}: config.json has no place for {', '.join(extra)}")
    model.load_state_dict(state, assign=True)
    return model.requires_grad_().eval()


def check_decoder(folder, weights):
    """The decoder is the word embeddings, and has one bias. A checkpoint may repeat them, but not differ."""
    for copy, original in (("cls.predictions.decoder.weight", "bert.embeddings.word_embeddings.weight"),
                           ("cls.predictions.decoder.bias", "cls.predictions.bias"),
                           ("vocab_projector.weight", "distilbert.embeddings.word_embeddings.weight")):
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
    config = {"architectures": [ARCHITECTURES[type(model)]], "model_type": "bert", "hidden_act": "gelu",
              "position_embedding_type": "absolute",
              **{key: value for key, value in dataclasses.asdict(model.config).items() if value is not None}}
    if model.config.id2label:
        config["label2id"] = {name: int(number) for number, name in model.config.id2label.items()}
    write_folder(folder, config, tokenizer, "BertTokenizer", model.state_dict(), weight_names(model))


def save_distilbert(model, tokenizer, folder):
    """Write a MaskedLM so that transformers' DistilBertForMaskedLM opens it, with the same logits where all tokens are of
    segment 0; what the model knows of other segments is left out. Files as save_model's. Raises ValueError for a
    layer_norm_eps that DistilBERT cannot have."""
    if model.config.layer_norm_eps != 1e-12:
        raise ValueError(f"layer_norm_eps is {model.config.layer_norm_eps}, DistilBERT's is always 1e-12")
    config = {"architectures": ["DistilBertForMaskedLM"], "model_type": "distilbert", "activation": "gelu",
              "sinusoidal_pos_embds": False, "tie_weights_": True,
              **{theirs: getattr(model.config, ours) for ours, theirs in DISTILBERT_FIELDS.items()}}
    state = model.state_dict()
    # DistilBERT adds up words and positions alone. Segment 0's vector, which BERT adds to every token, goes into every
    # position; in every word it would change the decoder too, whose matrix the words are.
    state["bert.embeddings.position.weight"] = state["bert.embeddings.position.weight"] + state["bert.embeddings.token_type.weight"][0]
    write_folder(folder, config, tokenizer, "DistilBertTokenizer", state, weight_names(model, "distilbert"))


def write_folder(folder, config, tokenizer, tokenizer_class, state, names):
    """config.json, the tokenizer's files, then the weights; state: {our name: tensor}, names: what weight_names says."""
    folder = Path(folder)
    folder.mkdir(parents=True, exist_ok=True)
    write_json(folder / "config.json", config)
    vocab = tokenizer.get_vocab()
    write_file(folder / "vocab.txt", "".join(f"{token}\n" for token in sorted(vocab, key=vocab.get)))
    write_file(folder / "tokenizer.json", tokenizer.to_str(pretty=True))
    normalizer = json.loads(tokenizer.to_str())["normalizer"] or {}
    write_json(folder / "tokenizer_config.json", {
        "tokenizer_class": tokenizer_class, "do_lower_case": normalizer.get("lowercase", True),
        "strip_accents": normalizer.get("strip_accents"),
        "tokenize_chinese_chars": normalizer.get("handle_chinese_chars", True),
        "model_max_length": config["max_position_embeddings"],
        **{f"{name}_token": f"[{name.upper()}]" for name in ("pad", "unk", "cls", "sep", "mask")}})
    tensors = {theirs: part.float().cpu().contiguous()
               for ours, group in names.items() if group for theirs, part in zip(group, state[ours].chunk(len(group)))}
    write_file(folder / "model.safetensors", save(tensors, metadata={"format": "pt"}))


# ---- From the hub ----

def fetch_model(name, out):
    """Download a BERT with its MLM head from Hugging Face's hub, write it to the folder `out`.

    The config comes first: another architecture is refused before its weights are fetched. `out`
    must not exist, or be empty; it is complete or not there. Raises InputError."""
    read_config(download_config(name))
    folder = download_model(name)
    model, tokenizer = load_model(folder), load_tokenizer(folder)
    temporary = Path(f"{out}.tmp{os.getpid()}")
    try:
        save_model(model, tokenizer, temporary)
        os.replace(temporary, out)
    finally:
        shutil.rmtree(temporary, ignore_errors=True)
    layers, hidden_size = model.config.num_hidden_layers, model.config.hidden_size
    print(f"{out}: {name}, {layers} layers, hidden size {hidden_size}")


# ---- The command ----

def export_distilbert(source, out):
    """Read a BERT with its MLM head from one folder, write it as a DistilBERT into another. Raises InputError."""
    config = read_config(source)
    if read_layout(source) == "distilbert":
        raise InputError(f"{source}: is a DistilBERT already")
    architectures = str(read_json(Path(source) / "config.json").get("architectures"))
    if any(task in architectures for task in ("Classification", "QuestionAnswering", "MultipleChoice")):
        raise InputError(f"{source}: is fine-tuned ({architectures}), and DistilBERT's head for a task is another one than BERT's; "
                         "export the model as it was before fine-tuning")
    model, tokenizer = load_model(source), load_tokenizer(source)
    try:
        save_distilbert(model, tokenizer, out)
    except ValueError as error:
        raise InputError(f"{Path(source) / 'config.json'}: {error}; such a model cannot be exported") from None
    print(f"{out}: {source} as transformers' DistilBertForMaskedLM"
          + (", token type 0 alone: it has no others" if config.type_vocab_size > 1 else ""))


def main(arguments):
    parser = Parser(__doc__)
    parser.add_argument("model", help="a model's name on Hugging Face's hub; with --to: folder of a BERT with its MLM head")
    parser.add_argument("--to", choices=("distilbert",), help="the layout to write it in")
    parser.add_argument("--out", required=True, help="a new folder")
    args = parser.parse_args(arguments)
    if Path(args.out).exists() and (not Path(args.out).is_dir() or any(Path(args.out).iterdir())):
        raise InputError(f"--out {args.out}: is there already, and not an empty folder; choose another")
    if not args.to:
        if Path(args.model).is_dir():
            raise InputError(f"{args.model}: a folder here already; what can be made of it is --to distilbert")
        return fetch_model(args.model, args.out)
    if not Path(args.model).is_dir():
        raise InputError(f"{args.model}: no such folder")
    export_distilbert(args.model, args.out)


if __name__ == "__main__":
    command_line(main)
