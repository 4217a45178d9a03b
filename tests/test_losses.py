"""losses.py against numpy, torch.nn's own losses, transformers, and finite differences."""
import numpy as np
import pytest
import torch
import transformers
from conftest import TINY

from load_hf_weights import load_model
from losses import LOSSES, WEIGHTS, cosine_loss, distillation_loss, mlm_loss, triple_loss
from model import make_student

pytestmark = pytest.mark.check
TOKENS, HIDDEN, VOCAB = 23, 8, 31


@pytest.fixture
def data():
    """Random logits and hidden states of 23 tokens, in double precision."""
    generator = torch.Generator().manual_seed(0)

    def normal(*shape):
        return torch.randn(*shape, generator=generator, dtype=torch.float64) * 2
    labels = torch.randint(VOCAB, (TOKENS,), generator=generator)
    labels[torch.rand(TOKENS, generator=generator) < 0.6] = -100
    return {"student": normal(TOKENS, VOCAB), "teacher": normal(TOKENS, VOCAB), "labels": labels,
            "hidden": normal(TOKENS, HIDDEN), "teacher_hidden": normal(TOKENS, HIDDEN)}


def log_softmax(logits):
    """In numpy, written out. (tokens, vocab)"""
    shifted = logits - logits.max(-1, keepdims=True)
    return shifted - np.log(np.exp(shifted).sum(-1, keepdims=True))


# ---- The three formulas ----

def test_mlm_loss_against_numpy(data):
    log_p, labels = log_softmax(data["student"].numpy()), data["labels"].numpy()
    terms = [-log_p[token, label] for token, label in enumerate(labels) if label != -100]
    assert mlm_loss(data["student"], data["labels"]).item() == pytest.approx(np.mean(terms))


@pytest.mark.parametrize("temperature", [1.0, 2.0, 8.0])
def test_distillation_loss_against_numpy_and_KLDivLoss(data, temperature):
    log_s = log_softmax(data["student"].numpy() / temperature)
    log_t = log_softmax(data["teacher"].numpy() / temperature)
    kl_of_tokens = (np.exp(log_t) * (log_t - log_s)).sum(-1)
    loss = distillation_loss(data["student"], data["teacher"], temperature).item()
    assert loss == pytest.approx(kl_of_tokens.mean() * temperature ** 2, rel=1e-12)
    reference = torch.nn.KLDivLoss(reduction="batchmean")(
        (data["student"] / temperature).log_softmax(-1),
        (data["teacher"] / temperature).softmax(-1))
    assert loss == pytest.approx(reference.item() * temperature ** 2, rel=1e-12)


def test_distillation_loss_has_the_gradient_of_the_papers_cross_entropy(data):
    student = data["student"].clone().requires_grad_()
    ours, = torch.autograd.grad(distillation_loss(student, data["teacher"], 2.0), student)
    t, log_s = (data["teacher"] / 2).softmax(-1), (student / 2).log_softmax(-1)
    cross_entropy = -(t * log_s).sum(-1).mean() * 4
    expected, = torch.autograd.grad(cross_entropy, student)
    assert torch.allclose(ours, expected, atol=1e-12)


def test_distillation_loss_is_zero_for_the_teacher_alone(data):
    assert distillation_loss(data["teacher"], data["teacher"], 2.0).item() == pytest.approx(0)
    assert distillation_loss(data["student"], data["teacher"], 2.0).item() > 0.1


def test_cosine_loss_against_numpy_and_CosineEmbeddingLoss(data):
    a, b = data["hidden"].numpy(), data["teacher_hidden"].numpy()
    cosines = (a * b).sum(-1) / np.sqrt((a * a).sum(-1) * (b * b).sum(-1))
    loss = cosine_loss(data["hidden"], data["teacher_hidden"]).item()
    assert loss == pytest.approx(1 - cosines.mean(), rel=1e-9)
    reference = torch.nn.CosineEmbeddingLoss()(
        data["hidden"], data["teacher_hidden"], torch.ones(TOKENS))
    assert loss == pytest.approx(reference.item(), rel=1e-9)


def test_gradients_against_finite_differences(data):
    student, hidden = data["student"].requires_grad_(), data["hidden"].requires_grad_()
    check = torch.autograd.gradcheck
    assert check(lambda x: mlm_loss(x, data["labels"]), student)
    assert check(lambda x: distillation_loss(x, data["teacher"], 2.0), student)
    assert check(lambda x: cosine_loss(x, data["teacher_hidden"]), hidden)


def test_the_weights_are_the_authors():
    authors = {"ce": 5.0, "mlm": 2.0, "cos": 1.0}
    assert {name: WEIGHTS[name] for name in authors} == authors
    formulas = [LOSSES[name][0] for name in authors]
    assert formulas == [distillation_loss, mlm_loss, cosine_loss]


# ---- The objective ----

@pytest.fixture
def models(world):
    """(student, teacher) of the miniature world, without dropout."""
    teacher = load_model(world / "teacher").requires_grad_(False)
    return make_student(teacher).eval(), teacher


@pytest.fixture
def batch():
    """(input_ids, labels, attention_mask) of 3 rows, the last 4 tokens of one of them padding."""
    generator = torch.Generator().manual_seed(1)
    input_ids = torch.randint(5, TINY.vocab_size, (3, 11), generator=generator)
    attention_mask = torch.ones_like(input_ids)
    attention_mask[1, 7:] = 0
    masked = (torch.rand(3, 11, generator=generator) < 0.3) & attention_mask.bool()
    return input_ids, torch.where(masked, input_ids, -100), attention_mask


@pytest.mark.parametrize("padding", [False, True])
def test_triple_loss_against_transformers_and_numpy(world, models, batch, padding):
    """The teacher's logits and states come from transformers; the sums are numpy's."""
    input_ids, labels, attention_mask = batch
    attention_mask = attention_mask if padding else None
    student, _ = models
    reference = transformers.BertForMaskedLM.from_pretrained(world / "teacher").eval()
    with torch.no_grad():
        theirs = reference(input_ids, attention_mask, output_hidden_states=True)
        hidden = student.bert(input_ids, attention_mask)
    real = np.ones(input_ids.shape, bool) if attention_mask is None else attention_mask.numpy() == 1
    s_logits = student.logits(hidden).detach().double().numpy()[real]
    t_logits = theirs.logits.double().numpy()[real]
    h_s, h_t = hidden.double().numpy()[real], theirs.hidden_states[-1].double().numpy()[real]
    log_s, log_t = log_softmax(s_logits / 2), log_softmax(t_logits / 2)
    log_p = log_softmax(s_logits)
    words = labels.numpy()[real]
    masked = words != -100
    norms = np.linalg.norm(h_s, axis=-1) * np.linalg.norm(h_t, axis=-1)
    expected = {"ce": 4 * (np.exp(log_t) * (log_t - log_s)).sum(-1).mean(),
                "mlm": -log_p[masked, words[masked]].mean(),
                "cos": 1 - ((h_s * h_t).sum(-1) / norms).mean()}

    total, losses = triple_loss(*models, input_ids, labels, attention_mask=attention_mask)
    assert {name: loss.item() for name, loss in losses.items()} == pytest.approx(expected, rel=1e-4)
    by_hand = 5 * expected["ce"] + 2 * expected["mlm"] + expected["cos"]
    assert total.item() == pytest.approx(by_hand, rel=1e-4)


def test_triple_loss_trains_the_student_and_nothing_else(models, batch):
    student, teacher = models
    total, _ = triple_loss(student, teacher, *batch[:2])
    total.backward()
    assert all(parameter.grad is not None for parameter in student.parameters())
    assert all(parameter.grad is None for parameter in teacher.parameters())


def test_a_line_in_LOSSES_is_all_that_a_new_loss_takes(models, batch, monkeypatch):
    def squared_error(student_logits, teacher_logits):
        return torch.nn.functional.mse_loss(student_logits, teacher_logits)
    monkeypatch.setitem(LOSSES, "mse", (squared_error, 0.0))
    student, teacher = models
    _, losses = triple_loss(student, teacher, *batch[:2], weights={"mse": 1.0})
    expected = (student(batch[0]) - teacher(batch[0])).square().mean()
    assert losses.keys() == {"mse"} and losses["mse"].item() == pytest.approx(expected.item())
