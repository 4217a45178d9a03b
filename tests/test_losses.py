"""losses.py against numpy, torch.nn's own losses, and finite differences; in chunks against all at once."""
import numpy as np
import pytest
import torch

from losses import (
    all_layers_cosine_loss,
    cosine_loss,
    distillation_loss,
    masked_distillation_loss,
    mlm_loss,
    sum_over_chunks,
)

TOKENS, HIDDEN, VOCAB = 23, 8, 31


@pytest.fixture
def data():
    generator = torch.Generator().manual_seed(0)

    def normal(*shape):
        return torch.randn(*shape, generator=generator, dtype=torch.float64) * 2
    labels = torch.randint(VOCAB, (TOKENS,), generator=generator)
    labels[torch.rand(TOKENS, generator=generator) < 0.6] = -100
    return {"student": normal(TOKENS, VOCAB), "teacher": normal(TOKENS, VOCAB), "labels": labels,
            "hidden": normal(TOKENS, HIDDEN), "teacher_hidden": normal(TOKENS, HIDDEN), "weight": normal(VOCAB, HIDDEN), "bias": normal(VOCAB)}


def log_softmax(x):
    """In numpy, token by token, written out."""
    return np.array([row - row.max() - np.log(np.exp(row - row.max()).sum()) for row in x])


def test_mlm_loss_against_numpy(data):
    log_probs, labels = log_softmax(data["student"].numpy()), data["labels"].numpy()
    expected = np.mean([-log_probs[i, label] for i, label in enumerate(labels) if label != -100])
    assert mlm_loss(data["student"], data["labels"]).item() == pytest.approx(expected, rel=1e-12)


@pytest.mark.parametrize("temperature", [1.0, 2.0, 8.0])
def test_distillation_loss_against_numpy_and_KLDivLoss(data, temperature):
    s, t = (log_softmax(data[who].numpy() / temperature) for who in ("student", "teacher"))
    expected = np.mean([sum(np.exp(t[i, w]) * (t[i, w] - s[i, w]) for w in range(VOCAB)) for i in range(TOKENS)]) * temperature ** 2
    loss = distillation_loss(data["student"], data["teacher"], temperature).item()
    assert loss == pytest.approx(expected, rel=1e-12)
    reference = torch.nn.KLDivLoss(reduction="batchmean")((data["student"] / temperature).log_softmax(-1), (data["teacher"] / temperature).softmax(-1))
    assert loss == pytest.approx(reference.item() * temperature ** 2, rel=1e-12)


def test_distillation_loss_has_the_gradient_of_the_papers_cross_entropy(data):
    student = data["student"].clone().requires_grad_()
    own, = torch.autograd.grad(distillation_loss(student, data["teacher"], 2.0), student)
    cross_entropy = -((data["teacher"] / 2).softmax(-1) * (student / 2).log_softmax(-1)).sum(-1).mean() * 4
    expected, = torch.autograd.grad(cross_entropy, student)
    assert torch.allclose(own, expected, atol=1e-12)


def test_distillation_loss_is_zero_for_the_teacher_alone(data):
    assert distillation_loss(data["teacher"], data["teacher"], 2.0).item() == pytest.approx(0, abs=1e-12)
    assert distillation_loss(data["student"], data["teacher"], 2.0).item() > 0.1


def test_cosine_loss_against_numpy_and_CosineEmbeddingLoss(data):
    a, b = data["hidden"].numpy(), data["teacher_hidden"].numpy()
    expected = np.mean([1 - a[i] @ b[i] / np.sqrt((a[i] @ a[i]) * (b[i] @ b[i])) for i in range(TOKENS)])
    loss = cosine_loss(data["hidden"], data["teacher_hidden"]).item()
    assert loss == pytest.approx(expected, rel=1e-9)
    reference = torch.nn.CosineEmbeddingLoss()(data["hidden"], data["teacher_hidden"], torch.ones(TOKENS))
    assert loss == pytest.approx(reference.item(), rel=1e-9)


def test_gradients_against_finite_differences(data):
    student, hidden = data["student"].requires_grad_(), data["hidden"].requires_grad_()
    assert torch.autograd.gradcheck(lambda x: mlm_loss(x, data["labels"]), student)
    assert torch.autograd.gradcheck(lambda x: distillation_loss(x, data["teacher"], 2.0), student)
    assert torch.autograd.gradcheck(lambda x: cosine_loss(x, data["teacher_hidden"]), hidden)


WEIGHTS = torch.tensor([5.0, 2.0, 1.0], dtype=torch.float64)


def formulas(data, mlm, ce, extra):
    """What pretrain.py does with a chunk, small: each term a mean over tokens, shared out by the tokens of the chunk."""
    masked_in_all = max(1, int((data["labels"] != -100).sum()))

    def terms(logits, rows):
        zero = 0.0 * logits.sum()
        masked = int((data["labels"][rows] != -100).sum())
        return torch.stack([
            distillation_loss(logits, data["teacher"][rows], 2.0) * len(logits) / TOKENS if ce else zero,
            mlm_loss(logits, data["labels"][rows]) * masked / masked_in_all if mlm and masked else zero,
            # a formula somebody adds: the logits' squared error
            (logits - data["teacher"][rows]).square().mean(-1).mean() * len(logits) / TOKENS if extra else zero])
    return terms


@pytest.mark.parametrize("mlm, ce, extra", [(1, 1, 0), (1, 0, 0), (0, 1, 0), (1, 1, 1)])
@pytest.mark.parametrize("chunk_tokens", [1, 5, TOKENS, 100, 0])
@pytest.mark.parametrize("masks", ["some", "none", "in one chunk"])
def test_chunks_change_nothing(data, mlm, ce, extra, chunk_tokens, masks):
    if masks == "none":
        data["labels"][:] = -100
    if masks == "in one chunk":
        data["labels"][3:] = -100
        data["labels"][0] = 7
    leaves = [data[name].requires_grad_() for name in ("hidden", "weight", "bias")]
    logits = data["hidden"] @ data["weight"].T + data["bias"]
    expected_values = formulas(data, mlm, ce, extra)(logits, slice(None))
    expected = WEIGHTS @ expected_values
    expected_grads = torch.autograd.grad(expected * 3, leaves)
    loss, values = sum_over_chunks(formulas(data, mlm, ce, extra), WEIGHTS, chunk_tokens, *leaves)
    assert loss.item() == pytest.approx(expected.item(), abs=1e-10)
    assert torch.allclose(values, expected_values, atol=1e-10) and not values.requires_grad
    for grad, expected_grad in zip(torch.autograd.grad(loss * 3, leaves), expected_grads):
        assert (grad - expected_grad).abs().max() < 1e-10


def test_chunks_pass_gradcheck(data):
    leaves = [data[name].requires_grad_() for name in ("hidden", "weight", "bias")]
    assert torch.autograd.gradcheck(lambda *x: sum_over_chunks(formulas(data, 1, 1, 0), WEIGHTS, 7, *x)[0], leaves)


def test_no_gradient_is_taken_where_none_is_wanted(data):
    leaves, seen = [data[name].requires_grad_() for name in ("hidden", "weight", "bias")], []

    def loss(logits, rows):
        seen.append((logits.requires_grad, torch.is_grad_enabled()))
        return logits.sum()[None]
    with torch.no_grad():
        assert not sum_over_chunks(loss, WEIGHTS[:1], 7, *leaves)[0].requires_grad
    assert seen == [(False, False)] * 4
    assert sum_over_chunks(loss, WEIGHTS[:1], 7, *leaves)[0].requires_grad and seen[-1] == (True, True)


def test_no_tokens_give_no_loss_and_no_gradient(data):
    leaves = [data["hidden"][:0].requires_grad_(), data["weight"].requires_grad_(), data["bias"].requires_grad_()]
    loss, _ = sum_over_chunks(formulas(data, 1, 1, 0), WEIGHTS, 5, *leaves)
    assert loss.item() == 0
    assert all(grad.abs().sum() == 0 for grad in torch.autograd.grad(loss, leaves))


def test_the_extended_losses_are_the_papers_on_what_they_are_given(data):
    masked = data["labels"] != -100
    ours = masked_distillation_loss(data["student"], data["teacher"], data["labels"], 2.0).item()
    assert ours == pytest.approx(distillation_loss(data["student"][masked], data["teacher"][masked], 2.0).item(), rel=1e-12)
    layers = [torch.stack([x, 2 * x + 1, -x]) for x in (data["hidden"], data["teacher_hidden"])]
    each = [cosine_loss(ours, theirs).item() for ours, theirs in zip(*layers)]
    assert all_layers_cosine_loss(*layers).item() == pytest.approx(np.mean(each), rel=1e-12) and len(set(each)) > 1
