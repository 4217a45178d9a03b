"""The miniature language: its files are read back, and its labels are checked by a judge.

The judge, toy_judge.py, is a grammar and a semantics that are independent of the generator.
"""
import re

import pytest
import torch
from conftest import ROOT
from tiny_experiment import read_json
from toy_judge import fields_of, is_grammatical, judgements_of, praises

from data import encode
from load_hf_weights import load_model, load_tokenizer, read_config
from support import toy, toy_language, toy_lexicon
from support.tasks import TASKS, read_dev, read_train, task_title
from support.trivial_baselines import measure_trivial_baselines

TASKS_OF_THE_TOY = ("cola", "sst2", "mnli")
ROWS = 600


def small_files():
    """The tables of toy.TSV_FILES, with fewer rows."""
    return [(file, split, ROWS, rows_of) for file, split, _, rows_of in toy.TSV_FILES]


def write_world(folder, seed):
    with pytest.MonkeyPatch.context() as patch:
        patch.setattr(toy, "DOCUMENTS", 3000)
        patch.setattr(toy, "TSV_FILES", small_files())
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


@pytest.mark.parametrize("task", TASKS_OF_THE_TOY)
def test_the_readers_of_the_real_tasks_read_these(toy_world, task):
    train, dev = rows_of(toy_world, task)
    assert len(train) == ROWS
    assert len(dev) == ROWS * len(TASKS[task].dev)
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


@pytest.mark.parametrize("task", TASKS_OF_THE_TOY)
def test_no_content_word_and_no_sentence_of_a_test_example_occurs_in_training(toy_world, task):
    train, dev = ({*texts_of(rows)} - toy.VERDICTS for rows in rows_of(toy_world, task))
    assert train and dev and not train & dev
    train_words, dev_words = (set(" ".join(texts).split()) for texts in (train, dev))
    assert train_words & dev_words <= {*toy_lexicon.FUNCTION_WORDS.split(), "an"}


def test_no_test_sentence_occurs_in_the_corpus(toy_world):
    dev = set()
    for task in TASKS_OF_THE_TOY:
        dev.update(texts_of(rows_of(toy_world, task)[1]))
    text = (toy_world / "corpus.txt").read_text()
    assert len(text) > 100_000
    sentences = set()
    for line in text.splitlines():
        sentences.update(sentence.strip() for sentence in re.findall(r"[^.]+ \.", line))
    assert sentences & toy.VERDICTS
    assert not sentences & (dev - toy.VERDICTS)
    tokenizer = load_tokenizer(toy_world / "bert")
    assert tokenizer.token_to_id("[UNK]") not in tokenizer.encode(text).ids


def test_no_label_can_be_read_off_the_words(toy_world, tmp_path):
    floors = measure_trivial_baselines(tmp_path, str(toy_world), TASKS_OF_THE_TOY)
    for task, chance in (("cola", 0), ("sst2", 50), ("mnli", 100 / 3)):
        assert floors[task]["TF-IDF"] < chance + 15


def test_an_acceptable_sentence_is_grammatical_and_a_faulty_one_is_not(toy_world):
    train, dev = rows_of(toy_world, "cola")
    for row in train + dev:
        assert is_grammatical(row.text_a.removesuffix(" .")) == bool(row.label), row


def count_praise(text):
    """How many of the three judgements praise."""
    judgements = judgements_of(text)
    assert len(judgements) == 3
    return sum(map(praises, judgements))


def test_a_sentence_is_positive_if_most_of_its_judgements_praise(toy_world):
    train, dev = rows_of(toy_world, "sst2")
    counts = set()
    for row in train + dev:
        praising = count_praise(row.text_a)
        assert (praising >= 2) == bool(row.label), row
        counts.add(praising)
    assert counts == {0, 1, 2, 3}


def test_praise_of_the_field_follows_if_all_judgements_praise(toy_world):
    train, dev = rows_of(toy_world, "mnli")
    by_count = {3: "entailment", 2: "neutral", 1: "neutral", 0: "contradiction"}
    names, counts = list(TASKS["mnli"].labels.values()), set()
    for row in train + dev:
        praising = count_praise(row.text_a)
        assert names[row.label] == by_count[praising], row
        assert praises(row.text_b) and fields_of(row.text_a) == fields_of(row.text_b)
        counts.add(praising)
    assert counts == {0, 1, 2, 3}
    speakers = {row.text_a.split()[0] for row in train}
    assert speakers == {"i", "everyone"}


def test_one_judgement_in_ten_is_a_denial(toy_world):
    train, dev = rows_of(toy_world, "sst2")
    words = " ".join(texts_of(train + dev)).split()
    assert 0.07 < words.count("not") / 3 / len(train + dev) < 0.13


def test_frequent_words_of_the_corpus_are_the_first_of_their_lists(toy_world):
    words = (toy_world / "corpus.txt").read_text().split()
    for persons, *_ in toy_lexicon.FIELDS.values():
        counts = [words.count(noun) for noun in persons.split()]
        assert sum(counts[:2]) > sum(counts[-4:]) > 0


def test_the_teacher_in_assets_knows_the_language():
    folder = ROOT / "assets" / "toy-teacher"
    tokenizer, teacher = load_tokenizer(folder), load_model(folder).eval()
    assert (folder / "vocab.txt").read_text().split() == toy_lexicon.vocabulary()
    assert read_json(folder, "config.json")["num_hidden_layers"] == 6

    def likeliest(text, words):
        ids = tokenizer.encode(text).ids
        mask = ids.index(tokenizer.token_to_id("[MASK]"))
        logits = teacher(torch.tensor([ids]))[0, mask]
        return max(words, key=lambda word: logits[tokenizer.token_to_id(word)])
    verdicts, fields = [], []
    for words, verdict in ((toy_lexicon.PRAISE, "good"), (toy_lexicon.BLAME, "bad")):
        for word in words.split():
            text = f"i found the song {word} . the music was [MASK] ."
            verdicts.append(likeliest(text, ("good", "bad")) == verdict)
    for field, (_, things, *_) in toy_lexicon.FIELDS.items():
        for noun in things.split():
            text = f"i found the {noun} superb . i found the {noun} lovely . the [MASK] was good ."
            fields.append(likeliest(text, toy_lexicon.FIELDS) == field)
    assert sum(verdicts) >= 0.9 * len(verdicts)
    assert sum(fields) >= 0.8 * len(fields)


def test_words_are_inflected_as_in_english():
    plurals = {"dog": "dogs", "pony": "ponies", "wrench": "wrenches", "monkey": "monkeys",
               "bus": "buses"}
    for noun, expected in plurals.items():
        assert toy_lexicon.add_s(noun) == expected
    for base, third, past in (("study", "studies", "studied"), ("toss", "tosses", "tossed"),
                              ("chase", "chases", "chased"), ("enjoy", "enjoys", "enjoyed")):
        verb = toy_lexicon.Verb(base, True)
        assert (verb.third, verb.past) == (third, past)
    assert toy_language.to_text(["a", "owl", "saw", "a", "dog"]) == "an owl saw a dog ."


def test_every_word_has_one_meaning():
    words = [*toy_lexicon.FUNCTION_WORDS.split(), *toy_lexicon.FIELDS]
    for categories in toy_lexicon.LEXICON.values():
        for category, entries in categories.items():
            for entry in entries:
                words += set(toy_lexicon.forms(category, entry))
    assert len(words) == len(set(words))


@pytest.mark.parametrize("more, message", [
    (["--seed", "-1"], "--seed: -1 is not a number at least 0"),
    (["--sead", "1"], "unrecognized arguments"),
])
def test_wrong_arguments_end_in_one_line_and_status_2(tmp_path, refused, more, message):
    assert message in refused(toy, "--out_dir", tmp_path / "w", *more)
    assert not (tmp_path / "w").exists()
