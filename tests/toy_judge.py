"""A judge of the miniature language that is independent of its generator.

is_grammatical parses a sentence. label_in_worlds evaluates two sentences in small random worlds.
statement says who did what to whom, so that paraphrases can be compared. Only the words and their
inflection come from support/toy_lexicon.py. Read next: test_toy.py.
"""
from itertools import product

from support import toy_lexicon

# ---- The lexicon ----

KINDS, LEMMAS, ANIMATE = {}, {}, set()  # leaf: its kind; form: (noun, whether plural); nouns
for class_name in toy_lexicon.TREE:
    for kind_name, members in toy_lexicon.kinds_of(class_name):
        for one_noun in (kind_name, *members):
            LEMMAS[one_noun] = (one_noun, False)
            LEMMAS[toy_lexicon.plural(one_noun)] = (one_noun, True)
        KINDS.update(dict.fromkeys(members, kind_name))
        if class_name in ("animal", "person"):
            ANIMATE.update([kind_name, *members])

PLACES = {}  # form: (place, whether plural)
for one_place in toy_lexicon.PLACES.split():
    PLACES[one_place] = (one_place, False)
    PLACES[toy_lexicon.plural(one_place)] = (one_place, True)


def first_synonyms(text):
    """{word: the first of its pair of synonyms}"""
    pairs = toy_lexicon.synonym_pairs(text)
    return {word: pair[0] for pair in pairs for word in pair}


ADJECTIVES = first_synonyms(toy_lexicon.ADJECTIVES)
ADVERBS = first_synonyms(toy_lexicon.ADVERBS)
VERBS = []  # (verb, the first of its pair of synonyms)
for verb_type in toy_lexicon.VERBS:
    for first_verb, second_verb in toy_lexicon.verb_pairs(verb_type):
        VERBS += [(first_verb, first_verb.base), (second_verb, first_verb.base)]

SINGULAR = {"a", "an", "every", "this", "that"}
PLURAL = {"some", "two", "three", "all", "these", "those"}


# ---- The grammar: each function yields where a phrase that begins at words[i] can end ----

def noun_phrases(words, i):
    """Yields (end, whether plural, noun)."""
    determiner = words[i] if words[i:] else ""
    if determiner not in {"the", "no"} | SINGULAR | PLURAL:
        return
    at = i + 1 + (words[i + 1] in ADJECTIVES)
    table = LEMMAS if words[at] in LEMMAS else PLACES
    if words[at] not in table:
        return
    noun, many = table[words[at]]
    if determiner in (SINGULAR if many else PLURAL):
        return
    ends = [at + 1]
    if words[at + 1] == "near":
        ends += [end for end, _, _ in noun_phrases(words, at + 2)]
    if words[at + 1] == "that":
        ends += [*verb_phrases(words, at + 2, many, noun), *object_relatives(words, at + 2)]
    for end in ends:
        yield end, many, noun


def object_relatives(words, i):
    """Yields the ends of "the dogs chased", as in "the cat that the dogs chased"."""
    for end, many, noun in noun_phrases(words, i):
        for verb, _ in VERBS:
            present = verb.base if many else verb.third
            takes_them = verb.object == "animate" and noun in ANIMATE
            if takes_them and words[end] in (verb.past, present):
                yield end + 1


def verb_phrases(words, i, many, subject):
    """Yields the ends of the verb and its object, of a subject of this number."""
    for verb, _ in VERBS:
        if subject in ANIMATE:
            yield from active(words, i, many, verb)
        if verb.object != "none" and (subject in ANIMATE) == (verb.object == "animate"):
            yield from passive(words, i, many, verb)


def active(words, i, many, verb):
    negations = ["did", "not", verb.base], ["do" if many else "does", "not", verb.base]
    if words[i:i + 3] in negations:
        after = i + 3
    elif words[i] in (verb.past, verb.base if many else verb.third):
        after = i + 1
    else:
        return
    if verb.object == "none":
        yield after
        return
    for end, _, noun in noun_phrases(words, after):
        if (noun in ANIMATE) == (verb.object == "animate"):
            yield end


def passive(words, i, many, verb):
    if words[i] not in (("were", "are") if many else ("was", "is")):
        return
    after = i + 1 + (words[i + 1] == "not")
    if words[after:after + 2] == [verb.participle, "by"]:
        for end, _, noun in noun_phrases(words, after + 2):
            if noun in ANIMATE:
                yield end


def is_grammatical(text):
    words = [*text.split(), "", ""]
    ends = set()
    for subject_end, many, noun in noun_phrases(words, 0):
        for end in verb_phrases(words, subject_end, many, noun):
            ends |= {end, end + (words[end] in ADVERBS)}
    for end in list(ends):
        if words[end] == "near":
            ends |= {place_end for place_end, _, _ in noun_phrases(words, end + 1)}
    return any(words[end] == "." for end in ends)


# ---- The semantics: small worlds, in which a sentence is true or false ----

def meaning(text):
    """(quantifier, subject, verb, object, adverb, place) of a sentence of MNLI.

    The subject and the object: (noun, adjective, place)."""
    words = [*text.removesuffix(" .").split(), "", ""]

    def phrase(i):
        adjective = words[i + 1] if words[i + 1] in ADJECTIVES else None
        at = i + 1 + (adjective is not None)
        return at + 1, adjective, LEMMAS[words[at]][0]

    def place(i):
        return (i + 3, words[i + 2]) if words[i] == "near" else (i, None)

    i, adjective, noun = phrase(0)
    i, subject_place = place(i)
    negated = words[i] in ("did", "do", "does") and words[i + 1] == "not"
    i += 2 * negated
    verb = next(v for v, _ in VERBS if words[i] in (v.past, v.third, v.base))
    i += 1
    object_adjective = object_noun = None
    if verb.object != "none":
        i, object_adjective, object_noun = phrase(i)
    adverb = words[i] if words[i] in ADVERBS else None
    i, event_place = place(i + (adverb is not None))
    assert words[i] == ""
    quantifier = words[0] + " not" * negated
    subject, its_object = (noun, adjective, subject_place), (object_noun, object_adjective, None)
    return quantifier, subject, verb, its_object, adverb, event_place


def words_for_worlds(meanings):
    """What draw_world draws from: the words of these sentences, and None for "no such word"."""
    def leaves(nouns):
        found = set()
        for noun in nouns - {None}:
            members = [leaf for leaf, kind in KINDS.items() if kind == noun]
            found.update(members[:2] or [noun])
        return sorted(found)

    def or_none(words):
        return [None, *sorted(set(words) - {None})]

    _, subjects, _, objects, adverbs, places = zip(*meanings)
    subject_nouns, subject_adjectives, subject_places = zip(*subjects)
    object_nouns, object_adjectives, _ = zip(*objects)
    subject_choices = [
        leaves(set(subject_nouns)), or_none(subject_adjectives), or_none(subject_places)]
    object_choices = [leaves(set(object_nouns)) or [None], or_none(object_adjectives), [None]]
    return subject_choices, object_choices, or_none(adverbs), or_none(places)


def draw_world(rng, words):
    """(individuals, events): who is in the world, and what each of them brought about.

    individuals: [(noun, adjective, place)]. events: for each individual a list of
    ((noun, adjective, None) of whom or what it was done to, adverb, place)."""
    subject_choices, object_choices, adverbs, places = words

    def phrase(choices):
        return tuple(map(rng.choice, choices))

    def event():
        return phrase(object_choices), rng.choice(adverbs), rng.choice(places)
    individuals = [phrase(subject_choices) for _ in range(rng.choice((1, 2, 4, 8)))]
    likely = rng.random()
    events = []
    for _ in individuals:
        events.append([event() for _ in range(3) if rng.random() < likely])
    return individuals, events


def is_true(world, sentence):
    quantifier, subject, _, its_object, adverb, place = sentence

    def fits(individual, phrase):
        pairs = zip(phrase, individual)
        return all(wanted in (None, has, KINDS.get(has)) for wanted, has in pairs)

    def did_it(events):
        return any(
            fits(patient, its_object) and adverb in (None, how) and place in (None, where)
            for patient, how, where in events)
    values = [did_it(events) for one, events in zip(*world) if fits(one, subject)]
    if quantifier.endswith(" not"):
        quantifier = quantifier.removesuffix(" not")
        values = [not value for value in values]
    if quantifier == "no":
        return not any(values)
    if quantifier in ("every", "all"):
        return all(values)
    return sum(values) >= {"two": 2, "three": 3}.get(quantifier, 1)


def label_in_worlds(rng, premise, hypothesis, worlds=3000):
    """The label by random worlds: whether the hypothesis is true where the premise is."""
    words = words_for_worlds((premise, hypothesis))
    hypothesis_values = set()
    for _ in range(worlds):
        world = draw_world(rng, words)
        if is_true(world, premise):
            hypothesis_values.add(is_true(world, hypothesis))
    labels = {(True,): "entailment", (False,): "contradiction", (False, True): "neutral"}
    return labels[tuple(sorted(hypothesis_values))]


# ---- Paraphrases ----

def statement(text):
    """(verb, adverb, subject, object), each word as the first of its pair of synonyms."""
    words = text.removesuffix(" .").split()
    candidates = product(range(len(words)), VERBS)
    at, name = next(
        (i, name) for i, (verb, name) in candidates
        if words[i] in (verb.past, verb.participle)
        and verb.object != "none" and words[i] not in ADJECTIVES)
    is_passive = words[at - 1] in ("was", "were")
    adverb = ADVERBS.get(words[-1])
    if adverb:
        words.pop()
    subject, its_object = words[:at - is_passive], words[at + 1 + is_passive:]
    if is_passive:
        subject, its_object = its_object, subject

    def plain(phrase):
        return tuple(ADJECTIVES.get(word, "a" if word == "an" else word) for word in phrase)
    return name, adverb, plain(subject), plain(its_object)
