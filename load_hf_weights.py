"""Read and write Hugging Face's BERT folders: config, weights and tokenizer.

    python load_hf_weights.py google-bert/bert-base-uncased --out FOLDER
        fetch a teacher from the hub
    python load_hf_weights.py FOLDER --to distilbert --out FOLDER
        write a student in the layout of transformers' DistilBERT

The table below maps our name of each weight to Hugging Face's. A model is first built on the meta
device (shapes only); then each of its weights must be in the files, in the right shape, or nothing
is loaded.
transformers opens what save_model writes. DistilBERT folders can be read too.
Read next: pretrain.py.
"""
import support.startup  # noqa: F401  # first: Ctrl-C while torch is loaded ends quietly

import dataclasses
import json
from pathlib import Path

import torch
from safetensors.torch import save

from model import Bert, BertConfig, Classifier, MaskedLM, SpanModel
from support import distilbert, wordpiece
from support.cli import Parser, command_line
from support.errors import InputError
from support.files import read_json, whole_folder, write_file, write_json
from support.hub import download_model
from support.weight_files import (
    DECODER_COPIES,
    check_size,
    check_weights,
    count_weights,
    read_weights,
    weight_files,
)

# Our name of a weight -> Hugging Face's. Our qkv holds their three matrices, one below the other.
# {} stands for the number of a layer, * for weight and bias.
BERT_NAMES = {
    "bert.embeddings.word.weight": "bert.embeddings.word_embeddings.weight",
    "bert.embeddings.position.weight": "bert.embeddings.position_embeddings.weight",
    "bert.embeddings.token_type.weight": "bert.embeddings.token_type_embeddings.weight",
    "bert.embeddings.norm.*": "bert.embeddings.LayerNorm.*",
    "bert.layers.{}.qkv.*": (
        "bert.encoder.layer.{}.attention.self.query.*",
        "bert.encoder.layer.{}.attention.self.key.*",
        "bert.encoder.layer.{}.attention.self.value.*",
    ),
    "bert.layers.{}.attention_out.*": "bert.encoder.layer.{}.attention.output.dense.*",
    "bert.layers.{}.attention_norm.*": "bert.encoder.layer.{}.attention.output.LayerNorm.*",
    "bert.layers.{}.ffn_in.*": "bert.encoder.layer.{}.intermediate.dense.*",
    "bert.layers.{}.ffn_out.*": "bert.encoder.layer.{}.output.dense.*",
    "bert.layers.{}.ffn_norm.*": "bert.encoder.layer.{}.output.LayerNorm.*",
}
HEAD_NAMES = {
    Bert: {},
    MaskedLM: {
        "head.dense.*": "cls.predictions.transform.dense.*",
        "head.norm.*": "cls.predictions.transform.LayerNorm.*",
        "head.bias": "cls.predictions.bias",
    },
    Classifier: {"pooler.dense.*": "bert.pooler.dense.*", "head.*": "classifier.*"},
    SpanModel: {"head.*": "qa_outputs.*"},
}
ARCHITECTURES = {
    Bert: "BertModel",
    MaskedLM: "BertForMaskedLM",
    Classifier: "BertForSequenceClassification",
    SpanModel: "BertForQuestionAnswering",
}
# What load_model's `new` can name -> the prefix of our names of it.
PARTS = {"pooler": "pooler.", "classifier": "head.", "qa_outputs": "head."}

BERT_FIELDS = {field.name: field.name for field in dataclasses.fields(BertConfig)}
REQUIRED_FIELDS = ("vocab_size", "hidden_size", "num_hidden_layers", "num_attention_heads",
                   "intermediate_size")
IMPLEMENTED = {  # fields of config.json, and their values that are implemented
    "hidden_act": ("gelu", "gelu_python"),
    "position_embedding_type": ("absolute",),
    "is_decoder": (False,),
    "add_cross_attention": (False,),
}


def weight_names(model, layout="bert"):
    """{our name: (Hugging Face's names)} of a model's weights, as far as the layout has them.

    layout: "bert" or "distilbert"."""
    if layout == "bert":
        patterns = {**BERT_NAMES, **HEAD_NAMES[type(model)]}
    else:
        patterns = {**distilbert.ENCODER_NAMES, **distilbert.HEAD_NAMES.get(type(model), {})}
    names = {}
    for ours, theirs in patterns.items():
        ours = ours.removeprefix("bert.") if isinstance(model, Bert) else ours
        theirs = (theirs,) if isinstance(theirs, str) else theirs
        for layer in range(model.config.num_hidden_layers):
            for kind in ("weight", "bias"):  # harmless repetition for a name without {} or *
                names[fill(ours, layer, kind)] = tuple(fill(name, layer, kind) for name in theirs)
    return names


def fill(pattern, layer, kind):
    return pattern.replace("{}", str(layer)).replace("*", kind)


# ---- Reading ----

def config_file(folder):
    """The path of a folder's config.json. Raises InputError if it is not there."""
    if not Path(folder).is_dir():
        raise InputError(f"{folder}: no such folder; python load_hf_weights.py NAME --out FOLDER "
                         "fetches a model from the hub, such as google-bert/bert-base-uncased")
    path = Path(folder) / "config.json"
    if not path.is_file():
        raise InputError(f"{path}: no such file")
    return path


def by_number(item):
    """A key to sort by that puts the items "10" after "9"."""
    digits, _ = item
    return len(digits), digits


def read_config(folder):
    """The BertConfig in a folder's config.json.

    Raises InputError for another architecture, and for anything that is not implemented."""
    path = config_file(folder)
    raw = {key: value for key, value in read_json(path).items() if value is not None}
    layout = raw.get("model_type", "bert")
    if layout not in ("bert", "distilbert"):
        raise InputError(f"{path}: model_type is {layout!r}; only BERT ('bert') and DistilBERT "
                         "('distilbert') can be loaded")
    is_bert = layout == "bert"
    fields = BERT_FIELDS if is_bert else distilbert.CONFIG_FIELDS
    implemented = IMPLEMENTED if is_bert else distilbert.IMPLEMENTED
    for key, values in implemented.items():
        if raw.get(key, values[0]) not in values:
            raise InputError(f"{path}: {key} is {raw[key]!r}; only {values[0]!r} is implemented")
    missing = [fields[name] for name in REQUIRED_FIELDS if fields[name] not in raw]
    if missing:
        raise InputError(f"{path}: lacks {', '.join(missing)}")
    if isinstance(raw.get("id2label"), dict):  # in order; some names are numbers
        raw["id2label"] = {key: name if isinstance(name, str) else json.dumps(name)
                           for key, name in sorted(raw["id2label"].items(), key=by_number)}
    try:
        config = BertConfig(**{ours: raw[key] for ours, key in fields.items() if key in raw})
    except (ValueError, TypeError) as error:
        message = str(error)
        for ours, key in fields.items():  # the file may call our fields by other names
            message = message.replace(ours, key)
        raise InputError(f"{path}: {message}") from None
    check_size(path, config.num_hidden_layers, count_weights(config))  # before building anything
    return config


def read_layout(folder):
    """"bert" or "distilbert": whose names a folder uses. read_config must have accepted it."""
    return read_json(Path(folder) / "config.json").get("model_type") or "bert"


def model_files(folder, weights=True):
    """All files of a folder that a model is made from; weights=False: without its weights.

    Raises InputError."""
    folder, config = Path(folder), config_file(folder)
    vocabulary = [folder / name for name in wordpiece.TOKENIZER_FILES if (folder / name).exists()]
    return [config, *vocabulary, *(weight_files(folder) if weights else [])]


def load_model(folder, cls=MaskedLM, new=(), **kwargs):
    """A model of class cls with the weights of a folder: fp32, on the CPU, in eval mode.

    cls: MaskedLM, Classifier, SpanModel, or Bert, the encoder alone; kwargs go to it. num_labels
    defaults to the number of labels in config.json.
    new: the parts that start at random: "classifier" and "qa_outputs", whether the folder has
    them or not; "pooler" where it has none. A pooler of its own is kept, as BERT's fine-tuning
    does (Devlin et al. 2018, section 4.1).
    From a DistilBERT folder, the token types are zeros, and the head for a task must be new.
    In training its dropout is BERT's, which has one more after the attention.
    Raises InputError if the folder is unreadable or of another architecture, and if a weight is
    missing (all are named), has a wrong shape, or is not finite."""
    config, layout = read_config(folder), read_layout(folder)
    if cls is Classifier:
        kwargs.setdefault("num_labels", len(config.id2label or (0, 1)))
    with torch.device("meta"):  # shapes without memory, whatever sizes the config claims
        model = cls(config, **kwargs)
    shapes = {ours: tuple(weight.shape) for ours, weight in model.state_dict().items()}
    weights = read_weights(folder, layout)
    if cls is MaskedLM:
        check_decoder(folder, weights)
    if any(name.startswith("bert.pooler.") for name in weights):
        new = [part for part in new if part != "pooler"]
    new_prefixes = tuple(PARTS[part] for part in new)
    to_load = {ours: shape for ours, shape in shapes.items() if not ours.startswith(new_prefixes)}

    names = weight_names(model, layout)
    expected = expected_shapes(folder, to_load, names)
    architecture = ARCHITECTURES[cls] if layout == "bert" else f"Distil{ARCHITECTURES[cls]}"
    check_weights(folder, weights, expected, layout, architecture)

    state = {}
    for ours, shape in shapes.items():
        if ours in to_load:
            state[ours] = joined_parts(folder, weights, names[ours], shape)
        else:  # BERT's initialisation
            std = 0.0 if ours.endswith("bias") else config.initializer_range
            state[ours] = torch.randn(shape) * std
    model.load_state_dict(state, assign=True)
    return model.requires_grad_().eval()


def check_decoder(folder, weights):
    """Raises InputError if config.json speaks of a decoder of its own that is not in the files.

    One that is there equals the word embeddings: read_weights has compared them."""
    raw = read_json(config_file(folder))
    says_untied = False in (raw.get("tie_word_embeddings"), raw.get("tie_weights_"))
    if says_untied and not any(copy in weights for copy in DECODER_COPIES):
        raise InputError(f"{folder}: config.json says that its decoder is not tied to the word "
                         "embeddings, and the files hold no decoder")


def expected_shapes(folder, shapes, names):
    """{our name: shape} -> {Hugging Face's name: shape}. Raises InputError if one has no name."""
    expected = {}
    for ours, shape in shapes.items():
        if ours not in names:
            raise InputError(f"{folder}: is a DistilBERT, whose task heads differ from BERT's and "
                             "cannot be loaded; fine-tune the folder with finetune.py, which adds "
                             "a new head")
        for name in names[ours]:
            expected[name] = (shape[0] // len(names[ours]), *shape[1:])
    return expected


def joined_parts(folder, weights, names, shape):
    """The fp32 tensor of this shape whose parts have these names. Raises InputError."""
    if not names:  # DistilBERT's token types
        return torch.zeros(shape)
    joined = torch.cat([weights[name].float() for name in names])
    if not joined.isfinite().all():
        raise InputError(f"{folder}: {', '.join(names)}: some of its numbers are not finite")
    return joined


def load_tokenizer(folder):
    """The tokenizers.Tokenizer of a folder, with the ids that transformers' AutoTokenizer gives.

    Truncation and padding are off. Raises InputError."""
    folder = Path(folder)
    tokenizer = wordpiece.read_tokenizer(folder)
    tokenizer.no_truncation()
    tokenizer.no_padding()
    wordpiece.check_tokenizer(folder, tokenizer)
    if (folder / "config.json").exists():
        wordpiece.check_vocab_size(folder, tokenizer, read_config(folder).vocab_size)
    return tokenizer


# ---- Writing ----

def save_model(model, tokenizer, folder, more_weights=()):
    """Write a model, in fp32, and its tokenizer in Hugging Face's layout.

    more_weights: (Hugging Face's name, tensor) pairs that the model has no place for.
    Each file is written whole or not at all, and model.safetensors last: a folder without it
    holds no model."""
    fields = {name: value for name, value in dataclasses.asdict(model.config).items()
              if value is not None}
    config = {"architectures": [ARCHITECTURES[type(model)]], "model_type": "bert",
              "hidden_act": "gelu", "position_embedding_type": "absolute", **fields}
    if model.config.id2label:
        config["label2id"] = {name: int(number) for number, name in model.config.id2label.items()}
    names = weight_names(model)
    write_folder(folder, config, tokenizer, "BertTokenizer", model.state_dict(), names,
                 more_weights)


def write_folder(folder, config, tokenizer, tokenizer_class, state, names, more_weights=()):
    """Write config.json, the tokenizer's files, then the weights.

    state: {our name: tensor}; names: what weight_names returns; more_weights: see save_model."""
    folder = Path(folder)
    folder.mkdir(parents=True, exist_ok=True)
    write_json(folder / "config.json", config)
    wordpiece.write_tokenizer(tokenizer, folder, tokenizer_class, config["max_position_embeddings"])
    tensors = dict(more_weights)
    for ours, group in names.items():
        for theirs, part in zip(group, state[ours].chunk(max(1, len(group)))):
            tensors[theirs] = part
    tensors = {name: tensor.float().cpu().contiguous() for name, tensor in tensors.items()}
    write_file(folder / "model.safetensors", save(tensors, metadata={"format": "pt"}))


# ---- From the hub ----

def fetch_model(name, out):
    """Download a BERT with its MLM head from Hugging Face's hub, write it to the folder `out`.

    Its pooler, which fine-tuning starts from, is kept if there is one. The config comes first:
    another architecture is refused before its weights are fetched. `out` must not exist, or be
    empty; it is complete or not there. Raises InputError."""
    folder = download_model(name, check_config=read_config)
    model, tokenizer = load_model(folder), load_tokenizer(folder)
    pooler = [(key, weight) for key, weight in read_weights(folder, read_layout(folder)).items()
              if key.startswith("bert.pooler.")]
    with whole_folder(out) as temporary:
        save_model(model, tokenizer, temporary, pooler)
    layers, hidden_size = model.config.num_hidden_layers, model.config.hidden_size
    print(f"{out}: {name}, {layers} layers, hidden size {hidden_size}")


# ---- The command ----

def export_distilbert(source, out):
    """Read a BERT with its MLM head, write it so that transformers' DistilBertForMaskedLM opens it.

    The logits are the same where all tokens are of segment 0; what the model knows of other
    segments is left out. Raises InputError."""
    config = read_config(source)
    distilbert.check_exportable(source, read_json(Path(source) / "config.json"), config)
    model, tokenizer = load_model(source), load_tokenizer(source)
    with whole_folder(out) as temporary:
        write_folder(temporary, distilbert.exported_config(config), tokenizer,
                     "DistilBertTokenizer", distilbert.exported_state(model),
                     weight_names(model, "distilbert"))
    segments = ", without its other token types" if config.type_vocab_size > 1 else ""
    print(f"{out}: {source} as transformers' DistilBertForMaskedLM{segments}")


def main(arguments):
    parser = Parser(__doc__)
    parser.add_argument("model", help="the name of a model on Hugging Face's hub; with --to: the "
                                      "folder of a BERT with its MLM head")
    parser.add_argument("--to", choices=("distilbert",),
                        help="convert a folder to this layout (default: fetch from the hub)")
    parser.add_argument("--out", required=True, help="the folder to write: new, or empty")
    args = parser.parse_args(arguments)
    out = Path(args.out)
    if out.resolve() == Path.cwd():
        raise InputError(f"--out {out}: is the current folder; name a new one in it")
    if out.exists() and (not out.is_dir() or any(out.iterdir())):
        raise InputError(f"--out {out}: is there already, and not an empty folder; choose another")
    if not args.to:
        if Path(args.model).is_dir():
            raise InputError(f"{args.model}: is a local folder; add --to distilbert to convert it")
        return fetch_model(args.model, args.out)
    if not Path(args.model).is_dir():
        raise InputError(f"{args.model}: no such folder")
    export_distilbert(args.model, args.out)


if __name__ == "__main__":
    command_line(main)
