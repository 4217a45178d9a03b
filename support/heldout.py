"""The student as a language model, on held-out text, before and after its distillation.

The measures are written out here, apart from losses.py: an edited loss is measured as before.
"""
import collections

import numpy as np
import torch
import torch.nn.functional as F

from support.device import autocast
from support.seeds import HELDOUT_MASKS

HELDOUT_BLOCKS = 128  # so many blocks are measured, spread evenly over the text
MLM_PROB = 0.15


@torch.inference_mode()
def evaluate(student, teacher, blocks, precision):
    """Means over held-out blocks, with the same masks for every run.

    mlm_loss, mlm_accuracy and, with a teacher, teacher_mlm_accuracy and teacher_agreement: over
    the masked positions. kl (from the teacher, at temperature 1) and cosine_distance (of the last
    hidden states): over all tokens. teacher: may be None."""
    device = next(student.parameters()).device
    numbers = np.unique(np.linspace(0, blocks.count - 1, HELDOUT_BLOCKS, dtype=int))
    keys = [(HELDOUT_MASKS, number) for number in numbers]
    input_ids, labels = blocks.masked(numbers, MLM_PROB, keys)
    masked, tokens = max(1, int((labels != -100).sum())), labels.numel()
    means = collections.Counter()
    student.eval()
    for ids, words in zip(input_ids.to(device).split(4), labels.to(device).split(4)):
        words = words.flatten()  # the true words, (tokens)
        is_masked = words != -100
        hidden, logits = hidden_and_logits(student, ids, precision)
        guesses = logits.argmax(-1)[is_masked]
        mlm_loss = F.cross_entropy(logits, words, reduction="sum")
        means["mlm_loss"] += mlm_loss.item() / masked
        means["mlm_accuracy"] += int((guesses == words[is_masked]).sum()) / masked
        if not teacher:
            continue
        teacher_hidden, teacher_logits = hidden_and_logits(teacher, ids, precision)
        teacher_guesses = teacher_logits.argmax(-1)[is_masked]
        means["teacher_mlm_accuracy"] += int((teacher_guesses == words[is_masked]).sum()) / masked
        means["teacher_agreement"] += int((guesses == teacher_guesses).sum()) / masked
        kl = F.kl_div(logits.log_softmax(-1), teacher_logits.log_softmax(-1), log_target=True,
                      reduction="sum")
        means["kl"] += kl.item() / tokens
        cosine = F.cosine_similarity(hidden, teacher_hidden, dim=-1)
        means["cosine_distance"] += (1 - cosine).sum().item() / tokens
    return dict(means)


def hidden_and_logits(model, input_ids, precision):
    """((batch, length, hidden), (tokens, vocab)), the logits in fp32."""
    with autocast(input_ids.device, precision):
        hidden = model.bert(input_ids)
        return hidden, model.logits(hidden).flatten(0, 1).float()
