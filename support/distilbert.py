"""DistilBERT's own layout in Hugging Face folders: its names, its config fields, and the export.

A DistilBERT is a BERT without token types and with other task heads. Its MLM head can be read and
written; its task heads cannot, so a Classifier's pooler and head have no names here.
load_hf_weights.py uses these tables as it uses its own.
"""
from model import MaskedLM
from support.errors import InputError

# Our name of a weight -> DistilBERT's, or its names of the three parts of our one matrix.
ENCODER_NAMES = {
    "bert.embeddings.word.weight": "distilbert.embeddings.word_embeddings.weight",
    "bert.embeddings.position.weight": "distilbert.embeddings.position_embeddings.weight",
    "bert.embeddings.token_type.weight": (),  # DistilBERT has none; reading gives zeros
    "bert.embeddings.norm.*": "distilbert.embeddings.LayerNorm.*",
    "bert.layers.{}.qkv.*": (
        "distilbert.transformer.layer.{}.attention.q_lin.*",
        "distilbert.transformer.layer.{}.attention.k_lin.*",
        "distilbert.transformer.layer.{}.attention.v_lin.*",
    ),
    "bert.layers.{}.attention_out.*": "distilbert.transformer.layer.{}.attention.out_lin.*",
    "bert.layers.{}.attention_norm.*": "distilbert.transformer.layer.{}.sa_layer_norm.*",
    "bert.layers.{}.ffn_in.*": "distilbert.transformer.layer.{}.ffn.lin1.*",
    "bert.layers.{}.ffn_out.*": "distilbert.transformer.layer.{}.ffn.lin2.*",
    "bert.layers.{}.ffn_norm.*": "distilbert.transformer.layer.{}.output_layer_norm.*",
}
HEAD_NAMES = {
    MaskedLM: {
        "head.dense.*": "vocab_transform.*",
        "head.norm.*": "vocab_layer_norm.*",
        "head.bias": "vocab_projector.bias",
    },
}
CONFIG_FIELDS = {  # BertConfig's name of a field -> DistilBERT's
    "vocab_size": "vocab_size",
    "hidden_size": "dim",
    "num_hidden_layers": "n_layers",
    "num_attention_heads": "n_heads",
    "intermediate_size": "hidden_dim",
    "max_position_embeddings": "max_position_embeddings",
    "hidden_dropout_prob": "dropout",
    "attention_probs_dropout_prob": "attention_dropout",
    "initializer_range": "initializer_range",
    "pad_token_id": "pad_token_id",
}
LAYER_NORM_EPS = 1e-12  # a constant in DistilBERT, not a field
IMPLEMENTED = {"activation": ("gelu", "gelu_python")}  # fields, and their implemented values


def check_exportable(folder, fields, config):
    """Raises InputError unless a BERT folder can be written as a DistilBERT.

    fields: its config.json; config: the same as a BertConfig."""
    if fields.get("model_type") == "distilbert":
        raise InputError(f"{folder}: is already a DistilBERT")
    architectures = str(fields.get("architectures"))
    tasks = ("Classification", "QuestionAnswering", "MultipleChoice")
    if any(task in architectures for task in tasks):
        raise InputError(f"{folder}: is fine-tuned ({architectures}), and DistilBERT's task heads "
                         "differ from BERT's; export the model from before its fine-tuning")
    if config.layer_norm_eps != LAYER_NORM_EPS:
        raise InputError(f"{folder}/config.json: layer_norm_eps is {config.layer_norm_eps}, but "
                         f"DistilBERT's is always {LAYER_NORM_EPS}; this model cannot be exported")


def exported_config(config):
    """The config.json, as a dict, of a BertConfig in DistilBERT's layout."""
    fields = {theirs: getattr(config, ours) for ours, theirs in CONFIG_FIELDS.items()}
    return {"architectures": ["DistilBertForMaskedLM"], "model_type": "distilbert",
            "activation": "gelu", "sinusoidal_pos_embds": False, "tie_weights_": True, **fields}


def exported_state(model):
    """The state dict of a MaskedLM, with segment 0's vector added to every position.

    BERT adds that vector to every token of segment 0; DistilBERT adds up words and positions
    only. Adding it to the words instead would change the decoder, which is the same matrix."""
    state = model.state_dict()
    position, token_type = "bert.embeddings.position.weight", "bert.embeddings.token_type.weight"
    state[position] = state[position] + state[token_type][0]
    return state
