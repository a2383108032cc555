"""No folder's own code runs, whatever a terminal answers: every load says so, and a folder that needs it is refused."""

import ast
import builtins
import json
from pathlib import Path

import pytest
import yaml

from recipes.data.models import resolve_model
from recipes.errors import RecipeError, unforeseen
from recipes.run import main
from tests.recipes import tiny

ROOT = Path(__file__).parents[3]
CODE = "import pathlib\npathlib.Path({mark!r}).touch()\nfrom transformers import *\n"


def unsaid(source: str) -> list[int]:
    """Lines of loads by transformers' Auto classes, or by a class that is not written there, without a word on code."""
    found = []
    for node in ast.walk(ast.parse(source)):
        if isinstance(node, ast.Call) and isinstance(node.func, ast.Attribute):
            owner = ast.unparse(node.func.value)
            stock = (
                owner.split(".")[-1].startswith("Auto") or owner == "auto" or owner.startswith("getattr(transformers")
            )
            if node.func.attr in {"from_pretrained", "from_config"} and stock:
                said = {keyword.arg for keyword in node.keywords}
                found += [] if "trust_remote_code" in said else [node.lineno]
    return found


def test_every_load_says_that_no_code_is_run():
    assert unsaid("transformers.AutoModel.from_pretrained(x)\nAutoTokenizer.from_pretrained(x, **more)") == [1, 2]
    files = [
        file for wing in ("twinmerge", "distill", "rl", "explain", "recipes") for file in (ROOT / wing).rglob("*.py")
    ]
    found = {str(file): lines for file in files if (lines := unsaid(file.read_text(encoding="utf-8")))}
    assert len(files) > 100
    assert found == {}


@pytest.fixture
def evil(tmp_path, monkeypatch) -> Path:
    """A base whose configuration and tokenizer name code beside them, and a terminal that says yes."""
    base = tiny.save_base(tmp_path / "evil")
    code = CODE.format(mark=str(tmp_path / "ran"))
    (base / "own.py").write_text(code + "class Own(BertConfig): model_type = 'evil'\nclass Net(BertModel): ...\n")
    (base / "words.py").write_text(code + "class Words(PreTrainedTokenizerFast): ...\n")
    monkeypatch.setattr(builtins, "input", lambda *_: "y")
    return base


def edit(file: Path, **changes: object) -> None:
    file.write_text(json.dumps(json.loads(file.read_text()) | changes))


def foreign_model(base: Path) -> None:
    edit(base / "config.json", model_type="evil", auto_map={"AutoConfig": "own.Own", "AutoModel": "own.Net"})


def foreign_words(base: Path) -> None:  # of a known architecture, transformers' own tokenizer would be read
    edit(base / "config.json", model_type="evil")
    edit(base / "tokenizer_config.json", tokenizer_class="Words", auto_map={"AutoTokenizer": [None, "words.Words"]})


@pytest.mark.parametrize("change", [foreign_model, foreign_words])
@pytest.mark.parametrize("kind", ["finetune", "merge"])
def test_a_check_refuses_a_folder_that_needs_its_own_code(change, kind, evil, tmp_path, monkeypatch, capsys):
    monkeypatch.chdir(tmp_path)
    tasks = [tiny.task_source(tmp_path, name) for name in ("mood", "topic")]
    for name in ("mood", "topic"):
        tiny.write_csv(tmp_path / f"{name}.csv", name)
    change(evil)
    recipe = {"recipe": kind, "base": str(evil), "tasks": tasks, "trainer": {"max_epochs": 1, "accelerator": "cpu"}}
    (tmp_path / "r.yaml").write_text(yaml.safe_dump(recipe))
    assert main(["r.yaml", "--check"]) == 2
    refused = capsys.readouterr().err
    assert f"model folder {evil} needs code that it brings along, which is never run, see auto_map in its" in refused
    assert "trust_remote_code" not in refused
    assert not (tmp_path / "ran").exists()


def test_no_code_runs_from_python(evil, tmp_path):
    from distill.models import build
    from recipes.data.sources import load_task
    from recipes.data.task_source import TaskSource
    from recipes.data.text_module import TextDataModule
    from twinmerge import FinetuneModule

    tiny.write_csv(tmp_path / "mood.csv", "mood")
    foreign_model(evil)
    foreign_words(evil)
    task = load_task(TaskSource("mood", source="csv", path=str(tmp_path / "mood.csv")), seed=0)
    for load in (
        lambda: TextDataModule(task, str(evil), batch_size=8, max_length=16).setup("fit"),
        lambda: FinetuneModule(str(evil), labels=2),
        lambda: build(str(evil), "texts", 2, 0, False, 0, {}),
        lambda: resolve_model(str(evil)),
    ):
        with pytest.raises((ValueError, RecipeError), match=r"custom code|brings along"):
            load()
    assert not (tmp_path / "ran").exists()


def test_a_stranger_among_the_experts_is_refused_where_its_tokenizer_is_read(evil, tmp_path, monkeypatch, capsys):
    monkeypatch.chdir(tmp_path)
    base = tiny.save_base(tmp_path / "base")
    foreign_words(evil)
    recipe = {"recipe": "merge", "base": str(base), "experts": {"a": str(evil), "b": str(base)}, "vocabulary": "union"}
    (tmp_path / "r.yaml").write_text(yaml.safe_dump(recipe))
    assert main(["r.yaml", "--check"]) == 2
    assert f"experts.a: {evil} needs code that it brings along" in capsys.readouterr().err
    assert not (tmp_path / "ran").exists()


def test_what_transformers_says_of_a_hub_model_does_not_ask_for_its_code():
    said = "The repository some/model contains custom code. Please pass the argument `trust_remote_code=True` to allow"
    assert unforeseen(ValueError(said)) == (
        "some/model needs code that it brings along, which is never run; give one of an architecture and a tokenizer "
        "that transformers has"
    )
