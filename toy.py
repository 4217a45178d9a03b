"""A miniature language: a corpus and four tasks in the real files' layouts, so that the experiment runs anywhere in minutes.

    python toy.py --out_dir FOLDER --seed 1

English-like sentences over a lexicon of a few hundred words. What a word means is shown by the corpus alone: which words are
synonyms (restatements), which noun is a kind of which (glossaries, stories, inferences), which words praise (reviews).
The labelled rows are few, and no noun, verb, adjective or adverb of a test row stands in a training row: of each sort of word one
half, drawn by the seed, is for training rows and the other for test rows. Read next: nothing; the rest does not know this file.
"""
import json
import random
import time
from dataclasses import dataclass, replace
from pathlib import Path

from run import Parser, code_digest, command_line, finish_run, finished_run, number, write_file

CODE = ("toy.py",)
DOCUMENTS, HELDOUT_DOCUMENTS, TRAIN_ROWS, TEST_ROWS = 100_000, 1_000, 1_000, 600

# ---- The lexicon ----

TREE = {  # class: {kind: what is of that kind}
    "animal": {"dog": "terrier spaniel poodle beagle collie", "bird": "sparrow robin eagle crow owl",
               "insect": "beetle ant moth wasp hornet", "horse": "pony stallion mare foal mustang",
               "snake": "python cobra viper adder mamba", "cat": "tabby kitten tomcat mouser siamese"},
    "person": {"artist": "painter singer dancer poet sculptor", "worker": "farmer baker miner weaver carpenter",
               "doctor": "surgeon dentist nurse healer medic", "child": "boy girl toddler orphan pupil",
               "official": "judge mayor sheriff clerk senator", "soldier": "archer sergeant captain gunner scout"},
    "plant": {"fruit": "apple pear plum lemon melon", "flower": "rose tulip daisy lily orchid",
              "vegetable": "carrot onion turnip potato leek", "tree": "oak maple willow cedar elm"},
    "object": {"vehicle": "taxi van truck wagon tractor", "instrument": "violin flute drum harp trumpet",
               "tool": "hammer axe shovel chisel wrench", "container": "bottle basket bucket jar crate"},
}
PLURALS = {"child": "children", "person": "people", "potato": "potatoes"}
# Pairs of synonyms. A verb whose past is not regular is written base:past:participle.
VERBS = {
    "animate": "chase/pursue help/aid frighten/scare see:saw:seen/notice follow/trail admire/respect hate/detest hug:hugged:hugged/"
               "embrace watch/observe call/summon comfort/console tease/mock trust/believe greet/welcome",
    "thing": "buy:bought:bought/purchase carry/transport fix/repair clean/wash break:broke:broken/smash "
             "hide:hid:hidden/conceal lift/raise push/shove throw:threw:thrown/hurl find:found:found/discover "
             "grab:grabbed:grabbed/seize choose:chose:chosen/select",
    "none": "sleep:slept:slept/doze laugh/giggle shout/yell weep:wept:wept/sob:sobbed:sobbed fall:fell:fallen/tumble "
            "walk/stroll rest/relax vanish/disappear talk/chat:chatted:chatted complain/grumble tremble/shiver "
            "run:ran:run/sprint",
}
ADJECTIVES = ("big/large small/little fast/quick old/ancient happy/glad angry/furious quiet/silent tired/weary strange/odd "
              "wet/damp rich/wealthy sick/ill brave/bold clever/smart thin/slim dirty/filthy")
ADVERBS = "quickly/rapidly quietly/silently often/frequently happily/gladly suddenly/abruptly calmly/peacefully"
PLACES = "barn castle garden bridge river tower market forest station harbor"
PRAISE = ("superb delightful brilliant charming wonderful gripping elegant moving splendid witty graceful dazzling tender "
          "masterful thrilling lovely inspired radiant polished fresh vivid subtle joyful perfect")
BLAME = ("dreadful tedious clumsy boring awful shallow lifeless bland horrid stale sloppy grating dismal feeble hollow "
         "painful lazy ugly messy dull weak pointless silly wooden")
TOPICS = "film plot acting music script cast ending dialogue story hero scene pace"
FUNCTION_WORDS = (
    "the a an some two three every each all no this that these those is are was were do does did not by near , . kind of and so "
    "therefore maybe perhaps it false true in other words means mean but i found nobody could call there nothing about "
    "asleep awake very quite same loved hated watch again avoid recommend everyone should")


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


@dataclass(frozen=True)
class Lexicon:
    """The words to draw from: all of them, or the half that is for training or test rows."""
    kinds: dict       # {"animate" | "thing": [(kind, [its nouns])]}
    verbs: dict       # {"animate" | "thing" | "none": [(verb, synonym)]}
    adjectives: list  # [(adjective, synonym)]
    adverbs: list     # [(adverb, synonym)]
    praise: list
    blame: list


def lexicons(rng):
    """(all words, the half for training rows, the half for test rows), drawn by rng."""
    halves = ({}, {})

    def share_out(name, key, items):
        items = list(items)
        shuffled = rng.sample(items, len(items))
        for half, part in zip(halves, (shuffled[:len(items) // 2], shuffled[len(items) // 2:])):
            half.setdefault(name, {}).setdefault(key, []).extend(part)
    for name_of_class, kinds in TREE.items():
        share_out("kinds", "animate" if name_of_class in ("animal", "person") else "thing",
                  [(kind, nouns.split()) for kind, nouns in kinds.items()])
    for its_object, pairs in VERBS.items():
        share_out("verbs", its_object, [tuple(verb(text, its_object) for text in pair.split("/")) for pair in pairs.split()])
    for name, pairs in (("adjectives", ADJECTIVES), ("adverbs", ADVERBS)):
        share_out(name, "", [tuple(pair.split("/")) for pair in pairs.split()])
    for name, words in (("praise", PRAISE), ("blame", BLAME)):
        share_out(name, "", words.split())
    train, test = ({name: part[""] if "" in part else part for name, part in half.items()} for half in halves)
    both = {name: {key: train[name][key] + test[name][key] for key in part} if isinstance(part, dict) else part + test[name]
            for name, part in train.items()}
    return Lexicon(**both), Lexicon(**train), Lexicon(**test)


# ---- The grammar: phrases and clauses, and how they are written ----

SOME, ALL = ("a", "some", "two", "three"), ("every", "each", "all")
SINGULAR = {"a", "every", "each", "this", "that"}
PLURAL = {"some", "two", "three", "all", "these", "those"}


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


class Writer:
    """Draws phrases, clauses and pairs of them from a lexicon."""

    def __init__(self, lexicon, rng):
        self.lexicon, self.rng = lexicon, rng

    def chance(self, probability):
        return self.rng.random() < probability

    def adjective(self):
        return self.rng.choice(self.rng.choice(self.lexicon.adjectives))

    def adverb(self):
        return self.rng.choice(self.rng.choice(self.lexicon.adverbs))

    def place(self):
        return Phrase(self.rng.choice(PLACES.split()), self.chance(0.3))

    def phrase(self, sort="animate", determiners=("the", "the", "the", "a", "some", "this", "these"), adjective=0.3, leaf=0.8):
        determiner = self.rng.choice(determiners)
        many = determiner in PLURAL or (determiner not in SINGULAR and self.chance(0.5))
        kind, nouns = self.rng.choice(self.lexicon.kinds[sort])
        return Phrase(self.rng.choice(nouns) if self.chance(leaf) else kind, many, determiner,
                      self.adjective() if self.chance(adjective) else None, kind=kind)

    def clause(self, its_object=None, past=None, decorated=True, **phrase):
        """A sentence's clause. decorated: with phrases and relative clauses between its parts."""
        its_object = its_object or self.rng.choice(("animate", "thing", "none"))
        subject = self.phrase(**phrase)
        past = self.chance(0.5) if past is None else past
        if decorated and self.chance(0.5):
            if self.chance(0.5):
                near = self.phrase("animate", ("the",), 0.1) if self.chance(0.6) else self.place()
                subject = replace(subject, near=near)
            else:
                subject = replace(subject, relative=self.relative(past))
        clause = Clause(subject, self.rng.choice(self.rng.choice(self.lexicon.verbs[its_object])),
                        None if its_object == "none" else self.phrase(its_object, adjective=0.2), past,
                        subject.determiner in ("the", "this", "that", "these", "those") and self.chance(0.15),
                        self.adverb() if self.chance(0.15) else None, self.place() if self.chance(0.15) else None)
        return replace(clause, passive=True) if its_object != "none" and not clause.negated and self.chance(0.2) else clause

    def relative(self, past):
        """A clause with a gap: "that chased the dogs", "that the dogs chased", "that slept"."""
        its_object = self.rng.choice(("animate", "none"))
        done = self.rng.choice(self.rng.choice(self.lexicon.verbs[its_object]))
        other = self.phrase("animate", ("the",), 0.1)
        if its_object == "none":
            return Clause(None, done, None, past)
        return Clause(None, done, other, past) if self.chance(0.5) else Clause(other, done, None, past)

    # -- What follows from a sentence: natural logic of "some", "all" and "no" (Icard and Moss 2014) --

    def inference(self, label, past=True):
        """(premise, hypothesis), two clauses, with this label: "entailment", "neutral" or "contradiction".

        Two clauses differ in one place, where one is the more general: a kind for its member, a modifier left out. "Some" lets
        its sentence be generalised; "no" lets it be specialised; "all" lets the subject be specialised, the rest generalised."""
        in_subject = self.chance(0.5)
        same = label == "entailment" or (label == "neutral" and self.chance(0.5))
        quantifiers = ["some", "no"] + (["all", "no", "some", "some"] if same and in_subject else [])
        quantifier = self.rng.choice(quantifiers)
        many = self.chance(0.5)
        general, specific = self.general_and_specific(in_subject, past)
        some = self.rng.choice(("some", "two", "three")) if many else "a"

        def quantified(clause, quantifier):
            words = {"some": some, "no": "no", "all": "all" if many else "every"}
            return replace(clause, subject=replace(clause.subject, plural=many, determiner=words[quantifier]))
        if same:
            generalising = quantifier == "some" or (quantifier == "all" and not in_subject)
            pair = (specific, general) if generalising == (label == "entailment") else (general, specific)
            return tuple(quantified(clause, quantifier) for clause in pair)
        some_clause, no_clause = (specific, general) if label == "contradiction" else (general, specific)
        pair = quantified(some_clause, "some"), quantified(no_clause, "no")
        return pair if quantifier == "some" else pair[::-1]

    def general_and_specific(self, in_subject, past):
        its_object = self.rng.choice(("animate", "thing")) if self.chance(0.6) else "none"
        clause = Clause(self.phrase(adjective=0.2), self.rng.choice(self.rng.choice(self.lexicon.verbs[its_object])),
                        None if its_object == "none" else self.phrase(its_object, ("a", "some"), adjective=0.2), past)
        part = "subject" if in_subject else "object"
        noun_phrase = getattr(clause, part)
        if noun_phrase and self.chance(0.6):  # a kind and its member
            kind, nouns = next(k for k in self.lexicon.kinds[its_object if part == "object" else "animate"]
                               if k[0] == noun_phrase.kind)
            return tuple(replace(clause, **{part: replace(noun_phrase, noun=noun)}) for noun in (kind, self.rng.choice(nouns)))
        if noun_phrase and self.chance(0.5):  # with and without an adjective
            return tuple(replace(clause, **{part: replace(noun_phrase, adjective=a)}) for a in (None, self.adjective()))
        if in_subject:
            return clause_pair(clause, subject=(noun_phrase, replace(noun_phrase, near=self.place())))
        if self.chance(0.5):
            return clause_pair(clause, adverb=(None, self.adverb()))
        return clause_pair(clause, near=(None, self.place()))

    # -- The same in other words --

    def paraphrase(self, same):
        """(clause, another), which say the same, or nearly: roles swapped, or one word replaced that is no synonym."""
        determiners = ("the", "a", "some", "two", "this", "these")
        its_object = self.rng.choice(("animate", "animate", "thing"))
        clause = Clause(self.phrase("animate", determiners, 0.5), self.rng.choice(self.rng.choice(self.lexicon.verbs[its_object])),
                        self.phrase(its_object, determiners, 0.5), True, False, self.adverb() if self.chance(0.4) else None,
                        passive=self.chance(0.5))
        other = replace(clause, passive=clause.passive != self.chance(0.6))
        if not same:
            swap = its_object == "animate" and self.chance(0.5)
            other = replace(other, subject=other.object, object=other.subject) if swap else self.one_word_changed(other)
        # The synonyms come last, so that a changed sentence looks like any other.
        places = [place for place in ("verb", "subject", "object", "adverb") if self.has_synonym(other, place)]
        for place in self.rng.sample(places, self.rng.randint(min(1, same), min(2, len(places)))):
            other = self.with_synonym(other, place)
        return clause, other

    def has_synonym(self, clause, place):
        part = getattr(clause, place)
        return part is not None and (not isinstance(part, Phrase) or part.adjective is not None)

    def with_synonym(self, clause, place):
        part, lexicon = getattr(clause, place), self.lexicon
        if place == "verb":
            return replace(clause, verb=synonym(part, lexicon.verbs[part.object]))
        if place == "adverb":
            return replace(clause, adverb=synonym(part, lexicon.adverbs))
        return replace(clause, **{place: replace(part, adjective=synonym(part.adjective, lexicon.adjectives))})

    def one_word_changed(self, clause):
        place = self.rng.choice([place for place in ("verb", "subject", "object", "adverb") if self.has_synonym(clause, place)])
        part = getattr(clause, place)
        if place == "verb":
            return replace(clause, verb=self.another(part, self.lexicon.verbs[part.object]))
        if place == "adverb":
            return replace(clause, adverb=self.another(part, self.lexicon.adverbs))
        return replace(clause, **{place: replace(part, adjective=self.another(part.adjective, self.lexicon.adjectives))})

    def another(self, word, pairs):
        return self.rng.choice(self.rng.choice([pair for pair in pairs if word not in pair]))

    # -- Unacceptable sentences --

    def unacceptable(self):
        """The words of a sentence with one fault: agreement, word order, or the verb's arguments."""
        fault = self.rng.choice(("agreement", "agreement", "order", "arguments"))
        if fault == "agreement":  # "the dogs near the barn sleeps"
            clause = replace(self.clause(past=False), negated=False)
            subject = clause.object if clause.passive else clause.subject
            wrong = replace(subject, plural=not subject.plural)
            words, wrong_words = clause.words(), replace(clause, **{"object" if clause.passive else "subject": wrong}).words()
            length = len(subject.words())
            return words[:length] + wrong_words[length:]  # the subject as it was, the verb in the other number
        if fault == "order":
            clause = replace(self.clause(self.rng.choice(("animate", "thing"))), passive=False, negated=False, adverb=None, near=None)
            subject, done, its_object = clause.subject.words(), clause.words()[len(clause.subject.words())], clause.object.words()
            return self.rng.choice(([*subject, *its_object, done], [done, *subject, *its_object],
                                    [*subject, done, *its_object[1:], its_object[0]]))
        clause = replace(self.clause(), passive=False)
        if clause.object:
            return replace(clause, object=None).words()
        return replace(clause, object=self.phrase(self.rng.choice(("animate", "thing")))).words()

    # -- Reviews --

    def claim(self, praise):
        """The words of a sentence that praises something, or blames it: by a word, or by denying the other word."""
        topic = self.rng.choice(TOPICS.split())
        denied = self.chance(0.35)
        quality = self.rng.choice(self.lexicon.praise if praise != denied else self.lexicon.blame)
        often = [self.rng.choice(("very", "quite"))] if self.chance(0.2) else []
        if denied:
            return self.rng.choice((["the", topic, "was", "not", *often, quality],
                                    ["nobody", "could", "call", "the", topic, *often, quality],
                                    ["there", "was", "nothing", *often, quality, "about", "the", topic]))
        return self.rng.choice((["the", topic, "was", *often, quality], ["i", "found", "the", topic, *often, quality]))


def clause_pair(clause, **change):
    (name, values), = change.items()
    return tuple(replace(clause, **{name: value}) for value in values)


def synonym(word, pairs):
    pair, = (pair for pair in pairs if word in pair)
    return pair[word == pair[0]]


# ---- The corpus: paragraphs of related sentences ----

class Corpus(Writer):
    """Draws documents: lists of paragraphs, each a text. None of its statements is one of `reserved`, the test rows' sentences."""

    def __init__(self, lexicon, rng, reserved=frozenset()):
        super().__init__(lexicon, rng)
        self.reserved = reserved

    def document(self):
        draw, = self.rng.choices((self.story, self.glossary, self.restatement, self.conclusion, self.review), (3, 1, 4, 5, 2))
        while True:
            statements, paragraphs = draw()
            if not self.reserved.intersection(map(write, statements)):
                return paragraphs

    def paragraphs(self, first, second):
        """Two texts in one paragraph, or in one each."""
        return [f"{first} {second}"] if self.chance(0.4) else [first, second]

    def story(self):
        """Sentences about one somebody, who is called by kind after the first."""
        hero = self.phrase(determiners=("a", "some"), leaf=1)
        again = replace(hero, determiner="the", adjective=None, noun=hero.kind)
        clauses = [replace(self.clause(past=True), subject=hero, negated=False)]
        for _ in range(self.rng.randint(1, 3)):
            clauses.append(replace(self.clause(past=True), subject=replace(again, noun=self.rng.choice((hero.noun, hero.kind)))))
        statements = [clause.words() for clause in clauses]
        if self.chance(0.3):
            again = replace(again, relative=self.relative(True))
        state = self.rng.choice(("asleep", "awake")) if self.chance(0.3) else self.adjective()
        is_or_was = self.rng.choice(("is was", "are were")[hero.plural].split())
        statements.insert(self.rng.randint(1, len(statements)), [*again.words(), is_or_was, state])
        return statements, [" ".join(map(write, statements))]

    def glossary(self):
        """What is of which kind, and what is not."""
        sentences = []
        for _ in range(3):
            name_of_class = self.rng.choice(list(TREE))
            kind, other = self.rng.sample(list(TREE[name_of_class]), 2)
            noun = self.rng.choice(TREE[name_of_class][kind].split())
            sentences.append(self.rng.choice((
                ["a", noun, "is", "a", "kind", "of", kind], [plural(noun), "are", plural(kind)],
                ["every", noun, "is", "a", kind, "and", "every", kind, "is", "a", name_of_class],
                ["no", noun, "is", "a", other], [plural(kind), "are", plural(name_of_class)],
                ["all", plural(noun), "are", plural(kind)], ["no", kind, "is", "a", other])))
        return [], [" ".join(map(write, sentences))]

    def restatement(self):
        """A sentence, and another that says the same or, as is then said, does not."""
        same = self.chance(0.5)
        one, other = (clause.words() for clause in self.paraphrase(same))
        if self.chance(0.5):
            second = write([*(("in", "other", "words", ",") if same else ("this", "does", "not", "mean", "that")), *other])
        else:
            second = f"{write(other)} {'this is the same .' if same else 'this is not the same .'}"
        return [one, other], self.paragraphs(write(one), second)

    def conclusion(self):
        """A sentence, and what follows from it, may be, or is false."""
        label = self.rng.choice(("entailment", "neutral", "contradiction"))
        one, other = (clause.words() for clause in self.inference(label, self.chance(0.7)))
        if self.chance(0.5):
            marks = {"entailment": (["so"], ["therefore"]), "neutral": (["maybe"], ["perhaps"]),
                     "contradiction": (["it", "is", "false", "that"],)}
            second = write([*self.rng.choice(marks[label]), *other])
        else:
            verdict = {"entailment": "true", "neutral": "perhaps", "contradiction": "false"}[label]
            second = f"{write(other)} this is {verdict} ."
        return [one, other], self.paragraphs(write(one), second)

    def review(self):
        """Claims that mostly agree, and a verdict."""
        praise = self.chance(0.5)
        claims = [self.claim(praise == self.chance(0.85)) for _ in range(self.rng.randint(3, 5))]
        verdict = self.rng.choice((["i", "loved", "it"], ["everyone", "should", "watch", "it"], ["i", "recommend", "it"]) if praise
                                  else (["i", "hated", "it"], ["nobody", "should", "watch", "it"], ["avoid", "it"]))
        return claims, [" ".join(map(write, [*claims, verdict]))]


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


LABELS = ("entailment", "neutral", "contradiction")


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
        rows = unique(lambda i: write(writer.clause().words() if i % 2 else writer.unacceptable()), count, seen)
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
        rows = unique(lambda i: tuple(write(clause.words()) for clause in writer.paraphrase(bool(i % 2))), count, seen)
        return [("\ufeffQuality", "#1 ID", "#2 ID", "#1 String", "#2 String"),
                *((str(i % 2), str(2 * i), str(2 * i + 1), *pair) for i, pair in enumerate(rows))]

    make("CoLA", {"train.tsv": "train", "dev.tsv": "test"}, cola)
    make("MNLI", {"train.tsv": "train", "dev_matched.tsv": "test", "dev_mismatched.tsv": "test"}, mnli)
    make("MRPC", {"train.tsv": "train", "dev.tsv": "test"}, mrpc)
    write_file((folder / "aclImdb").mkdir(exist_ok=True) or folder / "aclImdb" / "README", f"Not IMDb: {title.format('IMDb')}\n")
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
    words = {*FUNCTION_WORDS.split(), *PLACES.split(), *TOPICS.split(), *PRAISE.split(), *BLAME.split(),
             *ADJECTIVES.replace("/", " ").split(), *ADVERBS.replace("/", " ").split(), *map(plural, PLACES.split())}
    for name_of_class, kinds in TREE.items():
        for noun in (name_of_class, *kinds, *" ".join(kinds.values()).split()):
            words |= {noun, plural(noun)}
    for its_object, pairs in VERBS.items():
        for text in pairs.replace("/", " ").split():
            done = verb(text, its_object)
            words |= {done.base, done.third, done.past, done.participle}
    return ["[PAD]", "[UNK]", "[CLS]", "[SEP]", "[MASK]", *sorted(words)]


def main(arguments):
    """Write the world, unless --out_dir holds it already."""
    parser = Parser(__doc__)
    parser.add_argument("--out_dir", required=True)
    parser.add_argument("--seed", type=number(int, 0), default=1, help="draws the rows, the text, and which words are held out")
    parser.add_argument("--overwrite", action="store_true", help="if --out_dir holds another world: set it aside, as OUT_DIR~1")
    started, args = time.monotonic(), parser.parse_args(arguments)
    folder, made_of = Path(args.out_dir), {"code": code_digest(CODE)}
    if finished_run(args, made_of):
        return
    both, train, test = lexicons(random.Random(f"lexicons {args.seed}"))
    title = f"toy {{}} (the miniature language of toy.py, generator seed {args.seed})"
    writers = {"train": Writer(train, random.Random(f"train {args.seed}")), "test": Writer(test, random.Random(f"test {args.seed}"))}
    (folder / "bert").mkdir(parents=True, exist_ok=True)
    reserved = write_tasks(folder, writers, title)
    for name, count in (("corpus", DOCUMENTS), ("heldout", HELDOUT_DOCUMENTS)):
        corpus = Corpus(both, random.Random(f"{name} {args.seed}"), reserved)
        write_file(folder / f"{name}.txt", "".join(f"{paragraph}\n\n" for _ in range(count) for paragraph in corpus.document()))
    words = vocabulary()
    write_file(folder / "bert" / "vocab.txt", "\n".join(words) + "\n")
    write_file(folder / "bert" / "config.json", json.dumps({
        "architectures": ["BertForMaskedLM"], "model_type": "bert", "vocab_size": len(words), "hidden_size": 96,
        "num_hidden_layers": 12, "num_attention_heads": 4, "intermediate_size": 384, "max_position_embeddings": 64,
        "hidden_act": "gelu",
        "hidden_dropout_prob": 0.0, "attention_probs_dropout_prob": 0.0}, indent=2) + "\n")
    finish_run(args, made_of, started)


if __name__ == "__main__":
    command_line(main)
