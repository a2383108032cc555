"""The harness finds what it is for: differences, damage, code that runs, recipes that differ by their number."""

import json
from pathlib import Path

import pytest
import torch

from benchmarks.reliability import PARTS, summary
from tests.reliability import hostile, mutations
from tests.reliability.campaign import _dealt
from tests.reliability.compare import contents, differences
from tests.reliability.corruption import Artefact, _outcome
from tests.reliability.variants import Ground


def test_differences_are_found_to_the_bit(tmp_path: Path) -> None:
    for name in ("one", "two"):
        (tmp_path / name).mkdir()
        (tmp_path / name / "metrics.csv").write_text("phase,step,loss,seconds\na,1,0.5,3\nb,1,0.25,4\n")
        (tmp_path / name / "result.json").write_text('{"cost": 1.0, "seconds": 2}')
        torch.save({"state_dict": {"w": torch.ones(2)}, "path": str(tmp_path / name)}, tmp_path / name / "it.ckpt")
        (tmp_path / name / ".lock").write_text(name)
    one, two = tmp_path / "one", tmp_path / "two"
    (two / "metrics.csv").write_text("step,phase,seconds,loss\n1,b,9,0.25\n1,a,9,0.5\n")  # another order, other times
    assert differences(contents(one), contents(two)) == []
    torch.save({"state_dict": {"w": torch.tensor([1.0, 1.0 + 2**-23])}, "path": ""}, two / "it.ckpt")
    (two / "result.json").write_text('{"cost": 1.0000001}')
    (two / "metrics.csv").write_text("step,phase,loss\n1,b,0.25\n")
    found = " ".join(differences(contents(one), contents(two)))
    assert all(
        word in found for word in ("it.ckpt/state_dict/w differs", "result.json/cost", "metrics.csv/a is missing")
    )


@pytest.mark.parametrize(
    ("read", "outcome"),
    [
        (lambda _: 1, "harmless"),
        (lambda _: 2, "undetected"),
        (lambda _: json.loads("{"), "raw"),
        (lambda _: {}["x"], "raw"),
    ],
)
def test_outcomes(tmp_path: Path, read, outcome: str) -> None:
    assert _outcome(Artefact(lambda _: None, read), tmp_path, 1)[0] == outcome


def test_recipes_are_functions_of_their_number() -> None:
    made = [mutations.mutated(number) for number in range(20)]
    assert made == [mutations.mutated(number) for number in range(20)]
    assert len({text for text, _ in made}) == 20


def test_code_that_runs_is_seen(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.chdir(tmp_path)
    attack = hostile.Attack(lambda folder: None, lambda folder: exec(hostile.CODE))  # noqa: S102
    monkeypatch.setattr(hostile, "attacks", lambda: {"it": attack})
    assert hostile.attempt("it")["outcome"] == "code run"


def test_every_variant_is_dealt_its_share(tmp_path: Path) -> None:
    variants = Ground(tmp_path / "ground").variants()
    cases = list(_dealt(variants, 216, ()))
    assert len(cases) >= 200
    assert {variant.name for variant, _ in cases} == {variant.name for variant in variants}
    assert len({(variant.name, number) for variant, number in cases}) == len(cases)
    assert {variant.name for variant, _ in cases[:40]} >= {each.name for each in variants if each.share > 0}


def test_faults_are_counted_and_shown() -> None:
    rows = {part: [] for part in PARTS}
    broken = {"case": "hpo-001", "signal": "SIGINT", "unlike": ["x differs"], "lost": "", "untidy": ""}
    rows |= {"broken": [broken], "races": [{"case": "r", "corrupted": "mixed"}]}
    rows |= {"corruptions": [{"case": "twin-000", "what": "flip x", "outcome": "undetected", "said": ""}]}
    figures, tables = summary(rows)
    assert (figures["broken_runs"], figures["finished_unlike_unbroken"], figures["losses"]) == (1, 1, 0)
    assert (figures["undetected"], figures["corrupted"]) == (1, 1)
    assert [row["part"] for row in tables["faults"]] == ["broken", "corruptions", "races"]
