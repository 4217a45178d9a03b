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


def hf_config(config, **more):
    return transformers.BertConfig(**{k: v for k, v in dataclasses.asdict(config).items() if v is not None}, **more)


def batch(config, length=20):
    """Three rows, the second padded, the third in two segments."""
    generator = torch.Generator().manual_seed(0)
    input_ids = torch.randint(config.vocab_size, (3, length), generator=generator)
    attention_mask = torch.ones(3, length, dtype=torch.int64)
    attention_mask[1, length // 2:] = 0
    token_type_ids = torch.zeros(3, length, dtype=torch.int64)
    token_type_ids[2, length // 3:] = 1
    return input_ids, attention_mask, token_type_ids


@pytest.fixture(scope="module", params=["tiny", "bert-base"])
def pair(request, tmp_path_factory):
    """(transformers' model, ours), the same weights; biases and LayerNorms random too, so that none can be left out unnoticed."""
    folder = tmp_path_factory.mktemp("reference")
    torch.manual_seed(1)
    reference = transformers.BertForMaskedLM(hf_config(TINY if request.param == "tiny" else BertConfig())).eval()
    with torch.no_grad():
        for name, parameter in reference.named_parameters():
            if parameter.dim() == 1:
                parameter.add_(torch.randn_like(parameter) * 0.1)
    reference.save_pretrained(folder)
    return reference, load_model(folder)


def test_logits_equal_those_of_transformers(pair):
    reference, ours = pair
    input_ids, attention_mask, token_type_ids = batch(ours.config)
    with torch.no_grad():
        expected = reference(input_ids=input_ids, attention_mask=attention_mask, token_type_ids=token_type_ids).logits
        logits = ours(input_ids, attention_mask, token_type_ids)
        alone = reference(input_ids=input_ids).logits - ours(input_ids)
    real = attention_mask.bool()
    assert expected[real].std() > 0.1  # there is something to compare
    assert (logits - expected)[real].abs().max() < 1e-4
    assert alone.abs().max() < 1e-4


def test_hidden_states_equal_those_of_transformers(pair):
    reference, ours = pair
    input_ids, attention_mask, token_type_ids = batch(ours.config)
    with torch.no_grad():
        expected = reference.bert(input_ids=input_ids, attention_mask=attention_mask, token_type_ids=token_type_ids,
                                  output_hidden_states=True).hidden_states
        states = ours.bert.hidden_states(input_ids, attention_mask, token_type_ids)
    assert len(states) == len(expected) == ours.config.num_hidden_layers + 1
    for state, reference_state in zip(states, expected):
        assert (state - reference_state)[attention_mask.bool()].abs().max() < 1e-4


def test_what_stands_in_the_padding_does_not_matter(pair):
    _, ours = pair
    input_ids, attention_mask, token_type_ids = batch(ours.config)
    other_ids = torch.where(attention_mask.bool(), input_ids, 7)
    with torch.no_grad():
        difference = ours(input_ids, attention_mask, token_type_ids) - ours(other_ids, attention_mask, token_type_ids)
    assert difference[attention_mask.bool()].abs().max() < 1e-5


def test_gradients_equal_those_of_transformers(pair):
    reference, ours = pair
    input_ids = batch(ours.config)[0].clamp(min=1)  # transformers gives the padding's embedding, row 0, no gradient
    labels = torch.where(input_ids % 3 == 0, input_ids, -100)
    loss = F.cross_entropy(ours(input_ids).flatten(0, 1), labels.flatten())
    # The tied matrix, whose gradient is the sum of both its uses, and the one that holds query, key and value.
    own = torch.autograd.grad(loss, [ours.bert.embeddings.word.weight, ours.bert.layers[1].qkv.weight])
    attention = reference.bert.encoder.layer[1].attention.self
    word, *qkv = torch.autograd.grad(reference(input_ids=input_ids, labels=labels).loss, [
        reference.bert.embeddings.word_embeddings.weight, attention.query.weight, attention.key.weight, attention.value.weight])
    for grad, expected in zip(own, (word, torch.cat(qkv))):
        assert (grad - expected).abs().max() < 1e-5 * expected.abs().max()


def count(config):
    with torch.device("meta"):
        return sum(parameter.numel() for parameter in MaskedLM(config).parameters())


def test_parameter_counts_are_the_published_ones():
    assert count(BertConfig()) == 109_514_298
    assert count(BertConfig(num_hidden_layers=6)) == 66_987_066
    assert count(BertConfig()) - count(BertConfig(num_hidden_layers=11)) == 7_087_872
    with torch.device("meta"):
        assert sum(p.numel() for p in Classifier(BertConfig(), 2).pooler.parameters()) == 590_592


@pytest.mark.parametrize("depth", range(1, 25))
def test_the_student_gets_evenly_spaced_layers(depth):
    teacher = MaskedLM(BertConfig(vocab_size=9, hidden_size=4, num_hidden_layers=depth, num_attention_heads=1, intermediate_size=4,
                                  max_position_embeddings=4))
    for number, layer in enumerate(teacher.bert.layers):
        layer.ffn_norm.bias.data.fill_(number)
    copied = [int(layer.ffn_norm.bias[0]) for layer in make_student(teacher).bert.layers]
    assert copied == np.round(np.linspace(0, depth - 1, max(1, depth // 2))).tolist()
    if depth == 12:
        assert copied == [0, 2, 4, 7, 9, 11]  # the authors' published choice
    if depth == 6:
        assert copied == [0, 2, 5]


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
    for (name, own), (_, of_teacher) in zip(student.bert.layers[0].named_parameters(), teacher.bert.layers[0].named_parameters()):
        assert own.dim() == 1 or not torch.equal(own, of_teacher), name
    assert not torch.equal(student.bert.embeddings.word.weight, teacher.bert.embeddings.word.weight)
    assert abs(student.bert.embeddings.word.weight.std().item() - TINY.initializer_range) < 0.002


def test_what_cannot_be_is_refused():
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


def test_dropout_is_on_in_training_mode_alone():
    model, (input_ids, *_) = Classifier(TINY), batch(TINY)
    with torch.no_grad():
        assert not torch.equal(model.train()(input_ids), model(input_ids))
        assert torch.equal(model.eval()(input_ids), model(input_ids))


def test_a_layer_taken_twice_makes_a_deeper_model():
    """Growing, the other way round (Gong et al. 2019): its first layers are the teacher's."""
    teacher = MaskedLM(TINY).eval()
    student = make_student(teacher, layers=[0, 0, 1, 1, 2, 2, 3, 3]).eval()
    assert student.config.num_hidden_layers == 8
    input_ids = torch.arange(5, 15)[None]
    assert torch.equal(student.bert.hidden_states(input_ids)[1], teacher.bert.hidden_states(input_ids)[1])
    for i, layer in enumerate(student.bert.layers):
        assert torch.equal(layer.qkv.weight, teacher.bert.layers[i // 2].qkv.weight)
