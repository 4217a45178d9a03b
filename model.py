"""BERT from scratch: configuration, encoder, heads for masked words, classes and spans, and the student made by copying layers.

What is special: LayerNorm after each residual sum (post-norm), erf GELU, query, key and value in one matrix,
attention through `scaled_dot_product_attention`, an MLM decoder that is the word embedding matrix itself.
Devlin et al. 2018 (arXiv:1810.04805), section 3; the student: Sanh et al. 2019 (arXiv:1910.01108), section 3.
Read next: losses.py.
"""
from dataclasses import dataclass, replace

import torch
import torch.nn.functional as F
from torch import nn


@dataclass(frozen=True)
class BertConfig:
    """The fields of Hugging Face's config.json that BERT's arithmetic depends on, under the same names.

    Raises ValueError if a field is out of its range, or the attention heads do not divide the hidden size."""
    vocab_size: int = 30522
    hidden_size: int = 768
    num_hidden_layers: int = 12
    num_attention_heads: int = 12
    intermediate_size: int = 3072
    max_position_embeddings: int = 512
    type_vocab_size: int = 2
    layer_norm_eps: float = 1e-12
    hidden_dropout_prob: float = 0.1
    attention_probs_dropout_prob: float = 0.1
    classifier_dropout: float | None = None  # None: as hidden_dropout_prob
    initializer_range: float = 0.02
    pad_token_id: int = 0
    id2label: dict | None = None             # of a classifier: class number -> name
    problem_type: str | None = None

    def __post_init__(self):
        for name in ("vocab_size", "hidden_size", "num_hidden_layers", "num_attention_heads", "intermediate_size",
                     "max_position_embeddings", "type_vocab_size"):
            if type(getattr(self, name)) is not int or getattr(self, name) < 1:  # JSON's true would be an int to isinstance
                raise ValueError(f"{name} must be a positive whole number, not {getattr(self, name)!r}")
        for name in ("hidden_dropout_prob", "attention_probs_dropout_prob", "classifier_dropout", "layer_norm_eps",
                     "initializer_range"):
            value = getattr(self, name)
            if not (isinstance(value, (int, float)) and 0 <= value < 1) and (name, value) != ("classifier_dropout", None):
                raise ValueError(f"{name} must be a number from 0 to 1, not {value!r}")
        if not isinstance(self.pad_token_id, int) or not 0 <= self.pad_token_id < self.vocab_size:
            raise ValueError(f"pad_token_id must be a number of the vocabulary, not {self.pad_token_id!r}")
        if self.id2label is not None and (not isinstance(self.id2label, dict)
                                          or sorted(map(str, self.id2label)) != sorted(map(str, range(len(self.id2label))))
                                          or not all(isinstance(name, str) for name in self.id2label.values())):
            raise ValueError(f"id2label must be a table of class numbers and their names, not {self.id2label!r}")
        if self.hidden_size % self.num_attention_heads:
            raise ValueError(f"hidden_size {self.hidden_size} is not divisible by "
                             f"num_attention_heads {self.num_attention_heads}")


class Embeddings(nn.Module):
    def __init__(self, config):
        super().__init__()
        self.word = nn.Embedding(config.vocab_size, config.hidden_size)
        self.position = nn.Embedding(config.max_position_embeddings, config.hidden_size)
        self.token_type = nn.Embedding(config.type_vocab_size, config.hidden_size)
        self.norm = nn.LayerNorm(config.hidden_size, eps=config.layer_norm_eps)
        self.dropout = nn.Dropout(config.hidden_dropout_prob)

    def forward(self, input_ids, token_type_ids=None):
        length = input_ids.shape[1]
        if length > self.position.num_embeddings:
            raise ValueError(f"{length} tokens, but the model has {self.position.num_embeddings} positions")
        # Without token types every token is of segment 0: one row, added to all.
        token_type = self.token_type.weight[0] if token_type_ids is None else self.token_type(token_type_ids)
        x = self.word(input_ids) + self.position.weight[:length] + token_type  # (batch, length, hidden)
        return self.dropout(self.norm(x))


class Layer(nn.Module):
    """Self-attention and feed-forward, each followed by dropout, the residual sum and LayerNorm."""

    def __init__(self, config):
        super().__init__()
        self.num_heads = config.num_attention_heads
        self.attention_dropout = config.attention_probs_dropout_prob
        self.qkv = nn.Linear(config.hidden_size, 3 * config.hidden_size)
        self.attention_out = nn.Linear(config.hidden_size, config.hidden_size)
        self.attention_norm = nn.LayerNorm(config.hidden_size, eps=config.layer_norm_eps)
        self.ffn_in = nn.Linear(config.hidden_size, config.intermediate_size)
        self.ffn_out = nn.Linear(config.intermediate_size, config.hidden_size)
        self.ffn_norm = nn.LayerNorm(config.hidden_size, eps=config.layer_norm_eps)
        self.dropout = nn.Dropout(config.hidden_dropout_prob)

    def forward(self, x, mask):
        batch, length, hidden = x.shape
        qkv = self.qkv(x).view(batch, length, 3, self.num_heads, hidden // self.num_heads)
        query, key, value = qkv.permute(2, 0, 3, 1, 4)  # each (batch, heads, length, head size)
        attended = F.scaled_dot_product_attention(
            query, key, value, attn_mask=mask, dropout_p=self.attention_dropout if self.training else 0.0)
        attended = attended.transpose(1, 2).reshape(batch, length, hidden)
        x = self.attention_norm(x + self.dropout(self.attention_out(attended)))
        return self.ffn_norm(x + self.dropout(self.ffn_out(F.gelu(self.ffn_in(x)))))


class Bert(nn.Module):
    """The encoder. input_ids, attention_mask (1 = token, 0 = padding), token_type_ids: (batch, length), whole numbers."""

    def __init__(self, config):
        super().__init__()
        self.config = config
        self.embeddings = Embeddings(config)
        self.layers = nn.ModuleList(Layer(config) for _ in range(config.num_hidden_layers))
        self.apply(lambda module: init_weights(module, config.initializer_range))

    def hidden_states(self, input_ids, attention_mask=None, token_type_ids=None):
        """num_hidden_layers + 1 tensors (batch, length, hidden): the embeddings, then the output of every layer."""
        mask = None if attention_mask is None else attention_mask.bool()[:, None, None, :]  # over heads and queries
        states = [self.embeddings(input_ids, token_type_ids)]
        for layer in self.layers:
            states.append(layer(states[-1], mask))
        return states

    def forward(self, input_ids, attention_mask=None, token_type_ids=None):
        """The last layer's hidden states, (batch, length, hidden)."""
        return self.hidden_states(input_ids, attention_mask, token_type_ids)[-1]


class MLMHead(nn.Module):
    """Dense, GELU, LayerNorm; then the decoder, whose matrix is the word embeddings (tied) and whose bias is its own."""

    def __init__(self, config):
        super().__init__()
        self.dense = nn.Linear(config.hidden_size, config.hidden_size)
        self.norm = nn.LayerNorm(config.hidden_size, eps=config.layer_norm_eps)
        self.bias = nn.Parameter(torch.zeros(config.vocab_size))
        self.apply(lambda module: init_weights(module, config.initializer_range))

    def transform(self, hidden):
        """What the decoder multiplies: (..., hidden) -> (..., hidden)."""
        return self.norm(F.gelu(self.dense(hidden)))


class MaskedLM(nn.Module):
    """BERT with its masked-language-model head."""

    def __init__(self, config):
        super().__init__()
        self.config = config
        self.bert = Bert(config)
        self.head = MLMHead(config)

    def forward(self, input_ids, attention_mask=None, token_type_ids=None):
        """Logits over the vocabulary, (batch, length, vocab)."""
        hidden = self.bert(input_ids, attention_mask, token_type_ids)
        return F.linear(self.head.transform(hidden), *self.decoder())

    def decoder(self):
        """(weight (vocab, hidden), bias (vocab)) of the linear map from transformed hidden states to logits."""
        return self.bert.embeddings.word.weight, self.head.bias


class Pooler(nn.Module):
    def __init__(self, config):
        super().__init__()
        self.dense = nn.Linear(config.hidden_size, config.hidden_size)

    def forward(self, hidden):
        return torch.tanh(self.dense(hidden[:, 0]))  # [CLS], the first token: (batch, hidden)


class Classifier(nn.Module):
    """BERT, pooler, dropout, linear: one label for a sentence or a pair (num_labels 1: a regression)."""

    def __init__(self, config, num_labels=2):
        super().__init__()
        self.config = config
        self.bert = Bert(config)
        self.pooler = Pooler(config)
        dropout = config.hidden_dropout_prob if config.classifier_dropout is None else config.classifier_dropout
        self.dropout = nn.Dropout(dropout)
        self.head = nn.Linear(config.hidden_size, num_labels)
        for part in (self.pooler, self.head):
            part.apply(lambda module: init_weights(module, config.initializer_range))

    def forward(self, input_ids, attention_mask=None, token_type_ids=None):
        """Logits, (batch, num_labels)."""
        return self.head(self.dropout(self.pooler(self.bert(input_ids, attention_mask, token_type_ids))))


MASKED_LOGIT = -1e9  # a logit of what cannot be: exp gives 0, and, unlike -infinity, a difference of two is a number


class SpanModel(nn.Module):
    """BERT and a linear layer with two outputs a token: whether an answer starts there, and whether it ends there
    (Devlin et al. 2018, section 4.2)."""

    def __init__(self, config):
        super().__init__()
        self.config = config
        self.bert = Bert(config)
        self.head = nn.Linear(config.hidden_size, 2)
        init_weights(self.head, config.initializer_range)

    def forward(self, input_ids, attention_mask=None, token_type_ids=None):
        """Logits of start and end over the positions, (batch, 2, length); NOT_THERE where there is padding."""
        logits = self.head(self.bert(input_ids, attention_mask, token_type_ids)).transpose(1, 2)
        return logits if attention_mask is None else logits.masked_fill(attention_mask[:, None] == 0, MASKED_LOGIT)


def init_weights(module, std):
    """BERT's initialisation: matrices normal with deviation std, biases zero. (LayerNorm starts as the identity by itself.)"""
    if isinstance(module, (nn.Linear, nn.Embedding)):
        nn.init.normal_(module.weight, std=std)
    if isinstance(module, nn.Linear):
        nn.init.zeros_(module.bias)


def make_student(teacher, layers=None, init="teacher"):
    """A MaskedLM like the teacher but with fewer layers (Sanh et al. 2019, section 3, "Student initialization").

    layers: which of the teacher's layers to copy, in order. None: half of them, evenly spaced with the first and the last:
    of 12 layers 0, 2, 4, 7, 9, 11, the authors' published choice; of 6 layers 0, 2, 5. "evenly:4": four, spaced likewise; or a
    word of LAYER_CHOICES.
    init "teacher" copies embeddings, those layers and the head; "random" starts all of it anew, at the same depth.
    Raises ValueError for a layer that the teacher has not, or another init."""
    depth = teacher.config.num_hidden_layers
    layers = chosen_layers(layers, depth)
    for layer in layers:
        if not 0 <= layer < depth:
            raise ValueError(f"the teacher has layers 0 to {depth - 1}, not {layer}")
    if init not in ("teacher", "random"):
        raise ValueError(f"init is 'teacher' or 'random', not {init!r}")
    student = MaskedLM(replace(teacher.config, num_hidden_layers=len(layers)))
    if init == "teacher":
        student.bert.embeddings.load_state_dict(teacher.bert.embeddings.state_dict())
        student.head.load_state_dict(teacher.head.state_dict())
        for own, copied in zip(student.bert.layers, layers):
            own.load_state_dict(teacher.bert.layers[copied].state_dict())
    return student


LAYER_CHOICES = {  # which half of a teacher's layers, of its depth
    "even": lambda depth: range(0, depth, 2), "odd": lambda depth: range(1, depth, 2),
    "first": lambda depth: range(depth // 2), "last": lambda depth: range(depth - depth // 2, depth)}


def chosen_layers(choice, depth):
    """The numbers of the layers that make_student's `layers` means, of a teacher of this depth.

    Raises ValueError if it has not so many."""
    if choice is not None and not isinstance(choice, str):
        return list(choice)
    count = int(choice.removeprefix("evenly:")) if choice not in (None, *LAYER_CHOICES) else max(1, depth // 2)
    layers = list(LAYER_CHOICES[choice](depth)) if choice in LAYER_CHOICES else evenly_spaced(depth, count)
    if not layers or count > depth:
        raise ValueError(f"the teacher has {depth} layers, too few for {choice}")
    return layers


def evenly_spaced(depth, count):
    """count of the numbers 0 .. depth - 1, evenly spaced with both ends: numpy's round(linspace(0, depth - 1, count))."""
    return [round(i * (depth - 1) / max(1, count - 1)) for i in range(count)]
