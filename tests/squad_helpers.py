"""What the tests of SQuAD share: a small tokenizer, texts for it, and a file that can be learnt."""
import numpy as np
import scipy.special
import tokenizers
from conftest import GOOD, SPECIAL, WORDS
from hypothesis import HealthCheck, settings
from hypothesis import strategies as st

quick = settings(max_examples=60, deadline=None, suppress_health_check=list(HealthCheck))

PIECES = [*"abcde", *(f"##{letter}" for letter in "abcde"), "ab", "cafe", ".", "中"]
LETTERS = {token: i for i, token in enumerate([*SPECIAL, *PIECES])}

TEXT_WORDS = ["ab", "Abc", "d", "e", ".", "cafe\u0301", "CAFÉ", "中", "xyz", "bcde", " ", "\n",
              "\u200b"]
TEXT = st.lists(st.sampled_from(TEXT_WORDS), min_size=1, max_size=40).map(" ".join)


def letters_tokenizer():
    """Splits words into pieces, and drops accents and case, as bert-base-uncased's does."""
    tokenizer = tokenizers.Tokenizer(tokenizers.models.WordPiece(LETTERS, unk_token="[UNK]"))
    tokenizer.normalizer = tokenizers.normalizers.BertNormalizer(lowercase=True)
    tokenizer.pre_tokenizer = tokenizers.pre_tokenizers.BertPreTokenizer()
    return tokenizer


def squad_file(rng, questions):
    """A file in SQuAD's layout, two questions per text, that can be learnt.

    A question names a marker word. Its answer is the word after the marker in the text, which
    comes from a list of its own."""
    paragraphs = [squad_paragraph(rng, number) for number in range(questions // 2)]
    return {"version": "1.1", "data": [{"title": "made", "paragraphs": paragraphs[::2]},
                                       {"title": "up", "paragraphs": paragraphs[1::2]}]}


def squad_paragraph(rng, number):
    length = rng.randint(6, 14) if number % 16 else rng.randint(60, 75)  # some need windows
    words = rng.choices(WORDS[:60], k=length)
    place, marker = rng.randrange(len(words) - 1), rng.choice(GOOD)
    words[place:place + 2] = marker, rng.choice(WORDS[60:90])
    if number % 5 == 0:
        words, place = ["Ünï", "“x”", "e\u0301", *words], place + 3
    answer = {"text": words[place + 1], "answer_start": len(" ".join(words[:place + 1])) + 1}
    qas = []
    for i, word in enumerate(("film", "bad")):
        qas.append({"id": f"{number:04x}{i}", "question": f"{word} {marker} .",
                    "answers": [answer] * 2})
    return {"context": " ".join(words), "qas": qas}


def soft_divergence(student_logits, teacher_logits, temperature=2):
    """KL(teacher || student) at a temperature, times its square, in numpy."""
    s = scipy.special.log_softmax(student_logits / temperature)
    t = scipy.special.log_softmax(teacher_logits / temperature)
    return temperature ** 2 * np.sum(np.exp(t) * (t - s))
