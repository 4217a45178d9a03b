"""The guided tour: distillation step by step, with the real functions, in under a minute.

    make lesson         # text and results, which with the code also go into LESSON.md
    python lesson.py    # the results alone

An editor opens it as a notebook: each `# %%` starts a cell. Read next: losses.py.
"""
# %% [markdown]
# # Distillation in seven steps
#
# A large model, the teacher, has learned a language. A student of half its depth is to do the same.
# Here both are BERTs: they fill in blanks. The teacher comes with the project: 6 layers, trained on
# a miniature language of 1,120 words (and five special tokens), whose text `support/toy.py` writes.
# `make lesson` runs `lesson.py`, on a CPU in under a minute, and writes this page.
#
# ## 1. What a teacher knows about one blank
#
# The hidden word is *healed*. But a surgeon may do other things to a wound.

# %%
from pathlib import Path

import numpy as np
import torch

from data import PackedBlocks
from load_hf_weights import load_model, load_tokenizer
from losses import WEIGHTS, triple_loss
from model import count_parameters, make_student
from support import toy
from support.chunked_loss import ChunkedLoss
from support.corpus import corpus_tokens
from support.figures import plt  # matplotlib, drawing without a screen
from support.heldout import evaluate

# In eval mode, without dropout. (This small teacher has none anyway; BERT has 0.1.)
teacher = load_model("assets/toy-teacher").requires_grad_(False)
tokenizer = load_tokenizer("assets/toy-teacher")

sentence = "the surgeon [MASK] the wound ."
# (1, length): BERT frames every text, with [CLS] at its start and [SEP] at its end
sentence_ids = torch.tensor([tokenizer.encode(sentence).ids])
blank = sentence_ids[0].tolist().index(tokenizer.token_to_id("[MASK]"))


@torch.no_grad()
def word_probabilities(model, temperature=1.0):
    """The model's probability of each word of the vocabulary at the blank: (vocab)."""
    logits = model.eval()(sentence_ids)[0, blank]
    return (logits / temperature).softmax(-1)


at_temperature = {T: word_probabilities(teacher, T) for T in (1, 2, 8)}
likeliest = at_temperature[1].topk(8).indices.tolist()
unfit = [tokenizer.token_to_id(word) for word in ("milked", "sneezed", "the")]

print(sentence)
print(f"{'word':12}" + "".join(f"   T = {T}" for T in at_temperature))
for word in likeliest + unfit:
    cells = [f"{100 * p[word]:6.2f} %" for p in at_temperature.values()]
    print(f"{tokenizer.id_to_token(word):10}" + "".join(cells))
others = [f"{100 * (1 - p[likeliest + unfit].sum()):6.2f} %" for p in at_temperature.values()]
print(f"{'all others':10}" + "".join(others))

# %% [markdown]
# Each column is the softmax of the teacher's logits divided by T: the **soft targets**. The rows
# are the eight likeliest words, three that do not fit, and the sum over the 1,114 other tokens. A
# label would say: *healed*, and nothing else. The teacher says, in the column T = 1, that *cured*
# and *cures* fit at least as well; that *milked*, a verb of farming, hardly does; and that
# *sneezed*, which takes no object, and *the* do not. So one blank tells the student something about
# every word.
#
# **The temperature** decides how much of this counts in the loss. At T = 1 the first word is about
# fifty times as likely as *milked*. At T = 2, which training uses, it is seven times as likely: the
# many words of the last row weigh more, and *the* still has almost nothing. At T = 8 the
# distribution is nearly flat.
#
# ## 2. Half of the layers, copied
#
# `make_student` copies the embeddings, the layers 0, 2 and 5 of 6, and the head.

# %%
student = make_student(teacher)

if not Path("runs/toy/world/run.json").exists():  # the language's text: 2.9 million words
    toy.main(["--out_dir", "runs/toy/world", "--seed", "1", "--overwrite"])


def packed_blocks(file):
    """The text in blocks of 64 tokens."""
    return PackedBlocks(corpus_tokens([file], tokenizer, "runs/cache"), tokenizer, max_length=64)


blocks = packed_blocks("runs/toy/world/corpus.txt")
heldout_blocks = packed_blocks("runs/toy/world/heldout.txt")


def best_words(model):
    """The model's five likeliest words for the blank, with their probabilities at T = 1."""
    probabilities, words = word_probabilities(model).topk(5)
    rows = zip(probabilities.tolist(), words.tolist())
    return [f"{100 * p:5.1f} %  {tokenizer.id_to_token(word)}" for p, word in rows]


def show_columns(columns):
    """Print lists of equal length side by side. columns: {heading: list of strings}."""
    for row in [columns, *zip(*columns.values())]:
        print("".join(f"{cell:24}" for cell in row).rstrip())


def show_heldout(name):
    """How well the student fills in blanks of a text that it is not trained on."""
    means = evaluate(student, teacher, heldout_blocks, "fp32")
    print(f"{name:14}  same first word as the teacher: {100 * means['teacher_agreement']:.0f} %   "
          f"right: {100 * means['mlm_accuracy']:.0f} %   "
          f"(the teacher: {100 * means['teacher_mlm_accuracy']:.0f} %)")


for name, model in {"teacher": teacher, "student": student}.items():
    print(f"{name}: {len(model.bert.layers)} layers, {count_parameters(model):,} parameters")
print()
words = {"teacher": best_words(teacher), "copied": best_words(student)}
show_columns(words)
print()
show_heldout("copied")

# %% [markdown]
# Every copied layer but the first expects the output of a layer that was not copied. So the words
# get worse: the copy does not even see that the blank needs a verb. It is a better start than
# random weights all the same (`RESULTS.md`: they agree with the teacher on 0.3 % of the blanks). A
# layer only adds to what it is given (the residual sum), so without the layer before it, its input
# still resembles the one that it was trained on; and the embeddings and the head are whole. The
# last line looks beyond this sentence, at the blanks of 128 blocks of held-out text: how often
# student and teacher agree on the likeliest word, and how often each finds the true word. The
# teacher is far from 100 % because a text can often go on in several ways.
#
# ## 3. The three losses of one sentence, by hand
#
# `losses.py` defines them. Here they are again in numpy, from the logits and the last hidden states
# of both models alone. `ce` and `cos` are means over all 8 tokens, `mlm` is a mean over the masked
# tokens, here a single one.

# %%
labels = torch.full_like(sentence_ids, -100)  # -100: not masked
labels[0, blank] = tokenizer.token_to_id("healed")
with torch.no_grad():
    total, by_losses_py = triple_loss(student, teacher, sentence_ids, labels)
    student_hidden, teacher_hidden = (m.bert(sentence_ids)[0] for m in (student, teacher))
    student_logits, teacher_logits = student.logits(student_hidden), teacher.logits(teacher_hidden)

h_s, h_t = student_hidden.double().numpy(), teacher_hidden.double().numpy()  # (tokens, hidden)
z_s, z_t = student_logits.double().numpy(), teacher_logits.double().numpy()  # (tokens, vocab)
T = 2


def log_softmax(z):
    return z - np.log(np.exp(z).sum(-1, keepdims=True))


log_s, log_t = log_softmax(z_s / T), log_softmax(z_t / T)
ce = T**2 * (np.exp(log_t) * (log_t - log_s)).sum(-1).mean()       # T² KL(t || s)
mlm = -log_softmax(z_s)[blank, labels[0, blank]]                   # - log p(healed)
norms = np.linalg.norm(h_s, axis=-1) * np.linalg.norm(h_t, axis=-1)
cos = (1 - (h_s * h_t).sum(-1) / norms).mean()                     # 1 - cos(h_s, h_t)

by_hand = {"ce": ce, "mlm": mlm, "cos": cos, "total": 5 * ce + 2 * mlm + 1 * cos}
print(f"{'loss':8}{'by hand':>10}{'losses.py':>12}")
for name, value in {**by_losses_py, "total": total}.items():
    print(f"{name:8}{by_hand.get(name, np.nan):10.4f}{value:12.4f}")

# %% [markdown]
# Both columns are equal. `ce` (the paper's name, for the cross-entropy with the teacher) says how
# far the student's distribution is from the teacher's, at T = 2: the KL divergence, which is 0 for
# the same distribution. T² makes up for the gradients that the division by T shrinks (`losses.py`).
# `mlm` is minus the logarithm of the probability that the student gives to the true word. `cos`
# would be 0 if the hidden states of both had the same direction, and 1 if they were orthogonal.
# `total` is what the student minimises: 5 ce + 2 mlm + 1 cos.
#
# ## 4. The loop
#
# Eighty steps, each on 32 blocks of 64 tokens, of which 15 % are chosen to be predicted (most of
# these become [MASK]: `data.py`). `triple_loss` runs teacher and student on the same masked text;
# only the student is trained. `pretrain.py` has the same loop, and a schedule for the learning
# rate.

# %%
STEPS = 80
optimizer = torch.optim.AdamW(student.parameters(), lr=3e-3, betas=(0.9, 0.98), eps=1e-6,
                              weight_decay=0.0)
history = []
student.train()  # with dropout, where the model has any
for step in range(STEPS):
    input_ids, labels = blocks.training_batch(step, batch_size=32, mlm_prob=0.15, seed=0)
    total, losses = triple_loss(student, teacher, input_ids, labels)
    total.backward()
    torch.nn.utils.clip_grad_norm_(student.parameters(), 5.0)
    optimizer.step()
    optimizer.zero_grad()

    history.append({name: loss.item() for name, loss in losses.items()})
    if step % 20 == 0 or step == STEPS - 1:
        values = "   ".join(f"{name} {value:.2f}" for name, value in history[-1].items())
        print(f"step {step:3}   total {total.item():5.2f}   {values}", flush=True)

# %% [markdown]
# Each line has the losses of one batch, so they vary from line to line. `ce` and `cos` would be 0
# for a student that does exactly what its teacher does. `mlm` cannot be 0: nobody can guess every
# hidden word.
#
# ## 5. The words come back

# %%
words["trained"] = best_words(student)
show_columns(words)
print()
show_heldout("after training")

figure, axes = plt.subplots(1, len(history[0]), figsize=(9, 2.6), layout="constrained")
for axis, name in zip(axes, history[0]):
    axis.plot([losses[name] for losses in history])
    axis.set(title=name, xlabel="step", ylim=0)
axes[0].set_ylabel("loss of the step's batch")
figure.savefig("assets/lesson-losses.png", dpi=100)

# %% [markdown]
# ![The losses ce, mlm and cos of each step](assets/lesson-losses.png)
#
# With half of the layers the student gives verbs of medicine again, though not always in the right
# form (*cure*). On held-out text it agrees with the teacher, and finds the true word, 1.7 times
# as often as the copy did; eighty steps do not make it as good as its teacher. In the picture all
# three losses drop steeply at first, and then ever more slowly.
#
# ## 6. The same loss in less memory
#
# `triple_loss` holds the logits of all tokens at once. With BERT's 30,522 words, the logits of 32
# blocks of 128 tokens are 500 MB, and their gradient is as large again. `pretrain.py` therefore
# evaluates the losses on logits on a chunk of tokens at a time, and takes the chunk's gradient (of
# the decoder's input, matrix and bias) before the next: so the logits of one chunk exist at a time
# (`support/chunked_loss.py`). The cosine needs no logits, and is taken at once. `tokens` and
# `masked` are the counts by which the sums over the chunks are divided. One more batch, both ways:

# %%
student.eval()  # dropout would make the two gradients differ
input_ids, labels = blocks.training_batch(STEPS, batch_size=32, mlm_prob=0.15, seed=0)
tokens, masked = labels.numel(), int((labels != -100).sum())
in_chunks = ChunkedLoss(student, teacher, WEIGHTS, temperature=2.0, chunk_tokens=256)


def gradient(total):
    """All gradients of the student, one after the other."""
    student.zero_grad()
    total.backward()
    return torch.cat([p.grad.flatten() for p in student.parameters()])


total, losses = triple_loss(student, teacher, input_ids, labels)
chunked_total, chunked_losses = in_chunks(input_ids, labels, tokens, masked)
plain_gradient, chunked_gradient = gradient(total), gradient(chunked_total)
difference = (plain_gradient - chunked_gradient).norm() / plain_gradient.norm()

print(f"{tokens} tokens, {masked} of them masked, in {tokens // 256} chunks")
print(f"{'loss':8}{'at once':>10}{'in chunks':>12}")
for name, value in {**losses, "total": total}.items():
    chunked_value = {**chunked_losses, "total": chunked_total}[name]
    print(f"{name:8}{value:10.4f}{chunked_value:12.4f}")
print(f"relative difference of the gradients: {difference:.4f}")

# %% [markdown]
# The same values and the same gradient, so the same training. `support/chunked_loss.py` calls the
# formulas of `losses.py` as they are: to change a loss, edit its formula and nothing else.
#
# ## 7. Now edit `cosine_loss`
#
# What would another distance between the hidden states do? In `losses.py`, replace the `return`
# line of `cosine_loss`, for example by the squared difference:
#
# ```
# return F.mse_loss(student_hidden, teacher_hidden)
# ```
#
# Then run
#
# ```
# make ablation
# ```
#
# It distils five students, one with everything and four without one part each. It fine-tunes them
# and the teacher on three tasks, reads the same tasks off the frozen models with a linear
# classifier, and reports what each part is worth: with five seeds, in 10 to 15 minutes on two
# cores. After an edit, only what depends on it runs again, and the report shows the change.
# `make lesson` shows the edit too: in step 3, `by hand` is still the cosine.
#
# Read next: `losses.py`. `docs/exercises.md` has more to try.
