"""The triple loss of DistilBERT: three formulas, their weights, and their evaluation in chunks of tokens.

Each formula is the mean of one term per token, over the tokens it is given: padding is left out by the caller,
and logits come in full precision. Edit them freely; gradients come from autograd.
A formula names what it wants as its arguments: student_logits, teacher_logits (tokens, vocab), labels (tokens);
or student_hidden, teacher_hidden (tokens, hidden), of the last layer; or student_states, teacher_states (layers, tokens, hidden), of
each of the student's layers and the teacher's layer that it was copied from; and temperature. A line in TERMS makes it a loss.
Sanh et al. 2019 (arXiv:1910.01108), section 3. Read next: pretrain.py, which calls them.
"""
import torch
import torch.nn.functional as F


def mlm_loss(student_logits, labels):
    """Masked language modelling: cross-entropy with the true word at the masked positions. The paper's L_mlm, BERT's own.

    student_logits: (tokens, vocab). labels: (tokens), the true word's id, or -100 where nothing was masked."""
    return F.cross_entropy(student_logits, labels, ignore_index=-100)


def distillation_loss(student_logits, teacher_logits, temperature):
    """How far the student's softened distribution is from the teacher's: KL(teacher || student) T^2. The paper's L_ce.

    It differs from the paper's cross-entropy, - sum t_i log s_i, by the teacher's entropy, which has no gradient.
    T^2 keeps the gradient's size when T changes (Hinton et al. 2015, arXiv:1503.02531, section 2).
    Both logits: (tokens, vocab)."""
    student = F.log_softmax(student_logits / temperature, dim=-1)
    teacher = F.log_softmax(teacher_logits / temperature, dim=-1)
    kl = F.kl_div(student, teacher, log_target=True, reduction="batchmean")  # sum over the vocabulary, mean over tokens
    return kl * temperature ** 2


def cosine_loss(student_hidden, teacher_hidden):
    """Aligns the directions of the last hidden states: 1 - cos, token by token. L_cos of the paper.

    Both: (tokens, hidden)."""
    return (1 - F.cosine_similarity(student_hidden, teacher_hidden, dim=-1)).mean()


def masked_distillation_loss(student_logits, teacher_logits, labels, temperature):
    """distillation_loss at the masked positions alone, as the authors' flag --restrict_ce_to_mask has it."""
    masked = labels != -100
    student = F.log_softmax(student_logits / temperature, dim=-1)
    teacher = F.log_softmax(teacher_logits / temperature, dim=-1)
    kl = F.kl_div(student, teacher, log_target=True, reduction="none").sum(-1)  # (tokens)
    return temperature ** 2 * (kl * masked).sum() / masked.sum()


def all_layers_cosine_loss(student_states, teacher_states):
    """cosine_loss of every layer. Both: (layers, tokens, hidden)."""
    return (1 - F.cosine_similarity(student_states, teacher_states, dim=-1)).mean()


# name: (formula, weight); the weights are alpha_ce, alpha_mlm and alpha_cos of the authors' published training command.
# A line more is a loss more, with the flags --use_NAME and --alpha_NAME; of weight 0 it is off until a flag says otherwise.
LOSSES = {
    "ce": (distillation_loss, 5.0),
    "mlm": (mlm_loss, 2.0),
    "cos": (cosine_loss, 1.0),
    "ce_masked": (masked_distillation_loss, 0.0),
    "cos_all": (all_layers_cosine_loss, 0.0),
}
WEIGHTS = {name: weight for name, (_, weight) in LOSSES.items() if weight}


def sum_over_chunks(terms, weights, chunk_tokens, hidden, matrix, bias):
    """(total, values) of the losses on logits = hidden @ matrix.T + bias, summed over chunks of tokens.

    (tokens x 30,522) logits and their gradient would be by far the largest tensors of the training; so one chunk of
    them exists at a time. hidden: (tokens, hidden). matrix: (vocab, hidden). bias: (vocab).
    terms(logits (chunk, vocab), rows) -> (terms,), the losses of the slice `rows` of the tokens; weights: (terms,).
    total: a scalar, the weighted sum, which has a gradient; values: (terms,), which have none. chunk_tokens 0: all at once."""
    if not torch.is_grad_enabled():  # inside a Function this cannot be asked any more
        hidden, matrix, bias = hidden.detach(), matrix.detach(), bias.detach()
    return SumOverChunks.apply(terms, weights, chunk_tokens, hidden, matrix, bias)


def cast_once(*tensors):
    """The tensors in autocast's precision, if it is on: what several matrix products share is not cast for each."""
    device = tensors[0].device.type
    if not torch.is_autocast_enabled(device):
        return tensors
    return tuple(x.to(torch.get_autocast_dtype(device)) for x in tensors)


def in_fp32(logits):
    """bf16 as fp32, for softmax and losses; fp32 and fp64 as they are."""
    return logits.to(torch.promote_types(logits.dtype, torch.float32))


class SumOverChunks(torch.autograd.Function):
    """sum_over_chunks and its gradient, which the forward pass already takes, chunk by chunk: of the losses by autograd,
    whatever their formulas, and of the linear map by its matrix products. It touches no .grad of anything."""

    @staticmethod
    def forward(ctx, terms, weights, chunk_tokens, hidden, matrix, bias):
        differentiate = any(ctx.needs_input_grad)
        inputs = hidden, matrix, bias
        hidden, matrix, bias = cast_once(*inputs)
        if differentiate:
            grad_hidden, grad_matrix, grad_bias = (torch.zeros_like(x) for x in inputs)
        values, chunk_tokens = torch.zeros_like(weights), chunk_tokens or len(hidden) or 1
        for start in range(0, len(hidden), chunk_tokens):
            rows = slice(start, start + chunk_tokens)
            logits = F.linear(hidden[rows], matrix, bias).requires_grad_(differentiate)  # (chunk, vocab)
            with torch.set_grad_enabled(differentiate):
                of_chunk = terms(logits, rows)
                total_of_chunk = (weights * of_chunk).sum()
            values += of_chunk.detach()
            if differentiate:
                grad_logits, = torch.autograd.grad(total_of_chunk, logits)
                grad_hidden[rows] = grad_logits @ matrix
                grad_bias += grad_logits.sum(0, dtype=grad_bias.dtype)
                if grad_matrix.dtype == grad_logits.dtype:
                    grad_matrix.addmm_(grad_logits.T, hidden[rows])
                else:  # products in bf16, their sum over the chunks in fp32
                    grad_matrix += grad_logits.T @ hidden[rows]
        if differentiate:
            ctx.save_for_backward(grad_hidden, grad_matrix, grad_bias)
        ctx.mark_non_differentiable(values)
        return (weights * values).sum(), values

    @staticmethod
    def backward(ctx, grad_total, _):
        return None, None, None, *(grad * grad_total for grad in ctx.saved_tensors)
