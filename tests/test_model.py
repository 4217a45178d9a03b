"""model.py against transformers, and against the published numbers."""
import dataclasses

import numpy as np
import pytest
import torch
import torch.nn.functional as F
import transformers
from conftest import TINY

from load_hf_weights import load_model
from model import Bert, BertConfig, Classifier, MaskedLM, make_student

pytestmark = pytest.mark.check

# ---- Helpers ----

def hf_config(config):
    fields = dataclasses.asdict(config)
    given = {name: value for name, value in fields.items() if value is not None}
    return transformers.BertConfig(**given)


def batch(config, length=20):
    """(input_ids, attention_mask, token_type_ids) of three rows, each (3, length).

    The second row is padded, the third has two segments."""
    generator = torch.Generator().manual_seed(0)
    input_ids = torch.randint(config.vocab_size, (3, length), generator=generator)
    attention_mask = torch.ones(3, length, dtype=torch.int64)
    attention_mask[1, length // 2:] = 0
    token_type_ids = torch.zeros(3, length, dtype=torch.int64)
    token_type_ids[2, length // 3:] = 1
    return input_ids, attention_mask, token_type_ids


def batch_by_name(config):
    """The same batch, as the keyword arguments that transformers takes."""
    return dict(zip(("input_ids", "attention_mask", "token_type_ids"), batch(config)))


@pytest.fixture(scope="module", params=["tiny", "bert-base"])
def pair(request, tmp_path_factory):
    """(transformers' model, ours) with the same weights.

    Biases and LayerNorms are random too, so that leaving one out changes the result."""
    folder = tmp_path_factory.mktemp("reference")
    torch.manual_seed(1)
    config = TINY if request.param == "tiny" else BertConfig()
    reference = transformers.BertForMaskedLM(hf_config(config)).eval()
    with torch.no_grad():
        for parameter in reference.parameters():
            if parameter.dim() == 1:
                parameter.add_(torch.randn_like(parameter) * 0.1)
    reference.save_pretrained(folder)
    return reference, load_model(folder)


# ---- The model against transformers ----

@torch.no_grad()
def test_logits_equal_those_of_transformers(pair):
    reference, ours = pair
    input_ids, attention_mask, token_type_ids = batch(ours.config)
    expected = reference(**batch_by_name(ours.config)).logits
    logits = ours(input_ids, attention_mask, token_type_ids)
    real = attention_mask.bool()
    assert expected[real].std() > 0.1  # the logits differ enough to be compared
    assert (logits - expected)[real].abs().max() < 1e-4
    without_masks = reference(input_ids=input_ids).logits - ours(input_ids)
    assert without_masks.abs().max() < 1e-4


@torch.no_grad()
def test_hidden_states_equal_those_of_transformers(pair):
    reference, ours = pair
    inputs = batch(ours.config)
    named_inputs = batch_by_name(ours.config)
    expected = reference.bert(**named_inputs, output_hidden_states=True).hidden_states
    states = ours.bert.hidden_states(*inputs)
    assert len(states) == len(expected) == ours.config.num_hidden_layers + 1
    real = inputs[1].bool()
    for state, reference_state in zip(states, expected):
        assert (state - reference_state)[real].abs().max() < 1e-4


@torch.no_grad()
def test_the_logits_of_the_encoders_output_are_the_models_logits():
    model, inputs = MaskedLM(TINY).eval(), batch(TINY)
    hidden = model.bert(*inputs)
    expected = model(*inputs)
    assert torch.equal(model.logits(hidden), expected)
    # Any leading dimensions: here the tokens of the batch, (tokens, hidden).
    real = inputs[1].bool()
    assert torch.allclose(model.logits(hidden[real]), expected[real], atol=1e-5)


@torch.no_grad()
def test_the_content_of_the_padding_does_not_matter(pair):
    _, ours = pair
    input_ids, attention_mask, token_type_ids = batch(ours.config)
    real = attention_mask.bool()
    other_ids = torch.where(real, input_ids, 7)
    logits = ours(input_ids, attention_mask, token_type_ids)
    other_logits = ours(other_ids, attention_mask, token_type_ids)
    assert (logits - other_logits)[real].abs().max() < 1e-5


def test_gradients_equal_those_of_transformers(pair):
    reference, ours = pair
    # transformers gives the padding's embedding, row 0, no gradient: row 0 is not used here.
    input_ids = batch(ours.config)[0].clamp(min=1)
    labels = torch.where(input_ids % 3 == 0, input_ids, -100)

    # The tied matrix, whose gradient is the sum of both its uses, and query, key and value in one.
    loss = F.cross_entropy(ours(input_ids).flatten(0, 1), labels.flatten())
    word = ours.bert.embeddings.word.weight
    word_grad, qkv_grad = torch.autograd.grad(loss, [word, ours.bert.layers[1].qkv.weight])

    loss = reference(input_ids=input_ids, labels=labels).loss
    attention = reference.bert.encoder.layer[1].attention.self
    parts = [attention.query.weight, attention.key.weight, attention.value.weight]
    word = reference.bert.embeddings.word_embeddings.weight
    expected_word, *expected_parts = torch.autograd.grad(loss, [word, *parts])

    for grad, expected in ((word_grad, expected_word), (qkv_grad, torch.cat(expected_parts))):
        assert (grad - expected).abs().max() < 1e-5 * expected.abs().max()


def test_dropout_is_on_only_in_training_mode():
    model, (input_ids, *_) = Classifier(TINY), batch(TINY)
    with torch.no_grad():
        assert not torch.equal(model.train()(input_ids), model(input_ids))
        assert torch.equal(model.eval()(input_ids), model(input_ids))


# ---- The model against the published numbers ----

def count(config):
    with torch.device("meta"):
        return sum(parameter.numel() for parameter in MaskedLM(config).parameters())


def test_parameter_counts_are_the_published_ones():
    assert count(BertConfig()) == 109_514_298
    assert count(BertConfig(num_hidden_layers=6)) == 66_987_066
    assert count(BertConfig()) - count(BertConfig(num_hidden_layers=11)) == 7_087_872
    with torch.device("meta"):
        pooler = Classifier(BertConfig(), 2).pooler
    assert sum(parameter.numel() for parameter in pooler.parameters()) == 590_592


# ---- The student ----

PUBLISHED_CHOICES = {12: [0, 2, 4, 7, 9, 11], 6: [0, 2, 5]}


@pytest.mark.parametrize("depth", range(1, 25))
def test_the_student_gets_evenly_spaced_layers(depth):
    teacher = MaskedLM(BertConfig(
        vocab_size=9, hidden_size=4, num_hidden_layers=depth, num_attention_heads=1,
        intermediate_size=4, max_position_embeddings=4))
    for number, layer in enumerate(teacher.bert.layers):
        layer.ffn_norm.bias.data.fill_(number)
    copied = [int(layer.ffn_norm.bias[0]) for layer in make_student(teacher).bert.layers]
    assert copied == np.round(np.linspace(0, depth - 1, max(1, depth // 2))).tolist()
    assert copied == PUBLISHED_CHOICES.get(depth, copied)


def test_a_student_of_all_layers_is_the_teacher_and_shares_nothing_with_it():
    teacher = MaskedLM(TINY).eval()
    input_ids, *_ = batch(TINY)
    with torch.no_grad():
        expected = teacher(input_ids)
        student = make_student(teacher, layers=range(4)).eval()
        assert torch.equal(student(input_ids), expected)
        for parameter in student.parameters():
            parameter.zero_()
        assert torch.equal(teacher(input_ids), expected)


def test_a_random_student_has_nothing_of_the_teacher():
    teacher = MaskedLM(TINY)
    student = make_student(teacher, init="random")
    assert student.config.num_hidden_layers == 2
    of_teacher = dict(teacher.bert.layers[0].named_parameters())
    for name, own in student.bert.layers[0].named_parameters():
        assert own.dim() == 1 or not torch.equal(own, of_teacher[name]), name
    words = student.bert.embeddings.word.weight
    assert not torch.equal(words, teacher.bert.embeddings.word.weight)
    assert abs(words.std().item() - TINY.initializer_range) < 0.002


def test_a_layer_taken_twice_makes_a_deeper_model():
    """Growing, the reverse direction (Gong et al. 2019): its first layers are the teacher's."""
    teacher = MaskedLM(TINY).eval()
    student = make_student(teacher, layers=[0, 0, 1, 1, 2, 2, 3, 3]).eval()
    assert student.config.num_hidden_layers == 8
    input_ids = torch.arange(5, 15)[None]
    first_states = [model.bert.hidden_states(input_ids)[1] for model in (student, teacher)]
    assert torch.equal(*first_states)
    for number, layer in enumerate(student.bert.layers):
        assert torch.equal(layer.qkv.weight, teacher.bert.layers[number // 2].qkv.weight)


def test_a_wrong_size_layer_or_initialization_is_an_error():
    with pytest.raises(ValueError, match="layers 0 to 3, not 4"):
        make_student(MaskedLM(TINY), layers=[0, 4])
    with pytest.raises(ValueError, match="'zeros'"):
        make_student(MaskedLM(TINY), init="zeros")
    with pytest.raises(ValueError, match="not divisible"):
        BertConfig(hidden_size=10, num_attention_heads=3)
    with pytest.raises(ValueError, match="num_hidden_layers must be"):
        BertConfig(num_hidden_layers=0)
    with pytest.raises(ValueError, match="65 tokens, but the model has 64 positions"):
        Bert(TINY)(torch.zeros(1, 65, dtype=torch.int64))
