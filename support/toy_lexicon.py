"""The words of the miniature language: twelve fields, such as farming or music; praise and blame.

Every content word belongs to one field, or to praise or blame. A word's place in its list is its
rank: in the corpus the first are frequent and the last are rare, as in real text (Zipf's law).
"""
from dataclasses import dataclass

# In each field: persons; things; verbs with a thing as their object; verbs without an object;
# adjectives; places.
CATEGORIES = ("person", "thing", "verb with object", "verb alone", "adjective", "place")
FIELDS = {
    "farming": (
        "farmer shepherd herder reaper rancher grower drover milker",
        "cow goat pig hen tractor sickle pitchfork seedling crop haystack",
        "plant harvest milk plough shear irrigate", "toil graze sprout ripen moo",
        "fertile muddy rural ripe grassy", "field barn meadow stable"),
    "cooking": (
        "chef baker waiter butcher brewer caterer sommelier dishwasher",
        "cake soup pan oven kettle spoon sauce onion carrot pie",
        "fry boil roast peel season taste", "dine feast sizzle simmer nibble",
        "spicy salty crispy juicy tender", "kitchen tavern restaurant pantry"),
    "music": (
        "singer drummer pianist violinist composer fiddler cellist trumpeter",
        "song violin drum flute melody trumpet harp symphony opera lute",
        "compose perform rehearse record tune harmonize", "chant whistle croon yodel vibrate",
        "loud rhythmic melodic tuneful harmonic", "stage studio ballroom auditorium"),
    "medicine": (
        "doctor nurse patient surgeon dentist healer therapist pharmacist",
        "pill wound fever bandage tablet syringe vaccine scalpel crutch stretcher",
        "cure treat heal examine inject diagnose", "cough sneeze faint ache vomit",
        "swollen feverish sterile contagious bruised", "hospital clinic ward infirmary"),
    "law": (
        "judge lawyer witness sheriff juror clerk prosecutor bailiff",
        "verdict contract lawsuit warrant penalty testament statute charter subpoena affidavit",
        "accuse sue convict prosecute overrule indict", "testify confess plead adjourn litigate",
        "guilty innocent lawful illegal judicial", "court prison jail tribunal"),
    "war": (
        "soldier general knight archer sergeant gunner rebel sentry",
        "sword rifle tank cannon shield bullet helmet spear grenade banner",
        "attack defend invade conquer besiege bombard", "surrender retreat march salute skirmish",
        "armed hostile fierce victorious wounded", "fortress trench battlefield garrison"),
    "sailing": (
        "sailor captain pirate admiral navigator mariner boatswain stowaway",
        "anchor raft mast oar compass rudder hull schooner lifeboat dinghy",
        "steer navigate launch moor capsize salvage", "float drift drown paddle surf",
        "windy nautical seasick briny seaworthy", "harbour island beach lagoon"),
    "teaching": (
        "teacher pupil professor tutor scholar principal lecturer librarian",
        "book lesson pencil essay notebook exam textbook dictionary blackboard atlas",
        "explain memorize recite revise solve educate", "study graduate ponder scribble daydream",
        "curious attentive studious literate academic", "school classroom college library"),
    "sport": (
        "athlete runner boxer coach referee skater wrestler goalkeeper",
        "ball trophy medal racket hurdle skate puck javelin dumbbell barbell",
        "kick tackle score dribble toss hurl", "sprint jump compete leap somersault",
        "athletic muscular agile sporty sweaty", "stadium arena gymnasium racecourse"),
    "building": (
        "builder carpenter mason plumber architect roofer welder bricklayer",
        "hammer brick ladder nail beam plank tile chisel shovel girder",
        "construct assemble demolish erect renovate excavate",
        "collapse crumble tilt creak subside",
        "wooden sturdy dusty concrete crooked", "workshop quarry sawmill foundry"),
    "trade": (
        "merchant banker customer grocer broker cashier pedlar auctioneer",
        "coin receipt loan invoice cheque bargain discount ledger parcel voucher",
        "purchase export import advertise barter refund", "haggle profit prosper invest economize",
        "cheap expensive costly thrifty wealthy", "market shop warehouse bazaar"),
    "hunting": (
        "hunter trapper ranger poacher tracker forester falconer gamekeeper",
        "rabbit fox bear boar stag pheasant snare badger otter antler",
        "chase pursue stalk capture ensnare startle", "howl growl lurk prowl crouch",
        "wild savage furry wary feral", "forest thicket glade burrow"),
}
PRAISE = (
    "superb wonderful delightful brilliant charming elegant splendid lovely graceful dazzling "
    "magnificent marvellous glorious exquisite admirable enchanting fabulous gorgeous impressive "
    "flawless terrific majestic pleasing stunning remarkable heavenly inspiring sublime "
    "refreshing spectacular fantastic outstanding perfect adorable masterful peerless divine "
    "radiant thrilling priceless")
BLAME = (
    "dreadful awful boring tedious clumsy shallow horrid dismal feeble hollow painful sloppy "
    "terrible horrible ghastly hideous miserable pathetic lousy inferior dull wretched ugly "
    "disgusting appalling atrocious useless worthless abysmal shoddy dreary vile repulsive "
    "mediocre lamentable insipid grotesque deplorable laughable revolting")
FUNCTION_WORDS = (
    "the a an some two three every all this these is are was were do does did not near and that "
    ". , i it found loved hated nobody everyone could would call praise blame about there nothing "
    "very quite good bad they we")


def add_s(word):
    """dog -> dogs, pony -> ponies, wash -> washes: a noun's plural, or a verb's third person."""
    if ends_in_y(word):
        return word[:-1] + "ies"
    return word + ("es" if word.endswith(("s", "x", "ch", "sh")) else "s")


def ends_in_y(word):
    """Whether a final y becomes i before an ending."""
    return word.endswith("y") and word[-2] not in "aeou"


@dataclass(frozen=True)
class Verb:
    base: str
    has_object: bool

    @property
    def third(self):
        """As in "the farmer toils"."""
        return add_s(self.base)

    @property
    def past(self):
        stem = self.base[:-1] + "i" if ends_in_y(self.base) else self.base
        return stem + ("d" if stem.endswith("e") else "ed")


def read_lexicon():
    """{field: {category: its words}}, with "praise" and "blame" under "quality".

    Nouns and adjectives are strings, verbs are Verbs."""
    lexicon = {"quality": {"praise": PRAISE.split(), "blame": BLAME.split()}}
    for field, lists in FIELDS.items():
        lexicon[field] = {}
        for category, words in zip(CATEGORIES, lists, strict=True):
            entries = words.split()
            if category.startswith("verb"):
                entries = [Verb(base, category == "verb with object") for base in entries]
            lexicon[field][category] = entries
    return lexicon


LEXICON = read_lexicon()


def split_lexicon(rng):
    """LEXICON in two random halves, for training examples and for test examples."""
    train, test = {}, {}
    for field, categories in LEXICON.items():
        train[field], test[field] = {}, {}
        for category, words in categories.items():
            shuffled = rng.sample(words, len(words))
            half = len(words) // 2
            train[field][category], test[field][category] = shuffled[:half], shuffled[half:]
    return train, test


def forms(category, word):
    """Every form of a word."""
    if category.startswith("verb"):
        return [word.base, word.third, word.past]
    return [word, add_s(word)] if category in ("person", "thing", "place") else [word]


def vocabulary():
    """Every token of the language, the special tokens first."""
    words = [*FUNCTION_WORDS.split(), *FIELDS]
    for categories in LEXICON.values():
        for category, entries in categories.items():
            for word in entries:
                words += forms(category, word)
    return ["[PAD]", "[UNK]", "[CLS]", "[SEP]", "[MASK]", *sorted(set(words))]
