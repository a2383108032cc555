"""A twin of folders that plain transformers made answers stock code with its heads and names, routed and dense."""

import copy
import json
import pickle
from pathlib import Path
from typing import Any

import lightning
import pytest
import torch
import torch.nn.functional as F
import transformers

import twinmerge
from tests.twinmerge import foreign, tiny
from tests.twinmerge.foreign import CLASSIFIER, KINDS, TOKENS
from tests.twinmerge.test_folders import place
from tests.twinmerge.toy import ToyData
from twinmerge import CheckpointError, Head, attach, merge_folders, save, stock_classifier
from twinmerge.folders import mapped, read_folder

SPAM, TOPIC, ENTITY = {0: "ham", 1: "spam"}, {0: "art", 1: "sport", 2: "trade"}, {0: "O", 1: "PLACE"}


@pytest.fixture(scope="module")
def root(tmp_path_factory: pytest.TempPathFactory) -> Path:
    transformers.utils.logging.set_verbosity_error()
    return tmp_path_factory.mktemp("answering")


@pytest.fixture(scope="module")
def world(root: Path) -> dict[str, Path]:
    """Four fine-tunes of one base, one of them with an answer for every token."""
    base = foreign.base("bert", root / "base-bert")
    kinds = {"spam": (CLASSIFIER, SPAM), "topic": (CLASSIFIER, TOPIC), "place": (TOKENS, ENTITY)}
    kinds["stars"] = (CLASSIFIER, {0: "stars"})
    for seed, (task, (auto, labels)) in enumerate(kinds.items()):
        foreign.full(auto, seed=seed + 10, labels=labels)(base, root / task)
    return {"base": base, **{task: root / task for task in kinds}}


def twin_of(world: dict[str, Path], *tasks: str) -> Any:
    texts = {t: [f"word{i + 9 * n} word{i}" for i in range(6)] for n, t in enumerate(tasks)}
    folders = {task: world[task] for task in tasks}
    return merge_folders(world["base"], folders, rank={"density": 1.0}, router="knn", texts=texts)


@pytest.mark.filterwarnings("ignore:.*module\\(s\\) in eval mode.*")
@pytest.mark.filterwarnings("ignore:.*logging interval.*")
def test_names_survive_training_and_reach_stock_code(world: dict[str, Path], tmp_path: Path, remote: None) -> None:
    twin = twinmerge.load(save(twin_of(world, "spam", "topic"), tmp_path / "first", tokenizer=world["base"]))
    module = twinmerge.FinetuneModule(twin.train_only("heads"), question="topic")
    quiet = dict.fromkeys(("logger", "enable_checkpointing", "enable_progress_bar", "enable_model_summary"), False)
    lightning.Trainer(max_steps=2, accelerator="cpu", devices=1, **quiet).fit(module, datamodule=ToyData(labels=3))
    folder = save(module.model, tmp_path / "trained", tokenizer=world["base"])
    load = transformers.AutoModelForSequenceClassification.from_pretrained
    model, report = load(folder, trust_remote_code=True, output_loading_info=True)
    assert not any(report.values())
    names = ["spam: ham", "spam: spam", "topic: art", "topic: sport", "topic: trade"]
    assert list(model.config.id2label.values()) == names
    inputs = foreign.batch()
    one = load(folder, trust_remote_code=True, head="topic", output_hidden_states=True, return_dict=False)
    with torch.no_grad():
        wanted = twinmerge.load(folder).classify(**inputs, head="topic").logits
        logits, states = one(**inputs)
        assert torch.allclose(logits, wanted, atol=1e-5)
        assert len(states) == 3
        assert torch.allclose(model(**inputs, head="topic").logits[:, 2:], wanted, atol=1e-5)
    pipe = transformers.pipeline("text-classification", str(folder), trust_remote_code=True, device="cpu")
    assert pipe("word3 word4")[0]["label"] in names


def test_labels_of_heads_side_by_side_ask_their_own_head(world: dict[str, Path], tmp_path: Path) -> None:
    from twinmerge.modeling_twin import as_classifier

    twin, inputs = twin_of(world, "spam", "topic"), foreign.batch()
    own = [twin.classify(**inputs, head=task).logits.detach() for task in ("spam", "topic")]
    model = as_classifier(twin)
    labels = torch.tensor([1, 3, 4])  # spam: spam, topic: sport, topic: trade
    wanted = -torch.stack(
        [own[0][0, :2].log_softmax(-1)[1], own[1][1].log_softmax(-1)[1], own[1][2].log_softmax(-1)[2]]
    ).mean()
    out = model(**inputs, labels=labels)
    assert torch.allclose(out.loss, wanted, atol=1e-5)
    out.loss.backward()
    assert twin.heads["topic"].out_proj.weight.grad.isfinite().all()
    for again in (copy.deepcopy(model), pickle.loads(pickle.dumps(model))):  # noqa: S301 - our own
        more = {**inputs, "token_type_ids": torch.zeros_like(inputs["input_ids"])}  # tried on a copy at its first use
        assert torch.equal(again(**more).logits, model(**inputs).logits)
    stars = as_classifier(twin_of(world, "spam", "stars"), "stars")
    truth = torch.tensor([4.0, 1.0, 2.5])
    answer = stars(**inputs, labels=truth)  # cross-entropy of one output would be 0 whatever it says
    assert torch.allclose(answer.loss, F.mse_loss(answer.logits[:, 0], truth))
    with pytest.raises(ValueError, match="name one head to train"):
        as_classifier(twin_of(world, "spam", "stars"))(**inputs, labels=truth)


def test_every_token_gets_its_answer(world: dict[str, Path], tmp_path: Path, remote: None) -> None:
    twin, inputs = twin_of(world, "spam", "place"), foreign.batch()
    rows = torch.eye(2)[[1, 1, 1]]
    with torch.no_grad():
        got = twin.classify(**inputs, head="place", router_weights=rows).logits
        wanted = foreign.original(world["place"], world["base"])(**inputs).logits
        mask = inputs["attention_mask"].bool()
        assert got.shape == wanted.shape
        assert torch.allclose(got[mask], wanted[mask], atol=1e-4)
        routed = twin.classify(**inputs, head="place").logits
    with pytest.raises(ValueError, match="ask the two kinds in calls of their own"):
        twin.classify(**inputs, head=["spam", "place", "spam"])
    folder = save(twin, tmp_path / "tokens", tokenizer=world["base"])
    maps = json.loads((folder / "config.json").read_text())["auto_map"]
    assert sorted(maps) == ["AutoModel", "AutoModelForSequenceClassification", "AutoModelForTokenClassification"]
    model = transformers.AutoModelForTokenClassification.from_pretrained(folder, trust_remote_code=True)
    assert model.config.id2label == ENTITY
    labels = torch.where(mask, 1, -100)
    with torch.no_grad():
        out = model(**inputs, labels=labels)
        assert torch.allclose(out.logits[mask], routed[mask], atol=1e-5)
        assert torch.allclose(out.loss, F.cross_entropy(routed[mask], labels[mask]), atol=1e-5)
    pipe = transformers.pipeline("token-classification", str(folder), trust_remote_code=True, device="cpu")
    assert {word["entity"] for word in pipe("word3 word4")} <= set(ENTITY.values())
    base = transformers.AutoModel.from_pretrained(world["base"]).eval()
    with pytest.raises(CheckpointError, match="a label for every token"):
        mapped(read_folder(world["place"], world["base"], base), ["O", "PLACE"])


def test_several_labels_at_once_stay_so(world: dict[str, Path], tmp_path: Path, remote: None) -> None:
    model: Any = transformers.AutoModelForSequenceClassification.from_pretrained(
        world["base"], id2label=TOPIC, problem_type="multi_label_classification"
    )
    foreign.moved(model, 5).save_pretrained(tmp_path / "several")
    folders = {"spam": world["spam"], "several": tmp_path / "several"}
    twin = merge_folders(world["base"], folders, rank={"rank": 4}, router="knn", texts={t: ["a", "b"] for t in folders})
    folder = save(twin, tmp_path / "multi", tokenizer=world["base"])
    options = {"trust_remote_code": True, "model_kwargs": {"head": "several"}, "device": "cpu", "top_k": None}
    answers = transformers.pipeline("text-classification", str(folder), **options)(["x"])[0]
    scores = {answer["label"]: answer["score"] for answer in answers}
    batch = foreign.tokenizer()("x", return_tensors="pt")
    batch.pop("token_type_ids", None)
    wanted = twin.classify(**batch, head="several").logits[0].sigmoid()
    assert [scores[name] for name in TOPIC.values()] == pytest.approx(wanted.tolist(), abs=1e-5)
    base = transformers.AutoModel.from_pretrained(world["base"]).eval()
    with pytest.raises(CheckpointError, match="several labels at once"):
        mapped(read_folder(tmp_path / "several", world["base"], base), list(TOPIC.values()))


def test_a_twin_of_images_is_an_image_classifier(tmp_path: Path, remote: None) -> None:
    model = tiny.vit()
    twin = attach(model, tiny.TASKS, tiny.differences(model, skip=("mask_token",)), tiny.router(32))
    twin.heads.update({task: Head(32, 2, "first") for task in tiny.TASKS})
    folder = save(twin.eval(), tmp_path / "images")
    made = transformers.AutoModelForImageClassification.from_pretrained(folder, trust_remote_code=True, head="topic")
    with torch.no_grad():
        got, wanted = made(**tiny.images()).logits, twin.classify(**tiny.images(), head="topic").logits
    assert torch.allclose(got, wanted, atol=1e-5)


STOCK = [k for k, v in KINDS.items() if not v.refused and (k.endswith(("classifier", "classification", "regression")))]


@pytest.mark.parametrize("kind", STOCK)
@pytest.mark.filterwarnings("ignore::UserWarning")
def test_a_head_goes_back_into_a_stock_classifier(kind: str, root: Path, tmp_path: Path) -> None:
    base, target = place(root, kind)
    body = transformers.AutoModel.from_pretrained(base, dtype=torch.float32).eval()
    expert = read_folder(target, base, body)
    body.load_state_dict(dict(expert.state), strict=False)
    assert expert.head is not None
    stock_classifier(body, expert.head).save_pretrained(tmp_path / "stock")
    name = json.loads((tmp_path / "stock/config.json").read_text())["architectures"][0]
    made = getattr(transformers, name).from_pretrained(tmp_path / "stock").eval()
    inputs = foreign.batch()
    with torch.no_grad():
        got, wanted = made(**inputs).logits, foreign.original(target, base)(**inputs).logits
    real = inputs["attention_mask"].bool() if wanted.dim() == 3 else slice(None)
    assert torch.allclose(got[real], wanted[real], atol=1e-5)
    if expert.labels:
        assert list(made.config.id2label.values()) == expert.labels


def test_a_head_without_a_stock_form_is_refused() -> None:
    with pytest.raises(CheckpointError, match="no stock sequence classifier on a BertModel has a head on the mean"):
        stock_classifier(tiny.bert(), Head(32, 2, "mean"))
