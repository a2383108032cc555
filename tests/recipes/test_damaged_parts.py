"""A flip in anything that a run writes now and reads later is found: ours is made again, the user's is refused."""

import json
import os

import pytest
import yaml

from recipes.running.seals import STAMP
from tests.recipes import tiny
from tests.recipes.csp.test_recipe import TINY, run as run_csp

pytestmark = pytest.mark.filterwarnings("ignore:.*right on .* of the (validation|test) rows.*")


def flip(file, at=-100):
    """Another byte near the end of a file, under its old size and time."""
    data, times = bytearray(file.read_bytes()), file.stat()
    data[at] ^= 16
    file.write_bytes(data)
    os.utime(file, ns=(times.st_atime_ns, times.st_mtime_ns))


@pytest.fixture(scope="module")
def world(tmp_path_factory):
    """A finished finetune run of two tasks."""
    made = tiny.World(tmp_path_factory.mktemp("damaged"))
    done = made.run(made.recipe("finetune", trainer={"max_epochs": 1}), "tuned")
    assert done.code == 0, done.err
    return made


@pytest.mark.parametrize("name", ["model.safetensors", "head.safetensors", "tokenizer.json", "expert.json", STAMP])
def test_an_expert_of_a_run_is_trained_again_by_resume(world, name):
    folder = world.folder / "tuned"
    place = folder / "experts/mood"
    before = {path.name: path.read_bytes() for path in place.iterdir() if path.name != STAMP}
    (folder / "result.json").unlink()
    flip(place / name, at=-20)
    again = world.run(world.recipe("finetune", trainer={"max_epochs": 1}), "tuned", "--resume")
    assert again.code == 0, again.err
    assert f"expert mood: {folder.name}/experts/mood has a " in again.out
    assert name in again.out or name == STAMP  # the digest in it is that of one of the others
    assert "it is made again" in again.out
    assert "expert topic: found" in again.out
    assert {path.name: path.read_bytes() for path in place.iterdir() if path.name != STAMP} == before


@pytest.mark.parametrize("name", ["model.safetensors", "head.safetensors"])
def test_a_changed_expert_is_refused_by_a_merge_unless_the_change_is_owned(world, tmp_path, name):
    import shutil

    shutil.copytree(world.folder / "tuned/experts", tmp_path, dirs_exist_ok=True)
    recipe = world.recipe("merge", experts={task: str(tmp_path / task) for task in ("mood", "topic")})
    flip(tmp_path / "mood" / name)
    done = world.run(recipe, "merged", "--check")
    assert done.code == 2
    assert f"experts.mood: {tmp_path / 'mood'} has a file {name} of other content than it was made with" in done.err
    assert f"if the change is yours, delete {STAMP}" in done.err
    (tmp_path / "mood" / STAMP).unlink()
    assert world.run(recipe, "merged", "--check").code == 0


def test_a_file_added_to_an_expert_is_refused(world, tmp_path):
    import shutil

    shutil.copytree(world.folder / "tuned/experts", tmp_path, dirs_exist_ok=True)
    (tmp_path / "topic/model.safetensors.index.json").write_text('{"weight_map": {}}')
    recipe = world.recipe("merge", experts={task: str(tmp_path / task) for task in ("mood", "topic")})
    done = world.run(recipe, "merged", "--check")
    assert done.code == 2


def test_a_cached_expert_is_trained_again_by_a_merge(world):
    recipe = world.recipe("merge", trainer={"max_epochs": 1})
    assert world.run(recipe, "cached").code == 0
    before = tiny.numbers(world.folder / "cached/result.json")
    (entry,) = (world.folder / "cache/experts").glob("topic-*")
    flip(entry / "model.safetensors")
    checked = world.run(recipe, "other", "--check")
    assert f"expert topic: to be trained again, since {entry} has a file model.safetensors of other" in checked.out
    again = world.run(recipe, "other")
    assert again.code == 0, again.err
    assert "expert mood: found" in again.out
    assert f"expert topic: {entry} has a file model.safetensors of other content" in again.out
    assert tiny.numbers(world.folder / "other/result.json") == before


def test_a_damaged_teacher_is_trained_again(world):
    text = (tiny.ROOT / "recipes/distill/distill_tiny.yaml").read_text(encoding="utf-8")
    recipe = yaml.safe_load(text) | {"methods": {"kd": {}}}
    assert world.run(recipe, "taught").code == 0
    weights = world.folder / "taught/teacher/network.safetensors"
    before, students = weights.read_bytes(), json.loads((world.folder / "taught/result.json").read_text())["rows"]
    (world.folder / "taught/result.json").unlink()
    flip(weights)
    again = world.run(recipe, "taught", "--resume")
    assert again.code == 0, again.err
    assert (
        "taught/teacher has a file network.safetensors of other content than it was made with: it is made" in again.out
    )
    assert weights.read_bytes() == before
    assert json.loads((world.folder / "taught/result.json").read_text())["rows"]["teacher"] == students["teacher"]


def test_a_damaged_policy_of_csp_is_trained_again(tmp_path):
    recipe = TINY | {"baselines": [], "sweep": {}}
    assert run_csp(tmp_path, recipe)[0] == 0
    policy = tmp_path / "out/policies/csp.pt"
    before = json.loads((tmp_path / "out/result.json").read_text())["rows"]
    (tmp_path / "out/result.json").unlink()
    flip(policy, at=policy.stat().st_size // 3)
    code, said, complained = run_csp(tmp_path, recipe, "--resume")
    assert code == 0, complained
    assert "csp.pt is not what this run wrote: csp is trained again" in said
    assert json.loads((tmp_path / "out/result.json").read_text())["rows"] == before


def test_a_damaged_policy_of_hpo_is_trained_again(front, tmp_path):
    words = ("hpo_tiny.yaml", "--out", "run", "seeds=1", "methods={hpo: {}}")
    assert front(*words).code == 0
    cost = json.loads((tmp_path / "run/result.json").read_text())["cost"]
    (tmp_path / "run/result.json").unlink()
    policy = tmp_path / "run/policies/hpo-0.ckpt"
    flip(policy, at=policy.stat().st_size // 3)
    again = front(*words, "--resume")
    assert again.code == 0, again.err
    assert "hpo-0.ckpt is not what this run wrote: the cell is trained again" in again.out
    assert json.loads((tmp_path / "run/result.json").read_text())["cost"] == cost


def test_a_finished_run_is_not_said_to_be_trained_on(world):
    """A larger number of epochs is refused, and the recipe in the folder stays that of what was done."""
    folder = world.folder / "tuned"
    before = (folder / "recipe.yaml").read_bytes()
    done = world.run(world.recipe("finetune", trainer={"max_epochs": 5}), "tuned", "--resume")
    assert done.code == 2
    assert done.err == (
        "--resume: mood was trained with trainer.max_epochs 1 and is not trained on to 5; set trainer.max_epochs back "
        "to 1, or start a new run, without --resume\n"
    )
    assert (folder / "recipe.yaml").read_bytes() == before


def test_every_recipe_that_trains_names_what_is_finished(tmp_path):
    from recipes.csp import recipe as csp
    from recipes.distill import recipe as distill
    from recipes.hpo import recipe as hpo
    from recipes.merge import finetune, recipe as merge

    for name in ("experts/a/expert.json", "teacher/network.safetensors", "students/kd/network.safetensors"):
        (tmp_path / name).parent.mkdir(parents=True)
        (tmp_path / name).touch()
    for name in ("cells/hpo-0.json", "policies/csp.json", "merged/twin.json"):
        (tmp_path / name).parent.mkdir(parents=True)
        (tmp_path / name).touch()
    assert finetune.finished(tmp_path) == ["a"]
    assert merge.finished(tmp_path) == ["merged"]
    assert distill.finished(tmp_path) == ["teacher", "hpo-0", "students"]
    assert hpo.finished(tmp_path) == ["hpo-0"]
    assert csp.finished(tmp_path) == ["csp"]
    for module in (finetune, merge, distill, hpo, csp):
        assert module.finished(tmp_path / "absent") == []


def test_the_iterations_of_csp_are_not_dealt_out_anew_by_resume(tmp_path):
    recipe = TINY | {"baselines": [], "sweep": {}, "game": {"init_args": {"no_such": 1}}}
    (tmp_path / "out").mkdir()
    (tmp_path / "out/recipe.yaml").write_text(yaml.safe_dump(recipe))
    changed = recipe | {"trainer": TINY["trainer"] | {"max_epochs": 3}}
    code, _, complained = run_csp(tmp_path, changed, "--resume")
    assert code == 2
    assert "trainer.max_epochs: the run has 1, now it is 3" in complained
