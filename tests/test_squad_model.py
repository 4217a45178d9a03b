"""The span head, SpanModel: its logits, loss and gradient are those of transformers.

The reference is BertForQuestionAnswering with the same weights.
"""
import numpy as np
import pytest
import torch
import transformers
from conftest import TINY
from squad_helpers import soft_divergence

import finetune
from load_hf_weights import load_model, save_model
from losses import distillation_loss
from model import MASKED_LOGIT, Classifier, SpanModel
from support.errors import InputError


@pytest.fixture
def span_models(tmp_path):
    """(transformers' BertForQuestionAnswering, our SpanModel that opened its folder)."""
    torch.manual_seed(3)
    settings = {name: value for name, value in vars(TINY).items() if value is not None}
    config = transformers.BertConfig(**settings)
    reference = transformers.BertForQuestionAnswering(config).eval()
    for parameter in reference.parameters():
        parameter.data += 0.1 * torch.randn_like(parameter)
    reference.save_pretrained(tmp_path / "theirs")
    return reference, load_model(tmp_path / "theirs", SpanModel)


def random_inputs(length=20):
    """(input_ids, attention_mask, token_type_ids), three rows, the second with padding."""
    generator = torch.Generator().manual_seed(0)
    input_ids = torch.randint(5, TINY.vocab_size, (3, length), generator=generator)
    attention_mask = torch.ones(3, length, dtype=torch.int64)
    attention_mask[1, 12:] = 0
    token_type_ids = (torch.arange(length) > torch.tensor([[5], [3], [9]])).long()
    return input_ids, attention_mask, token_type_ids


TARGETS = torch.tensor([[7, 9], [4, 4], [0, 0]])  # (start, end) of each row of random_inputs


def our_loss(model, inputs, rows):
    logits = model(*(x[rows] for x in inputs))
    return finetune.task_loss(logits.flatten(0, -2), TARGETS[rows].flatten())


def reference_loss(model, inputs, rows):
    """Of rows without padding: transformers would count padding among the positions."""
    input_ids, _, token_type_ids = (x[rows] for x in inputs)
    start, end = TARGETS[rows].unbind(1)
    return model(input_ids=input_ids, token_type_ids=token_type_ids, start_positions=start,
                 end_positions=end).loss


def test_logits_equal_those_of_transformers(span_models):
    reference, ours = span_models
    input_ids, mask, token_type_ids = random_inputs()
    theirs = reference(input_ids=input_ids, attention_mask=mask, token_type_ids=token_type_ids)
    logits = ours(input_ids, mask, token_type_ids)
    for found, expected in zip(logits.unbind(1), (theirs.start_logits, theirs.end_logits)):
        assert (found - expected)[mask.bool()].abs().max() < 1e-5
        assert (found[mask == 0] == MASKED_LOGIT).all()
        assert expected[mask.bool()].std() > 0.1


@pytest.mark.parametrize("rows", [[0, 2], [0, 1, 2]], ids=["no padding", "padding"])
def test_the_loss_equals_that_of_transformers(span_models, rows):
    reference, ours = span_models
    inputs = random_inputs()
    expected = []
    for row in rows:
        length = int(inputs[1][row].sum())
        cut = [x[:, :length] for x in inputs]
        expected.append(reference_loss(reference, cut, [row]).item())
    assert our_loss(ours, inputs, rows).item() == pytest.approx(np.mean(expected), abs=1e-5)


def test_the_gradient_equals_that_of_transformers(span_models):
    reference, ours = span_models
    our_loss(ours, random_inputs(), [0, 2]).backward()
    reference_loss(reference, random_inputs(), [0, 2]).backward()
    head, words = reference.qa_outputs, reference.bert.embeddings.word_embeddings
    assert (ours.head.weight.grad - head.weight.grad).abs().max() < 1e-5
    assert (ours.bert.embeddings.word.weight.grad - words.weight.grad).abs().max() < 1e-5
    assert words.weight.grad.abs().max() > 1e-3


def test_transformers_opens_our_folder(span_models, tokenizer, tmp_path):
    reference, ours = span_models
    save_model(ours, tokenizer, tmp_path / "ours")
    again, report = transformers.AutoModelForQuestionAnswering.from_pretrained(
        tmp_path / "ours", output_loading_info=True)
    assert not report["missing_keys"] and not report["unexpected_keys"]
    for name, weight in reference.state_dict().items():
        assert torch.equal(weight, again.state_dict()[name]), name
    with pytest.raises(InputError, match="lacks .*classifier.weight"):
        load_model(tmp_path / "ours", Classifier)


def test_padding_has_no_part_in_the_distillation_loss():
    generator = torch.Generator().manual_seed(0)
    lengths = 7, 4
    ours, theirs = torch.randn(2, 2, 2, 7, generator=generator)  # (rows, start and end, length)
    for logits in (ours, theirs):
        logits[1, :, 4:] = MASKED_LOGIT
    ours.requires_grad_()
    loss = distillation_loss(ours.flatten(0, -2), theirs.flatten(0, -2), 2.0)

    expected = []
    for row, length in enumerate(lengths):
        for place in range(2):
            student, teacher = (x[row, place, :length].detach().double().numpy()
                                for x in (ours, theirs))
            expected.append(soft_divergence(student, teacher))
    assert loss.item() == pytest.approx(np.mean(expected), rel=1e-5)
    loss.backward()
    assert ours.grad.isfinite().all() and (ours.grad[1, :, 4:] == 0).all()
