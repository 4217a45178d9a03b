"""SQuAD 1.1: questions whose answer is a stretch of a text. Its files, windows over long texts, answers, and the two metrics, by hand.

A text that is too long is read in overlapping windows, which start --stride tokens apart (run_squad's doc_stride; Hugging Face's
tokenizers call the overlap stride). Every token keeps its place in the text, so an answer is a slice of the text itself.
Rajpurkar et al. 2016 (arXiv:1606.05250); Devlin et al. 2018 (arXiv:1810.04805), section 4.2. Called by finetune.py.
"""
import json
import re
import string
import unicodedata
from collections import Counter
from dataclasses import dataclass
from pathlib import Path

import numpy as np

from support.errors import InputError
from support.files import read_json, write_json
from support.tasks import TASKS, task_folder

QUESTION_TOKENS = 64  # of a question at most, and at most half of the window
ANSWER_TOKENS = 30    # of a predicted answer at most
GROUP = 1000          # questions tokenized at once


# ---- The files ----

@dataclass(frozen=True)
class Question:
    id: str
    text: str
    context: str    # one and the same str for all questions about it
    answers: tuple  # of (the answer's text, its first character's place in the context), at least one; of dev questions several

    @property
    def gold_answers(self):
        return tuple(text for text, _ in self.answers)


def read_train(task, data_dir):
    """The training set, a list of Questions. Raises InputError."""
    path, usable, misplaced = task_folder(task, data_dir) / TASKS[task].train, [], []
    for question in read_questions(path):
        (usable if all(start >= 0 and question.context.startswith(answer, start) for answer, start in question.answers) else misplaced).append(question)
    if misplaced:
        print(f"{path}: {len(misplaced)} question(s) left out, whose answer does not stand at its answer_start; one is {misplaced[0].id}", flush=True)
    if not usable:
        raise InputError(f"{path}: question {misplaced[0].id}: its answer {misplaced[0].gold_answers[0][:50]!r} does not stand at its answer_start, nor does "
                         "any other question's")
    return usable


def read_dev(task, data_dir):
    """{name of the set: list of Questions}. Raises InputError."""
    return {name.removesuffix(".json"): read_questions(task_folder(task, data_dir) / name) for name in TASKS[task].dev}


def read_questions(path):
    """The Questions of a file in SQuAD 1.1's layout. Raises InputError, with the place in the file or the question's id."""
    questions, ids = [], set()
    for a, article in enumerate(member(read_json(path), "data", list, path)):
        where = f"{path}: data[{a}]"
        for p, paragraph in enumerate(member(article, "paragraphs", list, where)):
            place = f"{where}.paragraphs[{p}]"
            context = member(paragraph, "context", str, place)
            for q, qa in enumerate(member(paragraph, "qas", list, place)):
                name = member(qa, "id", str, f"{place}.qas[{q}]")
                if not name or not name.isprintable() or name in ids:
                    raise InputError(f"{place}.qas[{q}]: its id {name[:50]!r} {'stands there twice' if name in ids else 'is no name'}")
                ids.add(name)
                question = f"{path}: question {name}"
                text, answers = member(qa, "question", str, question), member(qa, "answers", list, question)
                pairs = tuple((member(answer, "text", str, question), member(answer, "answer_start", int, question)) for answer in answers)
                if not pairs:
                    raise InputError(f"{question} has no answer; questions without one, as in SQuAD 2.0, are not implemented")
                for answer, _ in pairs:
                    if not answer:
                        raise InputError(f"{question} has an answer without text")
                questions.append(Question(name, text, context, pairs))
    if not questions:
        raise InputError(f"{path}: no questions in it")
    return questions


def member(value, key, kind, where):
    """value[key], of this type. Raises InputError."""
    if not isinstance(value, dict) or key not in value:
        raise InputError(f"{where}: has no {key!r}")
    if type(value[key]) is not kind:  # isinstance: true is a whole number in Python
        raise InputError(f"{where}: its {key!r} is {'no text' if kind is str else 'no list' if kind is list else 'no whole number'}")
    if kind is str and re.search("[\ud800-\udfff]", value[key]):  # JSON can write half a character; no text can hold it
        raise InputError(f"{where}: its {key!r} holds half a character (a surrogate)")
    return value[key]


# ---- Windows ----

@dataclass(frozen=True)
class Window:
    question: int        # its number
    row: tuple           # (input_ids, token_type_ids) of [CLS] question [SEP] a part of the context [SEP], the context in segment 1
    first: int           # the position in the row of the context's first token
    offsets: np.ndarray  # (tokens of the context in it, 2): where each begins and ends in the context, in characters
    target: tuple        # the positions in the row of the first answer's first and last token; [CLS], (0, 0), if it is not all there


def windows(questions, tokenizer, max_length, stride):
    """The Windows of all questions, in order; every one has at least one. Arrays, not lists: SQuAD's training set has 88,000 windows."""
    cls, sep = tokenizer.token_to_id("[CLS]"), tokenizer.token_to_id("[SEP]")
    for start in range(0, len(questions), GROUP):
        group = questions[start:start + GROUP]
        texts = list(dict.fromkeys(question.context for question in group))
        contexts = {text: (np.array(encoding.ids, np.int32), np.array(encoding.offsets, np.int32).reshape(-1, 2))
                    for text, encoding in zip(texts, tokenizer.encode_batch(texts, add_special_tokens=False))}
        asked = tokenizer.encode_batch_fast([question.text for question in group], add_special_tokens=False)
        for number, (question, encoding) in enumerate(zip(group, asked), start):
            head = [cls, *encoding.ids[:min(QUESTION_TOKENS, (max_length - 3) // 2)], sep]
            ids, offsets = contexts[question.context]
            text, place = question.answers[0]
            answer = covering_tokens(offsets, place, place + len(text))
            room = max_length - len(head) - 1
            for begin in starts(len(ids), room, stride):
                part = ids[begin:begin + room]
                row = np.concatenate((head, part, [sep])).astype(np.int32), np.repeat((0, 1), (len(head), len(part) + 1)).astype(np.int8)
                holds_it = answer and begin <= answer[0] and answer[1] < begin + len(part)
                target = tuple(token - begin + len(head) for token in answer) if holds_it else (0, 0)
                yield Window(number, row, len(head), offsets[begin:begin + room], target)


def starts(tokens, room, stride):
    """Where the windows begin, each of at most `room` tokens: `stride` apart, never leaving one out, until the last token is in one."""
    begins = [0]
    while begins[-1] + room < tokens:
        begins.append(begins[-1] + min(stride, room))
    return begins


def covering_tokens(offsets, start, end):
    """(first, last) of the tokens that hold a character of context[start:end]; None if none does. offsets: (tokens, 2)."""
    first = int(np.searchsorted(offsets[:, 1], start, side="right"))
    last = int(np.searchsorted(offsets[:, 0], end, side="left")) - 1
    return (first, last) if first <= last else None


def training_rows(questions, tokenizer, max_length, stride):
    """(rows, targets): each window's (input_ids, token_type_ids), and its (start, end), positions in the row. A question's first
    answer is what is learnt; a window that does not hold all of it has [CLS] as its answer."""
    rows, targets = [], []
    for window in windows(questions, tokenizer, max_length, stride):
        rows.append(window.row)
        targets.append(window.target)
    return rows, targets


# ---- Answers ----

def best_answers(questions, windows, logits):
    """The answer to every question: a slice of its context. logits: one (2, length or more) array a window, of start and end.

    The answer is the span with the largest sum of its start's and its end's logit, over all spans of at most ANSWER_TOKENS of the
    context's tokens in all windows of the question. (run_squad looks at the 20 best starts and ends only; this is exact.)"""
    answers, best = [""] * len(questions), [-np.inf] * len(questions)
    for window, (start, end) in zip(windows, logits):
        if not len(window.offsets):
            continue
        there = slice(window.first, window.first + len(window.offsets))
        first, last, total = best_span(start[there], end[there])
        if total > best[window.question]:
            best[window.question] = total
            answers[window.question] = whole_characters(questions[window.question].context, window.offsets[first, 0], window.offsets[last, 1])
    return answers


def whole_characters(text, start, end):
    """text[start:end], and the accents behind it that are characters of their own: the tokenizer drops them, the text does not."""
    while end < len(text) and unicodedata.category(text[end]) == "Mn":
        end += 1
    return text[start:end]


def best_span(start, end):
    """(first, last, start[first] + end[last]), the largest sum with first <= last < first + ANSWER_TOKENS; of equal ones the first."""
    ends = np.concatenate((end, np.full(ANSWER_TOKENS - 1, -np.inf, end.dtype)))
    totals = start[:, None] + np.lib.stride_tricks.sliding_window_view(ends, ANSWER_TOKENS)  # (first, how many tokens more)
    first, more = map(int, np.unravel_index(totals.argmax(), totals.shape))
    return first, first + more, float(totals[first, more])


def write_predictions(out_dir, dev_sets, sets):
    """predictions.json, {question's id: answer}, which the official evaluation script reads. Returns the rows of predictions.tsv:
    set, id, answer, gold answers; the last two as JSON in ASCII, in which nothing ends a column or a line."""
    answered = [(name, question.id, answer, gold_answers) for name, questions in dev_sets.items()
                for question, answer, gold_answers in zip(questions, *sets[name])]
    write_json(Path(out_dir) / "predictions.json", {number: answer for _, number, answer, _ in answered})
    return [(name, number, json.dumps(answer), json.dumps(gold_answers)) for name, number, answer, gold_answers in answered]


# ---- Metrics: (predictions, targets), for every question a text and the texts of its gold answers -> float ----

def exact_match(predictions, targets):
    """The share of questions whose answer is, normalised, one of the gold answers."""
    return float(np.mean([normalized(prediction) in map(normalized, gold_answers) for prediction, gold_answers in zip(predictions, targets)]))


def f1(predictions, targets):
    """The mean over questions of the words' F1, with the gold answer that it is largest with."""
    return float(np.mean(f1_of_each(predictions, targets)))


def f1_of_each(predictions, targets):
    """(questions,)"""
    return np.array([max(words_f1(prediction, gold) for gold in gold_answers) for prediction, gold_answers in zip(predictions, targets)])


def words_f1(prediction, gold):
    """The harmonic mean of precision and recall of the normalised words, each counted as often as it stands there. 0 if no word is
    common, even where both are without words, as in the official evaluation of version 1.1."""
    ours, theirs = normalized(prediction).split(), normalized(gold).split()
    common = (Counter(ours) & Counter(theirs)).total()
    return 2 * common / (len(ours) + len(theirs)) if common else 0.0


def normalized(text):
    """As the official evaluation has it: lower case, without ASCII's punctuation, without the words a, an, the, single spaces."""
    text = "".join(character for character in text.lower() if character not in string.punctuation)
    return " ".join(re.sub(r"\b(a|an|the)\b", " ", text).split())
