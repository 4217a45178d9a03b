"""toy.py: what it writes is read back by data.py and judged by a grammar, a semantics and a comparison of its own."""
import random
import re
from itertools import product

import pytest
import torch
from conftest import ROOT

from data import encode
from load_hf_weights import load_model, load_tokenizer, read_config
from support import report, toy
from support.tasks import TASKS, read_dev, read_train, task_title

LEMMAS = {form: (noun, many) for classes in toy.TREE.values() for kind, nouns in classes.items() for noun in (kind, *nouns.split())
          for form, many in ((noun, False), (toy.plural(noun), True))}
KINDS = {noun: kind for classes in toy.TREE.values() for kind, nouns in classes.items() for noun in nouns.split()}
PLACES = {form: (place, many) for place in toy.PLACES.split() for form, many in ((place, False), (toy.plural(place), True))}
ADJECTIVES, ADVERBS = ({word: pair.split("/")[0] for pair in pairs.split() for word in pair.split("/")} for pairs in (toy.ADJECTIVES, toy.ADVERBS))
VERBS = [(toy.verb(text, sort), pair.split("/")[0].split(":")[0]) for sort, pairs in toy.VERBS.items() for pair in pairs.split() for text in pair.split("/")]
ANIMATE = {noun for name in ("animal", "person") for kind, nouns in toy.TREE[name].items() for noun in (kind, *nouns.split())}
SINGULAR, PLURAL = {"a", "an", "every", "this", "that"}, {"some", "two", "three", "all", "these", "those"}


@pytest.fixture(scope="module")
def toy_world(tmp_path_factory):
    with pytest.MonkeyPatch.context() as patch:
        patch.setattr(toy, "DOCUMENTS", 3000)
        folder = tmp_path_factory.mktemp("toy")
        toy.main(["--out_dir", str(folder), "--seed", "7"])
        return folder


def everything(folder):
    return {path.relative_to(folder): path.read_bytes() for path in sorted(folder.rglob("*")) if path.is_file() and path.name != "run.json"}


def test_a_world_follows_from_its_seed(toy_world, tmp_path, monkeypatch):
    monkeypatch.setattr(toy, "DOCUMENTS", 3000)
    toy.main(["--out_dir", str(tmp_path / "again"), "--seed", "7"])
    assert everything(tmp_path / "again") == everything(toy_world)
    toy.main(["--out_dir", str(tmp_path / "other"), "--seed", "8"])
    one, other = everything(toy_world), everything(tmp_path / "other")
    same = {str(path) for path in one.keys() & other.keys() if one[path] == other[path]}
    assert same == {"bert/config.json", "bert/vocab.txt"}


def rows_of(world, task):
    return read_train(task, world), [example for examples in read_dev(task, world).values() for example in examples]


@pytest.mark.parametrize("task", ["cola", "mnli", "mrpc", "imdb"])
def test_the_tasks_are_read_by_data_py(toy_world, task):
    train, dev = rows_of(toy_world, task)
    assert len(train) == toy.TRAIN_ROWS and len(dev) == toy.TEST_ROWS * len(TASKS[task].dev)
    for rows in (train, dev):
        counts = [sum(row.label == label for row in rows) for label in range(len(TASKS[task].labels))]
        assert max(counts) - min(counts) <= 2
    tokenizer, config = load_tokenizer(toy_world / "bert"), read_config(toy_world / "bert")
    rows = encode(train + dev, tokenizer, 1000)
    assert max(len(ids) for ids, _ in rows) <= config.max_position_embeddings  # nothing is cut
    assert not any(tokenizer.token_to_id("[UNK]") in ids for ids, _ in rows)
    assert tokenizer.get_vocab_size() == config.vocab_size
    assert task_title(task, toy_world) == f"toy {TASKS[task].title}"


@pytest.mark.parametrize("task", ["cola", "mnli", "mrpc", "imdb"])
def test_no_deciding_word_and_no_sentence_of_a_test_row_stands_in_a_training_row(toy_world, task):
    def texts(rows):
        return {text.strip() for row in rows for side in (row.text_a, row.text_b or "") for text in re.split(r"(?<=\.)", side) if text.strip()}
    train, dev = map(texts, rows_of(toy_world, task))
    if task != "imdb":
        assert not train & dev
    common = {word for text in train for word in text.split()} & {word for text in dev for word in text.split()}
    assert common <= {*toy.FUNCTION_WORDS.split(), *PLACES, *toy.TOPICS.split()}


def test_no_test_sentence_stands_in_the_corpus(toy_world):
    dev = {text for task in ("cola", "mnli", "mrpc") for row in rows_of(toy_world, task)[1] for text in (row.text_a, row.text_b) if text}
    text = (toy_world / "corpus.txt").read_text()
    assert len(text) > 100_000
    sentences = {sentence for line in text.splitlines() for sentence in re.findall(r"[^.]+ \.", line)}
    assert not {sentence.strip() for sentence in sentences} & dev
    tokenizer = load_tokenizer(toy_world / "bert")
    assert tokenizer.token_to_id("[UNK]") not in tokenizer.encode(text).ids


def test_no_label_can_be_read_off_the_words(toy_world, tmp_path):
    floors = report.measure_floors(tmp_path, str(toy_world), ["cola", "mnli", "mrpc"])
    for task, chance in (("cola", 0), ("mnli", 100 / 3), ("mrpc", 58)):
        assert floors[task]["TF-IDF"] < chance + 15


# ---- A grammar: each function yields where a phrase that begins at i can end, and its number ----

def noun_phrase(words, i):
    """(end, whether plural, noun)"""
    if words[i:i + 1] and words[i] in {"the", "no"} | SINGULAR | PLURAL:
        j = i + 1 + (words[i + 1] in ADJECTIVES)
        table = LEMMAS if words[j] in LEMMAS else PLACES
        if words[j] in table:
            noun, many = table[words[j]]
            if not (many and words[i] in SINGULAR or not many and words[i] in PLURAL):
                yield j + 1, many, noun
                if words[j + 1] == "near":
                    yield from ((end, many, noun) for end, _, _ in noun_phrase(words, j + 2))
                if words[j + 1] == "that":
                    yield from ((end, many, noun) for end in verb_phrase(words, j + 2, many, noun))
                    for inner, inner_many, inner_noun in noun_phrase(words, j + 2):
                        yield from ((inner + 1, many, noun) for done, _ in VERBS if done.object == "animate" and inner_noun in ANIMATE
                                    and words[inner] in (done.past, done.base if inner_many else done.third))


def verb_phrase(words, i, many, subject):
    for done, _ in VERBS:
        for start in ([i + 2] if words[i:i + 3] in (["did", "not", done.base], ["do" if many else "does", "not", done.base]) else
                      [i] if words[i] in (done.past, done.base if many else done.third) else []):
            if subject in ANIMATE:
                if done.object == "none":
                    yield start + 1
                else:
                    yield from (end for end, _, noun in noun_phrase(words, start + 1) if (noun in ANIMATE) == (done.object == "animate"))
        auxiliaries = ("were", "are") if many else ("was", "is")
        for start in (i + 1, i + 2) if words[i] in auxiliaries and words[i + 1] == "not" else [i + 1] if words[i] in auxiliaries else []:
            if words[start] == done.participle and words[start + 1] == "by" and (subject in ANIMATE) == (done.object == "animate") and done.object != "none":
                yield from (end for end, _, noun in noun_phrase(words, start + 2) if noun in ANIMATE)


def grammatical(text):
    words = [*text.split(), "", ""]
    for end, many, noun in noun_phrase(words, 0):
        for after in verb_phrase(words, end, many, noun):
            for last in {after, after + (words[after] in ADVERBS)}:
                ends = {last} | ({end for end, _, _ in noun_phrase(words, last + 1)} if words[last] == "near" else set())
                if any(words[end] == "." for end in ends):
                    return True
    return False


def test_acceptable_means_grammatical(toy_world):
    train, dev = rows_of(toy_world, "cola")
    wrong = [(row.label, row.text_a) for row in train + dev if grammatical(row.text_a) != row.label]
    assert not wrong


# ---- A semantics: small worlds, in which a sentence is true or false ----

def meaning(text):
    """(quantifier, adjective, noun, place of the noun; verb, object's adjective and noun, adverb, place) of MNLI's sentences."""
    words = [*text.removesuffix(" .").split(), "", ""]

    def phrase(i):
        adjective = words[i + 1] if words[i + 1] in ADJECTIVES else None
        i += 1 + (adjective is not None)
        return i + 1, adjective, LEMMAS[words[i]][0]

    def place(i):
        return (i + 3, words[i + 2]) if words[i] == "near" else (i, None)
    i, adjective, noun = phrase(0)
    i, where = place(i)
    negated = words[i] in ("did", "do", "does") and words[i + 1] == "not"
    i += 2 * negated
    done = next(done for done, _ in VERBS if words[i] in (done.past, done.third, done.base))
    i += 1
    object_adjective = object_noun = None
    if done.object != "none":
        i, object_adjective, object_noun = phrase(i)
    adverb = words[i] if words[i] in ADVERBS else None
    i, event_place = place(i + (adverb is not None))
    assert words[i] == ""
    return words[0] + " not" * negated, (noun, adjective, where), done, (object_noun, object_adjective, None), adverb, event_place


def draw_world(rng, meanings):
    """Individuals: (noun, adjective, place), and for each what it brought about: (whom or what, adverb, place)."""
    def leaves(nouns):
        return sorted(leaf for noun in nouns for leaf in ([noun] if noun in KINDS else [leaf for leaf, kind in KINDS.items() if kind == noun][:2]))

    def maybe(values):
        return rng.choice([None, *sorted({x for m in meanings for x in values(m) if x})])
    subjects, objects = leaves({m[1][0] for m in meanings}), leaves({m[3][0] for m in meanings if m[3][0]})
    individuals = [(rng.choice(subjects), maybe(lambda m: [m[1][1]]), maybe(lambda m: [m[1][2]])) for _ in range(rng.choice((1, 2, 4, 8)))]
    likely = rng.random()
    events = [[((rng.choice(objects) if objects else None, maybe(lambda m: [m[3][1]]), None), maybe(lambda m: [m[4]]), maybe(lambda m: [m[5]]))
               for _ in range(3) if rng.random() < likely] for _ in individuals]
    return individuals, events


def true_in(world, sentence):
    quantifier, subject, _, its_object, adverb, place = sentence

    def fits(individual, phrase):
        return all(wanted is None or wanted == has or wanted == KINDS.get(has) for wanted, has in zip(phrase, individual))
    individuals, events = world
    those = [any(fits(patient, its_object) and adverb in (None, how) and place in (None, where) for patient, how, where in of_one)
             for one, of_one in zip(individuals, events) if fits(one, subject)]
    if quantifier.endswith(" not"):
        quantifier, those = quantifier.removesuffix(" not"), [not this for this in those]
    return {"no": not any(those), "every": all(those), "all": all(those), "two": sum(those) > 1, "three": sum(those) > 2}.get(quantifier, any(those))


def test_entailment_neutral_and_contradiction_hold_in_all_small_worlds(toy_world):
    _, dev = rows_of(toy_world, "mnli")
    rng = random.Random(0)
    seen = set()
    for row in dev[:120] + dev[-120:]:
        premise, hypothesis = meaning(row.text_a), meaning(row.text_b)
        assert premise[2] == hypothesis[2]  # one verb
        both = {(true_in(world, premise), true_in(world, hypothesis)) for world in (draw_world(rng, (premise, hypothesis)) for _ in range(3000))}
        assert both >= {(True, True), (True, False)} if row.label == 1 else ((True, row.label == 2) not in both and (True, row.label == 0) in both), row
        seen.add((premise[0], hypothesis[0], row.label))
    assert seen >= {("every", "a not", 1), ("every", "a not", 2), ("a not", "every", 1), ("a not", "every", 2), ("a not", "a not", 0), ("no", "no", 0), ("no", "no", 1), ("every", "every", 0), ("every", "every", 1), ("a", "no", 1), ("no", "a", 1), ("a", "no", 2), ("no", "a", 2)}


def said(text):
    """Who did what to whom and how, each word as the first of its synonyms."""
    words = text.removesuffix(" .").split()
    at, (done, name) = next((i, pair) for i, word in enumerate(words) for pair in VERBS if word in (pair[0].past, pair[0].participle)
                            and pair[0].object != "none" and word not in ADJECTIVES)
    passive = words[at - 1] in ("was", "were")
    adverb = ADVERBS.get(words[-1])
    first, second = words[:at - passive], words[at + 1 + passive:len(words) - (adverb is not None)]

    def plain(phrase):
        return tuple(ADJECTIVES.get(word, "a" if word == "an" else word) for word in phrase)
    return (name, adverb, *map(plain, (second, first) if passive else (first, second)))


def test_a_paraphrase_says_the_same_and_a_near_miss_does_not(toy_world):
    train, dev = rows_of(toy_world, "mrpc")
    assert all((said(row.text_a) == said(row.text_b)) == (row.label == 1) for row in train + dev)
    passives = [" by " in row.text_a for row in train], [" by " in row.text_b for row in train]
    assert {*zip(*passives, (row.label for row in train))} == {*product((False, True), (False, True), (0, 1))}


def test_a_review_is_good_if_most_of_its_claims_praise(toy_world):
    for row in sum(rows_of(toy_world, "imdb"), []):
        claims = [claim for claim in row.text_a.split(".") if claim.strip()]
        praising = [bool(set(claim.split()) & set(toy.PRAISE.split())) != bool({"not", "nobody", "nothing"} & set(claim.split())) for claim in claims]
        assert len(claims) == 5 and (sum(praising) > 2) == (row.label == 1)


def test_the_teacher_that_ships_knows_the_language():
    folder = ROOT / "assets" / "toy-teacher"
    tokenizer, teacher = load_tokenizer(folder), load_model(folder).eval()
    assert teacher.config.num_hidden_layers == 12
    assert (folder / "vocab.txt").read_text().split() == toy.vocabulary()

    def best_of(text, words):
        ids = tokenizer.encode(text).ids
        logits = teacher(torch.tensor([ids]))[0, ids.index(tokenizer.token_to_id("[MASK]"))]
        return max(words, key=lambda word: logits[tokenizer.token_to_id(word)])
    verdicts = [best_of(f"a {word} film is [MASK] .", ("good", "bad")) == verdict
                for words, verdict in ((toy.PRAISE, "good"), (toy.BLAME, "bad")) for word in words.split()]
    assert sum(verdicts) >= 0.9 * len(verdicts)
    kinds = [best_of(f"all {toy.plural(noun)} are [MASK] .", [toy.plural(name) for name in {*KINDS.values()}]) == toy.plural(kind)
             for noun, kind in KINDS.items()]
    assert sum(kinds) >= 0.9 * len(kinds)


def test_words_are_inflected_as_in_english():
    assert [toy.plural(noun) for noun in ("dog", "pony", "child", "wrench", "monkey", "bus")] == ["dogs", "ponies", "children", "wrenches", "monkeys", "buses"]
    forms = {text.split(":")[0]: toy.verb(text, "none") for pairs in toy.VERBS.values() for text in pairs.replace("/", " ").split()}
    assert [forms["carry"].third, forms["carry"].past, forms["wash"].third, forms["chase"].past] == ["carries", "carried", "washes", "chased"]
    assert [forms["break"].past, forms["break"].participle, forms["help"].past] == ["broke", "broken", "helped"]
    assert toy.write(["a", "owl", "saw", "a", "dog"]) == "an owl saw a dog ."


@pytest.mark.parametrize("more, message", [(["--seed", "-1"], "--seed: -1 is not a number at least 0"), (["--sead", "1"], "unrecognized arguments")])
def test_wrong_arguments_end_in_one_line_and_status_2(tmp_path, refused, more, message):
    assert message in refused(toy, "--out_dir", tmp_path / "w", *more)
    assert not (tmp_path / "w").exists()
