"""Folders that plain transformers and PEFT wrote are experts as they are, with their logits; or refused with why."""

import json
import shutil
from pathlib import Path
from typing import Any

import pytest
import torch
import transformers

from recipes.data.models import resolve_model
from recipes.errors import RecipeError
from tests.twinmerge import foreign
from tests.twinmerge.foreign import KINDS, LABELS
from twinmerge import CheckpointError, load, merge_folders, save
from twinmerge.checkpoints import inspect_checkpoint
from twinmerge.folders import Expert, mapped, read_folder
from twinmerge.local import local_folder
from twinmerge.one_call import named
from twinmerge.routable import check_routable

NAMES = list(LABELS.values())


@pytest.fixture(scope="module")
def root(tmp_path_factory: pytest.TempPathFactory) -> Path:
    transformers.utils.logging.set_verbosity_error()
    return tmp_path_factory.mktemp("foreign")


def place(root: Path, kind: str) -> tuple[Path, Path]:
    """The base's folder and that of one kind, each made once."""
    base = foreign.base(KINDS[kind].base, root / f"base-{KINDS[kind].base}")
    target = root / kind.replace(" ", "_").replace(",", "")
    if not target.is_dir():
        KINDS[kind].make(base, target)
    return base, target


def read(root: Path, kind: str, vocabulary: str = "strict") -> Expert:
    base, target = place(root, kind)
    model = transformers.AutoModel.from_pretrained(base, dtype=torch.float32).eval()
    return read_folder(target, base, model, headers=inspect_checkpoint(base), vocabulary=vocabulary)


@pytest.mark.parametrize("kind", [kind for kind in KINDS if not KINDS[kind].refused])
@pytest.mark.filterwarnings("ignore::UserWarning")  # PEFT's own, of adapters that it has begun to rename
def test_a_foreign_folder_is_an_expert_with_its_own_logits(kind: str, root: Path) -> None:
    base, target = place(root, kind)
    expert = read(root, kind)
    stock = transformers.AutoModel.from_pretrained(base, dtype=torch.float32).eval()
    stock.load_state_dict(dict(expert.state), strict=False)
    inputs = foreign.batch()
    with torch.no_grad():
        wanted = foreign.original(target, base)(**inputs)[0]
        got = stock(**inputs)[0]
        if expert.head is not None:
            got = expert.head(got, inputs["attention_mask"])
    real = inputs["attention_mask"].bool() if wanted.dim() == 3 else slice(None)
    assert torch.allclose(got[real], wanted[real], atol=1e-5, rtol=1e-5)
    assert (expert.head is None) == (wanted.shape[-1] == 32)
    if kind.endswith("classifier") and "LoRA" not in kind:
        assert expert.labels == NAMES
    if kind in ("LoRA classifier", "rsLoRA", "LoRA with rank_pattern", "LoRA on all linear layers"):
        assert expert.terms


@pytest.mark.parametrize("kind", [kind for kind in KINDS if KINDS[kind].refused])
@pytest.mark.filterwarnings("ignore::UserWarning")
def test_what_cannot_be_exact_is_refused_with_the_reason(kind: str, root: Path) -> None:
    with pytest.raises(CheckpointError, match=KINDS[kind].refused.replace("vocabulary", "vocab_size")) as caught:
        read(root, kind)
    assert "\n" not in str(caught.value)


def test_a_permuted_order_is_mapped_and_another_set_is_refused(root: Path) -> None:
    expert = read(root, "bert classifier")
    turned = mapped(expert, ["bulk", "ham", "spam"])
    hidden = torch.randn(2, 5, 32)
    assert turned.head is not None
    assert expert.head is not None
    assert torch.equal(turned.head(hidden), expert.head(hidden)[:, [2, 0, 1]])
    assert expert.head.label_names == NAMES
    with pytest.raises(CheckpointError, match="answers ham, spam, bulk and the task asks for ham, spam, eggs"):
        mapped(expert, ["ham", "spam", "eggs"])
    with pytest.raises(CheckpointError, match="does not name its 3 labels"):
        mapped(read(root, "LoRA classifier"), NAMES)
    assert mapped(named(read(root, "LoRA classifier"), NAMES), NAMES[::-1]).labels == NAMES[::-1]
    with pytest.raises(CheckpointError, match="the folder names ham, spam, bulk"):
        named(expert, NAMES[::-1])


def test_two_adapters_become_a_twin_that_answers_as_each(root: Path, tmp_path: Path) -> None:
    base, spam = place(root, "LoRA classifier")
    _, topic = place(root, "rsLoRA")
    words = {"spam": [f"word{i} word{i + 1}" for i in range(8)], "topic": [f"word{i} word9" for i in range(40, 48)]}
    twin = merge_folders(base, {"spam": spam, "topic": topic}, rank={"rank": 12}, router="knn", texts=words)
    inputs = foreign.batch()
    for index, (task, folder) in enumerate((("spam", spam), ("topic", topic))):
        row = torch.eye(2)[[index] * 3]
        with torch.no_grad():
            got = twin.classify(**inputs, head=task, router_weights=row).logits
            wanted = foreign.original(folder, base)(**inputs).logits
        assert torch.allclose(got, wanted, atol=1e-4)
    text = foreign.tokenizer()("word3 word4", return_tensors="pt")
    assert twin.route(text["input_ids"], text["attention_mask"]).argmax() == 0
    again = load(save(twin, tmp_path / "twin", labels={"spam": NAMES}))
    assert again.heads["spam"].label_names == NAMES
    with torch.no_grad():
        before = twin.classify(**inputs, head="spam").logits
        assert torch.allclose(again.classify(**inputs, head="spam").logits, before, atol=1e-5)


def test_whole_fine_tunes_of_every_head_form_one_twin(root: Path, tmp_path: Path) -> None:
    base, first = place(root, "bert classifier")
    folders = {"a": first, "b": place(root, "DoRA")[1], "c": place(root, "bert regression")[1]}
    twin = merge_folders(base, folders, rank={"density": 1.0}, scale=0.3)
    assert twin.router is None
    twin = load(save(twin, tmp_path / "twin"))
    inputs = foreign.batch()
    for index, (task, folder) in enumerate(folders.items()):
        with torch.no_grad():
            got = twin.classify(**inputs, head=task, router_weights=torch.eye(3)[[index] * 3]).logits
            wanted = foreign.original(folder, base)(**inputs).logits
        assert torch.allclose(got[:, : wanted.shape[1]], wanted, atol=1e-4)
    assert [twin.heads[t].label_names for t in folders] == [NAMES, None, []]


@pytest.mark.parametrize("kind", ["linear", "mlp"])
def test_a_router_is_trained_from_unlabelled_texts(kind: str, root: Path) -> None:
    base, first = place(root, "bert classifier")
    texts = {"a": [f"word{i} word1" for i in range(10)], "b": [f"word{i} word59" for i in range(40, 50)]}
    twin = merge_folders(base, {"a": first, "b": place(root, "DoRA")[1]}, router=kind, texts=texts)
    assert torch.allclose(twin.route(**foreign.batch()).sum(-1), torch.ones(3))
    with pytest.raises(ValueError, match="needs texts of every task"):
        merge_folders(base, {"a": first, "b": first}, router=kind)


def test_padded_and_added_tokens_are_extended_as_declared(root: Path) -> None:
    base, plain = place(root, "bert classifier")
    padded, added = place(root, "padded vocabulary")[1], place(root, "added tokens")[1]
    eye, inputs = torch.eye(2), foreign.batch()
    with pytest.raises(CheckpointError, match="another tokenizer"):
        merge_folders(base, {"a": plain, "b": added}, vocabulary="pad")
    for policy, other in (("pad", padded), ("union", added)):
        twin = merge_folders(base, {"a": plain, "b": other}, rank={"density": 1.0}, vocabulary=policy)
        for index, folder in enumerate((plain, other)):
            ids = inputs["input_ids"].clone()
            if policy == "union" and index:
                ids[0, 1:3] = torch.tensor([64, 65])  # <url> and <user>, the first two ids after the base's
            with torch.no_grad():
                got = twin.classify(ids, inputs["attention_mask"], head="ab"[index], router_weights=eye[[index] * 3])
                wanted = foreign.original(folder, base)(ids, inputs["attention_mask"]).logits
            assert torch.allclose(got.logits, wanted, atol=1e-4)
    assert twin.tokenizer_of_union.convert_tokens_to_ids(["word3", "<url>", "<user>"]) == [7, 64, 65]


def test_two_experts_that_added_other_tokens_share_one_vocabulary(root: Path, tmp_path: Path) -> None:
    base, first = place(root, "added tokens")
    words = foreign.tokenizer()
    words.add_tokens(["<mail>", "<url>"])
    model: Any = transformers.AutoModelForSequenceClassification.from_pretrained(base, id2label=LABELS)
    model.resize_token_embeddings(66, mean_resizing=False)
    foreign.moved(model, 11).save_pretrained(tmp_path / "second")
    words.save_pretrained(tmp_path / "second")
    twin = merge_folders(base, {"a": first, "b": tmp_path / "second"}, rank={"density": 1.0}, vocabulary="union")
    united = twin.tokenizer_of_union
    assert united.convert_tokens_to_ids(["<url>", "<user>", "<mail>"]) == [64, 65, 66]
    text = "word1 <mail> word2 <url>"
    with torch.no_grad():
        got = twin.classify(
            **_inputs(united(text, return_tensors="pt")), head="b", router_weights=torch.tensor([[0.0, 1.0]])
        ).logits
        wanted = foreign.original(tmp_path / "second", base)(**_inputs(words(text, return_tensors="pt"))).logits
    assert torch.allclose(got, wanted, atol=1e-4)


def _inputs(encoded: Any) -> dict[str, torch.Tensor]:
    return {key: encoded[key] for key in ("input_ids", "attention_mask")}


def test_a_lost_tensor_of_a_classifier_is_named(root: Path, tmp_path: Path) -> None:
    base, target = place(root, "bert classifier, pytorch_model.bin")
    shutil.copytree(target, tmp_path / "copy")
    file = tmp_path / "copy" / "pytorch_model.bin"
    state = torch.load(file, weights_only=True)
    torch.save({k: v for k, v in state.items() if k != "classifier.bias"}, file)
    model = transformers.AutoModel.from_pretrained(base).eval()
    with pytest.raises(CheckpointError, match=r"lacks the tensor 'classifier\.bias'"):
        read_folder(tmp_path / "copy", base, model, headers=inspect_checkpoint(base))
    config = json.loads((tmp_path / "copy" / "config.json").read_text())
    (tmp_path / "copy" / "config.json").write_text(json.dumps({**config, "architectures": ["Nonsense"]}))
    with pytest.raises(CheckpointError, match="architecture 'Nonsense'"):
        read_folder(tmp_path / "copy", base, model)


@pytest.mark.filterwarnings("ignore::UserWarning")
def test_an_adapter_that_lost_a_random_layer_of_its_classifier_is_refused(root: Path, tmp_path: Path) -> None:
    """PEFT saves `classifier` alone, and ModernBERT has a `head` before it, which its base does not hold."""
    base = foreign.base("modernbert", root / "base-modernbert")
    foreign.adapter(foreign.lora(target_modules=["Wqkv"]))(base, tmp_path / "lost")
    foreign.adapter(foreign.lora(target_modules=["Wqkv"], modules_to_save=["head"]))(base, tmp_path / "kept")
    model = transformers.AutoModel.from_pretrained(base).eval()
    headers = inspect_checkpoint(base)
    with pytest.raises(CheckpointError, match=r"'head\.dense\.weight' that neither .* 'head' in modules_to_save"):
        read_folder(tmp_path / "lost", base, model, headers=headers)
    assert read_folder(tmp_path / "kept", base, model, headers=headers).head is not None


def test_token_classifiers_on_the_encoder_of_t5_answer_as_alone(tmp_path: Path) -> None:
    sizes = {"vocab_size": 64, "d_model": 32, "d_kv": 8, "d_ff": 48, "num_layers": 2, "num_heads": 4, "pad_token_id": 0}
    transformers.T5EncoderModel(transformers.T5Config(**sizes)).save_pretrained(tmp_path / "base")
    assert check_routable(transformers.AutoConfig.from_pretrained(tmp_path / "base"))[0] == "T5EncoderModel"
    alone = {}
    for seed, name in enumerate("ab"):
        model = transformers.T5ForTokenClassification.from_pretrained(tmp_path / "base", num_labels=2 + seed)
        alone[name] = foreign.moved(model.eval(), seed)
        alone[name].save_pretrained(tmp_path / name)
    twin = merge_folders(tmp_path / "base", {n: tmp_path / n for n in alone}, rank={"density": 1.0})
    foreign.tokenizer().save_pretrained(tmp_path / "base")
    save(twin, tmp_path / "merged", tokenizer=tmp_path / "base")
    inputs = foreign.batch()
    real = inputs["attention_mask"].bool()
    for index, (name, model) in enumerate(alone.items()):
        weights = torch.eye(2)[index].expand(len(real), 2)
        with torch.no_grad():
            wanted = model(**inputs).logits[real]
            for one in (twin, load(tmp_path / "merged")):
                got = one.classify(**inputs, head=name, router_weights=weights).logits[real]
                assert torch.allclose(got[:, : 2 + index], wanted, atol=1e-5, rtol=1e-5)
    for index, (name, model) in enumerate(alone.items()):
        stock = transformers.AutoModelForTokenClassification.from_pretrained(
            tmp_path / "merged", trust_remote_code=True, head=name
        )
        got = stock(**inputs, router_weights=torch.eye(2)[index].expand(len(real), 2)).logits[real]
        assert torch.allclose(got, model(**inputs).logits[real], atol=1e-5, rtol=1e-5)


def test_a_base_that_also_decodes_is_refused_with_the_way_to_its_encoder(tmp_path: Path) -> None:
    sizes = {"vocab_size": 64, "d_model": 32, "d_kv": 8, "d_ff": 48, "num_layers": 1, "num_heads": 4, "pad_token_id": 0}
    whole = transformers.T5ForConditionalGeneration(transformers.T5Config(**sizes))
    whole.save_pretrained(tmp_path / "base")
    whole.save_pretrained(tmp_path / "whole")
    transformers.T5EncoderModel.from_pretrained(tmp_path / "base").save_pretrained(tmp_path / "encoder")
    for name, message in (
        ("encoder", r"give the encoder as the base: T5EncoderModel\.from_pretrained\(base\)\.save_pretrained"),
        ("whole", r"a T5ForConditionalGeneration, which has an encoder and a decoder; .* the recipe merge_files"),
    ):
        with pytest.raises(CheckpointError, match=message):
            merge_folders(tmp_path / "base", {"a": tmp_path / name, "b": tmp_path / name})


def test_a_models_folder_in_the_cache_of_the_hub_stands_for_its_snapshot(root: Path, tmp_path: Path) -> None:
    base, _ = place(root, next(iter(KINDS)))
    cached = tmp_path / "models--a--b"
    shutil.copytree(base, cached / "snapshots" / "abc")
    assert local_folder(cached) == cached / "snapshots" / "abc"
    assert resolve_model(str(cached)) == cached / "snapshots" / "abc"
    assert local_folder(base) == base
    shutil.copytree(base, cached / "snapshots" / "def")
    for find, error in ((local_folder, CheckpointError), (resolve_model, RecipeError)):
        with pytest.raises(error, match=r"with 2 snapshots; give .*abc or .*def\."):
            find(str(cached))
