"""support/chunked_loss.py gives the values and the gradients of losses.triple_loss."""
import itertools

import pytest
import torch
from conftest import TINY

from load_hf_weights import load_model
from losses import LOSSES, WEIGHTS, distillation_loss, triple_loss
from model import make_student
from support.chunked_loss import ChunkedLoss, micro_batches, sum_over_chunks
from support.errors import InputError

pytestmark = pytest.mark.check
BATCH, LENGTH = 5, 12
SUBSETS = [names for size in (1, 2, 3) for names in itertools.combinations(WEIGHTS, size)]


@pytest.fixture
def models(world):
    """(student, teacher) in double precision, without dropout."""
    teacher = load_model(world / "teacher").double().requires_grad_(False)
    return make_student(teacher).double().eval(), teacher


def batch(masks="some", rows_without_mask=()):
    """(input_ids, labels), (5, 12). masks: "some", "none", "one" or "all" of the tokens."""
    generator = torch.Generator().manual_seed(0)
    input_ids = torch.randint(5, TINY.vocab_size, (BATCH, LENGTH), generator=generator)
    is_masked = torch.rand(BATCH, LENGTH, generator=generator) < 0.3
    if masks != "some":
        is_masked[:] = masks == "all"
    if masks == "one":
        is_masked[BATCH - 1, LENGTH - 1] = True
    is_masked[list(rows_without_mask)] = False
    return input_ids, torch.where(is_masked, input_ids, -100)


def plain(models, input_ids, labels, weights):
    """(total, losses, gradients) by triple_loss. Without a masked token the MLM loss is 0."""
    student, teacher = models
    if (labels == -100).all():
        weights = {name: weight for name, weight in weights.items() if name != "mlm"}
    student.zero_grad()
    total, losses = torch.zeros(()), {}
    if weights:
        total, losses = triple_loss(student, teacher, input_ids, labels, weights)
        total.backward()
    return total.detach(), losses, gradients(student)


def chunked(models, input_ids, labels, weights, chunk_tokens, count=1):
    """(total, losses, gradients) by ChunkedLoss, summed over `count` micro-batches."""
    student, teacher = models
    student.zero_grad()
    objective = ChunkedLoss(student, teacher, weights, chunk_tokens=chunk_tokens)
    total, losses = 0, dict.fromkeys(weights, 0)
    for micro_batch in micro_batches(objective, input_ids, labels, count, (0,)):
        part, parts = objective(*micro_batch)
        part.backward()
        total = total + part.detach()
        losses = {name: losses[name] + parts[name] for name in weights}
    student.requires_grad_(True)  # without a loss on logits, the head's was switched off
    return total, losses, gradients(student)


def gradients(model):
    """{name: gradient}, zero where there is none."""
    return {name: torch.zeros_like(parameter) if parameter.grad is None else parameter.grad
            for name, parameter in model.named_parameters()}


def assert_same(ours, theirs):
    total, losses, grads = ours
    expected_total, expected_losses, expected_grads = theirs
    assert abs(total - expected_total) < 1e-10
    for name in losses:
        difference = losses[name] - expected_losses.get(name, 0)
        assert abs(float(difference.detach())) < 1e-10, name
    for name in expected_grads:
        assert (grads[name] - expected_grads[name]).abs().max() < 1e-10, name


@pytest.mark.parametrize("names", SUBSETS, ids="+".join)
@pytest.mark.parametrize("chunk_tokens", [1, 7, 1000, 0])
@pytest.mark.parametrize("masks", ["some", "none", "one", "all"])
def test_chunks_change_neither_losses_nor_gradients(models, names, chunk_tokens, masks):
    input_ids, labels = batch(masks)
    weights = {name: WEIGHTS[name] for name in names}
    assert_same(chunked(models, input_ids, labels, weights, chunk_tokens),
                plain(models, input_ids, labels, weights))


@pytest.mark.parametrize("names", SUBSETS, ids="+".join)
@pytest.mark.parametrize("count", [2, 3, 5])
@pytest.mark.parametrize("rows_without_mask", [(), (0,), (1, 2, 3, 4)], ids=str)
def test_micro_batches_add_up_to_the_batch(models, names, count, rows_without_mask):
    """Of unequal size, with unequal counts of masked tokens, some with none."""
    input_ids, labels = batch("some", rows_without_mask)
    weights = {name: WEIGHTS[name] for name in names}
    assert_same(chunked(models, input_ids, labels, weights, 7, count),
                plain(models, input_ids, labels, weights))


def test_a_loss_that_somebody_adds_is_evaluated_in_chunks_too(models, monkeypatch):
    def at_masked_positions(student_logits, teacher_logits, labels, temperature):
        is_masked = labels != -100
        return distillation_loss(student_logits[is_masked], teacher_logits[is_masked], temperature)

    def norm(student_hidden):
        return student_hidden.square().mean(-1).mean()

    def squared_error(student_logits, teacher_logits):
        return (student_logits - teacher_logits).square().mean()
    for formula in (at_masked_positions, norm, squared_error):
        monkeypatch.setitem(LOSSES, formula.__name__, (formula, 0.0))
    weights = {**WEIGHTS, "at_masked_positions": 3.0, "norm": 0.1, "squared_error": 0.5}
    input_ids, labels = batch(rows_without_mask=(0,))
    expected = plain(models, input_ids, labels, weights)
    assert_same(chunked(models, input_ids, labels, weights, 7, count=3), expected)


@pytest.mark.parametrize("names, teacher_body, teacher_head, student_tokens", [
    ("ce mlm cos", 1, 1, "all"),
    ("mlm cos",    1, 0, "masked"),
    ("ce",         1, 1, "all"),
    ("mlm",        0, 0, "masked"),
    ("cos",        1, 0, "none"),
])
def test_only_what_an_active_loss_needs_is_computed(
        models, names, teacher_body, teacher_head, student_tokens):
    student, teacher = models
    ran = {"teacher body": 0, "teacher head": 0, "student tokens": 0}

    def count(name, amount=lambda inputs: 1):
        def hook(module, inputs, output):
            ran[name] += amount(inputs)
        return hook
    teacher.bert.layers[0].register_forward_hook(count("teacher body"))
    teacher.head.dense.register_forward_hook(count("teacher head"))
    student.head.dense.register_forward_hook(
        count("student tokens", lambda inputs: len(inputs[0])))
    input_ids, labels = batch()
    chunked(models, input_ids, labels, dict.fromkeys(names.split(), 1.0), 7)
    tokens = {"all": labels.numel(), "masked": int((labels != -100).sum()), "none": 0}
    assert ran == {"teacher body": teacher_body, "teacher head": teacher_head,
                   "student tokens": tokens[student_tokens]}


def test_the_teacher_is_never_trained_nor_given_dropout(models):
    student, teacher = models
    objective = ChunkedLoss(student, teacher, WEIGHTS).train()
    assert student.training and not teacher.training
    trained = {id(parameter) for parameter in objective.parameters()}
    assert trained == {id(parameter) for parameter in student.parameters()}


def test_a_formula_that_asks_for_what_it_cannot_have_is_refused(models, monkeypatch):
    def odd(student_logits, student_hidden):
        return 0
    monkeypatch.setitem(LOSSES, "odd", (odd, 1.0))
    with pytest.raises(InputError, match="losses.py: odd takes student_hidden, student_logits"):
        ChunkedLoss(*models, {"odd": 1.0})


@pytest.mark.parametrize("name, other_losses", [("ce", {}), ("mlm", {"cos": 1.0})])
def test_a_loss_that_is_not_a_mean_over_tokens_is_detected(
        models, monkeypatch, name, other_losses):
    """Of the masked positions alone too, as a coupled MLM loss without CE sees them."""
    def couples_tokens(student_logits, labels):
        return student_logits.mean(0).square().sum()

    def couples_all(student_logits, teacher_logits):
        return (student_logits.mean(0) - teacher_logits.mean(0)).square().sum()
    formula = couples_tokens if name == "mlm" else couples_all
    monkeypatch.setitem(LOSSES, name, (formula, 1.0))
    objective = ChunkedLoss(*models, {name: 1.0, **other_losses}, chunk_tokens=256)
    with pytest.raises(InputError, match=f"the loss {name} is .* --chunk_tokens 0"):
        objective.check_chunks(*batch())
    monkeypatch.undo()
    objective = ChunkedLoss(*models, WEIGHTS, chunk_tokens=256)
    objective.check_chunks(*batch())
    assert objective.chunk_tokens == 256


# ---- The sum over chunks by itself ----

WEIGHTS_OF_SUM = torch.tensor([5.0, 2.0], dtype=torch.float64)


@pytest.fixture
def leaves():
    """(hidden (23, 8), matrix (31, 8), bias (31)), in double precision."""
    generator = torch.Generator().manual_seed(0)

    def normal(*shape):
        x = torch.randn(*shape, generator=generator, dtype=torch.float64)
        return x.requires_grad_()
    return normal(23, 8), normal(31, 8), normal(31)


def two_losses(logits, rows):
    """Two sums over the tokens of a chunk."""
    return torch.stack([logits.square().sum(), logits.logsumexp(-1).sum()])


def test_the_sum_over_chunks_passes_gradcheck(leaves):
    def total(*inputs):
        return sum_over_chunks(two_losses, WEIGHTS_OF_SUM, 7, *inputs)[0]
    assert torch.autograd.gradcheck(total, leaves)


def test_no_gradient_is_taken_where_none_is_wanted(leaves):
    seen = []

    def loss(logits, rows):
        seen.append((logits.requires_grad, torch.is_grad_enabled()))
        return logits.sum()[None]
    with torch.no_grad():
        total, _ = sum_over_chunks(loss, WEIGHTS_OF_SUM[:1], 7, *leaves)
    assert not total.requires_grad and seen == [(False, False)] * 4
    total, values = sum_over_chunks(loss, WEIGHTS_OF_SUM[:1], 7, *leaves)
    assert total.requires_grad and not values.requires_grad and seen[-1] == (True, True)


def test_no_tokens_give_no_loss_and_no_gradient(leaves):
    hidden, matrix, bias = leaves
    inputs = [hidden[:0].detach().requires_grad_(), matrix, bias]
    total, _ = sum_over_chunks(two_losses, WEIGHTS_OF_SUM, 5, *inputs)
    assert total.item() == 0
    for gradient in torch.autograd.grad(total, inputs):
        assert gradient.abs().sum() == 0
