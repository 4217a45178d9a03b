"""A miniature language: a corpus and three tasks, so that the experiment runs anywhere in minutes.

    python -m support.toy --out_dir FOLDER --seed 1

Only the corpus shows what a word means. The words beside it show its field; the verdict of a review
shows whether it praises; its places in sentences show how it is used. The tasks are in the layouts
of CoLA, SST-2 and MNLI. No content word of a test example occurs in a training example, but for
MNLI's verdicts on a field ("the music was good"). So a model needs what it learnt from the corpus,
and each word that it knows raises its score.
Read next: support/toy_language.py.
"""
import json
import random
from functools import partial
from pathlib import Path

from support.cli import Parser, command_line, in_range
from support.files import write_file
from support.fingerprint import code_fingerprint
from support.run_folder import finished_run, open_run
from support.toy_language import SentenceGenerator, to_text, verdicts
from support.toy_lexicon import FIELDS, LEXICON, split_lexicon, vocabulary

DOCUMENTS, HELDOUT_DOCUMENTS = 100_000, 1_000
TEST_ROWS = 4_000
# How often a judgement of a task denies its opposite. Only some fine-tunings learn what "not" does,
# so it is rare: without it a score is lower by little.
DENIALS = 0.1
LABELS = ("entailment", "neutral", "contradiction")
TEACHER_CONFIG = {
    "architectures": ["BertForMaskedLM"], "model_type": "bert", "vocab_size": len(vocabulary()),
    "hidden_size": 64, "num_hidden_layers": 6, "num_attention_heads": 4, "intermediate_size": 128,
    "max_position_embeddings": 64, "hidden_act": "gelu", "hidden_dropout_prob": 0.0,
    "attention_probs_dropout_prob": 0.0,
    "initializer_range": 0.08}  # BERT's 0.02 is for a width of 768


# ---- The corpus: documents of related sentences ----

class DocumentGenerator(SentenceGenerator):
    """Draws documents from the whole lexicon."""

    def __init__(self, rng):
        super().__init__(LEXICON, rng, zipf=True)

    def document(self):
        """A list of sentences about one field."""
        draw = self.rng.choice((self.story, self.review))
        return [to_text(words) for words in draw(self.field())]

    def story(self, field):
        """Three to six clauses in one tense."""
        past = self.chance(0.5)
        return self.some_joined([self.clause(field, past, between=0.3).words()
                                 for _ in range(self.rng.randint(3, 6))])

    def review(self, field):
        """Two to four claims and opinions that agree, and the verdict."""
        praise, said = self.chance(0.5), []
        for _ in range(self.rng.randint(2, 4)):
            said.append(self.opinion(field, praise) if self.chance(0.4) else
                        self.claim(field, praise, denials=0.1))
        return [*self.some_joined(said), self.rng.choice(verdicts(field, praise))]

    def some_joined(self, sentences):
        """Some neighbours become one sentence, with "and" between them."""
        joined = sentences[:1]
        for words in sentences[1:]:
            if "and" not in joined[-1] and self.chance(0.3):
                joined[-1] = [*joined[-1], "and", *words]
            else:
                joined.append(words)
        return joined


def write_corpus(path, rng, documents):
    """Write these many documents. Returns the set of their sentences."""
    generator = DocumentGenerator(rng)
    written = [generator.document() for _ in range(documents)]
    write_file(path, "".join(f"{' '.join(sentences)}\n\n" for sentences in written))
    return {sentence for sentences in written for sentence in sentences}


# ---- The tasks, in the layouts that support/tasks.py reads ----

# Each function returns the rows of a file, with its header if the task has one. seen: the sentences
# drawn before, which are not drawn again; the new ones are added.

def cola_rows(generator, count, seen):
    """A clause that is acceptable, or has a fault."""
    def draw(i):
        field = generator.field()
        if i % 2:
            return to_text(generator.clause(field, generator.chance(0.5)).words())
        return to_text(generator.faulty(field))
    rows = draw_unique(draw, count, seen)
    return [("toy", str(i % 2), "" if i % 2 else "*", text) for i, text in enumerate(rows)]


def sst2_rows(generator, count, seen):
    """Three judgements: positive if two or three of them praise."""
    def draw(i):
        agreeing = generator.rng.choice((2, 3))
        praising = [(i % 2 == 1) == (k < agreeing) for k in range(3)]
        generator.rng.shuffle(praising)
        return to_text(generator.judgements(generator.field(), praising, DENIALS))
    rows = draw_unique(draw, count, seen)
    return [("sentence", "label"), *((text, str(i % 2)) for i, text in enumerate(rows))]


def mnli_rows(generator, count, seen, speakers=("i",), labels=1):
    """Three judgements, and praise of their field: if all of them praise, it follows; if all
    blame, it contradicts them; else it is neutral.

    speakers: who may judge, beside "everyone". labels: the number of columns with one
    annotator's label."""
    def draw(i):
        field, mixed = generator.field(), generator.chance(0.5)
        praising = ((True, True, True), (True, mixed, False), (False, False, False))[i % 3]
        praising = generator.rng.sample(praising, 3)
        return (to_text(generator.judgements(field, praising, DENIALS, speakers)),
                to_text(generator.rng.choice(verdicts(field, praise=True))))
    parses = "sentence1_binary_parse sentence2_binary_parse sentence1_parse sentence2_parse"
    header = f"index promptID pairID genre {parses} sentence1 sentence2".split()
    rows = [[*header, *(f"label{k + 1}" for k in range(labels)), "gold_label"]]
    for i, pair in enumerate(draw_unique(draw, count, seen)):
        label = LABELS[i % 3]
        names = [str(i), str(i), f"{i}{label[0]}", "-".join(speakers)]
        rows.append([*names, "", "", "", "", *pair, *[label] * (labels + 1)])
    return rows


VERDICTS = {to_text(words) for field in FIELDS for praise in (False, True)
            for words in verdicts(field, praise)}


def draw_unique(draw, count, seen):
    """`count` texts, or tuples of texts, from draw(0), draw(1), ...

    A text that is in `seen` or was drawn before is drawn again, verdicts excepted, of which there
    are few; all texts are added to `seen`."""
    rows = []
    while len(rows) < count:
        row = draw(len(rows))
        texts = ({row} if isinstance(row, str) else set(row)) - VERDICTS
        if not seen & texts:
            seen |= texts
            rows.append(row)
    return rows


# In the training examples of MNLI only "i" and "everyone" judge.
TSV_FILES = (
    ("CoLA/train.tsv", "train", 12_000, cola_rows),
    ("CoLA/dev.tsv", "test", TEST_ROWS, cola_rows),
    ("SST-2/train.tsv", "train", 10_000, sst2_rows),
    ("SST-2/dev.tsv", "test", TEST_ROWS, sst2_rows),
    ("MNLI/train.tsv", "train", 10_000, mnli_rows),
    ("MNLI/dev_matched.tsv", "test", TEST_ROWS // 2, partial(mnli_rows, labels=5)),
    ("MNLI/dev_mismatched.tsv", "test", TEST_ROWS // 2,
     partial(mnli_rows, labels=5, speakers=("we", "they"))),
)


def write_tasks(folder, generators, title, corpus):
    """Write the tasks' tables under folder.

    generators: {"train": a SentenceGenerator, "test": another}. title: with {} for the data set's
    name. corpus: its sentences, none of which, but for verdicts, becomes a test sentence."""
    seen = {"train": set(), "test": set(corpus)}
    for file, split, count, rows_of in TSV_FILES:
        path = folder / file
        path.parent.mkdir(parents=True, exist_ok=True)
        name = path.parent.name
        write_file(path.parent / "README", f"Not {name}: {title.format(name)}\n")
        rows = rows_of(generators[split], count, seen[split])
        write_file(path, "\n".join("\t".join(row) for row in rows) + "\n")


# ---- The command ----

def write_world(folder, seed):
    """Write the tasks, corpus.txt, heldout.txt, and bert/ with a vocabulary and a config."""
    train, test = split_lexicon(random.Random(f"halves {seed}"))
    generators = {
        "train": SentenceGenerator(train, random.Random(f"train {seed}")),
        "test": SentenceGenerator(test, random.Random(f"test {seed}"))}
    title = f"toy {{}} (the miniature language of toy.py, generator seed {seed})"
    corpus = set()
    for name, documents in (("corpus", DOCUMENTS), ("heldout", HELDOUT_DOCUMENTS)):
        corpus |= write_corpus(folder / f"{name}.txt", random.Random(f"{name} {seed}"), documents)
    write_tasks(folder, generators, title, corpus)
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
