"""BERT from scratch: configuration, encoder, its heads, and the student made by copying layers.

What is special to BERT: LayerNorm after each residual sum (post-norm), the erf form of GELU, and
a masked-language-model (MLM) head whose last linear map, which BERT calls its decoder, has the word
embedding matrix as its weight.
Devlin et al. 2018 (arXiv:1810.04805), section 3. The student: Sanh et al. 2019
(arXiv:1910.01108), section 3. Read next: data.py, which makes the batches.
"""
from dataclasses import dataclass, replace

import torch
import torch.nn.functional as F
from torch import nn


@dataclass(frozen=True)
class BertConfig:
    """The fields of Hugging Face's config.json that we use.

    Raises ValueError if a field is out of its range, or if the attention heads do not divide the
    hidden size."""
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
    classifier_dropout: float | None = None  # None: hidden_dropout_prob
    initializer_range: float = 0.02
    pad_token_id: int = 0
    id2label: dict | None = None  # of a classifier: class number -> name
    problem_type: str | None = None

    def __post_init__(self):
        sizes = ("vocab_size", "hidden_size", "num_hidden_layers", "num_attention_heads",
                 "intermediate_size", "max_position_embeddings", "type_vocab_size")
        for name in sizes:
            value = getattr(self, name)
            if type(value) is not int or value < 1:  # isinstance would accept JSON's true
                raise ValueError(f"{name} must be a positive whole number, not {value!r}")
        fractions = ("hidden_dropout_prob", "attention_probs_dropout_prob", "classifier_dropout",
                     "layer_norm_eps", "initializer_range")
        for name in fractions:
            value = getattr(self, name)
            if name == "classifier_dropout" and value is None:
                continue
            if not isinstance(value, (int, float)) or not 0 <= value < 1:
                raise ValueError(f"{name} must be a number from 0 to below 1, not {value!r}")
        if not isinstance(self.pad_token_id, int) or not 0 <= self.pad_token_id < self.vocab_size:
            raise ValueError(f"pad_token_id must be an id of the vocabulary, "
                             f"not {self.pad_token_id!r}")
        if self.id2label is not None and not is_label_table(self.id2label):
            raise ValueError(f"id2label must map class numbers to names, not {self.id2label!r}")
        if self.hidden_size % self.num_attention_heads:
            raise ValueError(f"hidden_size {self.hidden_size} is not divisible by "
                             f"num_attention_heads {self.num_attention_heads}")


def is_label_table(value):
    """Whether value maps 0 .. n - 1, as numbers or as strings, to names."""
    if not isinstance(value, dict) or not all(isinstance(name, str) for name in value.values()):
        return False
    return sorted(map(str, value)) == sorted(map(str, range(len(value))))


class Embeddings(nn.Module):
    """Word, position and token-type embeddings, summed; then LayerNorm and dropout."""

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
            raise ValueError(
                f"{length} tokens, but the model has {self.position.num_embeddings} positions")
        if token_type_ids is None:  # every token belongs to segment 0
            token_type = self.token_type.weight[0]  # (hidden)
        else:
            token_type = self.token_type(token_type_ids)  # (batch, length, hidden)
        x = self.word(input_ids) + self.position.weight[:length] + token_type
        return self.dropout(self.norm(x))  # (batch, length, hidden)


class EncoderLayer(nn.Module):
    """Self-attention, then feed-forward; each followed by dropout, residual sum and LayerNorm."""

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
        """x: (batch, length, hidden). mask: None or (batch, 1, 1, length), True at real tokens."""
        batch, length, hidden = x.shape
        qkv = self.qkv(x).view(batch, length, 3, self.num_heads, hidden // self.num_heads)
        query, key, value = qkv.permute(2, 0, 3, 1, 4)  # each (batch, heads, length, head size)
        attended = F.scaled_dot_product_attention(
            query, key, value, attn_mask=mask,
            dropout_p=self.attention_dropout if self.training else 0.0)
        attended = attended.transpose(1, 2).reshape(batch, length, hidden)
        x = self.attention_norm(x + self.dropout(self.attention_out(attended)))
        return self.ffn_norm(x + self.dropout(self.ffn_out(F.gelu(self.ffn_in(x)))))


class Bert(nn.Module):
    """The encoder.

    input_ids, attention_mask (1 = token, 0 = padding) and token_type_ids: (batch, length)."""

    def __init__(self, config):
        super().__init__()
        self.config = config
        self.embeddings = Embeddings(config)
        self.layers = nn.ModuleList(EncoderLayer(config) for _ in range(config.num_hidden_layers))
        self.apply(lambda module: init_weights(module, config.initializer_range))

    def hidden_states(self, input_ids, attention_mask=None, token_type_ids=None):
        """num_hidden_layers + 1 tensors (batch, length, hidden): embeddings, then each layer."""
        mask = attention_mask
        if mask is not None:
            mask = mask.bool()[:, None, None, :]  # broadcast over heads and queries
        states = [self.embeddings(input_ids, token_type_ids)]
        for layer in self.layers:
            states.append(layer(states[-1], mask))
        return states

    def forward(self, input_ids, attention_mask=None, token_type_ids=None):
        """The last layer's hidden states, (batch, length, hidden)."""
        return self.hidden_states(input_ids, attention_mask, token_type_ids)[-1]


class MLMHead(nn.Module):
    """Dense, GELU and LayerNorm (`transform`), and the bias of the linear map to the vocabulary.

    That map is MaskedLM.decoder, as its weight is the word embeddings."""

    def __init__(self, config):
        super().__init__()
        self.dense = nn.Linear(config.hidden_size, config.hidden_size)
        self.norm = nn.LayerNorm(config.hidden_size, eps=config.layer_norm_eps)
        self.bias = nn.Parameter(torch.zeros(config.vocab_size))
        self.apply(lambda module: init_weights(module, config.initializer_range))

    def transform(self, hidden):
        """The decoder's input: (..., hidden) -> (..., hidden)."""
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
        return self.logits(self.bert(input_ids, attention_mask, token_type_ids))

    def logits(self, hidden):
        """From the encoder's last hidden states (..., hidden) to logits (..., vocab)."""
        return F.linear(self.head.transform(hidden), *self.decoder())

    def decoder(self):
        """(weight (vocab, hidden), bias (vocab)) of the linear map to logits."""
        return self.bert.embeddings.word.weight, self.head.bias


class Pooler(nn.Module):
    """Dense and tanh on [CLS], the first token: (batch, length, hidden) -> (batch, hidden)."""

    def __init__(self, config):
        super().__init__()
        self.dense = nn.Linear(config.hidden_size, config.hidden_size)

    def forward(self, hidden):
        return torch.tanh(self.dense(hidden[:, 0]))


class Classifier(nn.Module):
    """BERT, pooler, dropout, linear: one label for a sentence or a pair of sentences.

    num_labels 1: a regression."""

    def __init__(self, config, num_labels=2):
        super().__init__()
        self.config = config
        self.bert = Bert(config)
        self.pooler = Pooler(config)
        dropout = config.classifier_dropout
        self.dropout = nn.Dropout(config.hidden_dropout_prob if dropout is None else dropout)
        self.head = nn.Linear(config.hidden_size, num_labels)
        for part in (self.pooler, self.head):
            part.apply(lambda module: init_weights(module, config.initializer_range))

    def forward(self, input_ids, attention_mask=None, token_type_ids=None):
        """Logits, (batch, num_labels)."""
        hidden = self.bert(input_ids, attention_mask, token_type_ids)
        return self.head(self.dropout(self.pooler(hidden)))


# The logit of a position that cannot be an answer: its exp is 0. It is finite, because the KL
# divergence subtracts two of them, and -inf - (-inf) is not a number.
MASKED_LOGIT = -1e9


class SpanModel(nn.Module):
    """BERT and a linear layer with two outputs per token: an answer's start and its end.

    Devlin et al. 2018, section 4.2."""

    def __init__(self, config):
        super().__init__()
        self.config = config
        self.bert = Bert(config)
        self.head = nn.Linear(config.hidden_size, 2)
        init_weights(self.head, config.initializer_range)

    def forward(self, input_ids, attention_mask=None, token_type_ids=None):
        """Logits of start and end over the positions, (batch, 2, length); padding is masked."""
        hidden = self.bert(input_ids, attention_mask, token_type_ids)
        logits = self.head(hidden).transpose(1, 2)
        if attention_mask is None:
            return logits
        return logits.masked_fill(attention_mask[:, None] == 0, MASKED_LOGIT)


def init_weights(module, std):
    """BERT's initialisation, as Hugging Face has it: matrices normal with deviation std, biases
    zero. (The original cuts the normal's tails off, beyond 2 std.)

    LayerNorm already starts as the identity."""
    if isinstance(module, (nn.Linear, nn.Embedding)):
        nn.init.normal_(module.weight, std=std)
    if isinstance(module, nn.Linear):
        nn.init.zeros_(module.bias)


def count_parameters(model):
    return sum(parameter.numel() for parameter in model.parameters())


def make_student(teacher, layers=None, init="teacher"):
    """A MaskedLM like the teacher but with fewer layers (Sanh et al. 2019, section 3).

    layers: which of the teacher's layers to copy, as for chosen_layers. None: half of them, evenly
    spaced with the first and the last. Of 12 layers these are 0, 2, 4, 7, 9, 11, the authors'
    published choice.
    init: "teacher" copies the embeddings, these layers and the head; "random" starts a model of
    the same depth anew.
    Raises ValueError for a layer that the teacher does not have, or another init."""
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


def evenly_spaced(depth, count):
    """count of the numbers 0 .. depth - 1, evenly spaced with both ends. Halves round to even."""
    return [round(i * (depth - 1) / max(1, count - 1)) for i in range(count)]


LAYER_CHOICES = {  # other halves of a teacher's layers, from its depth
    "even": lambda depth: range(0, depth, 2),
    "odd": lambda depth: range(1, depth, 2),
    "first": lambda depth: range(depth // 2),
    "last": lambda depth: range(depth - depth // 2, depth),
}


def chosen_layers(choice, depth):
    """The layers that make_student copies from a teacher of this depth, a list of numbers.

    choice: a list of numbers; None for half of the layers, evenly spaced; "evenly:4" for four of
    them; or a key of LAYER_CHOICES. Raises ValueError if the teacher has too few layers."""
    if choice is not None and not isinstance(choice, str):
        return list(choice)
    if choice in LAYER_CHOICES:
        layers = list(LAYER_CHOICES[choice](depth))
    else:
        count = max(1, depth // 2) if choice is None else int(choice.removeprefix("evenly:"))
        layers = evenly_spaced(depth, count) if count <= depth else []
    if not layers:
        raise ValueError(f"the teacher has {depth} layers, too few for {choice}")
    return layers
