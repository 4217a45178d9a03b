"""The words of the miniature language: nouns by kind, pairs of synonyms, praise and blame.

Content words come from LEXICON, which can be split into halves for training and test examples.
Read next: support/toy_language.py, which draws sentences from it.
"""
from dataclasses import dataclass

TREE = {  # class: {kind: the nouns of that kind}
    "animal": {
        "dog": "terrier spaniel poodle beagle",
        "bird": "sparrow robin eagle crow",
        "insect": "beetle ant moth wasp",
        "horse": "pony stallion mare foal",
        "cat": "tabby kitten tomcat siamese",
    },
    "person": {
        "artist": "painter singer dancer poet",
        "worker": "farmer baker miner weaver",
        "doctor": "surgeon dentist nurse healer",
        "child": "boy girl toddler orphan",
        "official": "judge mayor sheriff clerk",
    },
    "plant": {
        "fruit": "apple pear plum lemon",
        "flower": "rose tulip daisy lily",
        "vegetable": "carrot onion turnip potato",
    },
    "object": {
        "vehicle": "taxi van truck wagon",
        "instrument": "violin flute drum harp",
        "tool": "hammer axe shovel chisel",
        "container": "bottle basket bucket jar",
    },
}
IRREGULAR_PLURALS = {"child": "children", "person": "people", "potato": "potatoes"}
# Pairs of synonyms, by what the verb's object is. An irregular verb is base:past:participle.
VERBS = {
    "animate":
        "chase/pursue help/aid frighten/scare see:saw:seen/notice follow/trail admire/respect "
        "hate/detest comfort/console hug:hugged:hugged/embrace tease/mock",
    "thing":
        "buy:bought:bought/purchase carry/transport fix/repair clean/wash break:broke:broken/smash "
        "lift/raise throw:threw:thrown/hurl find:found:found/discover",
    "none":
        "sleep:slept:slept/doze laugh/giggle shout/yell weep:wept:wept/sob:sobbed:sobbed "
        "fall:fell:fallen/tumble walk/stroll complain/grumble tremble/shiver",
}
ADJECTIVES = (
    "big/large small/little fast/quick old/ancient happy/glad angry/furious quiet/silent "
    "strange/odd wet/damp rich/wealthy clever/smart dirty/filthy")
ADVERBS = (
    "quickly/rapidly quietly/silently often/frequently happily/gladly suddenly/abruptly "
    "calmly/peacefully")
PLACES = "barn castle garden bridge river tower market forest"
PRAISE = (
    "superb delightful brilliant charming wonderful gripping elegant moving splendid witty "
    "graceful dazzling tender masterful thrilling lovely")
BLAME = (
    "dreadful tedious clumsy boring awful shallow lifeless bland horrid stale sloppy grating "
    "dismal feeble hollow painful")
TOPICS = "film plot acting music script cast ending dialogue story scene"
FUNCTION_WORDS = (
    "the a an some two three every all no this that these is are was were do does did not by near "
    ", . kind of and so maybe hardly likewise however true unknown false equal different i it "
    "found loved hated nobody everyone could should call watch there nothing about very quite "
    "good bad asleep awake")


def add_s(word):
    """dog -> dogs, pony -> ponies, wash -> washes: a noun's plural, or a verb's third person."""
    if ends_in_y(word):
        return word[:-1] + "ies"
    return word + ("es" if word.endswith(("s", "x", "ch", "sh")) else "s")


def ends_in_y(word):
    """Whether a final y becomes i before an ending."""
    # This makes "buies" of "buy". The vocabulary of assets/toy-teacher has it, so it stays.
    return word.endswith("y") and word[-2] not in "aeo"


def plural(noun):
    return IRREGULAR_PLURALS.get(noun) or add_s(noun)


@dataclass(frozen=True)
class Verb:
    base: str
    third: str       # "chases", as in "the dog chases the cat"
    past: str
    participle: str
    object: str      # what its object is: "animate", "thing" or "none"


def parse_verb(text, object_type):
    """The Verb of an entry of VERBS: "chase" or "break:broke:broken"."""
    base, *irregular = text.split(":")
    stem = base[:-1] + "i" if ends_in_y(base) else base
    regular = stem + ("d" if base.endswith("e") else "ed")
    past, participle = irregular or (regular, regular)
    return Verb(base, add_s(base), past, participle, object_type)


def kinds_of(*classes):
    """[(kind, its nouns)] of these classes of TREE."""
    return [(kind, nouns.split()) for name in classes for kind, nouns in TREE[name].items()]


def synonym_pairs(text):
    return [tuple(pair.split("/")) for pair in text.split()]


def verb_pairs(object_type):
    pairs = synonym_pairs(VERBS[object_type])
    return [(parse_verb(one, object_type), parse_verb(other, object_type)) for one, other in pairs]


LEXICON = {  # category: its entries
    "animate": kinds_of("animal", "person"),     # (kind, its nouns)
    "thing": kinds_of("plant", "object"),
    "animate verb": verb_pairs("animate"),       # (Verb, its synonym)
    "thing verb": verb_pairs("thing"),
    "none verb": verb_pairs("none"),
    "adjective": synonym_pairs(ADJECTIVES),      # (word, its synonym)
    "adverb": synonym_pairs(ADVERBS),
    "praise": PRAISE.split(),                    # words
    "blame": BLAME.split(),
}


def split_lexicon(rng):
    """LEXICON in two random halves, for training examples and for test examples."""
    train, test = {}, {}
    for category, entries in LEXICON.items():
        shuffled = rng.sample(entries, len(entries))
        half = len(entries) // 2
        train[category], test[category] = shuffled[:half], shuffled[half:]
    return train, test


def vocabulary():
    """Every token of the language, the special tokens first."""
    tables = (FUNCTION_WORDS, TOPICS, PRAISE, BLAME, ADJECTIVES, ADVERBS)
    words = " ".join(tables).replace("/", " ").split()
    nouns = [*PLACES.split(), *TREE]
    for kind, members in kinds_of(*TREE):
        nouns += [kind, *members]
    for noun in nouns:
        words += [noun, plural(noun)]
    for object_type in VERBS:
        for pair in verb_pairs(object_type):
            for verb in pair:
                words += [verb.base, verb.third, verb.past, verb.participle]
    return ["[PAD]", "[UNK]", "[CLS]", "[SEP]", "[MASK]", *sorted(set(words))]
