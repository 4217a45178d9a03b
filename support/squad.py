"""SQuAD 1.1, questions whose answer is a span of a text: files, windows, answers, metrics.

A text that is too long for the model is read in overlapping windows, which start --stride tokens
apart (run_squad.py calls this doc_stride). Every token knows its characters in the text, so an
answer is a slice of the text itself. The two metrics are written out by hand.
Rajpurkar et al. 2016 (arXiv:1606.05250); Devlin et al. 2018 (arXiv:1810.04805), section 4.2.
Used by finetune.py.
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

QUESTION_TOKENS = 64  # longest question, in tokens; at most half of the window in any case
ANSWER_TOKENS = 30    # longest predicted answer, in tokens
GROUP = 1000          # questions tokenized in one call


# ---- Files ----

@dataclass(frozen=True)
class Question:
    id: str
    text: str
    context: str    # the text that holds the answer; one object for all questions about it
    answers: tuple  # of pairs (text, position of its first character in the context), at least one

    @property
    def gold_answers(self):
        return tuple(text for text, _ in self.answers)


def read_train(task, data_dir):
    """The training set, a list of Questions. Raises InputError.

    Leaves out, with a message, questions with an answer that is not at its answer_start."""
    path = task_folder(task, data_dir) / TASKS[task].train
    usable, misplaced = [], []
    for question in read_questions(path):
        (usable if answers_are_in_place(question) else misplaced).append(question)
    if misplaced:
        print(f"{path}: {len(misplaced)} question(s) left out, because an answer is not at its "
              f"answer_start; one is {misplaced[0].id}", flush=True)
    if not usable:
        answer = misplaced[0].gold_answers[0][:50]
        raise InputError(f"{path}: question {misplaced[0].id}: its answer {answer!r} is not at its "
                         "answer_start, and no other question can be used either")
    return usable


def answers_are_in_place(question):
    return all(start >= 0 and question.context.startswith(text, start)
               for text, start in question.answers)


def read_dev(task, data_dir):
    """The dev sets: {name: list of Questions}. Raises InputError."""
    folder = task_folder(task, data_dir)
    return {name.removesuffix(".json"): read_questions(folder / name) for name in TASKS[task].dev}


def read_questions(path):
    """The Questions of a file in the layout of SQuAD 1.1.

    Raises InputError, with the place in the file or the id of the question."""
    questions = {}
    for place, paragraph in paragraphs(path):
        context = member(paragraph, "context", str, place)
        for number, qa in enumerate(member(paragraph, "qas", list, place)):
            question_id = read_id(qa, f"{place}.qas[{number}]")
            if question_id in questions:
                raise InputError(f"{place}.qas[{number}]: its id {question_id[:50]!r} occurs twice")
            where = f"{path}: question {question_id}"
            text, answers = member(qa, "question", str, where), read_answers(qa, where)
            questions[question_id] = Question(question_id, text, context, answers)
    if not questions:
        raise InputError(f"{path}: no questions in it")
    return list(questions.values())


def paragraphs(path):
    """Yield (place in the file, paragraph). Raises InputError."""
    for a, article in enumerate(member(read_json(path), "data", list, path)):
        place = f"{path}: data[{a}]"
        for p, paragraph in enumerate(member(article, "paragraphs", list, place)):
            yield f"{place}.paragraphs[{p}]", paragraph


def read_id(qa, where):
    """The id of a question. Raises InputError."""
    question_id = member(qa, "id", str, where)
    if not question_id or not question_id.isprintable():
        raise InputError(f"{where}: its id {question_id[:50]!r} is empty or not printable")
    return question_id


def read_answers(qa, where):
    """The answers of a question, pairs (text, start). Raises InputError."""
    answers = []
    for answer in member(qa, "answers", list, where):
        text = member(answer, "text", str, where)
        answers.append((text, member(answer, "answer_start", int, where)))
    if not answers:
        raise InputError(f"{where} has no answer; questions without one, as in SQuAD 2.0, "
                         "are not implemented")
    if not all(text for text, _ in answers):
        raise InputError(f"{where} has an answer without text")
    return tuple(answers)


KINDS = {str: "text", list: "a list", int: "a whole number"}


def member(value, key, kind, where):
    """value[key], which must be of this type, one of KINDS. Raises InputError."""
    if not isinstance(value, dict) or key not in value:
        raise InputError(f"{where}: has no {key!r}")
    if type(value[key]) is not kind:  # not isinstance, for which true is a whole number
        raise InputError(f"{where}: its {key!r} is not {KINDS[kind]}")
    if kind is str and re.search("[\ud800-\udfff]", value[key]):  # JSON allows it, UTF-8 does not
        raise InputError(f"{where}: its {key!r} holds half a character (a surrogate)")
    return value[key]


# ---- Windows ----

@dataclass(frozen=True)
class Window:
    """[CLS] question [SEP] a part of the context [SEP]; the part and its [SEP] are in segment 1."""
    question: int        # the number of the question
    row: tuple           # (input_ids, token_type_ids)
    first: int           # the position in the row of the first token of the context
    offsets: np.ndarray  # (its tokens of the context, 2): their start and end characters in it
    # The positions in the row of the first and the last token of the question's first answer;
    # those of [CLS], (0, 0), unless the window holds the whole answer.
    target: tuple


def windows(questions, tokenizer, max_length, stride):
    """Yield the Windows of all questions, in order, at least one for each.

    Rows are arrays, not lists, to save memory: SQuAD's training set has 88,000 windows."""
    cls, sep = tokenizer.token_to_id("[CLS]"), tokenizer.token_to_id("[SEP]")
    question_tokens = min(QUESTION_TOKENS, (max_length - 3) // 2)
    for start in range(0, len(questions), GROUP):
        group = questions[start:start + GROUP]
        contexts = encode_contexts(group, tokenizer)
        encodings = tokenizer.encode_batch_fast([question.text for question in group],
                                                add_special_tokens=False)
        for number, (question, encoding) in enumerate(zip(group, encodings), start):
            head = [cls, *encoding.ids[:question_tokens], sep]
            ids, offsets = contexts[question.context]
            text, position = question.answers[0]
            answer = covering_tokens(offsets, position, position + len(text))
            yield from windows_of(number, head, ids, offsets, answer, max_length, stride)


def encode_contexts(questions, tokenizer):
    """{context: (ids, offsets)}, each context once. ids: (tokens,). offsets: (tokens, 2)."""
    texts = list(dict.fromkeys(question.context for question in questions))
    contexts = {}
    for text, encoding in zip(texts, tokenizer.encode_batch(texts, add_special_tokens=False)):
        offsets = np.array(encoding.offsets, np.int32).reshape(-1, 2)
        contexts[text] = np.array(encoding.ids, np.int32), offsets
    return contexts


def windows_of(number, head, ids, offsets, answer, max_length, stride):
    """Yield the Windows of question `number`.

    head: the ids of [CLS] question [SEP]. ids, offsets: those of the context's tokens.
    answer: its first and its last token in the context, or None."""
    sep = head[-1]
    room = max_length - len(head) - 1
    for begin in window_starts(len(ids), room, stride):
        part = ids[begin:begin + room]
        input_ids = np.concatenate((head, part, [sep])).astype(np.int32)
        token_type_ids = np.repeat((0, 1), (len(head), len(part) + 1)).astype(np.int8)
        target = (0, 0)
        if answer and begin <= answer[0] and answer[1] < begin + len(part):
            target = tuple(token - begin + len(head) for token in answer)
        row = input_ids, token_type_ids
        yield Window(number, row, len(head), offsets[begin:begin + room], target)


def window_starts(tokens, room, stride):
    """The first token of each window over a context of so many tokens.

    A window has at most `room` tokens. They start `stride` apart (or `room`, if that is less, so
    that no token is left out), until one holds the last token."""
    begins = [0]
    while begins[-1] + room < tokens:
        begins.append(begins[-1] + min(stride, room))
    return begins


def covering_tokens(offsets, start, end):
    """(first, last) of the tokens that hold a character of context[start:end]; None if none does.

    offsets: (tokens, 2)."""
    first = int(np.searchsorted(offsets[:, 1], start, side="right"))
    last = int(np.searchsorted(offsets[:, 0], end, side="left")) - 1
    return (first, last) if first <= last else None


def training_rows(questions, tokenizer, max_length, stride):
    """The training set: (rows, targets), one of each per window.

    A row is (input_ids, token_type_ids). A target is (start, end) of the question's first answer,
    positions in the row; both are those of [CLS] if the window does not hold the whole answer."""
    rows, targets = [], []
    for window in windows(questions, tokenizer, max_length, stride):
        rows.append(window.row)
        targets.append(window.target)
    return rows, targets


# ---- Answers ----

def best_answers(questions, windows, logits):
    """The answer to every question: a list of slices of the contexts.

    logits: for each window an array (2, length or more), the logits of the start and of the end.
    The answer is the span with the largest sum of its start's and its end's logit, among all spans
    of at most ANSWER_TOKENS tokens of the context, in all windows of the question. (run_squad.py
    considers the 20 best starts and ends alone, and of a token that is in several windows the one
    with the most context; here every window may propose each of its tokens.)"""
    answers = [""] * len(questions)
    best = [-np.inf] * len(questions)
    for window, (start, end) in zip(windows, logits):
        if not len(window.offsets):
            continue
        in_context = slice(window.first, window.first + len(window.offsets))
        first, last, total = best_span(start[in_context], end[in_context])
        if total > best[window.question]:
            best[window.question] = total
            context = questions[window.question].context
            begin, stop = window.offsets[first, 0], window.offsets[last, 1]
            answers[window.question] = with_accents(context, begin, stop)
    return answers


def with_accents(text, start, end):
    """text[start:end], extended by the combining accents that follow it.

    The tokenizer drops such accents, so they belong to no token."""
    while end < len(text) and unicodedata.category(text[end]) == "Mn":
        end += 1
    return text[start:end]


def best_span(start, end):
    """The span with the largest sum: (first, last, start[first] + end[last]).

    Only spans with first <= last < first + ANSWER_TOKENS count; of equal ones the first wins."""
    padding = np.full(ANSWER_TOKENS - 1, -np.inf, end.dtype)
    ends = np.lib.stride_tricks.sliding_window_view(np.concatenate((end, padding)), ANSWER_TOKENS)
    totals = start[:, None] + ends  # (first, last - first)
    first, more = map(int, np.unravel_index(totals.argmax(), totals.shape))
    return first, first + more, float(totals[first, more])


def write_answers(out_dir, dev_sets, sets):
    """Write predictions.json, {id: answer}, the file that the official evaluation script reads.

    dev_sets: {name: Questions}. sets: {name: (answers, gold answers)}.
    Returns the rows of predictions.tsv: set, id, answer, gold answers. The last two are ASCII JSON,
    so that no text contains a tab or a line end."""
    by_id, lines = {}, []
    for name, questions in dev_sets.items():
        for question, answer, gold_answers in zip(questions, *sets[name]):
            by_id[question.id] = answer
            lines.append((name, question.id, json.dumps(answer), json.dumps(gold_answers)))
    write_json(Path(out_dir) / "predictions.json", by_id)
    return lines


# ---- Metrics ----
# (predictions, targets) -> float. For every question, a text and the texts of its gold answers.

def exact_match(predictions, targets):
    """The share of questions whose answer, normalised, equals a normalised gold answer."""
    matches = []
    for prediction, gold_answers in zip(predictions, targets):
        matches.append(normalized(prediction) in map(normalized, gold_answers))
    return float(np.mean(matches))


def f1(predictions, targets):
    """The mean over questions of the F1 of their words."""
    return float(np.mean(f1_of_each(predictions, targets)))


def f1_of_each(predictions, targets):
    """(questions,): the F1 of each answer's words, with the gold answer for which it is largest."""
    best = []
    for prediction, gold_answers in zip(predictions, targets):
        best.append(max(words_f1(prediction, gold) for gold in gold_answers))
    return np.array(best)


def words_f1(prediction, gold):
    """The harmonic mean of precision and recall of the normalised words, repeated ones included.

    0 if they share no word, even if neither has any, as in the official script of version 1.1."""
    ours, theirs = normalized(prediction).split(), normalized(gold).split()
    common = (Counter(ours) & Counter(theirs)).total()
    return 2 * common / (len(ours) + len(theirs)) if common else 0.0


def normalized(text):
    """A text as the official script compares it: in lower case, without ASCII punctuation, without
    the words a, an and the, with single spaces."""
    text = "".join(character for character in text.lower() if character not in string.punctuation)
    return " ".join(re.sub(r"\b(a|an|the)\b", " ", text).split())
