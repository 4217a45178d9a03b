"""support/squad.py: the best span, the answers as slices of the text, the two metrics.

Metrics are compared with values worked out by hand and with a second implementation.
"""
import json
import re

import numpy as np
import pytest
from hypothesis import given
from hypothesis import strategies as st
from squad_helpers import letters_tokenizer, quick

import finetune
from support.outcomes import read_predictions
from support.squad import (
    Question,
    best_answers,
    best_span,
    exact_match,
    f1,
    normalized,
    windows,
    write_answers,
)

# ---- Metrics ----

@pytest.mark.parametrize("text, expected", [
    ("The Eiffel-Tower!", "eiffeltower"),      # punctuation is deleted, and leaves no space
    ("a an the", ""),
    ("another Theme, an anthem", "another theme anthem"),
    ("the.cat", "thecat"),                     # articles are deleted after the punctuation
    ("  two \t\n words\u00a0here ", "two words here"),
    ("Ünïcode «quoted»", "ünïcode «quoted»"),  # only ASCII punctuation
    ("l'an 2000", "lan 2000"),
    ("the-a", "thea"),
    ("$1,000.50", "100050"),
    ("", ""),
    ("?!", ""),
    ("a\u2014b", "\u2014b"),
])
def test_normalisation_by_hand(text, expected):
    assert normalized(text) == expected


@pytest.mark.parametrize("prediction, gold_answers, exact, words", [
    ("Denver Broncos", ["Denver Broncos", "The Denver Broncos!"], 1, 1),
    ("the Denver Broncos", ["denver  broncos"], 1, 1),
    ("Denver", ["Denver Broncos"], 0, 2 / 3),                    # precision 1, recall 1/2
    ("Denver Broncos of Denver", ["Denver Broncos"], 0, 2 / 3),  # 2/4, 2/2: denver counts once
    ("b b b c", ["b b d"], 0, 4 / 7),                            # b is common twice: 2/4, 2/3
    ("Carolina", ["Denver Broncos"], 0, 0),
    ("x y", ["x z w", "y x q"], 0, 0.8),                         # the better gold: 2/2, 2/3
    ("", ["Denver"], 0, 0),
    ("the", ["Denver"], 0, 0),
    ("the", ["a"], 1, 0),  # both are empty: a match, but F1 is 0, as in version 1.1's script
    ("café", ["Café."], 1, 1),
    ("cafe", ["café"], 0, 0),
    ("12,5", ["125"], 1, 1),
])
def test_exact_match_and_f1_by_hand(prediction, gold_answers, exact, words):
    assert exact_match([prediction], [gold_answers]) == exact
    assert f1([prediction], [gold_answers]) == pytest.approx(words, abs=1e-12)


def test_metrics_are_means_over_questions():
    gold_answers = [("b",), ("x",), ("y", "d.")]
    assert exact_match(["b", "c", "d"], gold_answers) == pytest.approx(2 / 3)
    assert f1(["b", "c x", "d"], [("b",), ("x",), ("e",)]) == pytest.approx((1 + 2 / 3) / 3)
    score = finetune.score("squad", {"dev": (["b", "c x"], [("b",), ("x",)])})
    assert score == pytest.approx(100 * (1 + 2 / 3) / 2)


def other_normalisation(text):
    """By a table of characters and a split into words, with no word borders of a regex."""
    punctuation = (*range(33, 48), *range(58, 65), *range(91, 97), *range(123, 127))
    kept = text.lower().translate(dict.fromkeys(punctuation))
    return "".join(word for word in re.split(r"(\W)", kept) if word not in ("a", "an", "the"))


def other_f1(ours, theirs):
    """By merging two sorted lists of words; from precision and recall."""
    i = j = common = 0
    while i < len(ours) and j < len(theirs):
        one, other = ours[i], theirs[j]
        common += one == other
        i += one <= other
        j += one >= other
    if not common:
        return 0
    precision, recall = common / len(ours), common / len(theirs)
    return 2 * precision * recall / (precision + recall)


PHRASE_WORDS = ["the", "The", "a", "an", "Cat", "cat", "dog", "dog's", "it's", "U.S.", "-", ",",
                "naïve", "3.5", "\t"]
PHRASES = st.lists(st.sampled_from(PHRASE_WORDS), max_size=7).map(" ".join)


@quick
@given(PHRASES, st.lists(PHRASES, min_size=1, max_size=3))
def test_metrics_equal_those_of_a_second_implementation(prediction, gold_answers):
    ours, *theirs = (other_normalisation(text).split() for text in (prediction, *gold_answers))
    assert exact_match([prediction], [gold_answers]) == (ours in theirs)
    expected = max(other_f1(sorted(ours), sorted(words)) for words in theirs)
    assert f1([prediction], [gold_answers]) == pytest.approx(expected, abs=1e-12)


# ---- The span of an answer ----

@quick
@given(st.integers(1, 60), st.integers(0, 2 ** 31))
def test_the_best_span_is_that_of_a_search_over_all_pairs(length, seed):
    rng = np.random.default_rng(seed)
    start, end = rng.integers(-9, 9, (2, length)).astype(np.float32)
    pairs = []
    for i in range(length):
        for j in range(i, min(length, i + 30)):
            pairs.append((start[i] + end[j], -i, -j))
    total, i, j = max(pairs)
    assert best_span(start, end) == (-i, -j, total)


def test_the_answer_is_the_best_span_of_all_windows_as_the_context_writes_it():
    context = "ab  d . CAFE\u0301 e ab"
    question = Question("1", "d d", context, (("e", 0),))
    found = list(windows([question], letters_tokenizer(), 9, 2))  # windows of 4 tokens
    starts = [window.offsets[:, 0].tolist() for window in found]
    assert starts == [[0, 4, 6, 8], [6, 8, 14, 16]]

    logits = [np.zeros((2, 12), np.float32) for _ in found]
    logits[0][:, [0, 1, 2, 3, 8, 11]] = 99  # [CLS], question, [SEP] and padding do not count
    logits[1][0, 4], logits[1][1, 5] = 5, 4
    assert best_answers([question], found, logits) == [". CAFE\u0301"]
    # The two largest logits do not make a span: that end is before that start.
    logits[0][0, 5], logits[0][1, 4:6] = 50, (49, -60)
    assert best_answers([question], found, logits) == ["d ."]


# ---- Predictions ----

def test_predictions_of_any_text_stay_in_their_column(tmp_path):
    """Tabs, line ends of all kinds and quotes in answers."""
    texts = ["a\tb", "a\nb\r\u2028\x85", '"quoted" \\', "中 e\u0301", ""]
    questions = []
    for i, text in enumerate(texts):
        questions.append(Question(str(i), "?", text, ((text, 0), (text + "!", 0))))
    gold_answers = [question.gold_answers for question in questions]
    lines = write_answers(tmp_path, {"dev": questions}, {"dev": (texts, gold_answers)})

    by_id = json.loads((tmp_path / "predictions.json").read_text())
    assert by_id == {str(i): text for i, text in enumerate(texts)}
    table = "".join("\t".join(line) + "\n" for line in (("header",), *lines))
    (tmp_path / "predictions.tsv").write_text(table)
    f1s, columns = read_predictions(tmp_path / "predictions.tsv", "squad")["dev"]
    assert f1s.tolist() == [1, 1, 1, 1, 0]
    assert [json.loads(column) for column in columns] == [[text, text + "!"] for text in texts]
