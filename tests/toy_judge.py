"""A judge of the miniature language that is independent of its generator.

is_grammatical parses a clause; fields_of and praises say what a sentence is about, and whether it
praises. Only the words and their inflection come from support/toy_lexicon.py.
Read next: test_toy.py.
"""
import re

from support import toy_lexicon

NOUNS, VERBS, ADJECTIVES, FIELD_OF = {}, {}, set(), {}  # form: (whether plural); form: its Verbs
for field_name, categories in toy_lexicon.LEXICON.items():
    for category, entries in categories.items():
        for entry in entries:
            for form in toy_lexicon.forms(category, entry):
                FIELD_OF[form] = field_name
            if category.startswith("verb"):
                for form in toy_lexicon.forms(category, entry):
                    VERBS[form] = entry
            elif category == "adjective":
                ADJECTIVES.add(entry)
            elif field_name != "quality":
                NOUNS.update({entry: False, toy_lexicon.add_s(entry): True})
FIELD_OF.update({name: name for name in toy_lexicon.FIELDS})

SINGULAR = {"a", "an", "every", "this"}
PLURAL = {"some", "two", "three", "all", "these"}
DENIALS = {"not", "nobody", "nothing"}


def noun_phrase(words, i):
    """(end, whether plural) of the noun phrase that begins at words[i]; None if there is none."""
    determiner = words[i]
    if determiner not in {"the"} | SINGULAR | PLURAL:
        return None
    at = i + 1 + (words[i + 1] in ADJECTIVES)
    if words[at] not in NOUNS:
        return None
    many = NOUNS[words[at]]
    if determiner in (SINGULAR if many else PLURAL):
        return None
    if words[at + 1] == "near":
        inner = noun_phrase(words, at + 2)
        return inner and (inner[0], many)
    return at + 1, many


def verb_group(words, i, many):
    """(end, Verb) of a verb that agrees with a subject of this number; None if there is none."""
    if words[i] in ("did", "do" if many else "does") and words[i + 1] == "not":
        verb = VERBS.get(words[i + 2])
        return (i + 3, verb) if verb and words[i + 2] == verb.base else None
    verb = VERBS.get(words[i])
    if verb and words[i] in (verb.past, verb.base if many else verb.third):
        return i + 1, verb
    return None


def is_grammatical(text):
    """Whether a clause, without its full stop, is one of the language."""
    words = [*text.split(), "", "", "", ""]
    subject = noun_phrase(words, 0)
    group = subject and verb_group(words, *subject)
    if not group:
        return False
    end, verb = group
    if verb.has_object:
        its_object = noun_phrase(words, end)
        if not its_object:
            return False
        end = its_object[0]
    if words[end] == "near":
        place = noun_phrase(words, end + 1)
        end = place[0] if place else end
    return words[end] == ""


def fields_of(text):
    """The fields of a sentence's words."""
    return {FIELD_OF[word] for word in text.split() if word in FIELD_OF} - {"quality"}


def judgements_of(text):
    """The parts of "i found the cow lovely , the barn dull and the hen superb"."""
    return re.split(r" , | and ", text.removesuffix(" ."))


def praises(judgement):
    """Whether a judgement, or a verdict, praises."""
    words = set(judgement.split())
    praising = words & {"good", "loved", "praise", *toy_lexicon.PRAISE.split()}
    return bool(praising) != bool(words & DENIALS)
