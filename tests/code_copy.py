"""Copies of the project's code that a test may edit."""
import shutil

from conftest import ROOT

import finetune
import pretrain
from support import fingerprint


def copy_code(folder):
    """The files at the top and in support/."""
    (folder / "support").mkdir(parents=True)
    for path in (*ROOT.glob("*.py"), *ROOT.glob("support/*.py")):
        shutil.copy(path, folder / path.relative_to(ROOT))


def replace_once(path, old, new):
    """Replace a text that occurs once in a file."""
    text = path.read_text(encoding="utf-8")
    assert text.count(old) == 1, f"{path.name} has {text.count(old)} times {old!r}"
    path.write_text(text.replace(old, new), encoding="utf-8")


class CodeCopy:
    """The code in `folder`, on which fingerprints depend. What runs stays the project's own."""

    def __init__(self, folder, monkeypatch):
        self.folder = folder
        copy_code(folder)
        monkeypatch.setattr(fingerprint, "PROJECT", folder)
        monkeypatch.setattr(finetune, "PROJECT", folder)
        for module in (pretrain, finetune):
            monkeypatch.setattr(module, "__file__", str(folder / f"{module.__name__}.py"))
        self.forget()

    def forget(self):
        """As if a new process asked: it reads the code anew."""
        fingerprint.code_fingerprint.cache_clear()
        fingerprint.statements_of.cache_clear()

    def read(self, file):
        return (self.folder / file).read_text(encoding="utf-8")

    def write(self, file, text):
        """Write a file, unnoticed by this process until forget()."""
        (self.folder / file).write_text(text, encoding="utf-8")

    def replace(self, file, old, new):
        """Replace what occurs once in a file; "" appends, to a new file if need be."""
        if old:
            replace_once(self.folder / file, old, new)
        else:
            text = self.read(file) if (self.folder / file).exists() else ""
            self.write(file, text + new)
        self.forget()
