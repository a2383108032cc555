"""The twin folder: five ways to load it, what its manifest refuses, and what a kill leaves behind."""

import json
import shutil
import sys
from collections.abc import Callable
from pathlib import Path
from typing import Any

import peft
import pytest
import torch
import transformers
from safetensors.torch import load_file
from torch import Tensor

import twinmerge
from tests.twinmerge import tiny
from twinmerge import CheckpointError, Head, artefact, attach
from twinmerge.artefact import bundle

pytestmark = [
    pytest.mark.filterwarnings("ignore:.*is_gradient_checkpointing.*:FutureWarning"),  # transformers' own, from PEFT
    pytest.mark.filterwarnings("ignore:.*merging LoRA weights won't be possible.*"),
    pytest.mark.filterwarnings("ignore:.*tie_word_embeddings=True.*"),
    pytest.mark.filterwarnings("ignore:.*fan_in_fan_out.*"),
]

BUILDS: dict[str, tuple[Callable[[], Any], dict[str, Any]]] = {
    "bert": (tiny.bert, {}),
    "bert_frozen": (tiny.bert, {"skip": ("embeddings", "pooler")}),
    "bert_classifier": (tiny.bert_classifier, {}),
    "bert_masked_lm": (tiny.bert_masked_lm, {}),
    "gpt2": (tiny.gpt2, {}),
    "llama": (tiny.llama, {}),
    "llama_tied": (tiny.llama_tied, {}),
    "mixtral": (tiny.mixtral, {}),
    "vit": (tiny.vit, {"skip": ("mask_token",)}),
    "vit_classifier": (tiny.vit_classifier, {"skip": ("mask_token",)}),
    "llama_body": (tiny.llama_body, {"skip": ("layers.0.input_layernorm",)}),
    "bart": (tiny.bart, {}),
}


def inputs_of(name: str) -> dict[str, Tensor]:
    return tiny.images() if "vit" in name else tiny.text()


def make_twin(name: str, **options: Any) -> tuple[Any, list[dict[str, Any]]]:
    build, chosen = BUILDS[name]
    model = build()
    experts = tiny.differences(model, **(chosen | options))
    twin = attach(model, tiny.TASKS, experts, tiny.router(32))
    with torch.random.fork_rng(devices=[]):
        torch.manual_seed(0)
        for i, task in enumerate(tiny.TASKS):
            twin.heads[task] = Head(32, i + 1, ("mean", "first", "last")[i], i == 0, i == 1)
    return twin.eval(), experts


def outputs(model: Any, name: str, **options: Any) -> Tensor:
    inputs = inputs_of(name)
    with torch.no_grad():
        out = model(**inputs, **options)[0]
    mask = inputs.get("attention_mask")
    return out if mask is None or out.dim() < 3 else out[mask.bool()]


@pytest.fixture(scope="module")
def folders(tmp_path_factory: pytest.TempPathFactory) -> Callable[[str], Path]:
    root, made = tmp_path_factory.mktemp("twins"), {}

    def folder(name: str) -> Path:
        if name not in made:
            made[name] = twinmerge.save(make_twin(name)[0], root / name, labels={"topic": ["a", "b"]})
        return made[name]

    return folder


def stock(folder: Path) -> Any:
    auto = next(iter(json.loads((folder / "config.json").read_text())["auto_map"]))
    model, report = getattr(transformers, auto).from_pretrained(folder, output_loading_info=True)
    assert not report["missing_keys"]
    assert not report["unexpected_keys"]
    return model.eval()


@pytest.mark.parametrize("name", BUILDS)
def test_stock_tools_read_the_shared_expert_to_the_bit(name: str, folders: Callable[[str], Path]) -> None:
    build, _ = BUILDS[name]
    model, wanted = stock(folders(name)), build()
    assert type(model) is type(wanted)
    assert not hasattr(model, "mixture")
    ours = dict(model.named_parameters())
    assert all(torch.equal(ours[n], p) for n, p in wanted.named_parameters())
    saved = load_file(folders(name) / "model.safetensors")
    assert ("lm_head.weight" in saved) == (name in ("llama", "mixtral"))
    assert not any("experts_" in key for key in saved)
    assert json.loads((folders(name) / "config.json").read_text())["architectures"] == [type(wanted).__name__]


@pytest.mark.parametrize("name", BUILDS)
def test_peft_reads_every_expert_exactly(name: str, folders: Callable[[str], Path]) -> None:
    folder = folders(name)
    _, experts = make_twin(name)
    for index, task in enumerate(tiny.TASKS):
        model = peft.PeftModel.from_pretrained(stock(folder), folder / "experts" / task).eval()
        base = BUILDS[name][0]()
        wanted = torch.func.functional_call(
            base, tiny.dense_state(base, [experts[index]], [1.0]), kwargs=inputs_of(name)
        )[0]
        got = outputs(model, name)
        mask = inputs_of(name).get("attention_mask")
        wanted = wanted if mask is None or wanted.dim() < 3 else wanted[mask.bool()]
        torch.testing.assert_close(got, wanted.detach(), rtol=2e-4, atol=2e-4)


@pytest.mark.parametrize("name", BUILDS)
def test_our_load_in_every_mode(name: str, folders: Callable[[str], Path]) -> None:
    folder = folders(name)
    twin, experts = make_twin(name)
    routed = twinmerge.load(folder)
    assert routed.tasks == list(tiny.TASKS)
    torch.testing.assert_close(outputs(routed, name), outputs(twin, name), rtol=2e-4, atol=2e-4)
    weights = tiny.mixtures(4)
    got, wanted = (outputs(t, name, router_weights=weights) for t in (routed, twin))
    torch.testing.assert_close(got, wanted, rtol=2e-4, atol=2e-4)
    a, b = (t.classify(**inputs_of(name), head=["topic", "mood", "spam", "topic"]) for t in (routed, twin))
    torch.testing.assert_close(a.logits, b.logits, rtol=2e-4, atol=2e-4)
    shared = twinmerge.load(folder, mode="shared")
    assert all(torch.equal(dict(shared.named_parameters())[n], p) for n, p in BUILDS[name][0]().named_parameters())
    expert = twinmerge.load(folder, mode="expert:topic")
    base = BUILDS[name][0]()
    state = tiny.dense_state(base, [experts[1]], [1.0])
    for n, p in expert.named_parameters():
        torch.testing.assert_close(p, state[n], rtol=1e-4, atol=1e-5)


@pytest.mark.parametrize("name", BUILDS)
def test_save_load_save_changes_nothing(name: str, folders: Callable[[str], Path], tmp_path: Path) -> None:
    first = twinmerge.load(folders(name))
    second = twinmerge.load(twinmerge.save(first, tmp_path / "again"))
    torch.testing.assert_close(outputs(second, name), outputs(first, name), rtol=1e-5, atol=1e-5)
    sizes = [sum(p.numel() for p in t.parameters()) for t in (make_twin(name)[0], first, second)]
    assert sizes[0] == sizes[1] == sizes[2]  # factors come back as factors
    for file in ("model.safetensors", "router/router.safetensors", "heads/topic.safetensors"):
        assert (tmp_path / "again" / file).read_bytes() == (folders(name) / file).read_bytes()


@pytest.mark.parametrize("name", ["bert", "gpt2", "llama_tied", "mixtral", "vit", "bert_classifier", "bart"])
def test_the_remote_code_is_the_routed_model(
    name: str, folders: Callable[[str], Path], monkeypatch: pytest.MonkeyPatch, tmp_path: Path
) -> None:
    folder = shutil.copytree(folders(name), tmp_path / f"copy_{name}")
    monkeypatch.setattr("transformers.dynamic_module_utils.HF_MODULES_CACHE", str(tmp_path / "modules"))
    monkeypatch.setattr(sys, "path", list(sys.path))
    auto = next(iter(json.loads((folder / "config.json").read_text())["auto_map"]))
    remote = getattr(transformers, auto).from_pretrained(folder, trust_remote_code=True)
    assert "twinmerge" not in {c.__module__.split(".")[0] for c in type(remote).__mro__}
    torch.testing.assert_close(outputs(remote, name), outputs(twinmerge.load(folder), name), rtol=1e-5, atol=1e-5)
    for key in [k for k in sys.modules if k.startswith("transformers_modules")]:
        del sys.modules[key]


def test_the_bundled_code_stands_alone() -> None:
    import ast

    tree = ast.parse(bundle())
    names = [n.name for n in tree.body if isinstance(n, ast.FunctionDef | ast.ClassDef)]
    assert len(names) == len(set(names))
    imports = {
        (n.module if isinstance(n, ast.ImportFrom) else n.names[0].name).split(".")[0]
        for n in ast.walk(tree)
        if isinstance(n, ast.Import | ast.ImportFrom)
    }
    assert imports - set(sys.stdlib_module_names) == {"torch", "safetensors", "transformers", "huggingface_hub"}


@pytest.mark.parametrize("name", ["llama", "gpt2"])
def test_peft_mixes_experts_with_cat(name: str, tmp_path: Path) -> None:
    """Matrices only: PEFT mixes neither whole modules nor LoRA biases."""
    skip = ("norm", "ln_", "bias")
    twin, _ = make_twin(name, skip=skip)
    folder = twinmerge.save(twin, tmp_path / "twin")
    model = peft.PeftModel.from_pretrained(stock(folder), folder / "experts" / "spam", adapter_name="spam")
    for task in tiny.TASKS[1:]:
        model.load_adapter(folder / "experts" / task, adapter_name=task)
    model.add_weighted_adapter(list(tiny.TASKS), [0.5, 0.3, 0.2], "mix", combination_type="cat")
    model.set_adapter("mix")
    row = torch.tensor([[0.5, 0.3, 0.2]])
    wanted = outputs(twin, name, router_weights=row)
    torch.testing.assert_close(outputs(model.eval(), name), wanted, rtol=2e-4, atol=2e-4)


def test_a_sharded_shared_expert(tmp_path: Path) -> None:
    twin, _ = make_twin("gpt2")
    folder = twinmerge.save(twin, tmp_path / "twin", max_shard_size="40KB")
    assert len(list(folder.glob("model-*.safetensors"))) > 2
    for load in (twinmerge.load, lambda f: twinmerge.load(f, mode="expert:mood")):
        assert load(folder) is not None
    torch.testing.assert_close(outputs(twinmerge.load(folder), "gpt2"), outputs(twin, "gpt2"), rtol=1e-5, atol=1e-5)
    index = json.loads((folder / "model.safetensors.index.json").read_text())
    names = sorted(index["weight_map"])
    others = set(index["weight_map"].values()) - {index["weight_map"][names[0]]}
    index["weight_map"][names[0]] = min(others)
    (folder / "model.safetensors.index.json").write_text(json.dumps(index))
    with pytest.raises(CheckpointError, match="the index places tensor"):
        twinmerge.load(folder, check=False)


@pytest.mark.parametrize("name", ["bert", "gpt2", "llama_tied"])
def test_a_router_that_reads_every_layer(name: str, tmp_path: Path) -> None:
    twin, _ = make_twin(name)
    twin.router_reads = "all"
    inputs = inputs_of(name)
    plain = stock(twinmerge.save(twin, tmp_path / "shared")).eval()
    with torch.no_grad():
        states = plain(**inputs, output_hidden_states=True).hidden_states
        weight = inputs["attention_mask"].float()[..., None]
        wanted = torch.cat([(s * weight).sum(1) / weight.sum(1) for s in states], dim=-1)
        torch.testing.assert_close(twin.features(**inputs), wanted, rtol=1e-5, atol=1e-5)
    twin.router = tiny.router(wanted.shape[1])
    again = twinmerge.load(twinmerge.save(twin, tmp_path / "twin"))
    assert again.router_reads == "all"
    torch.testing.assert_close(again.route(**inputs), twin.route(**inputs))


def test_types_and_options(folders: Callable[[str], Path], tmp_path: Path) -> None:
    half = twinmerge.load(folders("llama"), dtype=torch.bfloat16)
    assert half.model.layers[0].mlp.up_proj.experts_up.dtype == torch.bfloat16
    again = twinmerge.load(twinmerge.save(half, tmp_path / "half"))
    assert again.dtype == torch.bfloat16
    difference = (outputs(again, "llama").float() - outputs(half, "llama").float()).abs().max()
    assert difference < 0.05 * outputs(half, "llama").abs().max()


def old_format(folder: Path) -> Path:
    """The folder as its first format had it: the router beside the shared expert, no share of what was left out."""
    card = json.loads((folder / "twin.json").read_text())
    del card["left_out"]
    (folder / "twin.json").write_text(json.dumps(card | {"format_version": 1}))
    (folder / "router/router.safetensors").rename(folder / "router.safetensors")
    (folder / "router").rmdir()
    (folder / "MANIFEST.json").write_text(json.dumps(artefact.digest(folder)))
    return folder


def test_a_folder_of_the_first_format_loads(folders: Callable[[str], Path], tmp_path: Path) -> None:
    new = folders("bert")
    old = old_format(shutil.copytree(new, tmp_path / "old"))
    assert [f.name for f in new.glob("*.safetensors")] == ["model.safetensors"]  # what vLLM reads as weights
    assert sorted(f.name for f in old.glob("*.safetensors")) == ["model.safetensors", "router.safetensors"]
    first, second = twinmerge.load(old), twinmerge.load(new)
    torch.testing.assert_close(outputs(first, "bert"), outputs(second, "bert"), rtol=0, atol=0)
    again = twinmerge.save(first, tmp_path / "again")
    assert (again / "router/router.safetensors").read_bytes() == (new / "router/router.safetensors").read_bytes()
    assert json.loads((again / "twin.json").read_text())["format_version"] == 2


def test_label_names_survive_and_a_model_card_may_be_edited(folders: Callable[[str], Path], tmp_path: Path) -> None:
    folder = shutil.copytree(folders("bert"), tmp_path / "twin")
    (folder / "README.md").write_text("# Mine\n")
    twin = twinmerge.load(folder)
    assert twin.heads["topic"].label_names == ["a", "b"]
    again = twinmerge.save(twin, tmp_path / "again")
    assert json.loads((again / "twin.json").read_text())["heads"]["topic"]["labels"] == ["a", "b"]
    (folder / "README.md").unlink()
    twinmerge.load(folder)
    (folder / "twin.json").write_text((folder / "twin.json").read_text() + " ")
    with pytest.raises(CheckpointError, match="was changed"):
        twinmerge.load(folder)


def test_a_folder_answers_as_a_classifier(folders: Callable[[str], Path], tmp_path: Path, remote: None) -> None:
    folder = shutil.copytree(folders("bert"), tmp_path / "as_classifier")
    load = transformers.AutoModelForSequenceClassification.from_pretrained
    model, twin, inputs = load(folder, trust_remote_code=True), twinmerge.load(folder), tiny.text()
    names = {0: "spam: spam", 1: "topic: a", 2: "topic: b", 3: "mood: LABEL_0", 4: "mood: LABEL_1", 5: "mood: LABEL_2"}
    assert model.config.id2label == names
    with torch.no_grad():
        got, wanted = model(**inputs).logits, twin.classify(**inputs)
        for row, task, logits in zip(got, wanted.task, wanted.logits, strict=True):
            start, size = ((0, 1), (1, 2), (3, 3))[int(task)]
            torch.testing.assert_close(row[start : start + size], logits[:size])
            assert int(row.isfinite().sum()) == size
        one = load(folder, trust_remote_code=True, head="topic")
        torch.testing.assert_close(one(**inputs).logits, twin.classify(**inputs, head="topic").logits[:, :2])
        assert one.config.id2label == {0: "a", 1: "b"}
        again = twinmerge.save(twin, tmp_path / "again")
    maps = [json.loads((f / "config.json").read_text())["auto_map"] for f in (again, folder)]
    assert maps[0] == maps[1]
    assert sorted(maps[0]) == ["AutoModel", "AutoModelForSequenceClassification"]


def test_a_pipeline_gives_the_names_of_the_labels(tmp_path: Path, remote: None) -> None:
    from tokenizers import Tokenizer, models, pre_tokenizers

    words = Tokenizer(models.WordLevel({"[PAD]": 0, "[UNK]": 1, **{f"w{i}": i for i in range(2, 60)}}, "[UNK]"))
    words.pre_tokenizer = pre_tokenizers.Whitespace()
    tokenizer = transformers.PreTrainedTokenizerFast(tokenizer_object=words, pad_token="[PAD]", unk_token="[UNK]")  # noqa: S106
    twin, _ = make_twin("bert")
    folder = twinmerge.save(twin, tmp_path / "piped", tokenizer=tokenizer, labels={"topic": ["sport", "art"]})
    pipe = transformers.pipeline(
        "text-classification", str(folder), trust_remote_code=True, model_kwargs={"head": "topic"}, device="cpu"
    )
    texts = ["w4 w5 w6", "w40 w7"]
    wanted = twin.classify(**tokenizer(texts, padding=True, return_tensors="pt"), head="topic")
    wanted = wanted.logits[:, :2].detach().softmax(-1)
    for answer, row in zip(pipe(texts), wanted, strict=True):
        assert answer["label"] == ("sport", "art")[int(row.argmax())]
        assert answer["score"] == pytest.approx(float(row.max()), abs=1e-5)


def test_settings_of_the_caller_reach_the_remote_model(
    folders: Callable[[str], Path], tmp_path: Path, remote: None
) -> None:
    folder = shutil.copytree(folders("bert"), tmp_path / "settings")
    options = {"attn_implementation": "eager", "output_hidden_states": True, "hidden_dropout_prob": 0.3}
    model = transformers.AutoModel.from_pretrained(folder, trust_remote_code=True, **options)
    assert model.config._attn_implementation == "eager"
    assert model.config.hidden_dropout_prob == 0.3
    assert len(model(**tiny.text()).hidden_states) == 3


def test_causal_experts_are_matrices_that_peft_mixes_in_one_batch(tmp_path: Path) -> None:
    base = tiny.llama()
    states = {t: tiny.dense_state(base, [e], [1.0]) for t, e in zip(tiny.TASKS, tiny.differences(base), strict=True)}
    twin, exclusive = twinmerge.merge(tiny.llama(), states, "average", rank={"rank": 6})
    mean = {n: torch.stack([s[n] for s in states.values()]).mean(0) for n in states["spam"]}
    squares = {n: (states["spam"][n] - mean[n]).double().square().sum() for n in mean}
    lost = sum(v for n, v in squares.items() if mean[n].dim() < 2) / sum(squares.values())
    assert exclusive.left_out["spam"] == pytest.approx(float(lost), rel=1e-4)
    folder = twinmerge.save(twin, tmp_path / "twin")
    assert twinmerge.load(folder).left_out == exclusive.left_out
    assert f"{float(lost):.2%} of spam" in (folder / "README.md").read_text()
    for task in tiny.TASKS:
        assert json.loads((folder / "experts" / task / "adapter_config.json").read_text())["modules_to_save"] is None
    model = peft.PeftModel.from_pretrained(stock(folder), folder / "experts" / "spam", adapter_name="spam")
    for task in tiny.TASKS[1:]:
        model.load_adapter(folder / "experts" / task, adapter_name=task)
    inputs, names = tiny.text(3), list(tiny.TASKS)
    with torch.no_grad():
        mixed = model.eval()(**inputs, adapter_names=names).logits
        wanted = twin(**inputs, router_weights=torch.eye(3)).logits
    mask = inputs["attention_mask"].bool()
    torch.testing.assert_close(mixed[mask], wanted[mask], rtol=2e-4, atol=2e-4)


@pytest.mark.parametrize("dense", ["all", "norms", "biases", "none"])
def test_which_vectors_an_expert_keeps(dense: str) -> None:
    base = tiny.gpt2(layers=1)
    states = {
        t: tiny.dense_state(base, [e], [1.0]) for t, e in zip("ab", tiny.differences(base, experts=2), strict=True)
    }
    _, exclusive = twinmerge.merge(tiny.gpt2(layers=1), states, "average", rank={"rank": 2}, dense=dense)
    vectors = [
        n for n in exclusive.experts["a"] if n.startswith("transformer.h.0.") and base.get_parameter(n).dim() < 2
    ]
    biases = [n for n in vectors if ".ln_" not in n]
    assert (len(vectors), len(biases)) == {"all": (8, 4), "norms": (4, 0), "biases": (4, 4), "none": (0, 0)}[dense]
    assert bool(exclusive.left_out) == (dense != "all")
    with pytest.raises(ValueError, match="choose all, norms, biases or none"):
        twinmerge.merge(tiny.gpt2(layers=1), states, "average", rank={"rank": 2}, dense="some")


def test_generation_settings_tokenizer_texts_and_card(tmp_path: Path) -> None:
    twin, _ = make_twin("llama")
    twin.generation_config.max_new_tokens = 7
    source = tmp_path / "base"
    source.mkdir()
    (source / "tokenizer.json").write_text("{}")
    (source / "model.safetensors").write_text("not copied")
    texts = {"recipe.yaml": "recipe: merge\n"}
    card = {"base": "a base", "residuals": {}, "tasks": "cannot be overwritten"}
    folder = twinmerge.save(twin, tmp_path / "twin", tokenizer=source, texts=texts, card=card)
    assert json.loads((folder / "generation_config.json").read_text())["max_new_tokens"] == 7
    assert (folder / "tokenizer.json").read_text() == "{}"
    assert (folder / "recipe.yaml").read_text() == texts["recipe.yaml"]
    assert json.loads((folder / "twin.json").read_text())["tasks"] == list(tiny.TASKS)
    assert json.loads((folder / "twin.json").read_text())["base"] == "a base"
    assert "a base" in (folder / "README.md").read_text()
    twinmerge.verify(folder)
