"""A twin by its folder, texts by reference: in Python, in LightningCLI, from a checkpoint, in the Trainer of HF."""

from pathlib import Path
from typing import Any

import pytest
import torch
import transformers
from lightning.pytorch.cli import LightningCLI

import twinmerge
from recipes.data.task_source import TaskSource
from recipes.data.text_module import SourceDataModule
from recipes.errors import RunError
from tests.recipes import tiny
from twinmerge import FinetuneModule, Head, attach

pytestmark = [
    pytest.mark.filterwarnings("ignore:.*module\\(s\\) in eval mode.*"),
    pytest.mark.filterwarnings("ignore:.*logging interval.*"),
    pytest.mark.filterwarnings("ignore:.*does not have many workers.*"),
    pytest.mark.filterwarnings("ignore:.*pin_memory.*"),
]


@pytest.fixture(scope="module")
def place(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """A folder with a twin of two tasks and the rows of one."""
    root = tmp_path_factory.mktemp("reference")
    base = tiny.save_base(root / "base")
    tiny.write_csv(root / "mood.csv", "mood")
    model = transformers.AutoModel.from_pretrained(base).eval()
    draw = torch.Generator().manual_seed(0)
    name = "encoder.layer.0.attention.self.query.weight"
    factors = [{name: (0.1 * torch.randn(32, 2, generator=draw), torch.randn(2, 32, generator=draw))} for _ in "ab"]
    twin = attach(model, ["mood", "topic"], factors, twinmerge.Router(32, 2, "linear"))
    twin.heads.update({"mood": Head(32, 2), "topic": Head(32, 3)})
    twinmerge.save(twin.eval(), root / "twin", tokenizer=base, labels={"mood": ["sad", "glad"]})
    return root


def test_lightning_cli_trains_a_twin_from_yaml(place: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr("sys.argv", ["fit"])
    (tmp_path / "fit.yaml").write_text(f"""
seed_everything: 0
model:
  model: {place / "twin"}
  question: mood
  parts: [heads, experts]
  learning_rate: 0.01
data:
  task: {{name: mood, source: csv, path: {place / "mood.csv"}}}
  tokenizer: {place / "twin"}
  batch_size: 8
  max_length: 24
  labels: [sad, glad]
trainer:
  max_epochs: 2
  accumulate_grad_batches: 2
  accelerator: cpu
  devices: 1
  precision: bf16-mixed
  logger: false
  enable_progress_bar: false
  enable_model_summary: false
  default_root_dir: {tmp_path}
""")
    arguments = ["fit", "--config", str(tmp_path / "fit.yaml")]
    cli = LightningCLI(FinetuneModule, SourceDataModule, args=arguments, save_config_callback=None)
    assert cli.trainer.global_step == 2 * -(-14 // 2)  # 105 training rows in 14 batches
    assert cli.trainer.callback_metrics["validation/score"].isfinite()
    before = dict(twinmerge.load(place / "twin").named_parameters())
    moved = {name for name, value in cli.model.model.named_parameters() if not torch.equal(value, before[name])}
    assert moved
    assert all(name.startswith("heads.mood") or ".experts_" in name for name in moved)
    file = next((tmp_path / "checkpoints").glob("*.ckpt"))
    content = torch.load(file, weights_only=True)
    assert content["hyper_parameters"]["model"] == str(place / "twin")
    again = FinetuneModule.load_from_checkpoint(file, weights_only=True)
    for (name, ours), (_, theirs) in zip(again.named_parameters(), cli.model.named_parameters(), strict=True):
        assert torch.equal(ours, theirs), name
    folder = twinmerge.save(again.model, tmp_path / "tuned", tokenizer=place / "twin")
    assert twinmerge.load(folder).heads["mood"].label_names == ["sad", "glad"]


def test_labels_are_brought_into_the_order_of_the_model(place: Path) -> None:
    source = TaskSource("mood", source="csv", path=str(place / "mood.csv"))
    own, turned = (SourceDataModule(source, str(place / "base"), labels=order) for order in (None, ["sad", "glad"]))
    assert own.tasks[0].labels == ("glad", "sad")
    assert turned.tasks[0].train.labels == [1 - y for y in own.tasks[0].train.labels]
    with pytest.raises(RunError, match="labels are glad, sad, and sad, angry are asked for"):
        SourceDataModule(source, str(place / "base"), labels=["sad", "angry"])


def test_the_trainer_of_transformers_trains_a_twin(place: Path, tmp_path: Path) -> None:
    model: Any = twinmerge.as_classifier(twinmerge.load(place / "twin").train_only("heads"), "mood")
    words = transformers.AutoTokenizer.from_pretrained(place / "twin")
    rows = [
        {**words(text, return_token_type_ids=False), "labels": ["sad", "glad"].index(label)}
        for text, label in tiny.sentences("mood", 64)
    ]
    options = transformers.TrainingArguments(
        tmp_path / "out", max_steps=30, learning_rate=3e-2, report_to=[], save_strategy="no", use_cpu=True,
        disable_tqdm=True, per_device_train_batch_size=16, logging_strategy="no",
    )  # fmt: skip
    collate = transformers.DataCollatorWithPadding(words)
    trainer = transformers.Trainer(model, options, data_collator=collate, train_dataset=rows, eval_dataset=rows)
    before = trainer.evaluate()["eval_loss"]
    trainer.train()
    assert trainer.evaluate()["eval_loss"] < before
    folder = twinmerge.save(model, tmp_path / "tuned", tokenizer=words)
    batch = words("my brother wept at the dark news", return_tensors="pt", return_token_type_ids=False)
    with torch.no_grad():
        wanted = model.eval()(**batch).logits
        assert torch.allclose(twinmerge.load(folder).classify(**batch, head="mood").logits[:, :2], wanted, atol=1e-5)


def test_parts_need_a_twin(place: Path) -> None:
    with pytest.raises(ValueError, match="the model is no twin; use frozen"):
        FinetuneModule(str(place / "base"), labels=2, parts=("router",))
