"""squad.py and the span head: against transformers, against values worked out by hand, and against searches by another road."""
import json
import os
import random
import re
import signal

import numpy as np
import pytest
import scipy.special
import tokenizers
import torch
import transformers
from conftest import GOOD, SPECIAL, TINY, WORDS, no_dropout
from hypothesis import HealthCheck, assume, given, settings
from hypothesis import strategies as st

import ablation
import finetune
from data import collate, length_bucketed_batches
from load_hf_weights import load_model, load_tokenizer, save_model
from losses import distillation_loss
from model import MASKED_LOGIT, Classifier, SpanModel
from support import demo, squad
from support.errors import InputError, Interrupted
from support.report import differences, read_outcomes, read_predictions
from support.seeds import NEW_WEIGHTS, seed_torch
from support.squad import (
    Question,
    best_answers,
    best_span,
    exact_match,
    f1,
    normalized,
    read_questions,
    windows,
)
from support.training_run import Run

quick = settings(max_examples=60, deadline=None, suppress_health_check=list(HealthCheck))


# ---- Metrics ----

@pytest.mark.parametrize("text, expected", [
    ("The Eiffel-Tower!", "eiffeltower"),                # punctuation goes, and leaves no space behind
    ("a an the", ""), ("another Theme, an anthem", "another theme anthem"),
    ("the.cat", "thecat"),                               # articles are looked for when the punctuation is gone
    ("  two \t\n words\u00a0here ", "two words here"),
    ("Ünïcode «quoted»", "ünïcode «quoted»"),            # only ASCII's punctuation
    ("l'an 2000", "lan 2000"), ("the-a", "thea"), ("$1,000.50", "100050"), ("", ""), ("?!", ""), ("a\u2014b", "\u2014b")])
def test_normalisation_by_hand(text, expected):
    assert normalized(text) == expected


@pytest.mark.parametrize("prediction, golds, exact, words", [
    ("Denver Broncos", ["Denver Broncos", "The Denver Broncos!"], 1, 1),
    ("the Denver Broncos", ["denver  broncos"], 1, 1),
    ("Denver", ["Denver Broncos"], 0, 2 / 3),            # precision 1, recall 1/2
    ("Denver Broncos of Denver", ["Denver Broncos"], 0, 2 / 3),  # 2 of 4, 2 of 2: denver counts once
    ("b b b c", ["b b d"], 0, 4 / 7),                    # common: b twice; 2/4 and 2/3
    ("Carolina", ["Denver Broncos"], 0, 0),
    ("x y", ["x z w", "y x q"], 0, 0.8),                 # the better gold answer: 2/2, 2/3
    ("", ["Denver"], 0, 0), ("the", ["Denver"], 0, 0),
    ("the", ["a"], 1, 0),                                # both without words: equal, but F1 0, as in version 1.1's script
    ("café", ["Café."], 1, 1), ("cafe", ["café"], 0, 0), ("12,5", ["125"], 1, 1)])
def test_exact_match_and_f1_by_hand(prediction, gold_answers, exact, words):
    assert exact_match([prediction], [gold_answers]) == exact and f1([prediction], [gold_answers]) == pytest.approx(words, abs=1e-12)


def test_metrics_are_means_over_questions():
    assert exact_match(["b", "c", "d"], [("b",), ("x",), ("y", "d.")]) == pytest.approx(2 / 3)
    assert f1(["b", "c x", "d"], [("b",), ("x",), ("e",)]) == pytest.approx((1 + 2 / 3) / 3)
    assert finetune.score("squad", {"dev": (["b", "c x"], [("b",), ("x",)])}) == pytest.approx(100 * (1 + 2 / 3) / 2)


def other_normalisation(text):
    """By a translation table and a filter of words, where punctuation inside of words is no border that \\b could see."""
    kept = text.lower().translate({i: None for i in (*range(33, 48), *range(58, 65), *range(91, 97), *range(123, 127))})
    return [word for word in re.split(r"(\W)", kept) if word not in ("a", "an", "the")]


PHRASES = st.lists(st.sampled_from(["the", "The", "a", "an", "Cat", "cat", "dog", "dog's", "it's", "U.S.", "-", ",", "naïve", "3.5", "\t"]), max_size=7).map(" ".join)


@quick
@given(PHRASES, st.lists(PHRASES, min_size=1, max_size=3))
def test_metrics_against_a_second_implementation(prediction, gold_answers):
    def words(text):
        return sorted("".join(other_normalisation(text)).split())

    def word_f1(ours, theirs):  # merging two sorted lists, precision and recall
        i = j = common = 0
        while i < len(ours) and j < len(theirs):
            common, i, j = common + (ours[i] == theirs[j]), i + (ours[i] <= theirs[j]), j + (ours[i] >= theirs[j])
        if not common:
            return 0
        precision, recall = common / len(ours), common / len(theirs)
        return 2 * precision * recall / (precision + recall)
    assert f1([prediction], [gold_answers]) == pytest.approx(max(word_f1(words(prediction), words(gold)) for gold in gold_answers), abs=1e-12)
    joined = ["".join(other_normalisation(text)).split() for text in (prediction, *gold_answers)]
    assert exact_match([prediction], [gold_answers]) == (joined[0] in joined[1:])


# ---- Windows ----

LETTERS = {token: i for i, token in enumerate([*SPECIAL, *"abcde", *(f"##{letter}" for letter in "abcde"), "ab", "cafe", ".", "中"])}


def letters_tokenizer():
    """Words of several pieces; drops accents and cases, as bert-base-uncased's does."""
    tokenizer = tokenizers.Tokenizer(tokenizers.models.WordPiece(LETTERS, unk_token="[UNK]"))
    tokenizer.normalizer = tokenizers.normalizers.BertNormalizer(lowercase=True)
    tokenizer.pre_tokenizer = tokenizers.pre_tokenizers.BertPreTokenizer()
    return tokenizer


TEXT = st.lists(st.sampled_from(["ab", "Abc", "d", "e", ".", "cafe\u0301", "CAFÉ", "中", "xyz", "bcde", " ", "\n", "\u200b"]), min_size=1, max_size=40).map(" ".join)


@pytest.fixture(scope="module")
def fast(tmp_path_factory):
    """transformers' tokenizer of the same vocabulary."""
    path = tmp_path_factory.mktemp("letters") / "vocab.txt"
    path.write_text("\n".join(LETTERS) + "\n")
    return transformers.BertTokenizerFast(str(path))


@quick
@given(TEXT, TEXT, st.integers(9, 40), st.integers(1, 30))
def test_windows_against_transformers(fast, asked, context, max_length, stride):
    question = fast.decode(fast(asked, add_special_tokens=False)["input_ids"][:(max_length - 3) // 2])
    head = len(fast(question, add_special_tokens=False)["input_ids"])
    room = max_length - head - 3
    assume(head <= (max_length - 3) // 2 and "[" not in question)
    theirs = fast(question, context, max_length=max_length, truncation="only_second", stride=room - min(stride, room), return_overflowing_tokens=True,
                  return_offsets_mapping=True)
    ours = list(windows([Question("1", question, context, (("a", 0),))], letters_tokenizer(), max_length, stride))
    assert [window.row[0].tolist() for window in ours] == theirs["input_ids"]
    assert [window.row[1].tolist() for window in ours] == theirs["token_type_ids"]
    for window, offsets in zip(ours, theirs["offset_mapping"], strict=True):
        assert window.offsets.tolist() == [list(pair) for pair in offsets[window.first:-1]] and window.first == head + 2


@quick
@given(TEXT, TEXT, st.integers(5, 40), st.integers(1, 30))
def test_every_token_of_the_context_is_in_a_window_and_its_offsets_slice_the_text(asked, context, max_length, stride):
    tokenizer = letters_tokenizer()
    ours = list(windows([Question("1", asked, context, (("a", 0),))], tokenizer, max_length, stride))
    whole = tokenizer.encode(context, add_special_tokens=False)
    assert {tuple(pair) for window in ours for pair in window.offsets.tolist()} == set(whole.offsets)
    words = {id: token.removeprefix("##") for token, id in LETTERS.items()}
    for window in ours:
        ids = window.row[0].tolist()
        assert len(ids) == len(window.row[1]) <= max_length and ids[0] == 2 and ids[window.first - 1] == ids[-1] == 3
        for id, (start, end) in zip(ids[window.first:-1], window.offsets):
            assert id == 1 or context[start:end].lower().replace("é", "e") == words[id]


def test_a_long_question_is_cut_and_an_empty_context_has_one_window(tokenizer):
    question = Question("1", " ".join(WORDS[:80]), " ".join(WORDS[:90]), ((WORDS[0], 0),))
    found = list(windows([question, Question("2", "film", " \n", ((" ", 0),))], tokenizer, 200, 128))
    assert [(window.question, window.first, len(window.row[0])) for window in found] == [(0, 66, 157), (1, 3, 4)]
    assert best_answers([question] * 2, found, [np.zeros((2, 200))] * 2) == [WORDS[0], ""]
    assert [window.first for window in windows([question], tokenizer, 63, 128)] == [32] * 3  # half of the window: 30 words
    many = [Question(str(i), "film", f"good {WORDS[i % 90]}", (("good", 0),)) for i in range(2500)]  # in several groups
    assert [(window.question, window.offsets[1, 1] - 5) for window in windows(many, tokenizer, 20, 128)] == [(i, 3) for i in range(2500)]


@quick
@given(TEXT, st.data(), st.integers(9, 40), st.integers(1, 30))
def test_targets_slice_the_answer_out_of_the_text(context, data, max_length, stride):
    """An answer on the borders of tokens comes back as it is; any other within the tokens that hold its characters."""
    tokenizer = letters_tokenizer()
    offsets = tokenizer.encode(context, add_special_tokens=False).offsets
    assume(offsets)
    first = data.draw(st.integers(0, len(offsets) - 1))
    last = data.draw(st.integers(first, len(offsets) - 1))
    start, end = offsets[first][0], offsets[last][1]
    cut = data.draw(st.integers(0, 1)) if end - start > 2 else 0
    question = Question("1", "d", context, ((context[start + cut:end], start + cut),))
    tokens = [pair for pair in offsets if pair[1] > start + cut and pair[0] < end]
    found = list(windows([question], tokenizer, max_length, stride))
    for window in found:
        there = [tuple(pair) for pair in window.offsets.tolist()]
        assert (window.target != (0, 0)) == (set(tokens) <= set(there))
        if window.target != (0, 0):
            begins, ends = there[window.target[0] - window.first][0], there[window.target[1] - window.first][1]
            assert (begins, ends) == (tokens[0][0], tokens[-1][1])
            assert cut or context[begins:ends] == question.answers[0][0]
    if len(tokens) + stride - 1 <= max_length - 4:  # so much do two windows share
        assert any(window.target != (0, 0) for window in found)


# ---- The span of an answer ----

@quick
@given(st.integers(1, 60), st.integers(0, 2 ** 31))
def test_the_best_span_against_all_pairs(length, seed):
    rng = np.random.default_rng(seed)
    start, end = rng.integers(-9, 9, (2, length)).astype(np.float32)
    pairs = [(start[i] + end[j], -i, -j) for i in range(length) for j in range(i, min(length, i + 30))]
    total, i, j = max(pairs)
    assert best_span(start, end) == (-i, -j, total)


def test_the_answer_is_the_best_of_all_windows_within_the_context_and_as_the_text_has_it():
    context = "ab  d . CAFE\u0301 e ab"
    question, tokenizer = Question("1", "d d", context, (("e", 0),)), letters_tokenizer()
    found = list(windows([question], tokenizer, 9, 2))  # windows of 4 tokens: 0, 2 and on
    assert [window.offsets[:, 0].tolist() for window in found] == [[0, 4, 6, 8], [6, 8, 14, 16]]
    logits = [np.zeros((2, 12), np.float32) for _ in found]
    logits[0][:, [0, 1, 2, 3, 8, 11]] = 99  # [CLS], question, [SEP] and padding
    logits[1][0, 4], logits[1][1, 5] = 5, 4
    assert best_answers([question], found, logits) == [". CAFE\u0301"]
    logits[0][0, 5], logits[0][1, 4:6] = 50, (49, -60)  # together the largest, but the end stands before the start
    assert best_answers([question], found, logits) == ["d ."]


# ---- The model ----

@pytest.fixture
def pair(tmp_path):
    """(transformers' BertForQuestionAnswering, our SpanModel), the same weights; opened by ours from its folder."""
    torch.manual_seed(3)
    reference = transformers.BertForQuestionAnswering(transformers.BertConfig(**{
        name: value for name, value in vars(TINY).items() if value is not None})).eval()
    for parameter in reference.parameters():
        parameter.data += 0.1 * torch.randn_like(parameter)
    reference.save_pretrained(tmp_path / "theirs")
    return reference, load_model(tmp_path / "theirs", SpanModel)


def inputs(length=20):
    generator = torch.Generator().manual_seed(0)
    mask = torch.ones(3, length, dtype=torch.int64)
    mask[1, 12:] = 0
    return torch.randint(5, TINY.vocab_size, (3, length), generator=generator), mask, (torch.arange(length) > torch.tensor([[5], [3], [9]])).long()


def test_logits_loss_and_gradient_equal_those_of_transformers(pair):
    reference, ours = pair
    ids, mask, types = inputs()
    theirs = reference(input_ids=ids, attention_mask=mask, token_type_ids=types)
    logits = ours(ids, mask, types)
    for found, expected in zip(logits.unbind(1), (theirs.start_logits, theirs.end_logits)):
        assert (found - expected)[mask.bool()].abs().max() < 1e-5 and (found[mask == 0] == MASKED_LOGIT).all() and expected[mask.bool()].std() > 0.1
    targets = torch.tensor([[7, 9], [4, 4], [0, 0]])
    for rows in ([0, 2], [0, 1, 2]):  # without padding, and with it: theirs counts padding among the positions, so it is cut off
        expected = []
        for row in rows:
            real = int(mask[row].sum())
            expected.append(reference(input_ids=ids[row:row + 1, :real], token_type_ids=types[row:row + 1, :real], start_positions=targets[row:row + 1, 0],
                                      end_positions=targets[row:row + 1, 1]).loss)
        loss = finetune.task_loss(ours(ids[rows], mask[rows], types[rows]).flatten(0, -2), targets[rows].flatten())
        assert loss.item() == pytest.approx(sum(expected).item() / len(rows), abs=1e-5)
    together = reference(input_ids=ids[[0, 2]], token_type_ids=types[[0, 2]], start_positions=targets[[0, 2], 0], end_positions=targets[[0, 2], 1]).loss
    finetune.task_loss(ours(ids[[0, 2]], mask[[0, 2]], types[[0, 2]]).flatten(0, -2), targets[[0, 2]].flatten()).backward()
    together.backward()
    assert (ours.head.weight.grad - reference.qa_outputs.weight.grad).abs().max() < 1e-5
    word = reference.bert.embeddings.word_embeddings.weight.grad
    assert (ours.bert.embeddings.word.weight.grad - word).abs().max() < 1e-5 and word.abs().max() > 1e-3


def test_transformers_opens_our_folder(pair, tokenizer, tmp_path):
    reference, ours = pair
    save_model(ours, tokenizer, tmp_path / "ours")
    again, report = transformers.AutoModelForQuestionAnswering.from_pretrained(tmp_path / "ours", output_loading_info=True)
    assert not report["missing_keys"] and not report["unexpected_keys"]
    for name, weight in reference.state_dict().items():
        assert torch.equal(weight, again.state_dict()[name]), name
    with pytest.raises(InputError, match="lacks .*classifier.weight"):
        load_model(tmp_path / "ours", Classifier)


def test_padding_has_no_part_in_the_teachers_term():
    """Start and end over the real positions, in numpy; and a gradient that is a number everywhere."""
    generator = torch.Generator().manual_seed(0)
    lengths, ours, theirs = (7, 4), *torch.randn(2, 2, 2, 7, generator=generator)
    for logits in (ours, theirs):
        logits[1, :, 4:] = MASKED_LOGIT
    ours.requires_grad_()
    loss = distillation_loss(ours.flatten(0, -2), theirs.flatten(0, -2), 2.0)
    expected = 0
    for row, length in enumerate(lengths):
        for place in range(2):
            s, t = (scipy.special.log_softmax(x[row, place, :length].detach().double().numpy() / 2) for x in (ours, theirs))
            expected += 4 * np.sum(np.exp(t) * (t - s)) / 4  # T^2; the mean over two rows, and start and end
    assert loss.item() == pytest.approx(expected, rel=1e-5)
    loss.backward()
    assert ours.grad.isfinite().all() and (ours.grad[1, :, 4:] == 0).all()


# ---- End to end ----

def squad_file(rng, questions):
    """A file in SQuAD's layout. What is asked for is the word after the question's marker, a word of a kind of its own; two questions a text."""
    paragraphs = []
    for number in range(questions // 2):
        words = rng.choices(WORDS[:60], k=rng.randint(6, 14) if number % 16 else rng.randint(60, 75))
        place, marker = rng.randrange(len(words) - 1), rng.choice(GOOD)
        words[place:place + 2] = marker, rng.choice(WORDS[60:90])
        if number % 5 == 0:
            words, place = ["Ünï", "“x”", "e\u0301", *words], place + 3
        answers = [{"text": words[place + 1], "answer_start": len(" ".join(words[:place + 1])) + 1}] * 2
        paragraphs.append({"context": " ".join(words), "qas": [{"id": f"{number:04x}{i}", "question": f"{word} {marker} .", "answers": answers}
                                                              for i, word in enumerate(("film", "bad"))]})
    return {"version": "1.1", "data": [{"title": "made", "paragraphs": paragraphs[::2]}, {"title": "up", "paragraphs": paragraphs[1::2]}]}


@pytest.fixture(scope="module")
def data_dir(tmp_path_factory):
    folder, rng = tmp_path_factory.mktemp("squad"), random.Random(5)
    (folder / "squad").mkdir()
    (folder / "squad" / "train-v1.1.json").write_text(json.dumps(squad_file(rng, 400)))
    (folder / "squad" / "dev-v1.1.json").write_text(json.dumps(squad_file(rng, 60), ensure_ascii=False), encoding="utf-8")
    return folder


@pytest.fixture
def arguments(world, data_dir, tmp_path):
    def make(name, *more):
        return [str(x) for x in ("--model", world / "teacher", "--task", "squad", "--data_dir", data_dir, "--out_dir", tmp_path / name, "--max_length", 40,
                                 "--stride", 20, "--batch_size", 16, "--precision", "fp32", "--device", "cpu", *more)]
    return make


def first_step(rows):
    """(input_ids, attention_mask, token_type_ids) of the first batch of seed 0, and its rows' numbers."""
    first = length_bucketed_batches(rows, 16, 0, 0)[0]
    return collate([rows[i] for i in first], 0), first


def test_it_learns_to_answer_and_a_student_learns_from_its_logits(world, arguments, data_dir, tmp_path):
    """The files it leaves, the metrics of its predictions, transformers' answers; both terms of the second distillation in numpy."""
    plain = no_dropout(world, tmp_path / "plain")
    results = finetune.main(arguments("teacher", "--model", plain, "--epochs", 8, "--lr", "2e-3"))
    dev = json.loads((data_dir / "squad" / "dev-v1.1.json").read_text(encoding="utf-8"))
    gold_answers = {qa["id"]: (paragraph["context"], [answer["text"] for answer in qa["answers"]]) for article in dev["data"]
             for paragraph in article["paragraphs"] for qa in paragraph["qas"]}
    answers = json.loads((tmp_path / "teacher" / "predictions.json").read_text())
    assert answers.keys() == gold_answers.keys() and all(answers[name] in context for name, (context, _) in gold_answers.items())
    assert results["score"] > 60 and results["data"] == "SQuAD" and results["train_rows"] == 400
    figures = results["sets"]["dev-v1.1"]
    assert list(figures) == ["rows", "exact_match", "f1"] and figures["rows"] == 60 and results["score"] == 100 * figures["f1"]
    assert figures["exact_match"] == pytest.approx(np.mean([answers[name] == texts[0] for name, (_, texts) in gold_answers.items()]))
    lines = [line.split("\t") for line in (tmp_path / "teacher" / "predictions.tsv").read_text().splitlines()]
    assert lines[0] == ["set", "index", "prediction", "label"]
    assert {line[1]: json.loads(line[2]) for line in lines[1:]} == answers
    assert {line[1]: json.loads(line[3]) for line in lines[1:]} == {name: texts for name, (_, texts) in gold_answers.items()}

    more = ("--model", plain, "--epochs", 1, "--log_every", 1)
    finetune.main(arguments("student", *more, "--teacher", tmp_path / "teacher", "--alpha_ce", 0.25))
    logged = json.loads((tmp_path / "student" / "log.jsonl").read_text().splitlines()[0])
    tokenizer = load_tokenizer(plain)
    rows, targets = squad.training_rows(read_questions(data_dir / "squad" / "train-v1.1.json"), tokenizer, 40, 20)
    inputs, first = first_step(rows)
    assert 400 < len(rows) and (0, 0) in targets and (inputs[1] == 0).any()
    seed_torch(NEW_WEIGHTS, 0)
    student = load_model(plain, SpanModel, new=("qa_outputs",))
    teacher = transformers.AutoModelForQuestionAnswering.from_pretrained(tmp_path / "teacher").eval()
    with torch.no_grad():
        found = teacher(**dict(zip(("input_ids", "attention_mask", "token_type_ids"), inputs)))
        theirs, ours = torch.stack((found.start_logits, found.end_logits), 1).double().numpy(), student(*inputs).double().numpy()
    kl, hard = [], []
    for row, number in enumerate(first):
        for place in range(2):
            s, t = (x[row, place, :inputs[1][row].sum()] for x in (ours, theirs))
            soft_s, soft_t = scipy.special.log_softmax(s / 2), scipy.special.log_softmax(t / 2)
            kl.append(4 * np.sum(np.exp(soft_t) * (soft_t - soft_s)))
            hard.append(-scipy.special.log_softmax(s)[targets[number][place]])
    assert logged["ce"] == pytest.approx(np.mean(kl), rel=1e-3) and logged["loss"] == pytest.approx(np.mean(hard), rel=1e-3)
    finetune.main(arguments("alone", *more))
    finetune.main(arguments("zero", *more, "--teacher", tmp_path / "teacher", "--alpha_ce", 0))
    weights = [(tmp_path / name / "model.safetensors").read_bytes() for name in ("alone", "zero", "student")]
    assert weights[0] == weights[1] != weights[2]
    with pytest.raises(InputError, match="plain: lacks qa_outputs.weight, qa_outputs.bias, which BertForQuestionAnswering needs"):
        finetune.main(arguments("other", "--teacher", plain))
    with pytest.raises(InputError, match="lacks .*classifier.weight"):
        finetune.main(["--model", str(plain), "--task", "cola", "--data_dir", str(world / "data"), "--out_dir", str(tmp_path / "other"), "--max_length", "32",
                       "--teacher", str(tmp_path / "teacher")])


def test_a_run_that_was_stopped_goes_on_to_the_same_bytes(arguments, tmp_path, monkeypatch):
    more = ("--epochs", 1, "--train_rows", 100, "--log_every", 3)
    finetune.main(arguments("whole", *more))
    should_save = Run.should_save

    def signalled(run, steps_done):
        if steps_done == 4:
            os.kill(os.getpid(), signal.SIGTERM)
        return should_save(run, steps_done)
    monkeypatch.setattr(Run, "must_save", signalled)
    with pytest.raises(Interrupted, match="goes on from step 4"):
        finetune.main(arguments("run", *more))
    monkeypatch.undo()
    finetune.main(arguments("run", *more))
    names = sorted(file.name for file in (tmp_path / "whole").iterdir())
    assert names == ["config.json", "log.jsonl", "model.safetensors", "predictions.json", "predictions.tsv", "results.json", "run.json", "tokenizer.json",
                     "tokenizer_config.json", "vocab.txt"] == sorted(file.name for file in (tmp_path / "run").iterdir())
    assert all((tmp_path / "whole" / name).read_bytes() == (tmp_path / "run" / name).read_bytes() for name in names if name != "run.json")
    assert json.loads((tmp_path / "run" / "run.json").read_text())["resumed"] == [{"from_step": 4, "changed": []}]


def test_tune_leaves_questions_out_and_never_opens_the_dev_set(arguments, data_dir, tmp_path):
    (tmp_path / "data" / "squad").mkdir(parents=True)
    (tmp_path / "data" / "squad" / "train-v1.1.json").write_bytes((data_dir / "squad" / "train-v1.1.json").read_bytes())
    results = finetune.main(arguments("run", "--data_dir", tmp_path / "data", "--epochs", 1, "--tune", "--train_rows", 50))
    assert results["train_rows"] == 50 and results["sets"]["train_tenth"]["rows"] == 40
    with pytest.raises(InputError, match="dev-v1.1.json: no such file"):
        finetune.main(arguments("other", "--data_dir", tmp_path / "data", "--epochs", 1))


def test_only_squads_runs_depend_on_squads_code(world, arguments):
    def code(task):
        words = arguments("run", "--task", task, "--data_dir", world / "data")
        return finetune.fingerprint(finetune.read_arguments(words if task == "squad" else [word for word in words if word not in ("--stride", "20")]))["code"]
    assert code("cola") == finetune.code_fingerprint(finetune.CODE) and "squad.py" not in finetune.CODE
    assert finetune.fingerprint(finetune.read_arguments(arguments("run")))["code"] == finetune.code_fingerprint((*finetune.CODE, "squad.py"))


def test_the_report_has_a_column_of_squad(world, data_dir, tmp_path, capsys):
    """ablation.py with a classification and with SQuAD: F1 apart from the macro-score, no floors, the paired bootstrap over questions."""
    (tmp_path / "data").mkdir()
    (tmp_path / "data" / "squad").symlink_to(data_dir / "squad")
    (tmp_path / "data" / "CoLA").symlink_to(world / "data" / "glue_data" / "CoLA")
    for tasks, main in (("cola,squad", "macro"), ("squad", "squad")):
        ablation.main([str(x) for x in (
            "--preset", "mini", "--teacher", world / "teacher", "--corpus", world / "corpus.txt", "--data_dir", tmp_path / "data", "--out_dir", tmp_path / "runs",
            "--tasks", tasks, "--variants", "full,no_cos", "--device", "cpu", "--jobs", 1, "--pretrain_args", f"--steps 2 --max_length 32 --cache_dir {tmp_path / 'cache'}",
            "--finetune_args", "--epochs 1 --max_length 40 --train_rows 40")])
        summary = json.loads((tmp_path / "runs" / "results.json").read_text())
        assert list(summary["columns"].values()) == (["CoLA", "macro", "SQuAD"] if main == "macro" else ["SQuAD"]) and summary["main_column"] == main
        text = capsys.readouterr().out
        assert "SQuAD: F1" in text and ("(majority)" in text) == (main == "macro")
    assert re.search(r"\| no cosine loss \| [+-]\d+\.\d \[[+-]\d+\.\d, [+-]\d+\.\d\]", text)
    one, other = (read_outcomes({"squad": [tmp_path / "runs" / name / "seed0" / "squad"]})["squad"] for name in ("full", "no_cos"))
    f1s, gold_answers = one["sets"][0]["dev-v1.1"]
    lines = [line.split("\t") for line in (tmp_path / "runs" / "full" / "seed0" / "squad" / "predictions.tsv").read_text().splitlines()[1:]]
    assert 100 * f1s.mean() == pytest.approx(one["scores"][0]) and list(gold_answers) == [line[3] for line in lines]
    rng, drawn = np.random.default_rng(0), differences("squad", other, one)
    rows = rng.integers(60, size=60)
    wanted = [f1([json.loads(line[2])], [json.loads(line[3])]) for line in lines]
    theirs = [squad.words_f1(json.loads(line.split("\t")[2]), json.loads(line.split("\t")[3])[0]) for line in
              (tmp_path / "runs" / "no_cos" / "seed0" / "squad" / "predictions.tsv").read_text().splitlines()[1:]]
    assert drawn[0] == pytest.approx(100 * np.mean([theirs[i] - wanted[i] for i in rows]), abs=1e-9)


def test_text_of_any_kind_stays_in_its_column(tmp_path):
    """Tabs, line ends of all kinds and quotes in answers."""
    texts = ["a\tb", "a\nb\r\u2028\x85", '"quoted" \\', "中 e\u0301", ""]
    questions = [Question(str(i), "?", text, ((text, 0), (text + "!", 0))) for i, text in enumerate(texts)]
    lines = squad.write_predictions(tmp_path, {"dev": questions}, {"dev": (texts, [question.gold_answers for question in questions])})
    assert json.loads((tmp_path / "predictions.json").read_text()) == {str(i): text for i, text in enumerate(texts)}
    (tmp_path / "predictions.tsv").write_text("header\n" + "".join("\t".join(line) + "\n" for line in lines))
    f1s, gold_answers = read_predictions(tmp_path / "predictions.tsv", "squad")["dev"]
    assert f1s.tolist() == [1, 1, 1, 1, 0] and [json.loads(gold) for gold in gold_answers] == [[text, text + "!"] for text in texts]


# ---- What is refused ----

GOOD_FILE = {"data": [{"paragraphs": [{"context": "ab cd", "qas": [
    {"id": "q1", "question": "x", "answers": [{"text": "cd", "answer_start": 3}]}]}]}]}


def changed(path, value):
    """GOOD_FILE as JSON, with the value at this path changed, or taken away."""
    file = json.loads(json.dumps(GOOD_FILE))
    place = file
    for key in path[:-1]:
        place = place[key]
    if value is None:
        del place[path[-1]]
    else:
        place[path[-1]] = value
    return json.dumps(file)


PARAGRAPH = ("data", 0, "paragraphs", 0)
QUESTION = (*PARAGRAPH, "qas", 0)
ANSWER = (*QUESTION, "answers", 0)


@pytest.mark.parametrize("text, message", [
    ("", "not JSON"), ("[]", "not a JSON object"), ("{" * 5, "not JSON"), ("[" * 10 ** 5, "not JSON"), ("{}", "has no 'data'"), ('{"data": []}', "no questions in it"),
    (changed(("data",), 7), "its 'data' is no list"), (changed(("data", 0), "x"), r"data\[0\]: has no 'paragraphs'"),
    (changed((*PARAGRAPH, "context"), None), r"data\[0\].paragraphs\[0\]: has no 'context'"), (changed((*PARAGRAPH, "context"), 3), "its 'context' is no text"),
    (changed((*PARAGRAPH, "context"), "ab cd \ud800"), r"its 'context' holds half a character"),
    (changed((*QUESTION, "id"), None), r"paragraphs\[0\].qas\[0\]: has no 'id'"), (changed((*QUESTION, "id"), "a\tb"), r"its id 'a\\tb' is no name"),
    (changed((*PARAGRAPH, "qas"), GOOD_FILE["data"][0]["paragraphs"][0]["qas"] * 2), r"qas\[1\]: its id 'q1' stands there twice"),
    (changed((*QUESTION, "question"), None), "question q1: has no 'question'"),
    (changed((*QUESTION, "answers"), []), "question q1 has no answer; questions without one, as in SQuAD 2.0, are not implemented"),
    (changed((*ANSWER, "answer_start"), None), "question q1: has no 'answer_start'"), (changed((*ANSWER, "answer_start"), "3"), "question q1: its 'answer_start' is no whole number"),
    (changed((*ANSWER, "answer_start"), True), "its 'answer_start' is no whole number"),
    (changed((*ANSWER, "answer_start"), 2), "question q1: its answer 'cd' does not stand at its answer_start"),
    (changed((*ANSWER, "answer_start"), -2), "does not stand at its answer_start"), (changed((*ANSWER, "text"), ""), "question q1 has an answer without text")])
def test_a_malformed_file_is_one_line(world, tmp_path, refused, text, message):
    (tmp_path / "data" / "squad").mkdir(parents=True)
    for name in ("train", "dev"):
        (tmp_path / "data" / "squad" / f"{name}-v1.1.json").write_text(text)
    line = refused(finetune, "--model", world / "teacher", "--task", "squad", "--data_dir", tmp_path / "data", "--out_dir", tmp_path / "out", "--max_length", 40)
    assert re.search(f"train-v1.1.json: .*{message}", line), line
    assert not (tmp_path / "out").exists()


@pytest.mark.parametrize("more, message", [
    (["--predict"], "squad has no test set without labels"), (["--data_dir", "nowhere"], "nowhere: holds no folder squad"),
    (["--task", "cola"], "--stride goes with --task squad"), (["--stride", "0"], "--stride: 0 is not a number at least 1"),
    (["--max_length", "65"], "--max_length 65: .*teacher has 64 positions"), (["--temperature", "2"], "--alpha_ce and --temperature go with --teacher")])
def test_wrong_arguments_are_one_line(arguments, tmp_path, refused, more, message):
    assert re.search(message, refused(finetune, *arguments("out", *more))) and not (tmp_path / "out").exists()
    assert "--task squad: its answers stand in a text" in refused(demo, "film", "--task", "squad")


JSON = st.recursive(st.none() | st.booleans() | st.integers() | st.floats() | st.text(max_size=5), lambda inner: st.lists(inner, max_size=3)
                    | st.dictionaries(st.sampled_from(["data", "paragraphs", "context", "qas", "id", "question", "answers", "text", "answer_start"]), inner, max_size=4), max_leaves=8)


@quick
@given(st.data())
def test_any_json_is_read_or_refused(tmp_path, data):
    """Random values anywhere in a good file, and files that are random altogether."""
    path = data.draw(st.sampled_from([(), ("data",), ("data", 0), PARAGRAPH, (*PARAGRAPH, "context"), QUESTION, (*QUESTION, "id"), (*QUESTION, "question"), (*QUESTION, "answers"),
                                      ANSWER, (*ANSWER, "text"), (*ANSWER, "answer_start")]))
    value = data.draw(JSON)
    file = tmp_path / "train-v1.1.json"
    file.write_text(changed(path, value) if path and value is not None else json.dumps(value))
    try:
        questions = read_questions(file)
    except InputError as error:
        assert str(error).startswith(str(file)) and len(str(error)) < 500
    else:
        for window in windows(questions, letters_tokenizer(), 12, 3):
            assert len(window.row[0]) <= 12 and questions[window.question].gold_answers
