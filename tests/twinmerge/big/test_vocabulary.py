"""Merging files whose vocabularies differ gives what extending the states in memory gives."""

import json

import pytest
import torch

from tests.twinmerge import foreign
from tests.twinmerge.big.small import config, read, shapes, write
from tests.twinmerge.big.test_factors import products
from twinmerge.big import growing, merge as merging
from twinmerge.big.factors import extract_lora
from twinmerge.big.merge import merge_files, plan_files
from twinmerge.big.twin import twin_files
from twinmerge.errors import CheckpointError
from twinmerge.methods import find

OLD = 64
TOKENS = {"url": ["<url>", "<user>"], "mail": ["<mail>", "<url>"], "plain": []}
# Row of the united vocabulary for each added token, in the order in which the experts added them.
UNITED = {"url": [64, 65], "mail": [66, 64], "plain": []}
ROWS = {"url": 66, "mail": 72, "plain": 60}  # of padded experts: more than the base, or fewer


def family(folder, tied, rows, dtype=torch.float32, files=1, tokens=None):
    """A base and experts with so many rows, and their tokenizers."""
    draw = torch.Generator().manual_seed(0)
    base = {n: 0.1 * torch.randn(s, generator=draw) for n, s in shapes(tied, vocab=OLD).items()}
    write(folder / "base", {n: v.to(dtype) for n, v in base.items()}, config(tied, vocab=OLD), files)
    foreign.tokenizer().save_pretrained(folder / "base")
    experts = {}
    for task, count in rows.items():
        tuned = {}
        for name, value in base.items():
            tall = value
            if name in ("model.embed_tokens.weight", "lm_head.weight"):
                tall = torch.cat(
                    [value[:count], 0.1 * torch.randn(max(0, count - OLD), value.shape[1], generator=draw)]
                )
            tuned[name] = (tall + 0.02 * torch.randn(tall.shape, generator=draw)).to(dtype)
        experts[task] = folder / task
        write(folder / task, tuned, config(tied, vocab=count), files)
        words = foreign.tokenizer()
        words.add_tokens((tokens or {}).get(task, []))
        words.save_pretrained(folder / task)
    return folder / "base", experts


def extended(base, experts, places, rows):
    """The states in float32 with so many rows: the base's new rows are means, what an expert lacks is the base's."""
    start = {n: v.float() for n, v in read(base).items()}
    states = {task: {n: v.float() for n, v in read(folder).items()} for task, folder in experts.items()}
    for name in ("model.embed_tokens.weight", "lm_head.weight"):
        if name not in start:
            continue
        tall = torch.zeros(rows, start[name].shape[1])
        tall[:OLD] = start[name]
        for row in range(OLD, rows):
            owners = [states[t][name][p.index(row)] for t, p in places.items() if row in p]
            tall[row] = sum(owners[1:], owners[0].clone()) / len(owners)
        for task, state in states.items():
            whole = tall.clone()
            whole[places[task]] = state[name]
            state[name] = whole
        start[name] = tall
    return start, list(states.values())


@pytest.mark.parametrize("policy", ["pad", "union"])
@pytest.mark.parametrize(("tied", "dtype", "files"), [(False, torch.float32, 1), (True, torch.bfloat16, 3)], ids=str)
def test_against_states_that_are_extended_in_memory(policy, tied, dtype, files, tmp_path, monkeypatch):
    monkeypatch.setattr(growing, "BLOCK", 150)  # several blocks a table
    if policy == "pad":
        base, experts = family(tmp_path, tied, ROWS, dtype, files)
        places, rows = {task: list(range(count)) for task, count in ROWS.items()}, 72
    else:
        counts = {task: OLD + len(added) for task, added in TOKENS.items()}
        base, experts = family(tmp_path, tied, counts, dtype, files, TOKENS)
        places, rows = {task: [*range(OLD), *UNITED[task]] for task in TOKENS}, 67
    with pytest.raises(CheckpointError, match="declare 'vocabulary: pad' or 'union'"):
        plan_files(base, experts)
    values = sum(shape[0] * (shape[1] if len(shape) > 1 else 1) for shape in shapes(tied, vocab=rows).values())
    assert plan_files(base, experts, vocabulary=policy).values == values
    for method, options in (("task_arithmetic", {"scale": 0.4}), ("ties", {"density": 0.5}), ("iso_c", {})):
        out = tmp_path / f"out-{method}"
        merge_files(base, experts, out, method=method, options=options, vocabulary=policy, shard="20KB")
        start, states = extended(base, experts, places, rows)
        found = read(out)
        for name, value in find(method)(start, states, **options).items():
            torch.testing.assert_close(found[name], value.to(dtype), rtol=1e-5, atol=1e-6)
        assert json.loads((out / "config.json").read_text())["vocab_size"] == rows
        assert not list(out.glob(".*"))
    words = json.loads((out / "tokenizer.json").read_text())["added_tokens"]
    assert [token["id"] for token in words if token["id"] >= OLD] == ([] if policy == "pad" else [64, 65, 66])


def test_a_twin_of_other_vocabularies_and_an_adapter(tmp_path):
    counts = {task: OLD + len(added) for task, added in TOKENS.items()}
    base, experts = family(tmp_path, False, counts, tokens=TOKENS)
    extract_lora(base, experts.pop("plain"), tmp_path / "lora", rank=4)
    given = {**experts, "lora": tmp_path / "lora"}
    twin_files(base, given, tmp_path / "twin", rank=6, vocabulary="union")
    merge_files(base, given, tmp_path / "merged", vocabulary="union")
    shared = read(tmp_path / "merged")
    assert shared["lm_head.weight"].shape[0] == 67
    assert all(torch.equal(read(tmp_path / "twin")[name], value) for name, value in shared.items())
    added, start = products(tmp_path / "lora"), read(base)
    places = {task: [*range(OLD), *UNITED[task]] for task in experts}
    start, states = extended(base, experts, places, 67)
    lora = {n: v.clone() for n, v in start.items()}
    for name, change in added.items():
        lora[name][: len(change)] += change
    for name, value in find("task_arithmetic")(start, [*states, lora]).items():
        torch.testing.assert_close(shared[name], value, rtol=1e-5, atol=1e-6)
    card = json.loads((tmp_path / "twin/twin.json").read_text())
    for task, state in zip(given, [*states, lora], strict=True):
        found = products(tmp_path / "twin/experts" / task)
        for name, residual in card["residuals"][task].items():
            change = state[name] - shared[name]
            rest = torch.linalg.norm(change - found[name]) / torch.linalg.norm(change)
            assert float(rest) == pytest.approx(residual, rel=1e-2)


def test_a_killed_merge_of_other_vocabularies_goes_on(tmp_path, monkeypatch):
    base, experts = family(tmp_path, False, ROWS)
    merge_files(base, experts, tmp_path / "whole", vocabulary="pad")
    note, noted = merging.Journal.note, []

    def stop(self, what):
        if len(noted) == 4:
            raise KeyboardInterrupt
        noted.append(what)
        note(self, what)

    for _ in range(2):
        monkeypatch.setattr(merging.Journal, "note", stop)
        with pytest.raises(KeyboardInterrupt):
            merge_files(base, experts, tmp_path / "out", vocabulary="pad")
        assert len(set(noted)) == 4
        assert all(what.startswith("grown ") for what in noted)
    monkeypatch.setattr(merging.Journal, "note", note)
    merge_files(base, experts, tmp_path / "out", vocabulary="pad")
    for name, value in read(tmp_path / "whole").items():
        assert torch.equal(read(tmp_path / "out")[name], value)


def test_what_does_not_fit_is_refused(tmp_path):
    base, experts = family(tmp_path, False, {"a": 66, "b": OLD})
    settings = json.loads((base / "config.json").read_text())
    with pytest.raises(CheckpointError, match="another tokenizer"):
        merge_files(base, family(tmp_path / "x", False, {"c": 66}, tokens={"c": ["<x>"]})[1], tmp_path / "out",
                    vocabulary="pad")  # fmt: skip
    (base / "config.json").write_text(json.dumps({n: v for n, v in settings.items() if n != "vocab_size"}))
    with pytest.raises(CheckpointError, match="has vocab_size None in its config"):
        merge_files(base, {"b": experts["b"]}, tmp_path / "out", vocabulary="pad")
    assert not (tmp_path / "out").exists()
