"""A miniature language: a corpus and four tasks in the real files' layouts, so that the experiment runs anywhere in minutes.

    python toy.py --out_dir FOLDER --seed 1

English-like sentences over a lexicon of a few hundred words. What a word means is shown by the corpus alone: which words are
synonyms (restatements, glossaries), which noun is a kind of which (glossaries, stories, inferences), which words praise (reviews).
The labelled rows are few, and no noun, verb, adjective or adverb of a test row stands in a training row: of each sort of word one
half, drawn by the seed, is for training rows and the other for test rows. Read next: nothing; the rest does not know this file.
"""
import json
import random
from dataclasses import dataclass, replace
from pathlib import Path

from support.cli import Parser, command_line, in_range
from support.files import write_file
from support.fingerprint import code_fingerprint
from support.run_folder import finished_run, open_run

DOCUMENTS, HELDOUT_DOCUMENTS, TRAIN_ROWS, TEST_ROWS = 120_000, 1_000, 1_000, 600

# ---- The lexicon ----

TREE = {  # class: {kind: what is of that kind}
    "animal": {"dog": "terrier spaniel poodle beagle", "bird": "sparrow robin eagle crow", "insect": "beetle ant moth wasp",
               "horse": "pony stallion mare foal", "cat": "tabby kitten tomcat siamese"},
    "person": {"artist": "painter singer dancer poet", "worker": "farmer baker miner weaver", "doctor": "surgeon dentist nurse healer",
               "child": "boy girl toddler orphan", "official": "judge mayor sheriff clerk"},
    "plant": {"fruit": "apple pear plum lemon", "flower": "rose tulip daisy lily", "vegetable": "carrot onion turnip potato"},
    "object": {"vehicle": "taxi van truck wagon", "instrument": "violin flute drum harp", "tool": "hammer axe shovel chisel",
               "container": "bottle basket bucket jar"},
}
PLURALS = {"child": "children", "person": "people", "potato": "potatoes"}
# Pairs of synonyms. A verb whose past is not regular is written base:past:participle.
VERBS = {
    "animate": "chase/pursue help/aid frighten/scare see:saw:seen/notice follow/trail admire/respect hate/detest comfort/console "
               "hug:hugged:hugged/embrace tease/mock",
    "thing": "buy:bought:bought/purchase carry/transport fix/repair clean/wash break:broke:broken/smash lift/raise "
             "throw:threw:thrown/hurl find:found:found/discover",
    "none": "sleep:slept:slept/doze laugh/giggle shout/yell weep:wept:wept/sob:sobbed:sobbed fall:fell:fallen/tumble "
            "walk/stroll complain/grumble tremble/shiver",
}
ADJECTIVES = ("big/large small/little fast/quick old/ancient happy/glad angry/furious quiet/silent strange/odd wet/damp "
              "rich/wealthy clever/smart dirty/filthy")
ADVERBS = "quickly/rapidly quietly/silently often/frequently happily/gladly suddenly/abruptly calmly/peacefully"
PLACES = "barn castle garden bridge river tower market forest"
PRAISE = ("superb delightful brilliant charming wonderful gripping elegant moving splendid witty graceful dazzling tender "
          "masterful thrilling lovely")
BLAME = ("dreadful tedious clumsy boring awful shallow lifeless bland horrid stale sloppy grating dismal feeble hollow painful")
TOPICS = "film plot acting music script cast ending dialogue story scene"
FUNCTION_WORDS = (
    "the a an some two three every all no this that these is are was were do does did not by near , . kind of and so maybe hardly "
    "likewise however true unknown false equal different i it found loved hated nobody everyone could should call watch there "
    "nothing about very quite good bad asleep awake")


def plural(noun):
    if noun in PLURALS:
        return PLURALS[noun]
    if noun.endswith("y") and noun[-2] not in "aeo":
        return noun[:-1] + "ies"
    return noun + ("es" if noun.endswith(("s", "x", "ch", "sh")) else "s")


@dataclass(frozen=True)
class Verb:
    base: str
    third: str       # he ...
    past: str
    participle: str
    object: str      # what it is done to: "animate", "thing" or "none"


def verb(text, its_object):
    base, *irregular = text.split(":")
    stem = base[:-1] + "i" if base.endswith("y") and base[-2] not in "aeo" else base
    third = stem + "es" if stem != base or base.endswith(("s", "x", "ch", "sh")) else base + "s"
    past = stem + ("d" if base.endswith("e") else "ed")
    return Verb(base, third, *(irregular or (past, past)), its_object)


def kinds(*classes):
    return [(kind, nouns.split()) for name in classes for kind, nouns in TREE[name].items()]


def pairs(text):
    return [tuple(pair.split("/")) for pair in text.split()]


WORDS = {  # sort: what there is of it; nouns as (kind, [its nouns]), verbs, adjectives and adverbs as (word, synonym)
    "animate": kinds("animal", "person"), "thing": kinds("plant", "object"),
    **{f"{sort} verb": [(verb(one, sort), verb(other, sort)) for one, other in pairs(text)] for sort, text in VERBS.items()},
    "adjective": pairs(ADJECTIVES), "adverb": pairs(ADVERBS), "praise": PRAISE.split(), "blame": BLAME.split()}


def split_lexicon(rng):
    """WORDS in two halves, drawn by rng: for training rows and for test rows."""
    shuffled = {sort: rng.sample(words, len(words)) for sort, words in WORDS.items()}
    return ({sort: words[:len(words) // 2] for sort, words in shuffled.items()},
            {sort: words[len(words) // 2:] for sort, words in shuffled.items()})


# ---- The grammar: phrases and clauses, and how they are written ----

SINGULAR, PLURAL = {"a", "every", "this"}, {"some", "two", "three", "all", "these"}
LABELS = ("entailment", "neutral", "contradiction")


@dataclass(frozen=True)
class Phrase:
    noun: str
    plural: bool = False
    determiner: str = "the"
    adjective: str | None = None
    near: "Phrase | None" = None
    relative: "Clause | None" = None  # its subject, or else its object, is None: the gap
    kind: str | None = None           # of the noun

    def words(self):
        return [self.determiner, *([self.adjective] if self.adjective else []), plural(self.noun) if self.plural else self.noun,
                *(["near", *self.near.words()] if self.near else []),
                *(["that", *self.relative.words(gap_is_plural=self.plural)] if self.relative else [])]


@dataclass(frozen=True)
class Clause:
    subject: Phrase | None
    verb: Verb
    object: Phrase | None = None
    past: bool = True
    negated: bool = False
    adverb: str | None = None
    near: Phrase | None = None
    passive: bool = False

    def words(self, gap_is_plural=False):
        first, second = (self.object, self.subject) if self.passive else (self.subject, self.object)
        many = first.plural if first else gap_is_plural
        if self.passive:
            group = [(("were" if many else "was") if self.past else ("are" if many else "is")),
                     *(["not"] if self.negated else []), self.verb.participle]
            second = ["by", *second.words()]
        else:
            if self.negated:
                group = ["did" if self.past else "do" if many else "does", "not", self.verb.base]
            else:
                group = [self.verb.past if self.past else self.verb.base if many else self.verb.third]
            second = second.words() if second else []
        return [*(first.words() if first else []), *group, *second, *([self.adverb] if self.adverb else []),
                *(["near", *self.near.words()] if self.near else [])]


def write(words):
    """Words -> text: "a" or "an", and a full stop."""
    words = [*words, "."]
    return " ".join("an" if word == "a" and after[0] in "aeiou" else word for word, after in zip(words, [*words[1:], "."]))


class SentenceGenerator:
    """Draws phrases, clauses and pairs of them from words: WORDS, or a half of it."""

    def __init__(self, words, rng):
        self.words_of, self.rng = words, rng

    def chance(self, probability):
        return self.rng.random() < probability

    def word(self, sort):
        """One of a pair of synonyms."""
        return self.rng.choice(self.rng.choice(self.words_of[sort]))

    def place(self):
        return Phrase(self.rng.choice(PLACES.split()), self.chance(0.3))

    def phrase(self, sort, determiners=("the", "the", "the", "a", "some", "this", "these"), adjective=0.3, leaf=0.8):
        determiner = self.rng.choice(determiners)
        many = determiner in PLURAL or (determiner not in SINGULAR and self.chance(0.5))
        kind, nouns = self.rng.choice(self.words_of[sort])
        return Phrase(self.rng.choice(nouns) if self.chance(leaf) else kind, many, determiner,
                      self.word("adjective") if self.chance(adjective) else None, kind=kind)

    def clause(self, past, its_object=None):
        """A sentence's clause, with phrases and relative clauses between its parts."""
        its_object = its_object or self.rng.choice(("animate", "thing", "none"))
        subject = self.phrase("animate")
        if self.chance(0.25):
            subject = replace(subject, near=self.phrase("animate", ("the",), 0.1) if self.chance(0.6) else self.place())
        elif self.chance(0.33):
            subject = replace(subject, relative=self.relative(past))
        clause = Clause(subject, self.word(f"{its_object} verb"),
                        None if its_object == "none" else self.phrase(its_object, adjective=0.2), past,
                        subject.determiner in ("the", "this", "these") and self.chance(0.15),
                        self.word("adverb") if self.chance(0.15) else None, self.place() if self.chance(0.15) else None)
        return replace(clause, passive=True) if its_object != "none" and not clause.negated and self.chance(0.2) else clause

    def relative(self, past):
        """A clause with a gap: "that chased the dogs", "that the dogs chased", "that slept"."""
        its_object = self.rng.choice(("animate", "none"))
        done, other = self.word(f"{its_object} verb"), self.phrase("animate", ("the",), 0.1)
        if its_object == "none":
            return Clause(None, done, None, past)
        return Clause(None, done, other, past) if self.chance(0.5) else Clause(other, done, None, past)

    # -- What follows from a sentence: monotonicity (van Benthem 1986) and the square of opposition --

    def inference(self, label, past=True):
        """(premise, hypothesis), two clauses, with this label: "entailment", "neutral" or "contradiction".

        They differ in one place, where one is the more general: a kind for its member, a modifier left out. A quantifier is
        upward there if its sentence implies the more general one ("some" is in the subject), downward if the more special one
        ("no" is). The opposite of an upward quantifier is downward."""
        in_subject, many = self.chance(0.5), self.chance(0.5)
        quantifier = self.rng.choice(("some", "no", "all", "some not"))
        opposite = {"some": "no", "no": "some", "all": "some not", "some not": "all"}[quantifier]
        upward = quantifier in (("some", "some not") if in_subject else ("some", "all"))
        general, specific = self.general_and_specific(in_subject, past)
        if label == "entailment" or (label == "neutral" and self.chance(0.5)):
            opposite = quantifier
            pair = (specific, general) if upward == (label == "entailment") else (general, specific)
        else:  # what the upward quantifier says of the more special and the downward one of the more general cannot both be
            pair = (specific, general) if upward == (label == "contradiction") else (general, specific)
        some = self.rng.choice(("some", "two", "three")) if many else "a"
        words = {"some": some, "no": "no", "all": "all" if many else "every", "some not": some}
        return tuple(replace(clause, subject=replace(clause.subject, plural=many, determiner=words[name]), negated="not" in name)
                     for clause, name in zip(pair, (quantifier, opposite)))

    def general_and_specific(self, in_subject, past):
        its_object = self.rng.choice(("animate", "thing")) if self.chance(0.6) else "none"
        clause = Clause(self.phrase("animate", adjective=0.2), self.word(f"{its_object} verb"),
                        None if its_object == "none" else self.phrase(its_object, ("a", "some"), adjective=0.2), past)
        part = "subject" if in_subject else "object"
        phrase = getattr(clause, part)

        def both(part, general, specific):
            return replace(clause, **{part: general}), replace(clause, **{part: specific})
        if phrase and self.chance(0.6):
            kind, nouns = next(known for known in self.words_of["animate" if in_subject else its_object] if known[0] == phrase.kind)
            return both(part, replace(phrase, noun=kind), replace(phrase, noun=self.rng.choice(nouns)))
        if phrase and self.chance(0.5):
            return both(part, replace(phrase, adjective=None), replace(phrase, adjective=self.word("adjective")))
        if in_subject:
            return both("subject", phrase, replace(phrase, near=self.place()))
        return both("adverb", None, self.word("adverb")) if self.chance(0.5) else both("near", None, self.place())

    # -- The same in other words --

    def paraphrase(self, same, passives=0.5):
        """(clause, another), which say the same, or nearly: with the roles of the two swapped. Each is passive with probability
        `passives`, and synonyms stand for words, whatever the label, so that neither the words nor their order give it away."""
        determiners = ("the", "a", "some", "two", "this", "these")
        subject = its_object = self.phrase("animate", determiners, 0.5)
        while its_object.noun == subject.noun:
            its_object = self.phrase("animate", determiners, 0.5)
        clause = Clause(subject, self.word("animate verb"), its_object, True, False,
                        self.word("adverb") if self.chance(0.4) else None, passive=self.chance(passives))
        other = replace(clause, passive=self.chance(passives))
        for place in places_of_synonyms(other):
            if place == "verb" or self.chance(0.5):
                other = self.with_synonym(other, place)
        return clause, other if same else replace(other, subject=other.object, object=other.subject)

    def with_synonym(self, clause, place):
        """The clause with its verb, its adverb, or the adjective of its subject or object replaced."""
        part = getattr(clause, place)
        if isinstance(part, Phrase):
            return replace(clause, **{place: replace(part, adjective=self.synonym(part.adjective, "adjective"))})
        return replace(clause, **{place: self.synonym(part, f"{part.object} verb" if place == "verb" else "adverb")})

    def synonym(self, word, sort):
        pair, = (pair for pair in self.words_of[sort] if word in pair)
        return pair[word == pair[0]]

    # -- Unacceptable sentences --

    def unacceptable(self):
        """The words of a sentence with one fault: agreement, word order, or the verb's arguments."""
        fault = self.rng.choice(("agreement", "agreement", "order", "arguments"))
        if fault == "agreement":  # "the dogs near the barn sleeps": the subject as it was, the verb in the other number
            clause = replace(self.clause(past=False), negated=False)
            first = "object" if clause.passive else "subject"
            subject = getattr(clause, first)
            wrong = replace(clause, **{first: replace(subject, plural=not subject.plural)})
            return [*subject.words(), *wrong.words()[len(subject.words()):]]
        if fault == "order":
            clause = self.clause(self.chance(0.5), self.rng.choice(("animate", "thing")))
            clause = replace(clause, passive=False, negated=False, adverb=None, near=None)
            subject, its_object = clause.subject.words(), clause.object.words()
            done = clause.words()[len(subject)]
            return self.rng.choice(([*subject, *its_object, done], [done, *subject, *its_object]))
        clause = replace(self.clause(self.chance(0.5)), passive=False)
        return replace(clause, object=None if clause.object else self.phrase(self.rng.choice(("animate", "thing")))).words()

    # -- Reviews --

    def claim(self, praise, denials=0.35):
        """The words of a sentence that praises something, or blames it: by a word, or by denying the other word."""
        topic = self.rng.choice(TOPICS.split())
        denied = self.chance(denials)
        quality = self.rng.choice(self.words_of["praise" if praise != denied else "blame"])
        often = [self.rng.choice(("very", "quite"))] if self.chance(0.2) else []
        if denied:
            return self.rng.choice((["the", topic, "was", "not", *often, quality],
                                    ["nobody", "could", "call", "the", topic, *often, quality],
                                    ["there", "was", "nothing", *often, quality, "about", "the", topic]))
        return self.rng.choice((["the", topic, "was", *often, quality], ["i", "found", "the", topic, *often, quality]))


def places_of_synonyms(clause):
    """The places of a clause where a word with a synonym stands."""
    adjectives = [part for part in ("subject", "object") if getattr(clause, part).adjective]
    return ["verb", *adjectives, *(["adverb"] if clause.adverb else [])]


# ---- The corpus: paragraphs of related sentences ----

class Corpus(SentenceGenerator):
    """Draws documents: lists of paragraphs, each a text. None of its statements is one of `reserved`, the test rows' sentences."""

    def __init__(self, words, rng, reserved):
        super().__init__(words, rng)
        self.reserved = reserved

    def document(self):
        draw, = self.rng.choices((self.story, self.glossary, self.restatement, self.conclusion, self.review), (4, 8, 4, 4, 4))
        while True:
            statements, paragraphs = draw()
            if not self.reserved.intersection(map(write, statements)):
                return paragraphs

    def paragraphs(self, first, second):
        """Two texts in one paragraph, or in one each."""
        return [f"{first} {second}"] if self.chance(0.4) else [first, second]

    def story(self):
        """Sentences about one somebody, who is called by kind after the first. A story keeps to a few words, as texts do (lexical
        cohesion, Halliday and Hasan 1976): so words that are alike, synonyms and members of a kind, stand together."""
        few = {sort: self.rng.sample(words, 2 if sort == "animate" else 1) for sort, words in self.words_of.items()}
        draw, past = SentenceGenerator(few, self.rng), self.chance(0.5)
        hero = draw.phrase("animate", ("a", "some"), leaf=1)
        again = replace(hero, determiner="the", adjective=None)
        clauses = [replace(draw.clause(past), subject=hero, negated=False)]
        for _ in range(self.rng.randint(2, 4)):
            called = replace(again, noun=self.rng.choice((hero.noun, hero.kind)))
            clauses.append(replace(draw.clause(past), subject=called))
        statements = [clause.words() for clause in clauses]
        called = replace(again, noun=hero.kind, relative=draw.relative(past) if self.chance(0.3) else None)
        state = self.rng.choice(("asleep", "awake")) if self.chance(0.3) else draw.word("adjective")
        is_or_was = (("was", "were") if past else ("is", "are"))[hero.plural]
        statements.insert(self.rng.randint(1, len(statements)), [*called.words(), is_or_was, state])
        return statements, [" ".join(map(write, statements))]

    def glossary(self):
        """What is of which kind; which words are synonyms; which words praise."""
        return [], [" ".join(write(self.rng.choice((self.kind, self.synonyms, self.quality))()) for _ in range(4))]

    def kind(self):
        name_of_class = self.rng.choice(list(TREE))
        kind, other = self.rng.sample(list(TREE[name_of_class]), 2)
        noun = self.rng.choice(TREE[name_of_class][kind].split())
        return self.rng.choice((
            ["a", noun, "is", "a", "kind", "of", kind], ["all", plural(noun), "are", plural(kind)],
            ["every", noun, "is", "a", kind, "and", "every", kind, "is", "a", name_of_class],
            ["no", noun, "is", "a", other], ["no", kind, "is", "a", other], [plural(kind), "are", plural(name_of_class)]))

    def synonyms(self):
        sort = self.rng.choice(("adjective", "adverb", *(f"{sort} verb" for sort in VERBS)))
        word = self.word(sort)
        one, other = (getattr(each, "past", each) for each in (word, self.synonym(word, sort)))
        return [one, "and", other, "are", "equal"]

    def quality(self):
        praise, denied, topic = self.chance(0.5), self.chance(0.3), self.rng.choice(TOPICS.split())
        word, verdict = self.rng.choice(self.words_of["praise" if praise else "blame"]), "good" if praise != denied else "bad"
        return ["a", topic, "that", "is", "not", word, "is", verdict] if denied else ["a", word, topic, "is", verdict]

    # What says how two sentences are related is one word, so that it cannot be told from its neighbours when it is masked.

    def restatement(self):
        """A sentence, and another that says the same or, as is then said, does not."""
        same = self.chance(0.5)
        one, other = (clause.words() for clause in self.paraphrase(same))
        if self.chance(0.5):
            second = write(["likewise" if same else "however", ",", *other])
        else:
            second = f"{write(other)} this is {'equal' if same else 'different'} ."
        return [one, other], self.paragraphs(write(one), second)

    def conclusion(self):
        """A sentence, and what follows from it, may be, or is false."""
        label = self.rng.choice(LABELS)
        one, other = (clause.words() for clause in self.inference(label, self.chance(0.7)))
        if self.chance(0.5):
            second = write([{"entailment": "so", "neutral": "maybe", "contradiction": "hardly"}[label], ",", *other])
        else:
            second = f"{write(other)} this is { {'entailment': 'true', 'neutral': 'unknown', 'contradiction': 'false'}[label]} ."
        return [one, other], self.paragraphs(write(one), second)

    def review(self):
        """Claims, some with the feeling that goes with them, and a verdict that goes with most. Many reviews are of one mind."""
        one_mind, praise = self.chance(0.6), self.chance(0.5)
        praised = [praise if one_mind else self.chance(0.5) for _ in range(self.rng.choice((3, 5)))]
        claims = [self.claim(praise, 0.1 if one_mind else 0.35) for praise in praised]
        told = [[*claim, *(["and", "i", "loved" if praise else "hated", "it"] if self.chance(0.4) else [])]
                for claim, praise in zip(claims, praised)]
        good = sum(praised) > len(praised) / 2
        verdict = self.rng.choice((["i", "loved" if good else "hated", "it"], ["the", "film", "was", "good" if good else "bad"],
                                   ["everyone" if good else "nobody", "should", "watch", "it"]))
        return claims, [" ".join(map(write, [*told, verdict]))]


# ---- The tasks, in the layouts that data.py reads ----

def unique(draw, count, seen):
    """`count` texts or tuples of texts from draw(number), none of whose texts is in `seen` or comes twice; adds them to it."""
    rows = []
    while len(rows) < count:
        row = draw(len(rows))
        texts = {row} if isinstance(row, str) else set(row)
        if not seen & texts:
            seen |= texts
            rows.append(row)
    return rows


def write_tasks(folder, writers, title):
    """CoLA, MNLI, MRPC and aclImdb under folder. writers: {"train": a Writer, "test": a Writer}. Returns all test sentences."""
    sentences = {"train": set(), "test": set()}

    def make(name, files, rows_of):
        (folder / name).mkdir(parents=True, exist_ok=True)
        write_file(folder / name / "README", f"Not {name}: {title.format(name)}\n")
        for file, split in files.items():
            rows = rows_of(writers[split], file, TRAIN_ROWS if split == "train" else TEST_ROWS, sentences[split])
            write_file(folder / name / file, "\n".join("\t".join(row) for row in rows) + "\n")

    def cola(writer, _, count, seen):
        rows = unique(lambda i: write(writer.clause(writer.chance(0.5)).words() if i % 2 else writer.unacceptable()), count, seen)
        return [("toy", str(i % 2), "" if i % 2 else "*", text) for i, text in enumerate(rows)]

    def mnli(writer, file, count, seen):
        past = file != "dev_mismatched.tsv"  # the present tense stands in no training row
        rows = unique(lambda i: tuple(write(c.words()) for c in writer.inference(LABELS[i % 3], past)), count, seen)
        labels = ["label1"] if file == "train.tsv" else [f"label{k}" for k in range(1, 6)]
        return [("index promptID pairID genre sentence1_binary_parse sentence2_binary_parse sentence1_parse sentence2_parse "
                 "sentence1 sentence2").split() + [*labels, "gold_label"],
                *([str(i), str(i), f"{i}{LABELS[i % 3][0]}", "past" if past else "present", "", "", "", "", *pair,
                   *[LABELS[i % 3]] * (len(labels) + 1)] for i, pair in enumerate(rows))]

    def mrpc(writer, _, count, seen):
        rows = unique(lambda i: tuple(write(clause.words()) for clause in writer.paraphrase(bool(i % 2), 0.2)), count, seen)
        return [("\ufeffQuality", "#1 ID", "#2 ID", "#1 String", "#2 String"),
                *((str(i % 2), str(2 * i), str(2 * i + 1), *pair) for i, pair in enumerate(rows))]

    make("CoLA", {"train.tsv": "train", "dev.tsv": "test"}, cola)
    make("MNLI", {"train.tsv": "train", "dev_matched.tsv": "test", "dev_mismatched.tsv": "test"}, mnli)
    make("MRPC", {"train.tsv": "train", "dev.tsv": "test"}, mrpc)
    (folder / "aclImdb").mkdir(exist_ok=True)
    write_file(folder / "aclImdb" / "README", f"Not IMDb: {title.format('IMDb')}\n")
    for split, count in (("train", TRAIN_ROWS), ("test", TEST_ROWS)):
        writer, rng = writers[split], writers[split].rng
        for number, name in enumerate(("neg", "pos")):
            (folder / "aclImdb" / split / name).mkdir(parents=True, exist_ok=True)
            for i in range(count // 2):
                agreeing = rng.choice((3, 4))
                claims = [write(writer.claim(bool(number) == (k < agreeing))) for k in range(5)]
                rng.shuffle(claims)
                write_file(folder / "aclImdb" / split / name / f"{i}_{1 + 6 * number + rng.randint(0, 3)}.txt",
                           " ".join(claims[:2]) + "<br /><br />" + " ".join(claims[2:]))
    return sentences["test"]


def vocabulary():
    """Every token of the language, the special ones first."""
    words = " ".join((FUNCTION_WORDS, TOPICS, PRAISE, BLAME, ADJECTIVES, ADVERBS)).replace("/", " ").split()
    for noun in (*PLACES.split(), *TREE, *(noun for name in TREE for kind, nouns in kinds(name) for noun in (kind, *nouns))):
        words += [noun, plural(noun)]
    for sort in VERBS:
        words += [form for pair in WORDS[f"{sort} verb"] for one in pair for form in (one.base, one.third, one.past, one.participle)]
    return ["[PAD]", "[UNK]", "[CLS]", "[SEP]", "[MASK]", *sorted(set(words))]


def main(arguments):
    """Write the world, unless --out_dir holds it already."""
    parser = Parser(__doc__)
    parser.add_argument("--out_dir", required=True)
    parser.add_argument("--seed", type=in_range(int, 0), default=1, help="draws the rows, the text, and which words are held out")
    parser.add_argument("--overwrite", action="store_true", help="if --out_dir holds another world: set it aside, as OUT_DIR~1")
    args = parser.parse_args(arguments)
    folder, fingerprint = Path(args.out_dir), {"code": code_fingerprint(__file__)}
    if finished_run(args, fingerprint):
        return
    with open_run(args, fingerprint) as run:
        train, test = split_lexicon(random.Random(f"halves {args.seed}"))
        title = f"toy {{}} (the miniature language of toy.py, generator seed {args.seed})"
        writers = {"train": SentenceGenerator(train, random.Random(f"train {args.seed}")), "test": SentenceGenerator(test, random.Random(f"test {args.seed}"))}
        (folder / "bert").mkdir(parents=True, exist_ok=True)
        reserved = write_tasks(folder, writers, title)
        for name, count in (("corpus", DOCUMENTS), ("heldout", HELDOUT_DOCUMENTS)):
            corpus = Corpus(WORDS, random.Random(f"{name} {args.seed}"), reserved)
            write_file(folder / f"{name}.txt", "".join(f"{paragraph}\n\n" for _ in range(count) for paragraph in corpus.document()))
        words = vocabulary()
        write_file(folder / "bert" / "vocab.txt", "\n".join(words) + "\n")
        # Three layers: make toy-teacher grows them to twelve.
        write_file(folder / "bert" / "config.json", json.dumps({
            "architectures": ["BertForMaskedLM"], "model_type": "bert", "vocab_size": len(words), "hidden_size": 96,
            "num_hidden_layers": 3, "num_attention_heads": 4, "intermediate_size": 384, "max_position_embeddings": 64,
            "hidden_act": "gelu", "hidden_dropout_prob": 0.0, "attention_probs_dropout_prob": 0.0}, indent=2) + "\n")
        run.finish()


if __name__ == "__main__":
    command_line(main)
