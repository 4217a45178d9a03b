"""The grammar of the miniature language: sentences, and pairs of sentences that are related.

A sentence is drawn as a clause, a small tree. So it is easy to derive another one from it: one
that follows from it, one that says the same in other words, one with a fault.
Read next: support/toy.py, which writes a corpus and four tasks in this language.
"""
from dataclasses import dataclass, replace

from support.toy_lexicon import PLACES, TOPICS, Verb, plural

# ---- Phrases and clauses, and how they are written ----

SINGULAR, PLURAL = {"a", "every", "this"}, {"some", "two", "three", "all", "these"}  # determiners
LABELS = ("entailment", "neutral", "contradiction")


@dataclass(frozen=True)
class Phrase:
    noun: str
    plural: bool = False
    determiner: str = "the"
    adjective: str | None = None
    near: "Phrase | None" = None
    relative: "Clause | None" = None  # in it the subject or the object is None: the gap
    kind: str | None = None           # of the noun

    def words(self):
        words = [self.determiner]
        if self.adjective:
            words.append(self.adjective)
        words.append(plural(self.noun) if self.plural else self.noun)
        if self.near:
            words += ["near", *self.near.words()]
        if self.relative:
            words += ["that", *self.relative.words(gap_is_plural=self.plural)]
        return words


@dataclass(frozen=True)
class Clause:
    subject: Phrase | None    # who does it, even if the clause is passive
    verb: Verb
    object: Phrase | None = None
    past: bool = True
    negated: bool = False
    adverb: str | None = None
    near: Phrase | None = None
    passive: bool = False

    def words(self, gap_is_plural=False):
        first, second = self.subject, self.object
        if self.passive:
            first, second = second, first
        words = first.words() if first else []
        words += self.verb_group(first.plural if first else gap_is_plural)
        if self.passive:
            words.append("by")
        if second:
            words += second.words()
        if self.adverb:
            words.append(self.adverb)
        if self.near:
            words += ["near", *self.near.words()]
        return words

    def verb_group(self, is_plural):
        """The verb with its auxiliary: "chases", "did not chase", "were not chased"."""
        if self.passive:
            present, past = ("are", "were") if is_plural else ("is", "was")
            negation = ["not"] if self.negated else []
            return [past if self.past else present, *negation, self.verb.participle]
        if self.negated:
            present = "do" if is_plural else "does"
            return ["did" if self.past else present, "not", self.verb.base]
        present = self.verb.base if is_plural else self.verb.third
        return [self.verb.past if self.past else present]


def to_text(words):
    """A sentence as text: "an" before a vowel, and a full stop at the end."""
    written = []
    for word, following in zip(words, [*words[1:], "."]):
        written.append("an" if word == "a" and following[0] in "aeiou" else word)
    return " ".join([*written, "."])


# ---- Drawing sentences ----

THE, ANY_DETERMINER = ("the",), ("the", "the", "the", "a", "some", "this", "these")


class SentenceGenerator:
    """Draws phrases, clauses and pairs of clauses.

    lexicon: toy_lexicon.LEXICON, or a part of it. rng: the random.Random that decides."""

    def __init__(self, lexicon, rng):
        self.lexicon, self.rng = lexicon, rng

    def chance(self, probability):
        return self.rng.random() < probability

    def word(self, category):
        """A word of a category that consists of pairs of synonyms."""
        return self.rng.choice(self.rng.choice(self.lexicon[category]))

    def maybe_word(self, category, probability):
        return self.word(category) if self.chance(probability) else None

    def place(self):
        return Phrase(self.rng.choice(PLACES.split()), self.chance(0.3))

    def phrase(self, category, determiners=ANY_DETERMINER, adjective=0.3, leaf=0.8):
        """adjective: the probability of one. leaf: the probability of "poodle", not "dog"."""
        determiner = self.rng.choice(determiners)
        free = determiner not in SINGULAR | PLURAL
        is_plural = self.chance(0.5) if free else determiner in PLURAL
        kind, nouns = self.rng.choice(self.lexicon[category])
        noun = self.rng.choice(nouns) if self.chance(leaf) else kind
        return Phrase(
            noun, is_plural, determiner, self.maybe_word("adjective", adjective), kind=kind)

    def clause(self, past, object_type=None):
        """A clause, some with a phrase or a relative clause between its subject and its verb."""
        object_type = object_type or self.rng.choice(("animate", "thing", "none"))
        subject = self.phrase("animate")
        if self.chance(0.25):
            near = self.phrase("animate", THE, 0.1) if self.chance(0.6) else self.place()
            subject = replace(subject, near=near)
        elif self.chance(0.33):
            subject = replace(subject, relative=self.relative(past))
        verb = self.word(f"{object_type} verb")
        its_object = None if object_type == "none" else self.phrase(object_type, adjective=0.2)
        negated = subject.determiner in ("the", "this", "these") and self.chance(0.15)
        adverb = self.maybe_word("adverb", 0.15)
        place = self.place() if self.chance(0.15) else None
        passive = its_object is not None and not negated and self.chance(0.2)
        return Clause(subject, verb, its_object, past, negated, adverb, place, passive)

    def relative(self, past):
        """A clause with a gap: "that chased the dogs", "that the dogs chased", "that slept"."""
        object_type = self.rng.choice(("animate", "none"))
        verb, other = self.word(f"{object_type} verb"), self.phrase("animate", THE, 0.1)
        if object_type == "none":
            return Clause(None, verb, None, past)
        if self.chance(0.5):
            return Clause(None, verb, other, past)
        return Clause(other, verb, None, past)

    # -- Inferences: monotonicity (van Benthem 1986) and the square of opposition --

    def inference(self, label, past=True):
        """(premise, hypothesis), two clauses with this label, one of LABELS.

        They differ in one place, where one of them is more general: a kind instead of its member,
        or without a modifier. A quantifier is upward in that place if its sentence implies the
        more general one ("some" in the subject is), and downward if it implies the more specific
        one ("no" is). The opposite of an upward quantifier is downward."""
        in_subject, is_plural = self.chance(0.5), self.chance(0.5)
        quantifier = self.rng.choice(("some", "no", "all", "some not"))
        upward = quantifier in (("some", "some not") if in_subject else ("some", "all"))
        general, specific = self.general_and_specific(in_subject, past)
        if label == "entailment" or (label == "neutral" and self.chance(0.5)):
            second = quantifier
            from_specific = upward == (label == "entailment")
        else:
            # The upward quantifier with the more specific clause and the downward one with the
            # more general clause cannot both be true.
            second = {"some": "no", "no": "some", "all": "some not", "some not": "all"}[quantifier]
            from_specific = upward == (label == "contradiction")
        premise, hypothesis = (specific, general) if from_specific else (general, specific)
        some = self.rng.choice(("some", "two", "three")) if is_plural else "a"
        every = "all" if is_plural else "every"
        determiners = {"some": some, "no": "no", "all": every, "some not": some}

        def quantified(clause, name):
            subject = replace(clause.subject, plural=is_plural, determiner=determiners[name])
            return replace(clause, subject=subject, negated="not" in name)
        return quantified(premise, quantifier), quantified(hypothesis, second)

    def general_and_specific(self, in_subject, past):
        """Two clauses that differ in the subject, or else in the rest of the clause."""
        object_type = self.rng.choice(("animate", "thing")) if self.chance(0.6) else "none"
        subject = self.phrase("animate", adjective=0.2)
        verb = self.word(f"{object_type} verb")
        its_object = None
        if object_type != "none":
            its_object = self.phrase(object_type, ("a", "some"), adjective=0.2)
        clause = Clause(subject, verb, its_object, past)

        def both(part, general, specific):
            return replace(clause, **{part: general}), replace(clause, **{part: specific})
        part, phrase = ("subject", subject) if in_subject else ("object", its_object)
        if phrase and self.chance(0.6):
            nouns = dict(self.lexicon["animate" if in_subject else object_type])[phrase.kind]
            specific = replace(phrase, noun=self.rng.choice(nouns))
            return both(part, replace(phrase, noun=phrase.kind), specific)
        if phrase and self.chance(0.5):
            specific = replace(phrase, adjective=self.word("adjective"))
            return both(part, replace(phrase, adjective=None), specific)
        if in_subject:
            return both("subject", phrase, replace(phrase, near=self.place()))
        if self.chance(0.5):
            return both("adverb", None, self.word("adverb"))
        return both("near", None, self.place())

    # -- Paraphrases --

    def paraphrase(self, same, passives=0.5):
        """(clause, other): they say the same or, if not `same`, subject and object are swapped.

        Each is passive with probability `passives`, and words are replaced by synonyms, whatever
        the label: so neither the words nor their order reveal it."""
        determiners = ("the", "a", "some", "two", "this", "these")
        subject = its_object = self.phrase("animate", determiners, 0.5)
        while its_object.noun == subject.noun:
            its_object = self.phrase("animate", determiners, 0.5)
        verb = self.word("animate verb")
        adverb = self.maybe_word("adverb", 0.4)
        clause = Clause(subject, verb, its_object, adverb=adverb, passive=self.chance(passives))
        other = replace(clause, passive=self.chance(passives))
        for part in parts_with_synonyms(other):
            if part == "verb" or self.chance(0.5):
                other = self.with_synonym(other, part)
        if not same:
            other = replace(other, subject=other.object, object=other.subject)
        return clause, other

    def with_synonym(self, clause, part):
        """The clause with another verb, adverb, or adjective of its subject or object."""
        old = getattr(clause, part)
        if part in ("subject", "object"):
            new = replace(old, adjective=self.synonym(old.adjective, "adjective"))
        else:
            new = self.synonym(old, f"{old.object} verb" if part == "verb" else "adverb")
        return replace(clause, **{part: new})

    def synonym(self, word, category):
        one, other = next(pair for pair in self.lexicon[category] if word in pair)
        return other if word == one else one

    # -- Unacceptable sentences --

    def unacceptable(self):
        """The words of a sentence with a fault in agreement, word order or the verb's object."""
        fault = self.rng.choice(("agreement", "agreement", "order", "object"))
        if fault == "agreement":  # "the dogs near the barn sleeps"
            clause = replace(self.clause(past=False), negated=False)
            first = "object" if clause.passive else "subject"
            subject = getattr(clause, first)
            wrong = replace(clause, **{first: replace(subject, plural=not subject.plural)})
            length = len(subject.words())
            return [*subject.words(), *wrong.words()[length:]]
        if fault == "order":  # "the dogs the cat chased", "chased the dogs the cat"
            clause = self.clause(self.chance(0.5), self.rng.choice(("animate", "thing")))
            clause = replace(clause, passive=False, negated=False, adverb=None, near=None)
            subject, its_object = clause.subject.words(), clause.object.words()
            verb = clause.words()[len(subject)]
            return self.rng.choice(([*subject, *its_object, verb], [verb, *subject, *its_object]))
        # "the dogs slept the cat", "the dogs chased"
        clause = replace(self.clause(self.chance(0.5)), passive=False)
        its_object = None
        if not clause.object:
            its_object = self.phrase(self.rng.choice(("animate", "thing")))
        return replace(clause, object=its_object).words()

    # -- Reviews --

    def claim(self, praise, denials=0.35):
        """The words of a sentence that praises or blames: by a word, or by denying its opposite.

        denials: the probability of a denial."""
        topic = self.rng.choice(TOPICS.split())
        denied = self.chance(denials)
        quality = [self.rng.choice(self.lexicon["praise" if praise != denied else "blame"])]
        if self.chance(0.2):
            quality.insert(0, self.rng.choice(("very", "quite")))
        if denied:
            return self.rng.choice((
                ["the", topic, "was", "not", *quality],
                ["nobody", "could", "call", "the", topic, *quality],
                ["there", "was", "nothing", *quality, "about", "the", topic]))
        return self.rng.choice((
            ["the", topic, "was", *quality],
            ["i", "found", "the", topic, *quality]))


def parts_with_synonyms(clause):
    """The names of a clause's parts that contain a word with a synonym."""
    parts = ["verb"]
    parts += [part for part in ("subject", "object") if getattr(clause, part).adjective]
    return parts + (["adverb"] if clause.adverb else [])
