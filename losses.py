"""Knowledge distillation for BERT: what the student minimises.

Teacher and student read the same masked text. The student minimises the triple loss of DistilBERT:
its parts are those of the paper (Sanh et al. 2019, arXiv:1910.01108, section 2), its weights and T
those of the authors' training command and code, since the paper names none:

    L     = 5 L_ce + 2 L_mlm + 1 L_cos

    L_ce  = T² · mean over all tokens of     KL(t || s)
    L_mlm =      mean over masked tokens of  - log p_y, where y is the true word
    L_cos =      mean over all tokens of     1 - cos(h_s, h_t)

    KL(t || s) = Σ_w t_w (log t_w - log s_w)
    t = softmax(teacher's logits / T)    over the words w of the vocabulary, at temperature T = 2
    s = softmax(student's logits / T)    at the same temperature
    p = softmax(student's logits)        at temperature 1
    h_s, h_t                             the last hidden states of student and teacher

Why soft targets teach more than labels. For "the dogs chased the [MASK]" the label says: cat. The
teacher says: cat, but fox or ball are nearly as good, and "of" is impossible. So it tells the
student how thousands of words relate to the context, where a label names one. It does so at every
token: where the word is visible it mostly repeats it, and also shows what could replace it.

What T does. At most positions the word is visible: a trained teacher gives it nearly all the
probability, and the rest would hardly count. Dividing the logits by T > 1 brings the rest out. The
gradient of KL with respect to the student's logits is (s - t) / T, and at high T s - t itself
shrinks like 1 / T. The factor T² undoes both, so that what a weight means changes little with T
(Hinton et al. 2015, arXiv:1503.02531, section 2).

Why the cosine. The logits show what the teacher concludes; its hidden states show what it
concludes that from. L_cos asks the student's last state of each token to point the same way; its
length stays free. Both have the same width, since the student has fewer layers, not narrower ones:
so no projection is needed.

Why the teacher runs without dropout (`eval()`). With it, every step would compare the student with
another randomly thinned teacher: noisy targets. The student keeps its dropout, a regulariser.

The paper's L_ce is the cross-entropy - Σ t log s, hence its name. The KL divergence differs from it
by the entropy of t, which does not depend on the student: the gradients are the same, and KL is 0
where the student equals the teacher. Read next: model.py.
"""
from inspect import signature

import torch
import torch.nn.functional as F


def distillation_loss(student_logits, teacher_logits, temperature):
    """L_ce: T² KL(teacher || student), mean over tokens. Both logits: (tokens, vocab)."""
    log_s = F.log_softmax(student_logits / temperature, dim=-1)
    log_t = F.log_softmax(teacher_logits / temperature, dim=-1)
    t = log_t.exp()
    kl = (t * (log_t - log_s)).sum() / len(t)  # sum over the vocabulary, mean over tokens
    return temperature ** 2 * kl


def mlm_loss(student_logits, labels):
    """L_mlm: cross-entropy with the true words, mean over masked tokens (Devlin et al. 2018).

    student_logits: (tokens, vocab). labels: (tokens), the true word, -100 where not masked.
    Masked: chosen by data.mask_tokens, which leaves some of the words visible."""
    return F.cross_entropy(student_logits, labels, ignore_index=-100)


def cosine_loss(student_hidden, teacher_hidden):
    """L_cos: 1 - cosine similarity, mean over tokens. Both hidden states: (tokens, hidden)."""
    return (1 - F.cosine_similarity(student_hidden, teacher_hidden, dim=-1)).mean()


# name: (formula, weight). Each line is one loss, with its flags --use_NAME and --alpha_NAME.
# A loss function receives the inputs named in its signature: logits and labels, or hidden states,
# not both (support/chunked_loss.py). Weight 0: off until --alpha_NAME gives it another one.
# --use_NAME 0 turns a loss off.
LOSSES = {
    "ce": (distillation_loss, 5.0),
    "mlm": (mlm_loss, 2.0),
    "cos": (cosine_loss, 1.0),
}
WEIGHTS = {name: weight for name, (_, weight) in LOSSES.items() if weight}


def call(formula, inputs):
    """The formula's value on those of the inputs, {name: value}, that its signature names."""
    return formula(**{name: inputs[name] for name in signature(formula).parameters})


def triple_loss(student, teacher, input_ids, labels, weights=WEIGHTS, temperature=2.0,
                attention_mask=None):
    """The objective as defined above: (weighted sum of the losses, {name: loss}).

    student, teacher: MaskedLM, the teacher in eval mode. input_ids, labels, attention_mask (0 at
    padding, which is left out): (batch, length). weights: {name in LOSSES: weight}.
    Training computes the same in less memory: support/chunked_loss.py."""
    not_padding = slice(None)  # all tokens
    if attention_mask is not None:
        not_padding = attention_mask.flatten().bool()

    def tokens(x):  # (batch, length, ...) -> (tokens, ...), without padding
        return x.flatten(0, 1)[not_padding]

    with torch.no_grad():  # the teacher is not trained
        teacher_hidden = teacher.bert(input_ids, attention_mask)  # (batch, length, hidden)
        teacher_logits = teacher.logits(teacher_hidden)           # (batch, length, vocab)
    student_hidden = student.bert(input_ids, attention_mask)
    student_logits = student.logits(student_hidden)
    inputs = {
        "student_logits": tokens(student_logits), "teacher_logits": tokens(teacher_logits),
        "student_hidden": tokens(student_hidden), "teacher_hidden": tokens(teacher_hidden),
        "labels": tokens(labels), "temperature": temperature,
    }
    losses = {name: call(LOSSES[name][0], inputs) for name in weights}
    total = sum(weights[name] * loss for name, loss in losses.items())
    return total, losses
