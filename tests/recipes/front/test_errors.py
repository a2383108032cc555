"""Every mistake in a recipe gets one exact sentence with its line."""

import pyarrow
import pytest
import torch

from recipes.errors import unforeseen

HEAD = "recipe: toy\n"
KEYS = "recipe, name, seed, do, method, tasks, weights, path, note, anything, trainer"
MISTAKES = {
    "unknown top key": ("nam: x", f"r.yaml:2: nam: unknown key; did you mean 'name'? Accepted: {KEYS}"),
    "unknown nested key": (
        "method:\n  rnk: 3",
        "r.yaml:3: method.rnk: unknown key; did you mean 'rank'? Accepted: rank, scale, kind, low, high",
    ),
    "unknown key of a list item": (
        "tasks:\n  - name: a\n  - {name: b, maxtrain: 3}",
        "r.yaml:4: tasks.1.maxtrain: unknown key; did you mean 'max_train'? Accepted: name, max_train",
    ),
    "not an int": ("seed: 1.5", "r.yaml:2: seed: expected a whole number, got 1.5"),
    "text for an int": ("seed: one", "r.yaml:2: seed: expected a whole number, got 'one'"),
    "true for an int": ("seed: true", "r.yaml:2: seed: expected a whole number, got true"),
    "null for an int": ("seed:", "r.yaml:2: seed: expected a whole number, got null"),
    "null for a text": ("name:", "r.yaml:2: name: expected text, got null"),
    "number for a text": ("name: 3", "r.yaml:2: name: expected text, got 3; write it in quotes"),
    "number for a text or null": ("note: 3", "r.yaml:2: note: expected text or null, got 3; write it in quotes"),
    "not a choice": (
        "do: fial",
        "r.yaml:2: do: expected one of 'nothing', 'fail', 'crash', 'interrupt', 'sleep', 'train', 'unread', got 'fial'"
        "; did you mean 'fail'? Accepted: nothing, fail, crash, interrupt, sleep, train, unread",
    ),
    "list for a mapping": (
        "method: [1]",
        "r.yaml:2: method: expected a mapping with rank, scale, kind, low, high, got [1]",
    ),
    "mapping for a list": ("tasks: {a: 1}", "r.yaml:2: tasks: expected a list of mappings, got {'a': 1}"),
    "text in a number map": ("weights:\n  a: x", "r.yaml:3: weights.a: expected a number, got 'x'"),
    "missing key": (
        "tasks:\n  - max_train: 3",
        "r.yaml:3: tasks.0.name: the key is missing; expected text (Name of the task.)",
    ),
    "duplicate key": ("seed: 1\nname: a\nseed: 2", "r.yaml:4: seed: the key appears twice; keep one"),
    "duplicate nested key": ("method: {rank: 1, rank: 1}", "r.yaml:2: method.rank: the key appears twice; keep one"),
    "infinity": ("method:\n  scale: .inf", "r.yaml:3: method.scale: expected a finite number, got .inf"),
    "overflow": ("method:\n  scale: 1e999", "r.yaml:3: method.scale: expected a finite number, got 1e999"),
    "not a number": ("method:\n  scale: -.NaN", "r.yaml:3: method.scale: expected a number, got '-.NaN'"),
    "nan": ("anything: [.nan]", "r.yaml:2: anything.0: expected a finite number, got .nan"),
    "python tag": (
        "note: !!python/object/apply:os.system [ls]",
        "r.yaml:2: note: the tag tag:yaml.org,2002:python/object/apply:os.system is not accepted; write plain values",
    ),
    "number as key": ("weights: {1: 2}", "r.yaml:2: weights: expected a text key, got 1; write it in quotes"),
    "range": ("method:\n\n  rank: 0", "r.yaml:4: method.rank: expected a number > 0, got 0"),
    "cross-field rule": (
        "method:\n  low: 2",
        "r.yaml:2: method: low 2.0 is above high 1.0; swap them",
    ),
    "unsafe name": (
        "tasks: [{name: ../up}]",
        "r.yaml:2: tasks.0.name: expected 1 to 64 letters, digits, '_' or '-', got '../up'",
    ),
    "same name twice": ("tasks: [{name: a}, {name: a}]", "r.yaml:2: tasks: expected different values, got 'a' twice"),
    "class without a path": (
        "trainer:\n  logger: {save_dir: x}",
        "r.yaml:3: trainer.logger: expected class_path and init_args, got save_dir",
    ),
    "syntax": ("method: {rank: 1", "r.yaml:3: not valid YAML: expected ',' or '}', but got '<stream end>'"),
    "tab": ("method:\n\trank: 1", "r.yaml:3: not valid YAML: found character '\\t' that cannot start any token"),
    "alias in itself": ("anything: &a [*a]", "r.yaml:2: too large or nested too deeply (an alias inside itself?)"),
}


@pytest.mark.parametrize(("text", "message"), MISTAKES.values(), ids=MISTAKES.keys())
def test_one_mistake_one_sentence(front, text, message):
    done = front("r.yaml", r=HEAD + text + "\n")
    assert done.err.rstrip("\n") == message
    assert (done.code, done.out) == (2, "")


def test_all_mistakes_at_once_in_the_order_of_the_file(front):
    text = "sed: 1\nmethod: {rnk: 1, scale: x, kind: ties}\ntasks:\n  - nme: a\nname: 3\ntrainer: {devics: 2}\n"
    done = front("r.yaml", "do=x", "method.low=y", r=HEAD + text)
    assert [line.split(";")[0].split(",")[0] for line in done.err.splitlines()] == [
        "r.yaml:2: sed: unknown key",
        "r.yaml:3: method.rnk: unknown key",
        "r.yaml:3: method.scale: expected a number",
        "r.yaml:5: tasks.0.nme: unknown key",
        "r.yaml:5: tasks.0.name: the key is missing",
        "r.yaml:6: name: expected text",
        "r.yaml:7: trainer.devics: unknown key",
        "override do=x: do: expected one of 'nothing'",
        "override method.low=y: method.low: expected a number",
    ]
    assert done.code == 2


@pytest.mark.parametrize(
    ("override", "message"),
    [
        ("rank=3", "override rank=3: rank: unknown key; "),
        ("method.rnk=3", "override method.rnk=3: method.rnk: unknown key; did you mean 'rank'?"),
        ("method.rank=0", "override method.rank=0: method.rank: expected a number > 0, got 0"),
        ("method.scale=.inf", "override method.scale=.inf: expected a finite number, got .inf"),
        ("method.scale=inf", "override method.scale=inf: method.scale: expected a number, got 'inf'"),
        ("method={rank: 1, rank: 2}", "override method={rank: 1, rank: 2}: rank: the key appears twice; keep one"),
        ("tasks.5.name=x", "override tasks.5.name=x: tasks: expected an index from 0 to 1, or 2 to add one, got 5"),
        ("tasks.x.name=x", "override tasks.x.name=x: tasks: expected an index from 0 to 1, or 2 to add one, got x"),
        ("tasks.2.max_train=1", "override tasks.2.max_train=1: tasks.2.name: the key is missing; "),
        ("name.first=x", "override name.first=x: name: 'toy' has no keys inside"),
        ("seed", "override seed: expected key.sub=value, such as trainer.max_epochs=3"),
        ("method..rank=3", "override method..rank=3: expected key.sub=value, such as trainer.max_epochs=3"),
        ("method={rank", "override method={rank:1: not valid YAML: expected ',' or '}', but got '<stream end>'"),
        ("recipe=tyo", "override recipe=tyo: recipe: unknown recipe 'tyo'; did you mean 'toy'?"),
    ],
)
def test_wrong_override_is_named(front, override, message):
    done = front("r.yaml", override, r=HEAD + "name: toy\n")
    assert done.err.startswith(message)
    assert len(done.err.splitlines()) == 1
    assert done.code == 2


@pytest.mark.parametrize(
    ("text", "message"),
    [
        ("", "r.yaml: the file is empty; its first key is recipe: "),
        ("- a\n- b\n", "r.yaml:1: expected keys and values, got ['a', 'b']"),
        ("name: x\n", "r.yaml:1: recipe: the key is missing; write one of "),
        ("recipe: [1]\n", "r.yaml:1: recipe: unknown recipe [1]; "),
        ("recipe: tpy\n", "r.yaml:1: recipe: unknown recipe 'tpy'; did you mean 'toy'? "),
        ("recipe: os.system\n", "r.yaml:1: recipe: unknown recipe 'os.system'; "),
        ("a: 1\n---\nb: 2\n", "r.yaml:2: not valid YAML: but found another document"),
        ("a: \x00\n", "r.yaml: not valid YAML: unacceptable character #x0000"),
        ("a: " + "[" * 400 + "]" * 400 + "\n", "r.yaml:1: too large or nested too deeply"),
        ("a: " + "[" * 40000 + "\n", "r.yaml: nested too deeply; at most 60 levels are accepted"),
    ],
)
def test_not_a_recipe_at_all(front, text, message):
    done = front("r.yaml", r=text)
    assert done.err.startswith(message)
    assert len(done.err.splitlines()) == 1
    assert done.code == 2


def test_aliases_cannot_fill_the_memory(front):
    levels = "".join(f"l{n}: &l{n} [{', '.join([f'*l{n - 1}'] * 9)}]\n" for n in range(1, 9))
    done = front("r.yaml", r=f"recipe: toy\nl0: &l0 [x]\n{levels}")
    assert "too large" in done.err
    assert done.code == 2


def test_file_that_is_not_text(front, tmp_path):
    (tmp_path / "r.yaml").write_bytes(b"\xff\xfe\x00")
    done = front("r.yaml")
    assert done.err.startswith("r.yaml: cannot be read as UTF-8 text")
    assert done.code == 2


@pytest.mark.parametrize(
    ("words", "message"),
    [
        ([], "name a recipe file, such as merge.yaml; see --list and --help"),
        (["none.yaml"], "none.yaml: no such file, and no shipped recipe has this name; "),
        (["."], ". is a folder; name the recipe file, such as ./recipe.yaml"),
        (["--chek", "r.yaml"], "--chek: unknown option; did you mean '--check'? Accepted: "),
        (
            ["r.yaml", "--trainer.max_epochs=3"],
            "--trainer.max_epochs=3: unknown option; an override is written without ",
        ),
        (["r.yaml", "--out"], "argument --out: expected one argument; see --help"),
        (["--schema", "tyo"], "--schema tyo: unknown recipe; did you mean 'toy'? Accepted: "),
        (["--new", "tyo"], "--new tyo: unknown recipe; did you mean 'toy'? Accepted: "),
        (["r.yaml", "--resume"], "--resume: no run is under runs/toy-toy; start one without it, or name "),
        (["r.yaml", "--resume", "--out", "x"], "--resume: x holds no recipe.yaml, so no run was started there; "),
    ],
)
def test_wrong_command_line(front, words, message):
    done = front(*words, r=HEAD)
    assert done.err.startswith(message)
    assert (done.code, done.out, len(done.err.splitlines())) == (2, "", 1)


@pytest.mark.parametrize(
    "error",
    [
        MemoryError(),
        RuntimeError("[enforce fail at alloc_cpu.cpp:124] DefaultCPUAllocator: can't allocate memory: 8 bytes"),
        torch.OutOfMemoryError("CUDA out of memory. Tried to allocate 2 GiB"),
        pyarrow.ArrowMemoryError("malloc of size 1216 failed"),
    ],
    ids=["python", "torch", "cuda", "arrow"],
)
def test_a_failed_allocation_is_told_as_such(error):
    assert unforeseen(error).startswith("there is not enough memory; end other programs, or make the batches")
