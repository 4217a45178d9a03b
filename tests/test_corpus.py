"""corpus.py: text of any shape and size to tokens on disk, in parts, side by side, interrupted and gone on with."""
import os
import random
import shutil
import signal
import subprocess
import sys
import time
from pathlib import Path

import numpy as np
import pytest
from conftest import ROOT
from hypothesis import HealthCheck, given, settings
from hypothesis import strategies as st
from tokenizers import Tokenizer, models, pre_tokenizers

from support import corpus
from support.corpus import corpus_tokens, follows_a_document, parts_of, tokenize
from support.errors import InputError


@pytest.fixture
def tokens_of(tmp_path, tokenizer):
    """tokens_of(bytes, ...) -> the tokens of files with that content, as words."""
    def make(*contents):
        folder = tmp_path / f"corpus{len(list(tmp_path.iterdir()))}"
        folder.mkdir()
        for number, content in enumerate(contents):
            (folder / f"{number}.txt").write_bytes(content)
        return [tokenizer.id_to_token(i) for i in corpus_tokens([folder], tokenizer, tmp_path / "cache")]
    return make


def test_documents_end_in_sep(tokens_of):
    assert tokens_of(b"a b\nc\n\n\nd\n", b"e") == ["a", "b", "c", "[SEP]", "d", "[SEP]", "e", "[SEP]"]
    assert tokens_of(b"\n\n \na\n\n") == ["a", "[SEP]"]


def test_line_ends_byte_order_marks_and_nul_bytes(tokens_of):
    assert tokens_of(b"\xef\xbb\xbfa b\r\nc\r\n\r\nd") == ["a", "b", "c", "[SEP]", "d", "[SEP]"]
    assert tokens_of(b"a\0 b\n") == ["a", "b", "[SEP]"]


def test_a_long_line_is_cut_between_words(tokens_of, monkeypatch):
    monkeypatch.setattr(corpus, "LONGEST_PIECE", 64)
    monkeypatch.setattr(corpus, "GROUP", 200)
    words = random.Random(0).choices(["banbins", "bad", "good", "a"], k=500)
    whole = tokens_of(" ".join(words).encode())
    monkeypatch.setattr(corpus, "LONGEST_PIECE", 1 << 16)
    assert whole == tokens_of("\n".join(words).encode() + b"\n")
    assert len(tokens_of(b"x" * 100_000)) < 5  # one word of 100 kB, no white space to cut at


def test_the_last_line_and_long_lines_end_no_document(tokens_of, monkeypatch):
    assert tokens_of(b"a b\n c") == tokens_of(b"a b\nc\n") == ["a", "b", "c", "[SEP]"]
    monkeypatch.setattr(corpus, "LONGEST_PIECE", 8)
    assert tokens_of(b"banbinsb\nc") == tokens_of(b"banbinsb\nc\n") == ["[UNK]", "c", "[SEP]"]
    assert tokens_of(b"a         \t         b\n") == ["a", "b", "[SEP]"]


def test_tokens_are_those_of_the_tokenizer(world, tokenizer, tmp_path, monkeypatch):
    monkeypatch.setattr(corpus, "GROUP", 500)  # many groups
    tokens = corpus_tokens([world / "corpus.txt"], tokenizer, tmp_path)
    expected = []
    for document in (world / "corpus.txt").read_text().split("\n\n"):
        expected += tokenizer.encode(document.replace("\n", " "), add_special_tokens=False).ids + [tokenizer.token_to_id("[SEP]")]
    assert tokens.dtype == np.uint16 and isinstance(tokens, np.memmap) and tokens.tolist() == expected


def test_a_large_vocabulary_takes_four_bytes(tmp_path):
    words = ["[UNK]", "[SEP]", *(f"w{i}" for i in range(70_000))]
    tokenizer = Tokenizer(models.WordLevel({word: i for i, word in enumerate(words)}, unk_token="[UNK]"))
    tokenizer.pre_tokenizer = pre_tokenizers.Whitespace()
    (tmp_path / "text.txt").write_text("w69999 w1\n")
    tokens = corpus_tokens([tmp_path / "text.txt"], tokenizer, tmp_path)
    assert tokens.dtype == np.uint32 and tokens.tolist() == [70_001, 3, 1]


def test_tokens_are_reused_while_text_and_tokenizer_stay(world, tokenizer, tmp_path, monkeypatch):
    text, cache = tmp_path / "text.txt", tmp_path / "cache"
    shutil.copy(world / "corpus.txt", text)
    first = corpus_tokens([text], tokenizer, cache)
    with monkeypatch.context() as patch:
        patch.setattr(corpus, "tokenize_all", None)  # called, it would fail
        shutil.copy(text, tmp_path / "copy.txt")
        assert np.array_equal(corpus_tokens([tmp_path / "copy.txt"], tokenizer, cache), first)
    text.write_text(text.read_text() + "good\n")
    assert len(corpus_tokens([text], tokenizer, cache)) == len(first) + 1  # the last document goes on
    tokenizer.add_tokens(["banbin"])
    corpus_tokens([text], tokenizer, cache)
    assert len(list(cache.iterdir())) == 3


def test_corpora_that_cannot_be(tokens_of, tokenizer, tmp_path):
    for content in (b"", b"\n \n"):
        with pytest.raises(InputError, match="no text in it"):
            tokens_of(content)
    with pytest.raises(InputError, match=r"0.txt: line 2 is not UTF-8 text \(byte 0xe9"):
        tokens_of(b"good\ncaf\xe9 bad\n")
    assert not list((tmp_path / "cache").glob("*.tmp*"))
    with pytest.raises(InputError, match="absent: no such file"):
        corpus_tokens([tmp_path / "absent"], tokenizer, tmp_path)
    (tmp_path / "empty").mkdir()
    with pytest.raises(InputError, match="empty: this folder holds no .txt"):
        corpus_tokens([tmp_path / "empty"], tokenizer, tmp_path)


@settings(max_examples=80, deadline=None, suppress_health_check=[HealthCheck.function_scoped_fixture])
@given(st.lists(st.sampled_from(["banbins good", "bad", "a b c d e f g h", "", "", " ", "\t", "\u3000"]), max_size=12), st.sampled_from(["\n", "\r\n"]),
       st.integers(1, 60), st.booleans())
def test_parts_make_the_tokens_of_the_whole(tokenizer, tmp_path, monkeypatch, lines, line_end, part, ends):
    text = tmp_path / "text.txt"
    text.write_bytes((line_end.join(lines) + line_end * ends).encode())

    def tokens(part):
        with monkeypatch.context() as patch:
            patch.setattr(corpus, "PART", part)
            parts = parts_of(text)
        assert [end for _, _, end in parts[:-1]] == [start for _, start, _ in parts[1:]] and sum(end - start for _, start, end in parts) == text.stat().st_size
        made = b""
        for one in parts:
            tokenize(one, tokenizer, tmp_path / "part")
            made += (tmp_path / "part").read_bytes()
        return made
    assert tokens(part) == tokens(1 << 20)


def test_what_stands_before_a_part(tmp_path):
    (tmp_path / "text").write_bytes(b"a\n\nb\r\n\r\nc\n" + b"x" * 100_000 + b"\nd")
    starts = [follows_a_document(tmp_path / "text", start) for start in (0, 2, 3, 6, 8, 10, 100_011)]
    assert starts == [True, False, True, False, True, False, False]


SCRIPT = """import sys, corpus
from load_hf_weights import load_tokenizer
corpus.PART = 40_000
if __name__ == "__main__":
    corpus.corpus_tokens(sys.argv[3:], load_tokenizer(sys.argv[1]), sys.argv[2])
"""


@pytest.mark.parametrize("number, whom", [(signal.SIGKILL, "the first process"), (signal.SIGKILL, "one of the others")])
def test_tokenizing_that_is_killed_goes_on(world, tokenizer, tmp_path, number, whom):
    """In parts, by two processes; those that are done are not made again, and nobody lives on."""
    files = [tmp_path / f"{name}.txt" for name in "abc"]
    for file in files:
        file.write_text(((world / "corpus.txt").read_text() + "\n") * 15)  # 0.3 MB
    (tmp_path / "script.py").write_text(SCRIPT)

    def start():
        return subprocess.Popen([sys.executable, tmp_path / "script.py", world / "teacher", tmp_path / "cache", *files], stderr=subprocess.PIPE, text=True,
                                env={**os.environ, "PYTHONPATH": str(ROOT)}, start_new_session=True)

    def done():
        return {path: path.stat().st_mtime_ns for path in (tmp_path / "cache").glob("*.part")}
    first = start()
    while len(done()) < 3:
        assert first.poll() is None, first.communicate()[1]
        time.sleep(0.01)
    others = Path(f"/proc/{first.pid}/task/{first.pid}/children").read_text().split()
    os.kill(first.pid if whom == "the first process" else int(others[-1]), number)
    first.communicate()
    assert first.returncode
    started = time.monotonic()
    while left := subprocess.run(["pgrep", "-a", "-g", str(first.pid)], capture_output=True, text=True).stdout:
        assert time.monotonic() - started < 10, left
    before = done()
    assert len(before) >= 3 and not list((tmp_path / "cache").glob("*.bin"))
    second = start()
    while not list((tmp_path / "cache").glob("*.bin")):
        now = done() or now
        assert second.poll() in (None, 0), second.communicate()[1]
        time.sleep(0.001)
    assert second.communicate()[0] is None and second.returncode == 0
    assert all(now[path] == before[path] for path in before if path in now) and set(before) & set(now)
    assert [path.suffix for path in (tmp_path / "cache").iterdir()] == [".bin"]
    tokens = corpus_tokens(files, tokenizer, tmp_path / "cache")
    assert np.array_equal(tokens, np.tile(corpus_tokens([world / "corpus.txt"], tokenizer, tmp_path / "other"), 45))
