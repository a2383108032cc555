"""Methods compared: what the tuning chose, gaps over seeds, what is trained again, and every refusal."""

import json
from pathlib import Path

import lightning
import numpy as np
import pytest
import torch
import yaml
from lightning.pytorch.callbacks import ModelCheckpoint
from safetensors.torch import save_file
from scipy import stats

from distill import DistillError, DistillModule
from distill.networks import image_model
from distill.regimes import regime
from distill.small import small_model
from distill.transforms import mixup
from recipes.distill.glyph_module import GlyphData, Updates
from tests.recipes import tiny

pytestmark = pytest.mark.filterwarnings(
    "ignore:.*right on .* of the (validation|test) rows.*"
)  # tiny teachers are weak


RECIPE = yaml.safe_load((Path(tiny.ROOT) / "recipes/distill/distill_grid_tiny.yaml").read_text(encoding="utf-8"))


RECIPE["trainer"]["max_steps"], RECIPE["data"]["test_rows"] = 30, 400


@pytest.fixture(scope="module")
def compared(tmp_path_factory):
    world = tiny.World(tmp_path_factory.mktemp("compare"))
    done = world.run(RECIPE, "out")
    assert done.code == 0, done.err
    return world, done


def test_every_candidate_is_tried_at_every_rate_and_the_best_on_validation_is_kept(compared):
    world, done = compared
    result = json.loads((world.folder / "out/result.json").read_text())
    assert len(result["tuning"]) == 4 * 2 * 2  # methods, the published loss and another, rates
    for name, choice in result["chosen"].items():
        own = {(row["candidate"], row["rate"]): row["validation"] for row in result["tuning"] if row["method"] == name}
        assert len(own) == 4
        assert choice["validation"] == max(own.values())
    assert result["condition"] in done.out
    best = {name: result["chosen"][name]["validation"] for name in ("dkd", "dist")}
    assert best[result["rival"]] == max(best.values())


def test_gaps_are_paired_by_seed_with_a_student_interval(compared):
    world, _ = compared
    result = json.loads((world.folder / "out/result.json").read_text())
    assert [cell["seed"] for cell in result["cells"]] == [0, 1]
    for name, gap in result["gaps"].items():
        each = [100 * (cell["accuracy"][name] - cell["accuracy"]["kd"]) for cell in result["cells"]]
        mean = sum(each) / 2
        low, high = stats.t.interval(0.95, 1, mean, stats.sem(each)) if each[0] != each[1] else (mean, mean)
        assert gap == pytest.approx({"value": mean, "low": low, "high": high})
    assert result["gap"] == result["gaps"][result["rival"]]


def test_methods_of_labels_alone_are_compared_without_a_teacher(compared):
    world, _ = compared
    alone = RECIPE | {"teacher": {}, "compare": {"seeds": [0, 1], "baseline": "kd"}}
    for first, second in (("kd", "other"), ("other", "kd")):  # the better on validation may be the baseline
        methods = {first: {"hard": {"smoothing": 0.1}}, second: {"hard": {}}}
        done = world.run(alone | {"methods": methods}, f"{first}-first")
        assert done.code == 0, done.err
        result = json.loads((world.folder / f"{first}-first/result.json").read_text())
        assert (result["rival"], result["condition"]) == ("other", "")
        assert "teacher" not in result


def test_a_comparison_goes_on_where_it_stopped(compared):
    world, _ = compared
    out = world.folder / "out"
    whole = json.loads((out / "result.json").read_text())
    kept = {file: file.stat().st_mtime_ns for file in (out / "cells").glob("*.json") if file.stem != "seed1"}
    (out / "result.json").unlink()
    (out / "cells/seed1.json").unlink()
    longer = world.run(RECIPE, "out", "trainer.max_steps=40", "--resume")
    assert longer.code == 2
    assert "teacher was trained with trainer.max_steps 30" in longer.err
    done = world.run(RECIPE, "out", "--resume")
    assert done.code == 0, done.err
    assert "train tuning" not in done.out + done.err
    assert all(file.stat().st_mtime_ns == when for file, when in kept.items())
    assert json.loads((out / "result.json").read_text()) == whole


def test_a_student_ends_where_it_does_alone(compared):
    """A method of the comparison is a plain run of its loss, seed and learning rate."""
    world, _ = compared
    cell = json.loads((world.folder / "out/cells/seed1.json").read_text())
    chosen = json.loads((world.folder / "out/cells/tuning.json").read_text())["chosen"]
    weights = world.folder / "out/teacher/network.safetensors"
    for name, choice in chosen.items():
        done = world.run(
            RECIPE,
            name,
            "compare=null",
            "seed=1",
            "teacher.train=false",
            f"teacher.options={{in_chans: 1, checkpoint_path: {weights}}}",
            f"methods={json.dumps({name: choice['terms']})}",
            f"changes.learning_rate={0.005 * choice['rate']}",
        )
        assert done.code == 0, done.err
        alone = json.loads((world.folder / name / "result.json").read_text())["rows"]
        assert alone[name]["accuracy"] == cell["accuracy"][name]
        assert alone["teacher"]["accuracy"] == pytest.approx(cell["teacher"])


@pytest.mark.parametrize(
    ("change", "sentence"),
    [
        ("compare.rates=[1.0, 1.0]", "compare.rates: expected different positive numbers, got [1.0, 1.0]"),
        ("compare.rates=[0.0]", "compare.rates: expected different positive numbers, got [0.0]"),
        ("compare.seeds=[]", "compare.seeds: expected at least two, over which a gap has an interval, got []"),
        ("compare.seeds=[3]", "compare.seeds: expected at least two, over which a gap has an interval, got [3]"),
        ("compare.seeds=[0, 1000]", "compare.seeds: "),
        ("compare.candidates.kd=[]", "expected as many for each of ce, kd, dkd, dist, got {'ce': 1, 'kd': 0,"),
        ("compare.candidates.rkd=[{rkd: {}}]", "expected as many for each of ce, kd, dkd, dist"),
        ("compare.candidates.kd=[{kd: {heat: 1.0}}]", "compare.candidates.kd.0: "),
        ("compare.baseline=kl", "compare.baseline: expected one of several methods (ce, kd, dkd, dist), got 'kl'"),
        ("rate_factors={kd: 2.0}", "rate_factors: expected none with compare"),
        ("samples={kd: {own: 0.5}}", "samples: expected none with compare"),
        (
            "teacher.options={in_chans: 1, checkpoint_path: a.safetensors}",
            "teacher.options.checkpoint_path: a.safetensors does not exist; give the file of the weights",
        ),
        ("trainer.max_steps=-1", "trainer.max_steps: expected how many batches are drawn, at least 1, got -1"),
        ("changes.image_size=32", "changes.image_size: expected 16, the side of a drawn glyph, got 32"),
        (
            "methods={ce: {}, kd: {}, dkd: {}, dist: {crd: {}}}",
            "crd needs the class of every training row",
        ),
        ("compare.candidates.kd=[{uld: {}}]", "compare.candidates.kd.0: expected losses of one tokenizer with compare"),
        ("trainer.limit_val_batches=0", "trainer.limit_val_batches: expected more than 0"),
        ("trainer.accumulate_grad_batches=2", "data.source: drawn_glyphs are drawn by one process"),
        ("data.classes=98", "data.classes: expected 99 or more, as many characters are drawn, got 98"),
        ("changes.flip=0.5", "changes.flip: expected none with drawn_glyphs"),
        ("teacher.changes={erase: 0.1}", "teacher.changes.erase: expected none with drawn_glyphs"),
        (
            "trainer.callbacks={class_path: lightning.pytorch.callbacks.ModelCheckpoint}",
            "expected none that keeps checkpoints or watches validation with compare",
        ),
        (
            "trainer.callbacks=[{class_path: lightning.pytorch.callbacks.EarlyStopping, init_args: {monitor: "
            "validation/accuracy}}]",
            "at their end, and begin anew when they are stopped; got EarlyStopping",
        ),
    ],
)
def test_what_is_no_fair_comparison_is_refused(front, change, sentence):
    refused = front("distill_grid_tiny.yaml", "--check", change)
    assert refused.code == 2
    assert sentence in refused.err


@pytest.mark.parametrize(
    ("change", "sentence"),
    [
        ("teacher.views=2", "teacher.views: expected 0 with drawn_glyphs, got 2; take glyphs"),
        ("methods={kd: {}, teacher: {kd: {}}}", "methods.teacher: expected another name: the teacher is called so"),
        ("rate_factors={kdd: 2.0}", "rate_factors names 'kdd', but the students are ce, kd, dkd, dist; name these"),
    ],
)
def test_what_no_training_takes_is_refused(front, change, sentence):
    refused = front("distill_grid_tiny.yaml", "--check", "compare=null", change)
    assert refused.code == 2
    assert sentence in refused.err


@pytest.mark.parametrize("words", [["data.rows=32,64"], ["compare={candidates: {}},null", "compare=null"]])
def test_seeds_of_a_sweep_would_only_repeat_those_of_a_comparison(front, words):
    refused = front("distill_grid_tiny.yaml", *words[1:], "--sweep", words[0], "--seeds", "2", "--check")
    assert refused.code == 2
    assert "--seeds: every run goes through the seeds of compare.seeds itself" in refused.err
    plain = ("compare=null", "--sweep", "data.rows=32,64", "--seeds", "2", "--check")
    assert front("distill_grid_tiny.yaml", *plain).code == 0


def test_drawn_batches_go_on_behind_those_that_are_done():
    images, labels = torch.arange(64, dtype=torch.uint8).view(8, 1, 2, 4).repeat(1, 1, 8, 4), torch.arange(8)

    def loader():
        return Updates(images, labels, 4, updates=5, augment=True, seed=3)

    whole = list(loader())
    first, later = loader(), loader()
    for _, _ in zip(range(2), first, strict=False):
        pass
    later.load_state_dict(first.state_dict())
    for left, right in zip(whole[2:], later, strict=True):
        assert torch.equal(left["images"], right["images"])
    assert later.state_dict() == {"batches": 5}


def test_a_small_network_begins_with_the_weights_it_is_given_or_says_why_not(tmp_path):
    saved = small_model("small_cnn_4", 10, in_chans=1)
    save_file(saved.state_dict(), tmp_path / "good.safetensors")
    save_file({"other": torch.zeros(2)}, tmp_path / "bad.safetensors")
    read = image_model("small_cnn_4", 10, in_chans=1, checkpoint_path=str(tmp_path / "good.safetensors"))
    assert all(torch.equal(a, b) for a, b in zip(saved.state_dict().values(), read.state_dict().values(), strict=True))
    for name in ("bad", "absent"):
        with pytest.raises(DistillError, match=rf"checkpoint_path .*{name}\.safetensors does not fit small_cnn_4"):
            image_model("small_cnn_4", 10, in_chans=1, checkpoint_path=str(tmp_path / f"{name}.safetensors"))
    with pytest.raises(DistillError, match="small_cnn_4 ships no weights, so pretrained cannot be true"):
        image_model("small_cnn_4", 10, in_chans=1, pretrained=True)


@pytest.mark.filterwarnings("ignore:Checkpoint directory")
@pytest.mark.parametrize("mixes", [True, False])
def test_drawn_glyphs_resumed_in_the_middle_end_as_an_unbroken_training(tmp_path, mixes):
    changes = {"batch_size": 8, "image_size": 16, "schedule_on": "update", "drop_path": 0.0}
    changes |= {} if mixes else {"mixup": 0.0, "cutmix": 0.0}

    def parts():
        torch.manual_seed(0)
        mix = mixup(regime("A2", changes), 99) if mixes else None
        made = DistillModule(small_model("small_cnn_2", 99), None, {"hard": {}}, changes=changes, classes=99)
        return made, GlyphData(64, 8, 9, True, mix, 0, 8)

    def trainer(steps, **options):
        quiet = {"logger": False, "enable_progress_bar": False, "enable_model_summary": False, "limit_val_batches": 0}
        return lightning.Trainer(accelerator="cpu", devices=1, max_steps=steps, **quiet, **options)

    whole, data = parts()
    keeps = {"callbacks": [ModelCheckpoint(tmp_path, "{step}", every_n_train_steps=4, save_top_k=-1)]}
    trainer(9, **keeps).fit(whole, datamodule=data)
    resumed, data = parts()
    np.random.seed(5)  # noqa: NPY002 (timm draws from it, and a resumed run has it elsewhere)
    trainer(9, **keeps).fit(resumed, datamodule=data, ckpt_path=tmp_path / "step=4.ckpt")
    for one, other in zip(whole.parameters(), resumed.parameters(), strict=True):
        assert torch.equal(one, other)
