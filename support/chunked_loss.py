"""triple_loss in less memory: the objective of losses.py, a few hundred tokens at a time.

The logits of a batch (tokens x 30,522) and their gradient would be the largest tensors of the
training. Here one chunk of tokens has logits at a time, and its gradient is taken before the next.
What no active loss needs is not computed: without CE only the masked positions go through the
decoder, and none through the teacher's; without CE and cosine the teacher does not run.
The tests compare its values and its gradients with losses.triple_loss. The formulas are called as
they are: to change a loss, edit losses.py only.
"""
from inspect import signature

import torch
import torch.nn.functional as F
from torch import nn

from losses import LOSSES
from support.device import autocast
from support.distributed import RANK, WORLD_SIZE, all_reduce_mean, no_sync
from support.errors import InputError
from support.seeds import seed_torch

# What a formula may ask for by the names of its arguments. A formula on logits is evaluated in
# chunks; one on hidden states on all tokens at once. No formula can have both.
LOGIT_INPUTS = {"student_logits", "teacher_logits", "labels"}
HIDDEN_INPUTS = {"student_hidden", "teacher_hidden"}


class ChunkedLoss(nn.Module):
    """The losses of a micro-batch."""

    def __init__(self, student, teacher, weights, temperature=2.0, chunk_tokens=None,
                 precision="fp32"):
        """weights: {name in losses.LOSSES: weight} of the active losses.

        chunk_tokens: how many tokens have logits at a time. 0: all. None: a power of two whose
        logits fill 16 to 32 MB on a CPU, near its caches, and 256 to 512 MB on a GPU, which
        wants large products. precision: "bf16" or "fp32", of the matrix products."""
        super().__init__()
        if chunk_tokens is None:
            on_cpu = student.head.bias.device.type == "cpu"
            chunk_tokens = power_of_two_below((2 ** 23 if on_cpu else 2 ** 27)
                                              // student.config.vocab_size)
        self.student = student
        self.teacher = [teacher]  # in a list: not a submodule, so train() and DDP skip it
        self.weights, self.temperature = weights, temperature
        self.chunk_tokens, self.precision = chunk_tokens, precision
        self.arguments = {name: arguments_of(LOSSES[name][0]) for name in weights}
        self.on_logits = [name for name in weights if "student_logits" in self.arguments[name]]
        self.on_hidden = [name for name in weights if name not in self.on_logits]
        # Not a buffer: DDP would broadcast it.
        self.logit_weights = student.head.bias.new_tensor([weights[x] for x in self.on_logits])
        self.compiled = None  # loss_of_chunk, compiled
        if not self.on_logits:  # no loss trains the head; DDP would wait for its gradients
            student.head.requires_grad_(False)

    def forward(self, input_ids, labels, tokens, masked):
        """(weighted sum, {name: loss}) of input_ids and labels: (batch, length), on the CPU.

        Each loss is the sum over these tokens, divided by `tokens` or, if its formula reads the
        labels, by `masked`: the counts of the whole step (see micro_batches)."""
        teacher, = self.teacher
        device = self.logit_weights.device
        input_ids = input_ids.to(device, non_blocking=True)
        with autocast(device, self.precision):
            hidden = self.student.bert(input_ids).flatten(0, 1)  # (tokens, hidden)
            teacher_hidden = None
            if self.needs("teacher_hidden", "teacher_logits"):
                with torch.no_grad():
                    teacher_hidden = teacher.bert(input_ids).flatten(0, 1)
            inputs = {"student_hidden": hidden, "teacher_hidden": teacher_hidden,
                      "temperature": self.temperature}
            losses = {name: self.loss(name, inputs) * (len(hidden) / tokens)
                      for name in self.on_hidden}
            total = sum(self.weights[name] * loss for name, loss in losses.items())
            if self.on_logits:
                weighted_sum, values = self.losses_on_logits(
                    hidden, teacher_hidden, labels.flatten(), tokens, masked)
                total = total + weighted_sum
                losses.update(zip(self.on_logits, values))
        return total, {name: loss.detach() for name, loss in losses.items()}

    def loss(self, name, inputs):
        """losses.call, with the signature read beforehand: torch.compile traces what follows."""
        formula, _ = LOSSES[name]
        return formula(**{argument: inputs[argument] for argument in self.arguments[name]})

    def needs(self, *inputs):
        """Whether an active loss takes one of these inputs."""
        return any(name in arguments for arguments in self.arguments.values() for name in inputs)

    def losses_on_logits(self, hidden, teacher_hidden, labels, tokens, masked):
        """(weighted sum, (losses,)) of the losses on logits.

        hidden, teacher_hidden: (tokens, hidden). labels: (tokens), on the CPU, where counting
        them does not wait for the device."""
        teacher, = self.teacher
        if all("labels" in self.arguments[name] for name in self.on_logits):
            # The masked positions are all that these losses see.
            positions = (labels != -100).nonzero().squeeze(1)
            labels = labels[positions]
            positions = positions.to(hidden.device, non_blocking=True)
            hidden = hidden[positions]
            teacher_hidden = None if teacher_hidden is None else teacher_hidden[positions]
        chunk_tokens = self.chunk_tokens or max(1, len(labels))
        shares = self.shares_of_chunks(labels != -100, chunk_tokens, tokens, masked)
        shares_on_device = shares.to(hidden.device, non_blocking=True)
        labels = labels.to(hidden.device, non_blocking=True)
        needs_teacher = self.needs("teacher_logits")
        if needs_teacher:
            with torch.no_grad():
                teacher_transformed = teacher.head.transform(teacher_hidden)
                teacher_decoder = cast_once(*teacher.decoder())

        def losses_of_chunk(logits, rows):
            chunk = rows.start // chunk_tokens
            inputs = {"student_logits": logits, "labels": labels[rows],
                      "temperature": self.temperature}
            if needs_teacher:
                with torch.no_grad():
                    inputs["teacher_logits"] = F.linear(teacher_transformed[rows],
                                                        *teacher_decoder)
            # A loss of share 0 has no tokens in this chunk: its mean would be 0 / 0.
            active = tuple(name for name, share in zip(self.on_logits, shares[chunk].tolist())
                           if share)
            whole = len(logits) == chunk_tokens  # the compiled code is for whole chunks
            evaluate = self.compiled if self.compiled and whole else self.loss_of_chunk
            return evaluate(active, shares_on_device[chunk], inputs)

        return sum_over_chunks(losses_of_chunk, self.logit_weights, self.chunk_tokens,
                               self.student.head.transform(hidden), *self.student.decoder())

    def shares_of_chunks(self, is_masked, chunk_tokens, tokens, masked):
        """(chunks, losses): how much a chunk's mean counts in the mean over the step."""
        shares = []
        for chunk in is_masked.split(chunk_tokens):
            of_masked = int(chunk.sum()) / (masked or 1)
            of_all = len(chunk) / tokens
            shares.append([of_masked if "labels" in self.arguments[name] else of_all
                           for name in self.on_logits])
        return torch.tensor(shares, dtype=self.logit_weights.dtype)

    def loss_of_chunk(self, active, shares, inputs):
        """(losses,): the active ones times their shares, 0 for the others."""
        inputs = {name: in_fp32(value) if name.endswith("logits") else value
                  for name, value in inputs.items()}
        losses = []
        for name, share in zip(self.on_logits, shares.unbind()):
            if name in active:
                losses.append(self.loss(name, inputs) * share)
            else:
                losses.append(torch.zeros_like(share))
        return torch.stack(losses)

    def compile(self, layers):
        """Fuse what lies between the matrix products: of the formulas, which saves the memory of
        their intermediate results, and, if `layers`, of the layers too."""
        self.compiled = torch.compile(self.loss_of_chunk, dynamic=False)
        if layers:
            for model in filter(None, (self.student, *self.teacher)):
                for layer in model.bert.layers:
                    layer.compile()

    @torch.no_grad()
    def check_chunks(self, input_ids, labels):
        """Raise InputError if chunks change a loss: then its formula is not a mean over tokens."""
        chunk_tokens, was_training = self.chunk_tokens, self.training
        masked = max(1, int((labels != -100).sum()))
        self.eval()
        self.chunk_tokens = max(1, masked // 3)  # several chunks, even of masked positions alone
        _, in_chunks = self(input_ids, labels, labels.numel(), masked)
        self.chunk_tokens = 0
        _, at_once = self(input_ids, labels, labels.numel(), masked)
        self.chunk_tokens = chunk_tokens
        self.train(was_training)
        for name, value in at_once.items():
            if not torch.isclose(in_chunks[name], value, rtol=1e-3, atol=1e-5, equal_nan=True):
                raise InputError(
                    f"the loss {name} is {in_chunks[name]:.6g} in chunks of tokens, but "
                    f"{value:.6g} on all at once: its formula is not a mean over tokens; "
                    "use --chunk_tokens 0 (and --grad_accum 1)")


def arguments_of(formula):
    """The names of a formula's arguments. Raises InputError if it asks for what it cannot have."""
    names = set(signature(formula).parameters)
    if names - {"temperature"} <= LOGIT_INPUTS or names - {"temperature"} <= HIDDEN_INPUTS:
        return names
    raise InputError(
        f"losses.py: {formula.__name__} takes {', '.join(sorted(names))}; a formula can take "
        "student_logits, teacher_logits and labels, or student_hidden and teacher_hidden, and "
        "temperature")


def micro_batches(objective, input_ids, labels, count, seed_key):
    """The batch of a step in `count` parts: yields the arguments of ChunkedLoss.forward.

    A batch that is too large for the memory is worked through in micro-batches, whose gradients
    add up. Each loss is divided by the counts of the whole step, so the sum over micro-batches is
    the mean over the batch. Under torchrun these are counts per rank, on average: DDP takes the
    mean of the ranks' gradients, which then is the gradient of the mean over all tokens.
    Gradients are exchanged after the last micro-batch only. Dropout is seeded anew for each one.

    objective: the ChunkedLoss, wrapped by DDP or not. seed_key: see seed_torch."""
    counts = torch.tensor([labels.numel(), (labels != -100).sum()])
    tokens, masked = all_reduce_mean(counts)
    parts = zip(input_ids.tensor_split(count), labels.tensor_split(count))
    for index, (ids, ids_labels) in enumerate(parts):
        seed_torch(*seed_key, index * WORLD_SIZE + RANK)
        with no_sync(objective, last=index == count - 1):
            yield ids, ids_labels, tokens, masked


def compiling_pays(steps, tokens_per_step, vocab_size, device):
    """Whether torch.compile is worth its time: always on a GPU.

    On a CPU the layers gain nothing, and the formulas win back the seconds that compiling takes
    only after some 10^10 logits."""
    return device.type == "cuda" or (device.type == "cpu"
                                     and steps * tokens_per_step * vocab_size > 1e10)


def power_of_two_below(number):
    """The largest power of two that is not above number, at least 1."""
    return 2 ** max(0, number.bit_length() - 1)


def in_fp32(logits):
    """bf16 as fp32, for softmax and losses; fp32 and fp64 as they are."""
    return logits.to(torch.promote_types(logits.dtype, torch.float32))


def cast_once(*tensors):
    """The tensors in autocast's precision, so that it does not cast them for each product."""
    device = tensors[0].device.type
    if not torch.is_autocast_enabled(device):
        return tensors
    return tuple(x.to(torch.get_autocast_dtype(device)) for x in tensors)


def sum_over_chunks(losses_of_chunk, weights, chunk_tokens, hidden, matrix, bias):
    """(weighted sum, (losses,)) of losses on logits = hidden @ matrix.T + bias, over all chunks.

    hidden: (tokens, hidden). matrix: (vocab, hidden). bias: (vocab). weights: (losses,).
    losses_of_chunk(logits (chunk, vocab), rows) -> (losses,) of these rows of the tokens, a slice.
    The weighted sum, a scalar, has a gradient; the losses have none. chunk_tokens 0: one chunk."""
    if not torch.is_grad_enabled():  # to be asked here: inside a Function it is off
        hidden, matrix, bias = hidden.detach(), matrix.detach(), bias.detach()
    return SumOverChunks.apply(losses_of_chunk, weights, chunk_tokens, hidden, matrix, bias)


class SumOverChunks(torch.autograd.Function):
    """sum_over_chunks. The forward pass already takes the gradient, chunk by chunk: autograd
    differentiates the formulas, explicit matrix products the linear map."""

    @staticmethod
    def forward(ctx, losses_of_chunk, weights, chunk_tokens, hidden, matrix, bias):
        differentiate = any(ctx.needs_input_grad)
        inputs = hidden, matrix, bias
        hidden, matrix, bias = cast_once(*inputs)
        if differentiate:
            grad_hidden, grad_matrix, grad_bias = (torch.zeros_like(x) for x in inputs)
        values = torch.zeros_like(weights)
        chunk_tokens = chunk_tokens or len(hidden) or 1
        for start in range(0, len(hidden), chunk_tokens):
            rows = slice(start, start + chunk_tokens)
            logits = F.linear(hidden[rows], matrix, bias)  # (chunk, vocab)
            logits.requires_grad_(differentiate)
            with torch.set_grad_enabled(differentiate):
                losses = losses_of_chunk(logits, rows)
                weighted_sum = (weights * losses).sum()
            values += losses.detach()
            if differentiate:
                grad_logits, = torch.autograd.grad(weighted_sum, logits)
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
