"""Compositions of language models and of images: whole runs, scores that are perplexities, and what is refused."""

import json
from hashlib import sha256
from pathlib import Path

import pandas as pd
import pytest
import transformers
import yaml

from recipes.compose import stages
from recipes.compose.schema import Recipe
from recipes.compose.stages import Stage
from recipes.compose.story import Part, _apart, _scores, _summary
from recipes.data.image_tasks import Picture
from recipes.data.splits import Split, TextTask
from recipes.errors import RecipeError
from recipes.explain.merged import _known
from recipes.front.parse import parse
from recipes.run import main
from tests.recipes import tiny
from tests.recipes.merge.causal import tiny_lm

CHANGES = {
    "epochs": 1,
    "batch_size": 16,
    "optimizer": "adamw",
    "learning_rate": 1.0e-3,
    "warmup_epochs": 0,
    "schedule_on": "update",
}
TASKS = [
    {"name": "spell", "source": "csv", "path": "spell.csv", "language": {"metric": "exact_match"}},
    {"name": "talk", "source": "csv", "path": "talk.csv", "language": {"metric": "perplexity"}},
    {"name": "pick", "source": "csv", "path": "pick.csv", "language": {"metric": "choice"}},
    {"name": "kept", "source": "csv", "path": "kept.csv", "language": {"metric": "choice"}},
]
MERGE = {"recipe": "merge", "base": "base", "tasks": TASKS, "training": {"model": "causal"}, "unseen": ["kept"]}


def composed(**changes):
    return {
        "recipe": "compose",
        "name": "kinds",
        "students": {"dense": {}},
        "changes": CHANGES,
        "trainer": {"accelerator": "cpu", "devices": 1},
        "explain": {"loss": "log", "examples": 4, "estimation": {"learners": "linear", "folds": 2}},
        **changes,
    }


def parsed(folder, **changes) -> Recipe:
    (folder / "compose.yaml").write_text(yaml.safe_dump(composed(**changes)))
    return parse(folder / "compose.yaml").recipe


def row(spell, talk, pick, **more):
    return {"tasks": {"spell": spell, "talk": talk, "pick": pick}, "ms_per_input": 1.0, "bytes": 1} | more


@pytest.fixture
def merge(tmp_path) -> Stage:
    """A finished merge of language models, as far as its result says."""
    (tmp_path / "merge").mkdir()
    (tmp_path / "merge/recipe.yaml").write_text(yaml.safe_dump(MERGE))
    none = {"mean": 0.5, "normalised": 1.0}
    rows = {
        "experts": row(0.0, 20.0, 0.5, **none),
        "pretrained": row(0.0, 80.0, 0.25, **none),
        "average": row(0.0, 50.0, 0.5, **none),
        "routed": row(0.0, 25.0, 0.5, **none),
    }
    metrics = {task["name"]: task["language"]["metric"] for task in TASKS}
    result = {"rows": rows, "best_static": "average", "metrics": metrics}
    (tmp_path / "merge/result.json").write_text(json.dumps(result))
    return Stage("merge", tmp_path / "merge", taken=True)


def student(folder, tasks) -> Stage:
    (folder / "dense/students/kd").mkdir(parents=True)
    made = {"tasks": tasks, "ms_per_input": 1.0, "bytes": 1}
    (folder / "dense/result.json").write_text(json.dumps({"rows": {"teacher": made, "kd": made}}))
    return Stage("dense", folder / "dense", taken=True)


def test_a_perplexity_is_better_when_lower(tmp_path, merge):
    found = _scores(merge, [student(tmp_path, {"spell": 0.0, "talk": 40.0, "pick": 0.25})])["dense"]
    # The experts spell nothing, so that this task says nothing; 20 / 40 and 0.25 / 0.5 are left, of the twin 25 / 40.
    assert found["normalised"] == pytest.approx((20 / 40 + 0.25 / 0.5) / 2)
    assert found["over_twin"] == pytest.approx((25 / 40 + 0.25 / 0.5) / 2)
    assert found["mean"] == pytest.approx((0.0 + 0.25) / 2)  # of the shares alone


def test_only_shares_of_right_answers_are_compared_with_the_table(tmp_path, merge):
    recipe = parsed(tmp_path, taken={"merge": str(merge.folder)}, merge=None)
    scores = _scores(merge, [student(tmp_path, {"spell": 0.0, "talk": 40.0, "pick": 0.25})])
    wrong = {"spell": [1, 1, 0, 1], "talk": [1, 1, 1, 1], "pick": [1, 0, 1, 0]}
    table = pd.DataFrame({"task": [task for task in wrong for _ in range(4)]})
    for model in ("expert", "twin", "dense"):
        table[f"{model}_zero_one"] = [value for values in wrong.values() for value in values]
    assert _apart(recipe, merge, table, scores) == pytest.approx(0.25)  # the student picks 2 of 4 here, and 1 there


@pytest.mark.parametrize(
    ("values", "said"),
    [
        ((0.3, -0.1), "of the 0.2000 log loss that it adds, +0.3000 is on spell."),
        ((0.1, -0.3), "its log loss is 0.2000 below the twin's."),
        ((0.0, 0.0), "it adds no loss."),
    ],
)
def test_a_student_that_loses_nothing_is_not_said_to_lose(tmp_path, merge, values, said):
    recipe = parsed(tmp_path, merge=MERGE)
    scores = _scores(merge, [student(tmp_path, {"spell": 0.5, "talk": 40.0, "pick": 0.25})])
    found = [Part(task, value, 0.1) for task, value in zip(("spell", "pick"), values, strict=True)]
    assert _summary(recipe, scores, {("twin", "dense"): found}).endswith(said)


@pytest.mark.parametrize(
    ("changes", "said"),
    [
        ({"explain": {"columns": ["year"]}}, "explain.columns: expected none with a merge of language models"),
        ({"students": {"dense": {"losses": {"uld": {}}}}}, "students.dense.losses: expected another loss than uld"),
    ],
)
def test_what_later_stages_would_refuse_of_language_is_refused_at_once(tmp_path, merge, changes, said):
    for whole in ({"merge": MERGE}, {"taken": {"merge": str(merge.folder)}}):
        with pytest.raises(RecipeError) as error:
            parsed(tmp_path, **whole, **changes)
        assert said in str(error.value)


def test_what_later_stages_would_refuse_of_classes_is_refused_at_once(tmp_path):
    images = {"name": "a", "source": "folder", "path": "a", "kind": "images"}
    number = {"name": "a", "source": "csv", "path": "a.csv", "kind": "regression", "metric": "pearson_spearman"}
    text = {"name": "b", "source": "csv", "path": "b.csv"}
    for tasks, explain, said in (
        ([images, images | {"name": "b"}], {"columns": ["year"]}, "explain.columns: expected none with images"),
        ([text, number], {}, "merge.tasks.1.kind: expected classes"),
    ):
        with pytest.raises(RecipeError) as error:
            parsed(tmp_path, merge={"recipe": "merge", "base": "base", "tasks": tasks}, explain=explain)
        assert said in str(error.value)


def test_a_student_of_language_is_taught_by_whole_logits(tmp_path, merge):
    recipe = parsed(tmp_path, merge=MERGE)
    assert recipe.distillation("dense", merge.folder).chunk == 0  # or the recipe distill refuses it


@pytest.fixture
def here(monkeypatch):
    """Stages are run in this process."""
    monkeypatch.setattr(stages, "_run", lambda words: main([str(word) for word in words[3:]]))


def test_an_image_is_shown_by_the_file_that_a_reader_can_open(tmp_path):
    files = [str(tmp_path / "red/1.png"), str(tmp_path / "red/2.png")]
    content, pairs = b"an image", [("an image", 0)]
    pictures = [*map(Picture, files), Picture(content), Picture(pairs, 7)]
    none = Split([], [])
    task = TextTask("a", ("red", "blue"), none, none, Split(pictures, [0, 1, 1, 0]), "accuracy", "images")
    shown = list(_known(task, "folder", examples=True))
    assert [row["text"] for row in shown] == [*files, f"sha256 {sha256(content).hexdigest()[:16]}", "picture 7"]
    assert [row["label"] for row in shown] == ["a: red", "a: blue", "a: blue", "a: red"]
    assert not any("words" in row for row in shown)
    assert not any("text" in row for row in _known(task, "folder", examples=False))


def whole(world, run, here) -> tuple[dict, pd.DataFrame]:
    done = world.run(composed(taken={"merge": run}), "composed")
    assert done.code == 0, done.err
    result = json.loads((world.folder / "composed/result.json").read_text())
    assert result["explained_equals_measured"] < 1e-9
    assert result["answers_equal_scores"] < 1e-6
    page = (world.folder / "composed/report.html").read_text()
    assert "Who lost what, and where" in page
    return result, pd.read_parquet(f"{result['stages']['answers']}/answers.parquet")


@pytest.mark.slow  # a merge, a student, and three stages after it
@pytest.mark.filterwarnings("ignore:.*right on .* of the (validation|test) rows.*")
def test_language_models_are_composed_to_the_end(tmp_path, here):
    world = tiny_lm.World(tmp_path)
    tasks = [tiny_lm.source(tmp_path, "mood"), tiny_lm.source(tmp_path, "topic", "perplexity")]  # as merge_lm_tiny.yaml
    given = world.causal("merge", tasks, training={"lora_rank": 4}, exclusive={"rank": 4})
    done = world.run(given | {"baselines": {"scales": [0.5]}}, "merge")
    assert done.code == 0, done.err
    result, table = whole(world, "merge", here)
    told = json.loads((tmp_path / "merge/result.json").read_text())["rows"]
    dense = result["rows"]["dense"]
    shares = {"topic": told["experts"]["tasks"]["topic"] / dense["tasks"]["topic"]}
    if told["experts"]["tasks"]["mood"]:
        shares["mood"] = dense["tasks"]["mood"] / told["experts"]["tasks"]["mood"]
    assert dense["normalised"] == pytest.approx(sum(shares.values()) / len(shares))
    gap = table["dense_log"].mean() - table["twin_log"].mean()
    assert result["explained"]["twin-dense"]["gap"] == pytest.approx(gap)
    assert set(table["task"]) == {"mood", "topic"}
    assert type(transformers.AutoModelForCausalLM.from_pretrained(tmp_path / "composed/students/dense/model"))


@pytest.mark.slow  # likewise
@pytest.mark.filterwarnings("ignore")
def test_images_are_composed_to_the_end(tmp_path, here):
    from benchmarks import families
    from tests.recipes.merge.test_images import paint, recipe

    world = tiny.World(tmp_path)
    families.build("resnet").save_pretrained(tmp_path / "resnet")
    look = transformers.ConvNextImageProcessor(size={"shortest_edge": 32}, crop_pct=1.0)
    look.save_pretrained(tmp_path / "resnet")
    paint(tmp_path / "colours")
    paint(tmp_path / "shades", 20)
    given = recipe(world, training={"image_size": 32, "augmentation": "none"})
    done = world.run(given | {"baselines": {"scales": [0.5], "probe": False}}, "merge")
    assert done.code == 0, done.err
    result, table = whole(world, "merge", here)
    assert "words" not in table.columns
    assert {Path(file).parents[2].name for file in table["text"]} == {"colours", "shades"}
    assert all(Path(file).is_file() for file in table["text"])
    assert set(result["explained"]["twin-dense"]["shares"]) >= {"task", "router"}
    assert (tmp_path / "composed/students/dense/model/config.json").is_file()
