"""A miniature language: a corpus and four tasks, so that the experiment runs anywhere in minutes.

    python -m support.toy --out_dir FOLDER --seed 1

Only the corpus shows what a word means: which words are synonyms (restatements, glossaries), which
noun is a kind of which (glossaries, stories, inferences), which words praise (reviews). The tasks
are in the layouts of CoLA, MNLI, MRPC and IMDb. They have few training examples, and no content
word of a test example occurs in a training example. Read next: support/toy_language.py.
"""
import json
import random
from dataclasses import replace
from functools import partial
from pathlib import Path

from support.cli import Parser, command_line, in_range
from support.files import write_file
from support.fingerprint import code_fingerprint
from support.run_folder import finished_run, open_run
from support.toy_language import LABELS, SentenceGenerator, to_text
from support.toy_lexicon import LEXICON, TOPICS, TREE, VERBS, plural, split_lexicon, vocabulary

DOCUMENTS, HELDOUT_DOCUMENTS = 120_000, 1_000
TRAIN_ROWS, TEST_ROWS = 1_000, 600

# Three layers: make toy-teacher grows them to twelve.
TEACHER_CONFIG = {
    "architectures": ["BertForMaskedLM"], "model_type": "bert", "vocab_size": len(vocabulary()),
    "hidden_size": 96, "num_hidden_layers": 3, "num_attention_heads": 4, "intermediate_size": 384,
    "max_position_embeddings": 64, "hidden_act": "gelu", "hidden_dropout_prob": 0.0,
    "attention_probs_dropout_prob": 0.0}


# ---- The corpus: documents of related sentences ----

class DocumentGenerator(SentenceGenerator):
    """Draws documents that contain none of the `reserved` sentences, those of the test examples."""

    def __init__(self, lexicon, rng, reserved):
        super().__init__(lexicon, rng)
        self.reserved = reserved

    def document(self):
        """A list of paragraphs, each a text."""
        kinds = (self.story, self.glossary, self.restatement, self.conclusion, self.review)
        [draw] = self.rng.choices(kinds, (4, 8, 4, 4, 4))
        while True:
            statements, paragraphs = draw()
            if not self.reserved.intersection(map(to_text, statements)):
                return paragraphs

    # Each kind of document is drawn as (its statements, its paragraphs). The statements, lists of
    # words, are those of its sentences that might also be drawn for a test example.

    def story(self):
        """Sentences about one person or animal, called by its noun or its kind after the first.

        A story keeps to a few words, as texts do (lexical cohesion, Halliday and Hasan 1976). So
        words that are alike, synonyms and members of a kind, occur close together."""
        few = {}
        for category, entries in self.lexicon.items():
            few[category] = self.rng.sample(entries, 2 if category == "animate" else 1)
        draw, past = SentenceGenerator(few, self.rng), self.chance(0.5)
        hero = draw.phrase("animate", ("a", "some"), leaf=1)
        again = replace(hero, determiner="the", adjective=None)
        clauses = [replace(draw.clause(past), subject=hero, negated=False)]
        for _ in range(self.rng.randint(2, 4)):
            called = replace(again, noun=self.rng.choice((hero.noun, hero.kind)))
            clauses.append(replace(draw.clause(past), subject=called))
        statements = [clause.words() for clause in clauses]

        relative = draw.relative(past) if self.chance(0.3) else None
        called = replace(again, noun=hero.kind, relative=relative)
        asleep = self.chance(0.3)
        state = self.rng.choice(("asleep", "awake")) if asleep else draw.word("adjective")
        is_or_was = (("was", "were") if past else ("is", "are"))[hero.plural]
        place = self.rng.randint(1, len(statements))
        statements.insert(place, [*called.words(), is_or_was, state])
        return statements, [" ".join(map(to_text, statements))]

    def glossary(self):
        """What is a kind of what; which words are synonyms; which words praise."""
        entries = (self.kind_entry, self.synonym_entry, self.quality_entry)
        return [], [" ".join(to_text(self.rng.choice(entries)()) for _ in range(4))]

    def kind_entry(self):
        name_of_class = self.rng.choice(list(TREE))
        kind, other = self.rng.sample(list(TREE[name_of_class]), 2)
        noun = self.rng.choice(TREE[name_of_class][kind].split())
        return self.rng.choice((
            ["a", noun, "is", "a", "kind", "of", kind],
            ["all", plural(noun), "are", plural(kind)],
            ["every", noun, "is", "a", kind, "and", "every", kind, "is", "a", name_of_class],
            ["no", noun, "is", "a", other],
            ["no", kind, "is", "a", other],
            [plural(kind), "are", plural(name_of_class)]))

    def synonym_entry(self):
        verbs = [f"{object_type} verb" for object_type in VERBS]
        category = self.rng.choice(("adjective", "adverb", *verbs))
        word = self.word(category)
        synonym = self.synonym(word, category)
        if category in verbs:
            word, synonym = word.past, synonym.past
        return [word, "and", synonym, "are", "equal"]

    def quality_entry(self):
        praise, denied = self.chance(0.5), self.chance(0.3)
        topic = self.rng.choice(TOPICS.split())
        word = self.rng.choice(self.lexicon["praise" if praise else "blame"])
        verdict = "good" if praise != denied else "bad"
        if denied:
            return ["a", topic, "that", "is", "not", word, "is", verdict]
        return ["a", word, topic, "is", verdict]

    # Only one word says how two sentences are related: if it is masked, no neighbour reveals it.

    def restatement(self):
        """A sentence, another that means the same or does not, and a word that says which."""
        same = self.chance(0.5)
        first, second = self.paraphrase(same)
        connective = "likewise" if same else "however"
        return self.two_sentences(first, second, connective, "equal" if same else "different")

    def conclusion(self):
        """A sentence, another that follows, may follow or is false, and a word that says which."""
        label = self.rng.choice(LABELS)
        first, second = self.inference(label, self.chance(0.7))
        connective, verdict = {
            "entailment": ("so", "true"),
            "neutral": ("maybe", "unknown"),
            "contradiction": ("hardly", "false")}[label]
        return self.two_sentences(first, second, connective, verdict)

    def two_sentences(self, first, second, connective, verdict):
        """Two clauses as one paragraph or two; either word may say how they are related."""
        first, second = first.words(), second.words()
        if self.chance(0.5):
            end = to_text([connective, ",", *second])
        else:
            end = f"{to_text(second)} this is {verdict} ."
        start = to_text(first)
        paragraphs = [f"{start} {end}"] if self.chance(0.4) else [start, end]
        return [first, second], paragraphs

    def review(self):
        """Claims, some with the feeling that goes with them, and the verdict of the majority.

        In most reviews the claims agree."""
        unanimous, praise = self.chance(0.6), self.chance(0.5)
        count = self.rng.choice((3, 5))
        praised = [praise if unanimous else self.chance(0.5) for _ in range(count)]
        claims = [self.claim(praise, 0.1 if unanimous else 0.35) for praise in praised]
        sentences = []
        for praise, claim in zip(praised, claims):
            feeling = ["and", "i", "loved" if praise else "hated", "it"]
            sentences.append(claim + feeling if self.chance(0.4) else claim)
        good = sum(praised) > count / 2
        sentences.append(self.rng.choice((
            ["i", "loved" if good else "hated", "it"],
            ["the", "film", "was", "good" if good else "bad"],
            ["everyone" if good else "nobody", "should", "watch", "it"])))
        return claims, [" ".join(map(to_text, sentences))]


def corpus_text(generator, documents):
    paragraphs = []
    for _ in range(documents):
        paragraphs += generator.document()
    return "".join(f"{paragraph}\n\n" for paragraph in paragraphs)


# ---- The tasks, in the layouts that support/tasks.py reads ----

# Each function returns the rows of a file, its header included. seen: the sentences drawn before,
# which are not drawn again; the new ones are added.

def cola_rows(generator, count, seen):
    def draw(i):
        if i % 2:
            return to_text(generator.clause(generator.chance(0.5)).words())
        return to_text(generator.unacceptable())
    rows = draw_unique(draw, count, seen)
    return [("toy", str(i % 2), "" if i % 2 else "*", text) for i, text in enumerate(rows)]


def mnli_rows(generator, count, seen, past=True, labels=1):
    """past: the tense. labels: the number of columns with one annotator's label."""
    def draw(i):
        premise, hypothesis = generator.inference(LABELS[i % 3], past)
        return to_text(premise.words()), to_text(hypothesis.words())
    parses = "sentence1_binary_parse sentence2_binary_parse sentence1_parse sentence2_parse"
    header = f"index promptID pairID genre {parses} sentence1 sentence2".split()
    rows = [[*header, *(f"label{k + 1}" for k in range(labels)), "gold_label"]]
    for i, pair in enumerate(draw_unique(draw, count, seen)):
        label = LABELS[i % 3]
        names = [str(i), str(i), f"{i}{label[0]}", "past" if past else "present"]
        no_parses = [""] * 4
        rows.append([*names, *no_parses, *pair, *[label] * (labels + 1)])
    return rows


def mrpc_rows(generator, count, seen):
    def draw(i):
        clause, other = generator.paraphrase(bool(i % 2), 0.2)
        return to_text(clause.words()), to_text(other.words())
    rows = [("\ufeffQuality", "#1 ID", "#2 ID", "#1 String", "#2 String")]
    for i, pair in enumerate(draw_unique(draw, count, seen)):
        rows.append((str(i % 2), str(2 * i), str(2 * i + 1), *pair))
    return rows


def draw_unique(draw, count, seen):
    """`count` texts, or tuples of texts, from draw(0), draw(1), ...

    A text that is in `seen` or was drawn before is drawn again; all texts are added to `seen`."""
    rows = []
    while len(rows) < count:
        row = draw(len(rows))
        texts = {row} if isinstance(row, str) else set(row)
        if not seen & texts:
            seen |= texts
            rows.append(row)
    return rows


# The present tense occurs in no training example of MNLI.
TSV_FILES = (
    ("CoLA/train.tsv", "train", cola_rows),
    ("CoLA/dev.tsv", "test", cola_rows),
    ("MNLI/train.tsv", "train", mnli_rows),
    ("MNLI/dev_matched.tsv", "test", partial(mnli_rows, labels=5)),
    ("MNLI/dev_mismatched.tsv", "test", partial(mnli_rows, labels=5, past=False)),
    ("MRPC/train.tsv", "train", mrpc_rows),
    ("MRPC/dev.tsv", "test", mrpc_rows),
)


def write_tasks(folder, generators, title):
    """Write CoLA, MNLI, MRPC and aclImdb under folder.

    generators: {"train": a SentenceGenerator, "test": another}. title: with {} for the data set's
    name. Returns the set of all test sentences, those of the reviews excepted."""
    names = {"CoLA": "CoLA", "MNLI": "MNLI", "MRPC": "MRPC", "aclImdb": "IMDb"}
    for name, data_set in names.items():
        (folder / name).mkdir(parents=True, exist_ok=True)
        write_file(folder / name / "README", f"Not {data_set}: {title.format(data_set)}\n")
    seen = {"train": set(), "test": set()}
    for file, split, rows_of in TSV_FILES:
        count = TRAIN_ROWS if split == "train" else TEST_ROWS
        rows = rows_of(generators[split], count, seen[split])
        write_file(folder / file, "\n".join("\t".join(row) for row in rows) + "\n")
    for split, count in (("train", TRAIN_ROWS), ("test", TEST_ROWS)):
        write_reviews(folder / "aclImdb" / split, generators[split], count)
    return seen["test"]


def write_reviews(folder, generator, count):
    """Half of them negative, half positive: three or four of the five claims of a review agree."""
    rng = generator.rng
    for positive, name in enumerate(("neg", "pos")):
        (folder / name).mkdir(parents=True, exist_ok=True)
        for i in range(count // 2):
            agreeing = rng.choice((3, 4))
            claims = []
            for k in range(5):
                praise = bool(positive) == (k < agreeing)
                claims.append(to_text(generator.claim(praise)))
            rng.shuffle(claims)
            stars = 1 + 6 * positive + rng.randint(0, 3)
            text = " ".join(claims[:2]) + "<br /><br />" + " ".join(claims[2:])
            write_file(folder / name / f"{i}_{stars}.txt", text)


# ---- The command ----

def write_world(folder, seed):
    """Write the tasks, corpus.txt, heldout.txt, and bert/ with a vocabulary and a config."""
    train, test = split_lexicon(random.Random(f"halves {seed}"))
    generators = {
        "train": SentenceGenerator(train, random.Random(f"train {seed}")),
        "test": SentenceGenerator(test, random.Random(f"test {seed}"))}
    title = f"toy {{}} (the miniature language of toy.py, generator seed {seed})"
    reserved = write_tasks(folder, generators, title)
    for name, documents in (("corpus", DOCUMENTS), ("heldout", HELDOUT_DOCUMENTS)):
        generator = DocumentGenerator(LEXICON, random.Random(f"{name} {seed}"), reserved)
        write_file(folder / f"{name}.txt", corpus_text(generator, documents))
    (folder / "bert").mkdir(exist_ok=True)
    write_file(folder / "bert" / "vocab.txt", "\n".join(vocabulary()) + "\n")
    write_file(folder / "bert" / "config.json", json.dumps(TEACHER_CONFIG, indent=2) + "\n")


def main(arguments):
    """Write the miniature language to --out_dir, unless it is there already."""
    parser = Parser(__doc__)
    parser.add_argument("--out_dir", required=True, help="folder to write to")
    parser.add_argument(
        "--seed", type=in_range(int, 0), default=1,
        help="of the examples, the corpus, and the choice of the test words")
    parser.add_argument(
        "--overwrite", action="store_true",
        help="if --out_dir holds another run: archive it as OUT_DIR~1")
    args = parser.parse_args(arguments)
    fingerprint = {"code": code_fingerprint(__file__)}
    if finished_run(args, fingerprint):
        return
    with open_run(args, fingerprint) as run:
        write_world(Path(args.out_dir), args.seed)
        run.finish()


if __name__ == "__main__":
    command_line(main)
