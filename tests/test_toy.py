"""The miniature language: its files are read back, and its labels are checked by a judge.

The judge, toy_judge.py, is a grammar and a semantics that are independent of the generator.
"""
import random
import re
from itertools import product

import pytest
import torch
from conftest import ROOT
from toy_judge import KINDS, PLACES, VERBS, is_grammatical, label_in_worlds, meaning, statement

from data import encode
from load_hf_weights import load_model, load_tokenizer, read_config
from support import toy, toy_language, toy_lexicon
from support.tasks import TASKS, read_dev, read_train, task_title
from support.trivial_baselines import measure_trivial_baselines


def write_world(folder, seed):
    with pytest.MonkeyPatch.context() as patch:
        patch.setattr(toy, "DOCUMENTS", 3000)
        toy.main(["--out_dir", str(folder), "--seed", str(seed)])
    return folder


@pytest.fixture(scope="module")
def toy_world(tmp_path_factory):
    return write_world(tmp_path_factory.mktemp("toy"), seed=7)


def contents(folder):
    """{path: bytes} of all files but the record of the run."""
    files = [path for path in sorted(folder.rglob("*")) if path.is_file()]
    return {f.relative_to(folder): f.read_bytes() for f in files if f.name != "run.json"}


def rows_of(world, task):
    """(training examples, test examples) of a task; the test sets of MNLI together."""
    dev = []
    for examples in read_dev(task, world).values():
        dev += examples
    return read_train(task, world), dev


def texts_of(rows):
    return [text for row in rows for text in (row.text_a, row.text_b) if text]


def test_a_world_depends_only_on_its_seed(toy_world, tmp_path):
    first = contents(toy_world)
    assert contents(write_world(tmp_path / "again", seed=7)) == first
    other = contents(write_world(tmp_path / "other", seed=8))
    same = {str(path) for path in first.keys() & other.keys() if first[path] == other[path]}
    assert same == {"bert/config.json", "bert/vocab.txt"}


@pytest.mark.parametrize("task", ["cola", "mnli", "mrpc", "imdb"])
def test_the_readers_of_the_real_tasks_read_these(toy_world, task):
    train, dev = rows_of(toy_world, task)
    assert len(train) == toy.TRAIN_ROWS
    assert len(dev) == toy.TEST_ROWS * len(TASKS[task].dev)
    for rows in (train, dev):
        labels = [row.label for row in rows]
        counts = [labels.count(label) for label in range(len(TASKS[task].labels))]
        assert max(counts) - min(counts) <= 2
    tokenizer, config = load_tokenizer(toy_world / "bert"), read_config(toy_world / "bert")
    encoded = encode(train + dev, tokenizer, 1000)
    assert max(len(ids) for ids, _ in encoded) <= config.max_position_embeddings  # nothing is cut
    unknown = tokenizer.token_to_id("[UNK]")
    assert not any(unknown in ids for ids, _ in encoded)
    assert tokenizer.get_vocab_size() == config.vocab_size
    assert task_title(task, toy_world) == f"toy {TASKS[task].title}"


@pytest.mark.parametrize("task", ["cola", "mnli", "mrpc", "imdb"])
def test_no_content_word_and_no_sentence_of_a_test_example_occurs_in_training(toy_world, task):
    def sentences_of(rows):
        pieces = []
        for text in texts_of(rows):
            pieces += re.split(r"(?<=\.)", text)
        return {piece.strip() for piece in pieces if piece.strip()}

    def words_of(sentences):
        return set(" ".join(sentences).split())
    train, dev = map(sentences_of, rows_of(toy_world, task))
    if task != "imdb":
        assert not train & dev
    allowed = {*toy_lexicon.FUNCTION_WORDS.split(), *PLACES, *toy_lexicon.TOPICS.split()}
    assert words_of(train) & words_of(dev) <= allowed


def test_no_test_sentence_occurs_in_the_corpus(toy_world):
    dev = set()
    for task in ("cola", "mnli", "mrpc"):
        dev.update(texts_of(rows_of(toy_world, task)[1]))
    text = (toy_world / "corpus.txt").read_text()
    assert len(text) > 100_000
    sentences = set()
    for line in text.splitlines():
        sentences.update(sentence.strip() for sentence in re.findall(r"[^.]+ \.", line))
    assert not sentences & dev
    tokenizer = load_tokenizer(toy_world / "bert")
    assert tokenizer.token_to_id("[UNK]") not in tokenizer.encode(text).ids


def test_no_label_can_be_read_off_the_words(toy_world, tmp_path):
    floors = measure_trivial_baselines(tmp_path, str(toy_world), ["cola", "mnli", "mrpc"])
    for task, chance in (("cola", 0), ("mnli", 100 / 3), ("mrpc", 58)):
        assert floors[task]["TF-IDF"] < chance + 15


def test_acceptable_means_grammatical(toy_world):
    train, dev = rows_of(toy_world, "cola")
    wrong = [row for row in train + dev if is_grammatical(row.text_a) != row.label]
    assert not wrong


def test_entailment_neutral_and_contradiction_hold_in_all_small_worlds(toy_world):
    _, dev = rows_of(toy_world, "mnli")
    rng = random.Random(0)
    names = [*TASKS["mnli"].labels.values()]
    seen = set()
    for row in dev[:120] + dev[-120:]:
        premise, hypothesis = meaning(row.text_a), meaning(row.text_b)
        assert premise[2] == hypothesis[2]  # the same verb
        label = names[row.label]
        assert label_in_worlds(rng, premise, hypothesis) == label, row
        seen.add((premise[0], hypothesis[0], label))
    expected = {
        ("every", "a not"): "neutral contradiction",
        ("a not", "every"): "neutral contradiction",
        ("a not", "a not"): "entailment",
        ("no", "no"): "entailment neutral",
        ("every", "every"): "entailment neutral",
        ("a", "no"): "neutral contradiction",
        ("no", "a"): "neutral contradiction",
    }
    for quantifiers, labels in expected.items():
        for label in labels.split():
            assert (*quantifiers, label) in seen


def test_a_paraphrase_says_the_same_and_a_near_miss_does_not(toy_world):
    train, dev = rows_of(toy_world, "mrpc")
    for row in train + dev:
        assert (statement(row.text_a) == statement(row.text_b)) == (row.label == 1), row
    voices = {(" by " in row.text_a, " by " in row.text_b, row.label) for row in train}
    assert voices == {*product((False, True), (False, True), (0, 1))}


def test_a_review_is_positive_if_most_of_its_claims_praise(toy_world):
    def praises(claim):
        words = set(claim.split())
        has_praise = bool(words & set(toy_lexicon.PRAISE.split()))
        is_denied = bool(words & {"not", "nobody", "nothing"})
        return has_praise != is_denied
    train, dev = rows_of(toy_world, "imdb")
    for row in train + dev:
        claims = [claim for claim in row.text_a.split(".") if claim.strip()]
        assert len(claims) == 5
        assert (sum(map(praises, claims)) > 2) == (row.label == 1)


def test_the_teacher_in_assets_knows_the_language():
    folder = ROOT / "assets" / "toy-teacher"
    tokenizer, teacher = load_tokenizer(folder), load_model(folder).eval()
    assert teacher.config.num_hidden_layers == 12
    assert (folder / "vocab.txt").read_text().split() == toy_lexicon.vocabulary()

    def likeliest(text, words):
        ids = tokenizer.encode(text).ids
        mask = ids.index(tokenizer.token_to_id("[MASK]"))
        logits = teacher(torch.tensor([ids]))[0, mask]
        return max(words, key=lambda word: logits[tokenizer.token_to_id(word)])
    verdicts = []
    for words, verdict in ((toy_lexicon.PRAISE, "good"), (toy_lexicon.BLAME, "bad")):
        for word in words.split():
            answer = likeliest(f"a {word} film is [MASK] .", ("good", "bad"))
            verdicts.append(answer == verdict)
    assert sum(verdicts) >= 0.9 * len(verdicts)
    plural_kinds = {kind: toy_lexicon.plural(kind) for kind in KINDS.values()}
    kinds = []
    for noun, kind in KINDS.items():
        text = f"all {toy_lexicon.plural(noun)} are [MASK] ."
        kinds.append(likeliest(text, plural_kinds.values()) == plural_kinds[kind])
    assert sum(kinds) >= 0.9 * len(kinds)


def test_words_are_inflected_as_in_english():
    plurals = {
        "dog": "dogs", "pony": "ponies", "child": "children",
        "wrench": "wrenches", "monkey": "monkeys", "bus": "buses"}
    for noun, expected in plurals.items():
        assert toy_lexicon.plural(noun) == expected
    forms = {verb.base: verb for verb, _ in VERBS}
    assert (forms["carry"].third, forms["carry"].past) == ("carries", "carried")
    assert (forms["break"].past, forms["break"].participle) == ("broke", "broken")
    assert forms["wash"].third == "washes"
    assert forms["chase"].past == "chased"
    assert forms["help"].past == "helped"
    assert toy_language.to_text(["a", "owl", "saw", "a", "dog"]) == "an owl saw a dog ."


@pytest.mark.parametrize("more, message", [
    (["--seed", "-1"], "--seed: -1 is not a number at least 0"),
    (["--sead", "1"], "unrecognized arguments"),
])
def test_wrong_arguments_end_in_one_line_and_status_2(tmp_path, refused, more, message):
    assert message in refused(toy, "--out_dir", tmp_path / "w", *more)
    assert not (tmp_path / "w").exists()
