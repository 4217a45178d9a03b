"""The grammar of the miniature language: sentences about one field, judgements, and faults.

A sentence of a story, or of CoLA, is drawn as a clause, a small tree, so that one with a fault can
be derived from it. Those that praise or blame are lists of words.
Read next: support/toy_lexicon.py.
"""
from dataclasses import dataclass, replace

from support.toy_lexicon import FIELDS, Verb, add_s

# ---- Phrases and clauses, and how they are written ----

SINGULAR, PLURAL = ("a", "every", "this"), ("some", "two", "three", "all", "these")  # determiners
SPEAKERS = ("i", "we", "they")


@dataclass(frozen=True)
class Phrase:
    noun: str
    plural: bool = False
    determiner: str = "the"
    adjective: str | None = None
    near: "Phrase | None" = None

    def words(self):
        words = [self.determiner]
        if self.adjective:
            words.append(self.adjective)
        words.append(add_s(self.noun) if self.plural else self.noun)
        return words + (["near", *self.near.words()] if self.near else [])


@dataclass(frozen=True)
class Clause:
    subject: Phrase
    verb: Verb
    object: Phrase | None = None
    past: bool = True
    negated: bool = False
    near: Phrase | None = None

    def words(self):
        words = [*self.subject.words(), *self.verb_group()]
        if self.object:
            words += self.object.words()
        return words + (["near", *self.near.words()] if self.near else [])

    def verb_group(self):
        """The verb with its auxiliary: "chases", "did not chase"."""
        if self.negated:
            present = "do" if self.subject.plural else "does"
            return ["did" if self.past else present, "not", self.verb.base]
        present = self.verb.base if self.subject.plural else self.verb.third
        return [self.verb.past if self.past else present]


def to_text(words):
    """A sentence as text: "an" before a vowel, and a full stop at the end."""
    written = []
    for word, following in zip(words, [*words[1:], "."]):
        written.append("an" if word == "a" and following[0] in "aeiou" else word)
    return " ".join([*written, "."])


# ---- Drawing sentences ----

class SentenceGenerator:
    """Draws phrases, clauses and judgements.

    lexicon: toy_lexicon.LEXICON, or a part of it. rng: the random.Random that decides.
    zipf: whether the first words of a list are more frequent than the last, as in real text."""

    def __init__(self, lexicon, rng, zipf=False):
        self.lexicon, self.rng, self.zipf = lexicon, rng, zipf

    def chance(self, probability):
        return self.rng.random() < probability

    def field(self):
        return self.rng.choice(list(FIELDS))

    def word(self, field, category):
        words = self.lexicon[field][category]
        if not self.zipf:
            return self.rng.choice(words)
        return self.rng.choices(words, [1 / (rank + 2) for rank in range(len(words))])[0]

    def quality(self, praise):
        """A word of praise or of blame, as words: one in five times with an adverb."""
        quality = self.word("quality", "praise" if praise else "blame")
        return [self.rng.choice(("very", "quite")), quality] if self.chance(0.2) else [quality]

    def phrase(self, field, category, adjective=0.3):
        """adjective: the probability of one."""
        determiner = self.rng.choice(("the", "the", "the", *SINGULAR, *PLURAL))
        is_plural = self.chance(0.5) if determiner == "the" else determiner in PLURAL
        described = self.word(field, "adjective") if self.chance(adjective) else None
        return Phrase(self.word(field, category), is_plural, determiner, described)

    def clause(self, field, past, between=0.0):
        """between: the probability of a phrase between the subject and the verb."""
        has_object = self.chance(0.5)
        verb = self.word(field, "verb with object" if has_object else "verb alone")
        subject = self.phrase(field, "person")
        if self.chance(between):
            other = self.rng.choice(("person", "thing", "place"))
            subject = replace(subject, near=self.phrase(field, other, 0))
        its_object = self.phrase(field, "thing") if has_object else None
        place = self.phrase(field, "place", 0) if self.chance(0.2) else None
        return Clause(subject, verb, its_object, past, self.chance(0.15), place)

    def faulty(self, field):
        """The words of a clause with a fault: in the agreement of the determiner or of the verb, in
        the order of words, or in the verb's object."""
        fault = self.rng.choice(("determiner", "agreement", "order", "object"))
        if fault == "determiner":  # "a farmers toiled"
            clause = self.clause(field, self.chance(0.5))
            determiner = self.rng.choice(SINGULAR if clause.subject.plural else PLURAL)
            return replace(clause, subject=replace(clause.subject, determiner=determiner)).words()
        if fault == "agreement":  # "the farmers toils"
            clause = replace(self.clause(field, past=False), negated=False)
            other = replace(clause, subject=replace(clause.subject,
                                                    plural=not clause.subject.plural))
            length = len(clause.subject.words())
            return [*clause.subject.words(), *other.words()[length:]]
        clause = self.clause(field, self.chance(0.5))
        if fault == "order":  # "toiled the farmer", "the farmer the cow milked"
            clause = replace(clause, negated=False, near=None)
            subject = clause.subject.words()
            its_object = clause.object.words() if clause.object else []
            orders = [[*clause.verb_group(), *subject, *its_object]]
            if its_object:
                orders.append([*subject, *its_object, *clause.verb_group()])
            return self.rng.choice(orders)
        # "the farmer toiled the cow", "the farmer milked"
        its_object = None if clause.object else self.phrase(field, "thing")
        return replace(clause, object=its_object).words()

    def about(self, field, adjective=0.0):
        """What is judged, as words: "the cow". adjective: the probability of one."""
        phrase = self.phrase(field, self.rng.choice(("person", "thing")), adjective)
        return replace(phrase, determiner="the").words()

    def claim(self, field, praise, denials):
        """The words of a sentence that praises or blames: by a word, or by denying its opposite.

        denials: the probability of a denial."""
        about = self.about(field, adjective=0.4)
        speaker, denied = self.rng.choice(SPEAKERS), self.chance(denials)
        quality = self.quality(praise != denied)
        if denied:
            return self.rng.choice((
                [speaker, "would", "not", "call", *about, *quality],
                ["nobody", "could", "call", *about, *quality],
                ["there", "was", "nothing", *quality, "about", *about]))
        return self.rng.choice((
            [speaker, "would", "call", *about, *quality],
            ["everyone", "would", "call", *about, *quality],
            [speaker, "found", *about, *quality]))

    def judgements(self, field, praising, denials, speakers=SPEAKERS):
        """The words of two judgements or more: "i found the hen lovely , the cow not dull and ...".

        praising: whether each one praises, by a word or by denying its opposite. denials: the
        probability of a denial. speakers: who may judge, beside "everyone"."""
        speaker, parts = self.rng.choice(speakers), []
        for praise in praising:
            about, denied = self.about(field), self.chance(denials)
            parts.append([*about, *["not"] * denied, *self.quality(praise != denied)])
        words = self.rng.choice(([speaker, "found"], [speaker, "would", "call"],
                                 ["everyone", "would", "call"]))
        *others, last = parts
        for part in others:
            words = [*words, *part, ","]
        return [*words[:-1], "and", *last]

    def opinion(self, field, praise):
        """The words of a sentence whose verb says whether its adjective praises or blames."""
        verb = "loved" if praise else "hated"
        quality = self.word("quality", "praise" if praise else "blame")
        noun = self.word(field, self.rng.choice(("person", "thing")))
        return [self.rng.choice(SPEAKERS), verb, "the", quality, noun]


def verdicts(field, praise):
    """The sentences, as words, that praise or blame a whole field."""
    return (["the", field, "was", "good" if praise else "bad"],
            ["i", "loved" if praise else "hated", "the", field],
            ["they", "praise" if praise else "blame", "the", field])
