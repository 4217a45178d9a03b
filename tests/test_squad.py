"""support/squad.py: its files, good and malformed, and windows over long texts.

Windows are compared with transformers' tokenizer, and with the text that they were cut from. Next:
test_squad_answers.py, then test_squad_model.py, then test_squad_training.py (end to end).
"""
import json
import re

import numpy as np
import pytest
import transformers
from conftest import WORDS
from hypothesis import assume, given
from hypothesis import strategies as st
from squad_helpers import LETTERS, TEXT, letters_tokenizer, quick

import finetune
from support.errors import InputError
from support.squad import Question, best_answers, read_questions, read_train, windows


def windows_of_question(question, tokenizer, max_length, stride):
    return list(windows([question], tokenizer, max_length, stride))


# ---- Windows ----

@pytest.fixture(scope="module")
def fast(tmp_path_factory):
    """transformers' tokenizer with the same vocabulary."""
    path = tmp_path_factory.mktemp("letters") / "vocab.txt"
    path.write_text("\n".join(LETTERS) + "\n")
    return transformers.BertTokenizerFast(str(path))


@quick
@given(TEXT, TEXT, st.integers(9, 40), st.integers(1, 30))
def test_windows_are_those_of_transformers(fast, asked, context, max_length, stride):
    longest = (max_length - 3) // 2
    question = fast.decode(fast(asked, add_special_tokens=False)["input_ids"][:longest])
    length = len(fast(question, add_special_tokens=False)["input_ids"])
    assume(length <= longest and "[" not in question)
    room = max_length - length - 3
    theirs = fast(question, context, max_length=max_length, truncation="only_second",
                  stride=room - min(stride, room), return_overflowing_tokens=True,
                  return_offsets_mapping=True)

    ours = windows_of_question(Question("1", question, context, (("a", 0),)), letters_tokenizer(),
                               max_length, stride)
    assert [window.row[0].tolist() for window in ours] == theirs["input_ids"]
    assert [window.row[1].tolist() for window in ours] == theirs["token_type_ids"]
    for window, offsets in zip(ours, theirs["offset_mapping"], strict=True):
        assert window.first == length + 2
        assert window.offsets.tolist() == [list(pair) for pair in offsets[window.first:-1]]


@quick
@given(TEXT, TEXT, st.integers(5, 40), st.integers(1, 30))
def test_every_token_is_in_a_window_and_its_offsets_slice_the_text(
        asked, context, max_length, stride):
    tokenizer = letters_tokenizer()
    ours = windows_of_question(Question("1", asked, context, (("a", 0),)), tokenizer,
                               max_length, stride)
    whole = tokenizer.encode(context, add_special_tokens=False)
    in_windows = [window.offsets for window in ours]
    assert set(map(tuple, np.concatenate(in_windows).tolist())) == set(whole.offsets)

    cls, sep, unknown = LETTERS["[CLS]"], LETTERS["[SEP]"], LETTERS["[UNK]"]
    pieces = {id: token.removeprefix("##") for token, id in LETTERS.items()}
    for window in ours:
        ids = window.row[0].tolist()
        assert len(ids) == len(window.row[1]) <= max_length
        assert ids[0] == cls and ids[window.first - 1] == ids[-1] == sep
        for id, (start, end) in zip(ids[window.first:-1], window.offsets):
            text = context[start:end].lower().replace("é", "e")
            assert id == unknown or text == pieces[id]


def test_a_long_question_is_cut_and_an_empty_context_has_one_window(tokenizer):
    question = Question("1", " ".join(WORDS[:80]), " ".join(WORDS[:90]), ((WORDS[0], 0),))
    empty = Question("2", "film", " \n", ((" ", 0),))
    found = list(windows([question, empty], tokenizer, 200, 128))
    shapes = [(window.question, window.first, len(window.row[0])) for window in found]
    assert shapes == [(0, 66, 157), (1, 3, 4)]  # 64 words of the question
    logits = [np.zeros((2, 200))] * 2
    assert best_answers([question] * 2, found, logits) == [WORDS[0], ""]

    short = windows_of_question(question, tokenizer, 63, 128)
    assert [window.first for window in short] == [32] * 3  # half of the window: 30 words


def test_windows_are_in_the_order_of_the_questions(tokenizer):
    questions = []
    for i in range(2500):  # several groups
        questions.append(Question(str(i), "film", f"good {WORDS[i % 90]}", (("good", 0),)))
    found = [(window.question, window.offsets[1].tolist())
             for window in windows(questions, tokenizer, 20, 128)]
    assert found == [(i, [5, 8]) for i in range(2500)]


@quick
@given(TEXT, st.data(), st.integers(9, 40), st.integers(1, 30))
def test_targets_slice_the_answer_out_of_the_text(context, data, max_length, stride):
    """An answer on token borders comes back as it is; any other within the tokens that hold it."""
    tokenizer = letters_tokenizer()
    offsets = tokenizer.encode(context, add_special_tokens=False).offsets
    assume(offsets)
    first = data.draw(st.integers(0, len(offsets) - 1))
    last = data.draw(st.integers(first, len(offsets) - 1))
    start, end = offsets[first][0], offsets[last][1]
    cut = data.draw(st.integers(0, 1)) if end - start > 2 else 0  # starts inside the first token
    question = Question("1", "d", context, ((context[start + cut:end], start + cut),))

    tokens = [pair for pair in offsets if pair[1] > start + cut and pair[0] < end]
    found = windows_of_question(question, tokenizer, max_length, stride)
    for window in found:
        in_window = [tuple(pair) for pair in window.offsets.tolist()]
        assert (window.target != (0, 0)) == (set(tokens) <= set(in_window))
        if window.target != (0, 0):
            begin = in_window[window.target[0] - window.first][0]
            stop = in_window[window.target[1] - window.first][1]
            assert (begin, stop) == (tokens[0][0], tokens[-1][1])
            assert cut or context[begin:stop] == question.answers[0][0]
    if len(tokens) + stride - 1 <= max_length - 4:  # then neighbouring windows overlap enough
        assert any(window.target != (0, 0) for window in found)


# ---- Files ----

GOOD_FILE = {"data": [{"paragraphs": [{"context": "ab cd", "qas": [
    {"id": "q1", "question": "x", "answers": [{"text": "cd", "answer_start": 3}]}]}]}]}
PARAGRAPH = ("data", 0, "paragraphs", 0)
CONTEXT = (*PARAGRAPH, "context")
QUESTIONS = (*PARAGRAPH, "qas")
QUESTION = (*QUESTIONS, 0)
ANSWERS = (*QUESTION, "answers")
ANSWER = (*ANSWERS, 0)
START = (*ANSWER, "answer_start")
NO_ANSWER = ("question q1 has no answer; questions without one, as in SQuAD 2.0, "
             "are not implemented")
TWICE = GOOD_FILE["data"][0]["paragraphs"][0]["qas"] * 2


def changed(path, value):
    """GOOD_FILE as JSON, with another value at this path; None: without the key."""
    file = json.loads(json.dumps(GOOD_FILE))
    place = file
    for key in path[:-1]:
        place = place[key]
    if value is None:
        del place[path[-1]]
    else:
        place[path[-1]] = value
    return json.dumps(file)


@pytest.mark.parametrize("text, message", [
    ("", "not JSON"),
    ("[]", "not a JSON object"),
    ("{" * 5, "not JSON"),
    ("[" * 10 ** 5, "not JSON"),
    ("{}", "has no 'data'"),
    ('{"data": []}', "no questions in it"),
    (changed(("data",), 7), "its 'data' is not a list"),
    (changed(("data", 0), "x"), r"data\[0\]: has no 'paragraphs'"),
    (changed(CONTEXT, None), r"data\[0\].paragraphs\[0\]: has no 'context'"),
    (changed(CONTEXT, 3), "its 'context' is not text"),
    (changed(CONTEXT, "ab cd \ud800"), "its 'context' holds half a character"),
    (changed((*QUESTION, "id"), None), r"paragraphs\[0\].qas\[0\]: has no 'id'"),
    (changed((*QUESTION, "id"), "a\tb"), r"its id 'a\\tb' is empty or not printable"),
    (changed(QUESTIONS, TWICE), r"qas\[1\]: its id 'q1' occurs twice"),
    (changed((*QUESTION, "question"), None), "question q1: has no 'question'"),
    (changed(ANSWERS, []), NO_ANSWER),
    (changed(START, None), "question q1: has no 'answer_start'"),
    (changed(START, "3"), "question q1: its 'answer_start' is not a whole number"),
    (changed(START, True), "its 'answer_start' is not a whole number"),
    (changed(START, 2), "question q1: its answer 'cd' is not at its answer_start"),
    (changed(START, -2), "is not at its answer_start"),
    (changed((*ANSWER, "text"), ""), "question q1 has an answer without text"),
])
def test_a_malformed_file_is_refused_in_one_line(world, tmp_path, refused, text, message):
    (tmp_path / "data" / "squad").mkdir(parents=True)
    for name in ("train", "dev"):
        (tmp_path / "data" / "squad" / f"{name}-v1.1.json").write_text(text)
    line = refused(finetune, "--model", world / "teacher", "--task", "squad", "--max_length", 40,
                   "--data_dir", tmp_path / "data", "--out_dir", tmp_path / "out")
    assert re.search(f"train-v1.1.json: .*{message}", line), line
    assert not (tmp_path / "out").exists()


def test_questions_with_a_misplaced_answer_are_left_out_with_a_message(tmp_path, capsys):
    (tmp_path / "squad").mkdir()
    misplaced = {"id": "q2", "question": "x", "answers": [{"text": "cd", "answer_start": 2}]}
    text = changed(QUESTIONS, [TWICE[0], misplaced])
    (tmp_path / "squad" / "train-v1.1.json").write_text(text)
    assert [question.id for question in read_train("squad", tmp_path)] == ["q1"]
    assert "1 question(s) left out, because an answer is not at its" in capsys.readouterr().out


KEYS = ["data", "paragraphs", "context", "qas", "id", "question", "answers", "text",
        "answer_start"]
SIMPLE_VALUES = st.none() | st.booleans() | st.integers() | st.floats() | st.text(max_size=5)


def lists_and_objects(values):
    return (st.lists(values, max_size=3)
            | st.dictionaries(st.sampled_from(KEYS), values, max_size=4))


JSON = st.recursive(SIMPLE_VALUES, lists_and_objects, max_leaves=8)
PATHS = [(), ("data",), ("data", 0), PARAGRAPH, CONTEXT, QUESTION, (*QUESTION, "id"),
         (*QUESTION, "question"), ANSWERS, ANSWER, (*ANSWER, "text"), START]


@quick
@given(st.sampled_from(PATHS), JSON)
def test_any_json_is_read_or_refused(tmp_path, path, value):
    """Random values anywhere in a good file, and files that are entirely random."""
    file = tmp_path / "train-v1.1.json"
    in_good_file = path and value is not None
    file.write_text(changed(path, value) if in_good_file else json.dumps(value))
    try:
        questions = read_questions(file)
    except InputError as error:
        assert str(error).startswith(str(file)) and len(str(error)) < 500
        return
    for window in windows(questions, letters_tokenizer(), 12, 3):
        assert len(window.row[0]) <= 12 and questions[window.question].gold_answers
