"""DistillModule through the Trainer: the teacher's place, several students, processes, precisions, checkpoints, CLI."""

import copy
from types import SimpleNamespace

import lightning
import pytest
import torch
import torch.nn.functional as F
from safetensors.torch import load_file

from distill import DistillError, DistillModule
from distill.losses import terms_by_name
from tests.distill.nets import CHANGES, CLASSES, Data, linear, trainer
from tests.distill.train_ddp import APART, MAPS, TERMS

ONE_CHANNEL = {"student_options": {"in_chans": 1}, "teacher_options": {"in_chans": 1}}
KD = {"hard": {"weight": 0.3}, "kd": {"weight": 0.7, "temperature": 2.0}}
pytestmark = [
    pytest.mark.filterwarnings("ignore:.*logging interval.*"),
    pytest.mark.filterwarnings("ignore:.*module\\(s\\) in eval mode.*"),
    pytest.mark.filterwarnings("ignore:.*right on .* of the (validation|test) rows.*"),  # teachers here know nothing
    pytest.mark.filterwarnings("ignore:.*Checkpoint directory .* exists.*"),
]


class SaveAt(lightning.Callback):
    """Writes a checkpoint after some updates and goes on."""

    def __init__(self, path, step):
        self.path, self.step = path, step

    def on_train_batch_end(self, trainer, *_):
        if trainer.global_step == self.step:
            trainer.save_checkpoint(self.path)


def module(student=None, teacher=None, terms=None, changes=None, **options):
    student, teacher = student or linear(1), teacher or linear(2, 20)
    return DistillModule(student, teacher, terms or KD, changes=CHANGES | (changes or {}), classes=CLASSES, **options)


def weights(made):
    return {name: p.detach().clone() for name, p in made.named_parameters() if not name.startswith("ema")}


def test_training_is_the_plain_loop(tmp_path):
    made, student = module(), linear(1)
    teacher = copy.deepcopy(made._teacher.network)
    trainer(tmp_path).fit(made, datamodule=Data())
    groups = [
        {"params": [p for p in student.parameters() if p.ndim == 1], "weight_decay": 0.0},
        {"params": [p for p in student.parameters() if p.ndim > 1], "weight_decay": 0.02},
    ]
    optimizer = torch.optim.SGD(groups, 0.1, 0.9)
    data, step = Data(), 0
    loader = data.train_dataloader()
    for epoch in range(3):
        loader.order.set_epoch(epoch)
        for batch in loader:
            for group in optimizer.param_groups:  # cosine from 0.1 to 1e-6 over 9 updates
                group["lr"] = 1e-6 + 0.5 * (0.1 - 1e-6) * (1 + torch.cos(torch.tensor(torch.pi * step / 9)).item())
            z, t = student(batch["images"]), teacher.model(batch["images"]).detach()
            soft = F.kl_div((z / 2).log_softmax(-1), (t / 2).log_softmax(-1), log_target=True, reduction="batchmean")
            (0.3 * F.cross_entropy(z, batch["labels"]) + 0.7 * 4 * soft).backward()
            optimizer.step()
            optimizer.zero_grad()
            step += 1
    for mine, plain in zip(made.students["student"].model.parameters(), student.parameters(), strict=True):
        torch.testing.assert_close(mine, plain, atol=2e-6, rtol=1e-5)


def test_the_teacher_is_in_no_state_dict_and_stays_as_it_is(tmp_path):
    made = module()
    before = copy.deepcopy(made._teacher.network.state_dict())
    fit = trainer(tmp_path, max_epochs=1)
    fit.fit(made, datamodule=Data())
    fit.save_checkpoint(tmp_path / "a.ckpt")
    saved = torch.load(tmp_path / "a.ckpt", weights_only=True)["state_dict"]
    assert saved
    assert not [name for name in saved if "teacher" in name]
    assert len(list(made.parameters())) == len(list(linear(1).parameters()))
    assert not made._teacher.network.training
    assert all(torch.equal(value, before[name]) for name, value in made._teacher.network.state_dict().items())


def test_students_side_by_side_are_students_alone(tmp_path):
    terms = {"a": KD, "b": {"hard": {}}, "c": {"hard": {}, "dist": {"temperature": 2.0}}}
    together = module({name: linear(1) for name in terms}, linear(2, 20), terms, {"clip": 0.05})
    trainer(tmp_path).fit(together, datamodule=Data())
    for name, chosen in terms.items():
        alone = module(terms=chosen, changes={"clip": 0.05})
        trainer(tmp_path).fit(alone, datamodule=Data())
        for one, other in zip(
            alone.students["student"].parameters(), together.students[name].parameters(), strict=True
        ):
            torch.testing.assert_close(one, other)


def test_two_processes_end_where_one_does(tmp_path, nursery):
    assert set(terms_by_name()) == {term for terms in (TERMS | MAPS | APART).values() for term in terms} - {"hard"}
    out = [tmp_path / f"{devices}.safetensors" for devices in (1, 2)]
    words = ("-m", "tests.distill.train_ddp")
    alone = nursery.run([*words, out[0], 1], folder=tmp_path)
    for done in (*alone, *nursery.ranks(*words, out[1], 2, folder=tmp_path)):
        assert done.returncode == 0, done.stderr[-3000:]
    ends = [load_file(file) for file in out]
    assert ends[0].keys() == ends[1].keys()
    for name, value in ends[0].items():
        torch.testing.assert_close(ends[1][name], value, atol=1e-5, rtol=1e-4, msg=name, equal_nan=True)


def test_a_checkpoint_loads_with_plain_values_only(tmp_path):
    made = DistillModule("small_cnn_2", "small_cnn_4", KD, changes=CHANGES, classes=CLASSES, **ONE_CHANNEL)
    fit = trainer(tmp_path, max_epochs=1)
    fit.fit(made, datamodule=Data())
    fit.save_checkpoint(tmp_path / "b.ckpt")
    again = DistillModule.load_from_checkpoint(tmp_path / "b.ckpt", weights_only=True)
    for name, value in weights(made).items():
        assert torch.equal(value, weights(again)[name])


@pytest.mark.parametrize("step", [4, 6])  # inside an epoch, and at its end
def test_resumed_training_ends_where_unbroken_training_does(tmp_path, step):
    whole, resumed = (module(changes={"ema": 0.9, "optimizer": "lamb"}) for _ in range(2))
    trainer(tmp_path, callbacks=[SaveAt(tmp_path / "c.ckpt", step)]).fit(whole, datamodule=Data())
    trainer(tmp_path).fit(resumed, datamodule=Data(), ckpt_path=tmp_path / "c.ckpt", weights_only=True)
    for name, value in whole.state_dict().items():
        if "metrics" not in name:
            assert torch.equal(resumed.state_dict()[name], value), name


def test_a_resumed_training_logs_gradients_at_the_same_steps(tmp_path):
    made = module(log_gradients_every=3)
    for log, often in ((2, {2, 6, 10}), (5, {5, 10})):
        made._trainer = SimpleNamespace(log_every_n_steps=log)
        assert {step for step in range(log, 13, log) if made._pulls(step, 3)} == often


def test_average_of_weights_and_what_is_logged(tmp_path):
    made = module(changes={"ema": 0.5}, log_gradients_every=1)
    fit = trainer(tmp_path, max_epochs=3, log_every_n_steps=1)
    fit.fit(made, datamodule=Data())
    names = {"accuracy", "loss", "agreement", "kl", "ema_accuracy"}
    logged = fit.callback_metrics
    assert {f"validation/{name}" for name in names} <= set(logged)
    assert {"train/loss", "train/hard", "train/kd", "gradient/hard", "gradient/kd"} <= set(logged)
    assert float(logged["train/loss"]) == pytest.approx(float(logged["train/hard"] + logged["train/kd"]), rel=1e-5)
    rows = Data().rows
    with torch.no_grad():
        z, t = made.students["student"].model(rows.images), made._teacher.network.model(rows.images)
        averaged = made.ema.module["student"].model(rows.images)
    assert float(logged["validation/accuracy"]) == pytest.approx((z.argmax(-1) == rows.labels).float().mean().item())
    assert float(logged["validation/agreement"]) == pytest.approx((z.argmax(-1) == t.argmax(-1)).float().mean().item())
    kl = (t.softmax(-1) * (t.log_softmax(-1) - z.log_softmax(-1))).sum(-1).mean().item()
    assert float(logged["validation/kl"]) == pytest.approx(kl, rel=1e-4)
    assert float(logged["validation/ema_accuracy"]) == pytest.approx(
        (averaged.argmax(-1) == rows.labels).float().mean().item()
    )
    assert not torch.equal(averaged, z)


def test_logged_gradients_are_those_at_the_logits(tmp_path):
    made = module(log_gradients_every=1, changes={"learning_rate": 1e-12})
    batch = next(iter(Data().train_dataloader()))
    z = made.students["student"].model(batch["images"]).detach().requires_grad_()
    t = made._teacher.network.model(batch["images"])
    expected = {}
    hard = 0.3 * F.cross_entropy(z, batch["labels"])
    expected["hard"] = torch.autograd.grad(hard, z)[0].norm()
    p, q = (z / 2).softmax(-1), (t / 2).softmax(-1)
    expected["kd"] = (0.7 * 2 * (p - q) / len(z)).norm()
    fit = trainer(tmp_path, max_epochs=1, limit_train_batches=1, limit_val_batches=0, log_every_n_steps=1)
    fit.fit(made, datamodule=Data())
    for name, value in expected.items():
        torch.testing.assert_close(fit.callback_metrics[f"gradient/{name}"], value, rtol=1e-4, atol=1e-7)


@pytest.mark.parametrize("options", [{"precision": "bf16-mixed"}, {"accumulate_grad_batches": 3}])
def test_other_trainers(tmp_path, options):
    made = module(teacher_dtype="bfloat16" if "precision" in options else "float32")
    before = weights(made)
    fit = trainer(tmp_path, **options)
    fit.fit(made, datamodule=Data())
    assert all(value.isfinite().all() for value in weights(made).values())
    assert any(not torch.equal(value, before[name]) for name, value in weights(made).items())


def test_compiled_is_eager(tmp_path):
    ends = []
    for compiled in (False, True):
        made = module()
        if compiled:
            for network in (made.students["student"], made._teacher.network):
                network.compile(backend="aot_eager")
        trainer(tmp_path, max_epochs=1).fit(made, datamodule=Data())
        ends.append(weights(made))
    torch._dynamo.reset()
    for name, value in ends[0].items():
        torch.testing.assert_close(ends[1][name], value)


def test_a_cached_teacher_stands_in(tmp_path):
    made = module(log_gradients_every=0)
    batch = next(iter(Data().train_dataloader()))
    told = made.teacher(batch)
    made._teacher = None
    again = made.teacher({**batch, "teacher_logits": told.logits})
    assert torch.equal(again.logits, told.logits)


def test_each_network_gets_its_own_normalisation_and_size():
    from distill.networks import Frozen, ImageNetwork

    seen = {}

    class Spy(torch.nn.Module):
        def __init__(self, name):
            super().__init__()
            self.name, self.head = name, torch.nn.Linear(1, 2)

        def forward(self, images):
            seen[self.name] = images
            return self.head(images.mean((1, 2, 3))[:, None])

    student = ImageNetwork(Spy("student"), (0.5,), (0.5,))
    teacher = Frozen(ImageNetwork(Spy("teacher"), (0.25,), (2.0,), size=16), torch.bfloat16)
    batch = {"images": torch.rand(2, 1, 8, 8), "labels": torch.zeros(2, dtype=torch.long)}
    student(batch)
    teacher(batch)
    torch.testing.assert_close(seen["student"], (batch["images"] - 0.5) / 0.5)
    assert seen["teacher"].shape[-1] == 16
    assert seen["teacher"].dtype == torch.bfloat16
    assert abs(float(seen["teacher"].float().mean()) - float((batch["images"].mean() - 0.25) / 2)) < 0.02


@pytest.mark.parametrize(
    ("change", "sentence"),
    [
        ({"student": "resnet5O"}, "timm has no model 'resnet5O'; did you mean"),
        ({"terms": {"kdd": {}}}, "no loss is called 'kdd'; accepted are hard, kd"),
        ({"terms": {"kd": {"weight": -1.0}}}, "weight of kd is -1.0, but it must be a finite number of at least 0"),
        ({"terms": {"kd": {"temp": 1.0}}}, "kd has no option 'temp'; accepted are weight, ramp"),
        ({"terms": {"kd": {"temperature": 0.0}}}, "kd: temperature: expected a finite number > 0, got 0.0"),
        ({"terms": {"kd": {"weight": 0.0}}}, "every weight of kd is 0"),
        ({"regime": "A3"}, "no regime is called 'A3'; accepted are A2, A1, previous_imagenet"),
        ({"changes": {"epoch": 3}}, "a regime has no 'epoch'; did you mean 'epochs'?"),
        ({"changes": {"mixup": -0.1}}, "mixup: expected a finite number >= 0, got -0.1"),
    ],
)
def test_refusals_are_one_sentence(change, sentence):
    arguments = {"student": linear(1), "teacher": linear(2), "terms": KD, "changes": CHANGES, "classes": CLASSES}
    with pytest.raises(DistillError) as caught:
        DistillModule(**arguments | change)
    assert str(caught.value).startswith(sentence)
    assert "\n" not in str(caught.value)


def test_other_classes_and_labels_outside_are_refused(tmp_path):
    with pytest.raises(DistillError, match="the student has 4 classes and the teacher 5"):
        trainer(tmp_path).fit(module(teacher=linear(2, classes=5)), datamodule=Data())
    with pytest.raises(DistillError, match="labels go from 0 to 5, but there are 4 classes, 0 to 3; set classes to 6"):
        trainer(tmp_path).fit(module(), datamodule=Data(classes=6))


def test_images_that_a_network_would_shrink_away_are_refused():
    with pytest.raises(DistillError, match="the image size is 16, but resnet18 shrinks images 32 times"):
        DistillModule("resnet18", terms={"hard": {}}, changes={"image_size": 16, "drop_path": 0.0})


def test_lora_trains_adapters_and_the_head_only(tmp_path):
    made = DistillModule(
        "vit_tiny_patch16_224", terms={"hard": {}}, changes={"image_size": 32, "drop_path": 0.0}, classes=4, lora_rank=2
    )
    trained = {name for name, p in made.named_parameters() if p.requires_grad}
    assert all("lora_" in name or ".head." in name for name in trained)
    assert made({"images": torch.rand(2, 3, 32, 32), "labels": torch.zeros(2)}).shape == (2, 4)


def test_lightning_cli_runs_it_unchanged(tmp_path, monkeypatch):
    from lightning.pytorch.cli import LightningCLI

    arguments = ["fit", "--model.student", "small_cnn_2", "--model.teacher", "small_cnn_4", "--model.classes", "4"]
    arguments += ["--model.student_options", "{in_chans: 1}", "--model.teacher_options", "{in_chans: 1}"]
    arguments += ["--model.terms", "{kd: {weight: 1.0}}", "--model.changes", str(CHANGES)]
    arguments += ["--trainer.max_epochs", "1", "--trainer.accelerator", "cpu", "--trainer.devices", "1"]
    arguments += ["--seed_everything", "0", "--trainer.logger", "false", "--trainer.enable_progress_bar", "false"]
    arguments += ["--trainer.enable_checkpointing", "false", "--trainer.enable_model_summary", "false"]
    monkeypatch.chdir(tmp_path)
    monkeypatch.setattr("sys.argv", ["cli"])
    cli = LightningCLI(DistillModule, Data, args=arguments, save_config_callback=None)
    assert cli.trainer.global_step == 3
