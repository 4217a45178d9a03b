"""support/corpus.py: any text becomes the right tokens, in parts, in parallel, and interrupted.

The small texts are written as bytes; `tokens_of` gives their tokens as words.
"""
import bz2
import gzip
import lzma
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
from support.corpus import (
    corpus_tokens,
    describe_corpus,
    describe_files,
    parts_of,
    starts_document,
    text_files,
    tokenize,
)
from support.errors import InputError


@pytest.fixture
def tokens_of(tmp_path, tokenizer):
    """tokens_of(bytes, ...) -> the tokens, as words, of files with these contents."""
    def make(*contents):
        folder = tmp_path / f"corpus{len(list(tmp_path.iterdir()))}"
        folder.mkdir()
        for number, content in enumerate(contents):
            (folder / f"{number}.txt").write_bytes(content)
        tokens = corpus_tokens([folder], tokenizer, tmp_path / "cache")
        return [tokenizer.id_to_token(i) for i in tokens]
    return make


# ---- Documents and lines ----

def test_every_document_ends_in_one_sep(tokens_of):
    expected = ["a", "b", "c", "[SEP]", "d", "[SEP]", "e", "[SEP]"]
    assert tokens_of(b"a b\nc\n\n\nd\n", b"e") == expected
    assert tokens_of(b"\n\n \na\n\n") == ["a", "[SEP]"]


def test_line_ends_byte_order_marks_and_nul_bytes_are_no_tokens(tokens_of):
    expected = ["a", "b", "c", "[SEP]", "d", "[SEP]"]
    assert tokens_of(b"\xef\xbb\xbfa b\r\nc\r\n\r\nd") == expected
    assert tokens_of(b"a\0 b\n") == ["a", "b", "[SEP]"]


def test_a_long_line_is_cut_between_words(tokens_of, monkeypatch):
    monkeypatch.setattr(corpus, "LONGEST_PIECE", 64)
    monkeypatch.setattr(corpus, "GROUP", 200)
    words = random.Random(0).choices(["banbins", "bad", "good", "a"], k=500)
    in_pieces = tokens_of(" ".join(words).encode())
    monkeypatch.setattr(corpus, "LONGEST_PIECE", 1 << 16)
    assert in_pieces == tokens_of("\n".join(words).encode() + b"\n")
    assert len(tokens_of(b"x" * 100_000)) < 5  # one word of 100 kB, without a space to cut at


def test_neither_the_last_line_nor_a_long_line_ends_a_document(tokens_of, monkeypatch):
    assert tokens_of(b"a b\n c") == tokens_of(b"a b\nc\n") == ["a", "b", "c", "[SEP]"]
    monkeypatch.setattr(corpus, "LONGEST_PIECE", 8)
    expected = ["[UNK]", "c", "[SEP]"]
    assert tokens_of(b"banbinsb\nc") == tokens_of(b"banbinsb\nc\n") == expected
    assert tokens_of(b"a         \t         b\n") == ["a", "b", "[SEP]"]


# ---- The array ----

def test_tokens_are_those_of_the_tokenizer(world, tokenizer, tmp_path, monkeypatch):
    monkeypatch.setattr(corpus, "GROUP", 500)  # many groups
    tokens = corpus_tokens([world / "corpus.txt"], tokenizer, tmp_path)
    expected = []
    for document in (world / "corpus.txt").read_text().split("\n\n"):
        expected += tokenizer.encode(document.replace("\n", " "), add_special_tokens=False).ids
        expected.append(tokenizer.token_to_id("[SEP]"))
    assert isinstance(tokens, np.memmap) and tokens.dtype == np.uint16
    assert tokens.tolist() == expected


def test_ids_of_a_large_vocabulary_take_four_bytes(tmp_path):
    words = ["[UNK]", "[SEP]", *(f"w{i}" for i in range(70_000))]
    vocabulary = {word: i for i, word in enumerate(words)}
    tokenizer = Tokenizer(models.WordLevel(vocabulary, unk_token="[UNK]"))
    tokenizer.pre_tokenizer = pre_tokenizers.Whitespace()
    (tmp_path / "text.txt").write_text("w69999 w1\n")
    tokens = corpus_tokens([tmp_path / "text.txt"], tokenizer, tmp_path)
    assert tokens.dtype == np.uint32 and tokens.tolist() == [70_001, 3, 1]


def test_the_array_is_reused_until_text_or_tokenizer_change(
        world, tokenizer, tmp_path, monkeypatch):
    text, copy, cache = tmp_path / "text.txt", tmp_path / "copy.txt", tmp_path / "cache"
    shutil.copy(world / "corpus.txt", text)
    first = corpus_tokens([text], tokenizer, cache)
    with monkeypatch.context() as patch:
        patch.setattr(corpus, "tokenize_all", None)  # a call would fail
        shutil.copy(text, copy)
        assert np.array_equal(corpus_tokens([copy], tokenizer, cache), first)
    text.write_text(text.read_text() + "good\n")  # the last document becomes longer
    assert len(corpus_tokens([text], tokenizer, cache)) == len(first) + 1
    tokenizer.add_tokens(["banbin"])
    corpus_tokens([text], tokenizer, cache)
    assert len(list(cache.iterdir())) == 3


def test_a_corpus_without_usable_text_is_refused(tokens_of, tokenizer, tmp_path):
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


def test_what_a_folder_is_read_for(tmp_path):
    """Upper-case endings and linked folders are read; hidden files are not, and circles end."""
    corpus, elsewhere = tmp_path / "corpus", tmp_path / "elsewhere"
    for name in ("a.txt", "B.TXT", "c.md", "d.raw", "deep/e.Tokens", ".hidden.txt", "._a.txt",
                 ".ipynb_checkpoints/a.txt", "notes.pdf"):
        (corpus / name).parent.mkdir(parents=True, exist_ok=True)
        (corpus / name).write_text("good\n")
    elsewhere.mkdir()
    (elsewhere / "f.txt").write_text("bad\n")
    (corpus / "linked").symlink_to(elsewhere)
    (elsewhere / "circle").symlink_to(corpus)
    files = text_files([corpus])
    assert [str(file.relative_to(corpus)) for file in files] == [
        "B.TXT", "a.txt", "c.md", "d.raw", "deep/e.Tokens", "linked/f.txt"]
    assert describe_files(files) == "6 files, 29 bytes"
    assert describe_files(files[:1]) == "1 file, 5 bytes"


def test_a_pipe_is_called_one(tmp_path):
    os.mkfifo(tmp_path / "pipe")
    with pytest.raises(InputError, match="pipe: neither a file nor a folder; a pipe cannot be"):
        text_files([tmp_path / "pipe"])


@pytest.mark.parametrize("kind, compress", [
    ("gzip", gzip.compress), ("bzip2", bz2.compress), ("xz", lzma.compress)])
def test_a_compressed_corpus_is_called_one(tmp_path, tokenizer, kind, compress):
    file = tmp_path / "corpus.txt.gz"
    file.write_bytes(compress("good café\n".encode() * 100))
    with pytest.raises(InputError, match=f"corpus.txt.gz: is compressed .{kind}.; unpack it first"):
        corpus_tokens([file], tokenizer, tmp_path / "cache")
    with pytest.raises(InputError, match=(r"this folder holds no \.txt, .* file; "
                                          "corpus.txt.gz is compressed: unpack it first")):
        text_files([str(tmp_path)])


def test_the_share_of_unknown_words_is_told_and_much_is_warned_of(tmp_path, tokenizer, capsys):
    known, foreign = "good bad " * 97 + "x x", "北京 " * 9
    for text, share, warns in ((known, "1 %", False), (foreign, "95 %", True)):
        file = tmp_path / "corpus.txt"
        file.write_text(text, encoding="utf-8")
        tokens = corpus_tokens([file], tokenizer, tmp_path / "cache")
        describe_corpus([file], tokens, tokenizer)
        printed = capsys.readouterr()
        assert f"1 file, {file.stat().st_size} bytes, {len(tokens):,} tokens" in printed.out
        assert f"{share} of them [UNK]" in printed.out
        assert ("warning: 95 % of the tokens" in printed.err) == warns


# ---- Parts ----

LINES = ["banbins good", "bad", "a b c d e f g h", "", "", " ", "\t", "\u3000"]


@settings(max_examples=80, deadline=None,
          suppress_health_check=[HealthCheck.function_scoped_fixture])
@given(lines=st.lists(st.sampled_from(LINES), max_size=12),
       line_end=st.sampled_from(["\n", "\r\n"]), part_size=st.integers(1, 60), ends=st.booleans())
def test_the_parts_together_have_the_tokens_of_the_whole(
        tokenizer, tmp_path, monkeypatch, lines, line_end, part_size, ends):
    text = tmp_path / "text.txt"
    text.write_bytes((line_end.join(lines) + line_end * ends).encode())

    def tokens(part_size):
        with monkeypatch.context() as patch:
            patch.setattr(corpus, "PART", part_size)
            parts = parts_of(text)
        ends, next_starts = [end for _, _, end in parts[:-1]], [start for _, start, _ in parts[1:]]
        assert ends == next_starts
        assert sum(end - start for _, start, end in parts) == text.stat().st_size
        joined = b""
        for part in parts:
            tokenize(part, tokenizer, tmp_path / "part")
            joined += (tmp_path / "part").read_bytes()
        return joined
    assert tokens(part_size) == tokens(1 << 20)


@pytest.mark.parametrize("start, expected", [
    (0, True),         # a, at the start of the file
    (2, False),        # an empty line, after a
    (3, True),         # b, after an empty line
    (6, False),        # an empty line with \r\n, after b
    (8, True),         # c, after an empty line with \r\n
    (10, False),       # a line of 100,000 x, after c
    (100_011, False),  # d, after the long line
])
def test_a_part_knows_whether_it_starts_a_document(tmp_path, start, expected):
    (tmp_path / "text").write_bytes(b"a\n\nb\r\n\r\nc\n" + b"x" * 100_000 + b"\nd")
    assert starts_document(tmp_path / "text", start) is expected


# ---- Killed and resumed ----

SCRIPT = """import sys
from load_hf_weights import load_tokenizer
from support import corpus
corpus.PART = 40_000
if __name__ == "__main__":
    corpus.corpus_tokens(sys.argv[3:], load_tokenizer(sys.argv[1]), sys.argv[2])
"""


def children(process):
    """The ids of the processes that a process has started."""
    return Path(f"/proc/{process.pid}/task/{process.pid}/children").read_text().split()


def wait_until_its_group_has_ended(process):
    deadline = time.monotonic() + 120
    list_group = ["pgrep", "-a", "-g", str(process.pid)]
    while left := subprocess.run(list_group, check=False, stdout=subprocess.PIPE).stdout:
        assert time.monotonic() < deadline, left


@pytest.mark.parametrize("victim", ["the first process", "one of the others"])
def test_after_a_kill_the_finished_parts_are_kept_and_no_process_is_left(
        world, tokenizer, tmp_path, victim):
    cache = tmp_path / "cache"
    files = [tmp_path / f"{name}.txt" for name in "abc"]
    for file in files:
        file.write_text(((world / "corpus.txt").read_text() + "\n") * 15)  # 0.3 MB
    (tmp_path / "script.py").write_text(SCRIPT)

    def start():
        command = [sys.executable, tmp_path / "script.py", world / "teacher", cache, *files]
        return subprocess.Popen(command, stderr=subprocess.PIPE, text=True, start_new_session=True,
                                env={**os.environ, "PYTHONPATH": str(ROOT)})

    def finished_parts():
        times = {}
        for path in cache.glob("*.part"):
            try:
                times[path] = path.stat().st_mtime_ns
            except FileNotFoundError:  # the array was finished in between, and its parts deleted
                pass
        return times

    first = start()
    while len(finished_parts()) < 3:
        assert first.poll() is None, first.communicate()[1]
        time.sleep(0.01)
    os.kill(first.pid if victim == "the first process" else int(children(first)[-1]),
            signal.SIGKILL)
    first.communicate()
    assert first.returncode
    wait_until_its_group_has_ended(first)
    before = finished_parts()
    assert len(before) >= 3 and not list(cache.glob("*.bin"))

    second = start()
    after = before
    while not list(cache.glob("*.bin")):
        after = finished_parts() or after
        assert second.poll() in (None, 0), second.communicate()[1]
        time.sleep(0.001)
    assert second.communicate()[0] is None and second.returncode == 0
    kept = before.keys() & after.keys()
    assert kept and all(after[path] == before[path] for path in kept)
    assert [path.suffix for path in cache.iterdir()] == [".bin"]
    tokens = corpus_tokens(files, tokenizer, cache)
    expected = corpus_tokens([world / "corpus.txt"], tokenizer, tmp_path / "other")
    assert np.array_equal(tokens, np.tile(expected, 45))
