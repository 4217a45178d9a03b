"""Speed and memory, each beside a plain loop, as ratios taken in one run.

    python bench.py                                                the sizes of the miniature language
    python bench.py --config BERT --corpus TEXT --data_dir DATA    a real BERT's size, on real text

First the plain loops: what everybody writes first. Then the measurements: the loops of a comparison run in processes of their
own and take turns, so that what else the machine does falls on all of them. Weights are random: speed does not depend on them.
"""
import numpy as np
import torch
import torch.nn.functional as F
from torch import nn

from data import Example, collate, encode, mask_tokens, read_dev, read_train, text_files
from load_hf_weights import load_tokenizer, read_config
from losses import WEIGHTS, cosine_loss, distillation_loss, mlm_loss
from model import Classifier, MaskedLM, make_student

# ---- The plain loops: every line padded to max_length, fp32, full logits of both models, eager. Not to be improved. ----


def padded(rows, max_length, pad):
    """collate, but to max_length whatever the rows' lengths."""
    longest = ([pad] * max_length, [0] * max_length)
    return [x[:-1] for x in collate([*rows, longest], pad)]


def plain_distillation(args, log):
    """Distil on the corpus's non-empty lines, one after the other in random order."""
    config, tokenizer, rng = read_config(args.config), load_tokenizer(args.config), np.random.default_rng(0)
    lines = [line for file in text_files(args.corpus) for line in file.read_text(encoding="utf-8").split("\n") if line.strip()]
    special = [tokenizer.token_to_id(token) for token in ("[PAD]", "[CLS]", "[SEP]")]
    teacher = MaskedLM(config).to(args.device).requires_grad_(False).eval()
    student = make_student(teacher).to(args.device).train()
    optimizer = torch.optim.AdamW(student.parameters(), lr=5e-5, betas=(0.9, 0.98), eps=1e-6, weight_decay=0.0)
    while True:
        tokens = 0
        for _ in range(args.steps_a_turn):
            chosen = [Example(lines[i], None, 0) for i in rng.integers(len(lines), size=args.batch_size)]
            ids, attention_mask, _ = padded(encode(chosen, tokenizer, args.max_length), args.max_length, config.pad_token_id)
            input_ids, labels = mask_tokens(ids.numpy(), rng, 0.15, special, tokenizer.token_to_id("[MASK]"), config.vocab_size)
            input_ids, labels = (torch.from_numpy(x).to(args.device) for x in (input_ids, labels))
            attention_mask = attention_mask.to(args.device)
            real = attention_mask.bool()

            with torch.no_grad():
                teacher_hidden = teacher.bert(input_ids, attention_mask)
                teacher_logits = F.linear(teacher.head.transform(teacher_hidden), *teacher.decoder())
            student_hidden = student.bert(input_ids, attention_mask)
            student_logits = F.linear(student.head.transform(student_hidden), *student.decoder())
            loss = (WEIGHTS["ce"] * distillation_loss(student_logits[real], teacher_logits[real], 2.0)
                    + WEIGHTS["mlm"] * mlm_loss(student_logits.flatten(0, 1), labels.flatten())
                    + WEIGHTS["cos"] * cosine_loss(student_hidden[real], teacher_hidden[real]))
            optimizer.zero_grad()
            loss.backward()
            nn.utils.clip_grad_norm_(student.parameters(), 5.0)
            optimizer.step()
            tokens += int(real.sum())
        log.write(tokens=tokens, loss=loss.item())


def plain_finetuning(args, log):
    """Fine-tune on CoLA, its rows in random order."""
    config, tokenizer, rng = read_config(args.config), load_tokenizer(args.config), np.random.default_rng(0)
    train = read_train("cola", args.data_dir)
    model = Classifier(config).to(args.device).train()
    optimizer = torch.optim.AdamW(model.parameters(), lr=2e-5, weight_decay=0.0)
    while True:
        for _ in range(args.steps_a_turn):
            chosen = [train[i] for i in rng.integers(len(train), size=args.batch_size)]
            inputs = padded(encode(chosen, tokenizer, args.max_length), args.max_length, config.pad_token_id)
            targets = torch.tensor([example.label for example in chosen], device=args.device)
            loss = F.cross_entropy(model(*(x.to(args.device) for x in inputs)), targets)
            optimizer.zero_grad()
            loss.backward()
            nn.utils.clip_grad_norm_(model.parameters(), 1.0)
            optimizer.step()
        log.write(examples=args.steps_a_turn * args.batch_size, loss=loss.item())


def plain_evaluation(args, log):
    """Predict the labels of rows of CoLA's dev set, in the order of the file."""
    config, tokenizer = read_config(args.config), load_tokenizer(args.config)
    rows = encode(read_dev("cola", args.data_dir)["dev"], tokenizer, args.max_length)
    model, start = Classifier(config).to(args.device).eval(), 0
    while True:
        predictions = []
        for _ in range(args.steps_a_turn):
            inputs = padded(rows[start:start + args.batch_size], args.max_length, config.pad_token_id)
            with torch.no_grad():
                predictions += model(*(x.to(args.device) for x in inputs)).argmax(-1).tolist()
            start = start + args.batch_size if start + args.batch_size < len(rows) else 0
        log.write(examples=len(predictions))
