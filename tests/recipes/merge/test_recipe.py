"""The merge recipe through the real command: twin folder, table, cache, every method and policy, resume."""

import inspect
import json
import shutil
import signal

import pytest
import torch
from peft import PeftModel
from safetensors.torch import load_file
from transformers import AutoModel, AutoTokenizer

import twinmerge
from recipes.data.sources import load_task
from recipes.data.task_source import TaskSource
from recipes.merge.baselines import options_of
from recipes.merge.evaluation import evaluate
from recipes.merge.experts import cache_folder
from recipes.merge.schema import Training
from recipes.running.trainer import TrainerConfig
from tests.recipes import tiny
from twinmerge.functional.methods import METHODS

ROWS = ["experts", "pretrained", "average", "task_arithmetic", "ties", "dare", "dare_ties", "tsv_m"]
ROWS += ["routed", "routed, head routed too", "oracle", "linear probe"]
NUMBERS = {"mean", "normalised", "gap_recovered", "gap_recovered_tasks", "ms_per_input", "bytes", "tasks"}


def result(world, out):
    return json.loads((world.folder / out / "result.json").read_text())


def merge(world, out, tasks=("mood", "topic"), **changes):
    """Run a merge and return its result."""
    done = world.run(world.recipe("merge", tasks, **changes), out)
    assert done.code == 0, done.err
    return result(world, out)


def batches(world, names):
    """The test rows of all tasks, one batch a task, as the evaluation gets them."""
    tokenizer = AutoTokenizer.from_pretrained(world.base)
    tasks = [load_task(TaskSource(**tiny.task_source(world.folder, name)), 0) for name in names]
    made = []
    for index, task in enumerate(tasks):
        batch = dict(tokenizer(task.test.texts, padding=True, return_tensors="pt"))
        made.append(batch | {"labels": torch.tensor(task.test.labels), "task": torch.full((len(task.test),), index)})
    return tasks, made


def test_a_merge_leaves_folder_table_and_report(world):
    outcome = result(world, "first")
    assert list(outcome["rows"]) == ROWS
    assert all(set(row) == NUMBERS and row["bytes"] > 0 for row in outcome["rows"].values())
    assert set(outcome) >= {"tuned", "best_static", "best_static_normalised", "router"}
    assert set(outcome["tuned"]) == set(METHODS)
    assert outcome["best_static_normalised"] == outcome["rows"][outcome["best_static"]]["normalised"]
    assert 0 <= outcome["router"]["accuracy"] <= 1
    assert outcome["rows"]["experts"]["normalised"] == 1
    assert outcome["rows"]["experts"]["bytes"] == 2 * outcome["rows"]["pretrained"]["bytes"]
    folder = world.folder / "first"
    page = (folder / "report.html").read_text()
    assert page.count("data:image/png") == 4
    assert {f.stem for f in (folder / "figures").glob("*.csv")} == {"normalised", "tasks", "mixture", "residuals"}
    names = {f.name for f in (folder / "merged").iterdir()}
    assert names >= {"recipe.yaml", "result.json", "README.md", "MANIFEST.json", "tokenizer.json", "modeling_twin.py"}
    assert "recipe: merge" in (folder / "merged/README.md").read_text()
    inside = json.loads((folder / "merged/result.json").read_text())
    assert inside["rows"]["routed"]["mean"] == outcome["rows"]["routed"]["mean"]
    assert {file.parent.name for file in (folder / "checkpoints").rglob("*.ckpt")} == {"router"}  # for --resume


def test_a_merge_says_one_line_a_phase(world):
    said = (world.folder / "first/said").read_text()
    assert "Trainable params" not in said
    assert "Warning" not in said
    assert len(said.splitlines()) < 47


def test_the_saved_twin_loads_in_every_way(world):
    folder = world.folder / "first/merged"
    shared = twinmerge.load(folder, mode="shared")
    stock = AutoModel.from_pretrained(folder)
    assert all(torch.equal(a, b) for a, b in zip(shared.parameters(), stock.parameters(), strict=True))
    inputs = AutoTokenizer.from_pretrained(folder)(
        ["my brother ate warm bread", "he"], padding=True, return_tensors="pt"
    )
    for task in ("mood", "topic"):
        expert = twinmerge.load(folder, mode=f"expert:{task}")
        peft = PeftModel.from_pretrained(AutoModel.from_pretrained(folder), str(folder / "experts" / task)).eval()
        with torch.no_grad():
            torch.testing.assert_close(expert(**inputs)[0], peft(**inputs)[0], atol=1e-5, rtol=0)


def test_the_routed_rows_follow_from_the_saved_folder(world):
    twin = twinmerge.load(world.folder / "first/merged")
    tasks, made = batches(world, ("mood", "topic"))
    rows = result(world, "first")["rows"]
    routed = evaluate(lambda x, asked: twin.classify(**x, head=asked).logits, tasks, made, lambda: None)
    assert routed.tasks == pytest.approx(rows["routed"]["tasks"])
    right = {}
    for task, batch in zip(tasks, made, strict=True):  # nothing named: the head must be the right one, and its answer
        x = {k: v for k, v in batch.items() if k not in ("labels", "task")}
        with torch.no_grad():
            out = twin.classify(**x)
        hit = (out.task == batch["task"]) & (out.logits.argmax(-1) == batch["labels"])
        right[task.name] = hit.float().mean().item()
    assert right == pytest.approx(rows["routed, head routed too"]["tasks"])


def test_a_second_run_takes_the_cached_experts_and_ends_the_same(world):
    done = world.run(world.recipe("merge"), "second")
    assert done.code == 0, done.err
    assert "train mood" not in done.err + done.out
    assert tiny.numbers(world.folder / "second/result.json") == tiny.numbers(world.folder / "first/result.json")
    first, second = (load_file(world.folder / out / "merged/router/router.safetensors") for out in ("first", "second"))
    assert all(torch.equal(first[name], second[name]) for name in first)


@pytest.mark.parametrize(
    ("shared", "exclusive", "router"),
    [
        ({"method": "average"}, {"rank": None, "density": 0.2}, {"kind": "linear", "features": "all"}),
        ({"method": "ties", "options": {"scale": 0.4, "density": 0.5}}, {"rank": None, "energy": 0.9}, {"kind": "knn"}),
        ({"method": "dare", "options": {"drop": 0.5}}, {"rank": None, "budget": 20000}, {"top_k": 1}),
        ({"method": "dare_ties"}, {"rank": None}, {"temperature": 2.0}),
    ],
    ids=lambda value: "-".join(map(str, value.values())),
)
def test_every_shared_expert_rank_policy_and_router(world, request, shared, exclusive, router):
    out = f"kinds{shared['method']}"
    outcome = merge(world, out, shared=shared, exclusive=exclusive, router=router, baselines={"scales": []})
    assert set(outcome["tuned"]) == {"average"}
    twin = twinmerge.load(world.folder / out / "merged")
    assert twin.router.kind == router.get("kind", "linear")
    assert twin.router_reads == ("last" if router.get("kind") == "knn" else "all")
    assert twin.router.top_k == router.get("top_k", 0)
    assert twin.router.temperature == router.get("temperature", twin.router.temperature)
    base = dict(AutoModel.from_pretrained(world.base).named_parameters())
    folders = [world.folder / "experts" / task for task in twin.tasks]
    experts = [dict(AutoModel.from_pretrained(folder).named_parameters()) for folder in folders]
    options = shared.get("options", {}) | ({"seed": 0} if "dare" in shared["method"] else {})
    wanted = METHODS[shared["method"]](base, experts, **options)
    merged = dict(twinmerge.load(world.folder / out / "merged", mode="shared").named_parameters())
    for name, value in wanted.items():
        torch.testing.assert_close(merged[name], value)


def test_option_names_are_those_of_the_methods():
    for method, function in METHODS.items():
        keywords = {n for n, p in inspect.signature(function).parameters.items() if p.kind is p.KEYWORD_ONLY}
        assert set(options_of(method)) == keywords - {"seed"}


def test_lora_experts_merge_in_the_exact_product_form(world):
    training = {"lora_rank": 2, "learning_rate": 2e-2}
    outcome = merge(world, "lora", training=training, exclusive={"rank": 4})
    base = AutoModel.from_pretrained(world.base)
    inputs = AutoTokenizer.from_pretrained(world.base)(["the cook sold cheap shoes"], return_tensors="pt")
    adapters = {
        t: p.parent for t in ("mood", "topic") for p in world.folder.glob(f"cache/experts/{t}-*/adapter_config.json")
    }
    for task, adapter in adapters.items():  # rank 4 holds both adapters: nothing is lost
        expert = PeftModel.from_pretrained(AutoModel.from_pretrained(world.base), str(adapter)).eval()
        with torch.no_grad():
            wanted = expert(**inputs)[0]
            got = twinmerge.load(world.folder / "lora/merged", mode=f"expert:{task}")(**inputs)[0]
        torch.testing.assert_close(got, wanted, atol=1e-5, rtol=0)
    assert outcome["rows"]["oracle"]["tasks"] == pytest.approx(outcome["rows"]["experts"]["tasks"])
    model = sum(p.nbytes for p in base.parameters())
    assert model < outcome["rows"]["experts"]["bytes"] < 2 * model
    card = json.loads((world.folder / "lora/merged/twin.json").read_text())
    assert set(card["residuals"]["mood"]) == set(card["residuals"]["topic"])
    assert max(card["residuals"]["mood"].values()) < 1e-5


def test_given_experts_are_taken_and_a_regression_is_merged(world):
    made = world.run(
        world.recipe("finetune", ("count",), training={"batch_size": 4}, trainer={"max_epochs": 5}), "given"
    )
    assert made.code == 0, made.err
    outcome = merge(world, "mixed", ("mood", "count"), experts={"count": "given/experts/count"})
    assert not list(world.folder.glob("cache/experts/count-*"))
    rows = outcome["rows"]
    card = json.loads((world.folder / "given/experts/count/expert.json").read_text())
    assert rows["experts"]["tasks"]["count"] == pytest.approx(card["test"], abs=1e-5)
    assert rows["oracle"]["tasks"]["count"] == pytest.approx(card["test"], abs=0.2)
    assert abs(rows["routed, head routed too"]["tasks"]["count"]) <= 1
    assert rows["linear probe"]["tasks"]["count"] != 0


def test_the_probe_learns_from_the_rows_of_the_experts_alone(world, monkeypatch):
    from recipes.merge import rows

    seen = []
    fit = rows.linear_probe
    monkeypatch.setattr(rows, "linear_probe", lambda *a: seen.append(a) or fit(*a))
    recipe = world.recipe("merge", router={"items": 1000}, baselines={"scales": []})
    for task in recipe["tasks"]:
        task["max_train"] = 40
    assert world.run(recipe, "probe").code == 0
    features, tasks = seen[0]
    for index, source in enumerate(recipe["tasks"]):
        assert tasks[index].train == load_task(TaskSource(**source), 0).train
        assert (features["train"][1] == index).sum() == 40


# ---------------------------------------------------------------------------------------------------------------------
# The cache of experts.


def test_a_cache_entry_is_named_by_what_decides_the_weights(tmp_path):
    base, table = tiny.save_base(tmp_path / "base"), tiny.write_csv(tmp_path / "mood.csv", "mood")
    source = TaskSource(**tiny.task_source(tmp_path, "mood"))

    def entry(base=base, source=source, trainer=None, **training):
        return cache_folder(str(base), source, Training(**training), trainer or TrainerConfig(), 0).name

    first = entry()
    assert first == entry(trainer=TrainerConfig(enable_progress_bar=False, logger=False))
    assert first != entry(learning_rate=1e-3)
    assert first != entry(trainer=TrainerConfig(max_epochs=7))
    assert first != entry(base="shipped:minilm")
    other = tmp_path / "elsewhere"
    other.mkdir()
    moved = TaskSource(**tiny.task_source(other, "mood"))
    shutil.copy(table, other)
    shutil.copytree(base, other / "base")
    assert first == entry(other / "base", moved)  # the same content in another place
    table.write_text(table.read_text() + "the cook wept at noon,sad\n")
    assert first != entry()
    tiny.save_base(tmp_path / "base", seed=1)
    assert entry() != entry(other / "base")


def test_a_damaged_cache_entry_is_named_and_made_again(world):
    recipe = world.recipe("merge", training={"learning_rate": 1.9e-3})
    assert world.run(recipe, "good").code == 0
    entry = max((world.folder / "cache/experts").glob("mood-*"), key=lambda f: f.stat().st_mtime)
    weights = entry / "model.safetensors"
    whole = weights.read_bytes()
    weights.write_bytes(whole[:-100])
    done = world.run(recipe, "bad")
    assert done.code == 0, done.err
    assert f"expert mood: {entry} has a file model.safetensors of other content" in done.out
    assert weights.read_bytes() == whole


# ---------------------------------------------------------------------------------------------------------------------
# Interruption.


def test_a_merge_killed_in_its_second_expert_goes_on_to_the_same_end(world, nursery):
    fuse = world.folder / "fuse"
    callback = {"class_path": "tests.recipes.tiny.KillOnce", "init_args": {"fuse": str(fuse), "step": 17}}
    recipe = world.recipe("merge", trainer={"callbacks": [callback]})
    fuse.write_text(f"{int(signal.SIGKILL)} topic")
    broken = world.fork(nursery, recipe, "killed", cache="other")
    assert broken.code == -signal.SIGKILL
    entries = [f.name.split("-")[0] for f in (world.folder / "other/experts").iterdir() if not f.name.startswith(".")]
    assert entries == ["mood"]
    assert not (world.folder / "killed/merged").exists()
    again = world.fork(nursery, recipe, "killed", "--resume", cache="other")
    assert again.code == 0, again.err
    assert "expert mood: found" in again.out
    assert "train mood" not in again.out + again.err
    assert tiny.numbers(world.folder / "killed/result.json") == tiny.numbers(world.folder / "first/result.json")
