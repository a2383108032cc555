"""Several teachers as one, and hints between any two modules: against the formula written out, and what is refused."""

import numpy as np
import pytest
import timm
import torch
from torch import nn
from torch.utils.data import DataLoader
from transformers import BertConfig, BertForSequenceClassification

from distill import DistillError, DistillLoss, DistillModule, Ensemble, ImageNetwork, LanguageNetwork
from distill.sampling import known_ids
from tests.distill.nets import CHANGES, CLASSES, Data, linear, trainer
from tests.distill.test_sampling import llama, words

pytestmark = [
    pytest.mark.filterwarnings("ignore:.*logging interval.*"),
    pytest.mark.filterwarnings("ignore:.*module\\(s\\) in eval mode.*"),
    pytest.mark.filterwarnings("ignore:.*does not have many workers.*"),
    pytest.mark.filterwarnings("ignore:.*have no `val_dataloader`.*"),
    pytest.mark.filterwarnings("ignore:.*right on .* of the (validation|test) rows.*"),
]


@pytest.mark.parametrize("weights", [None, [3.0, 1.0]])
def test_teachers_together_say_the_mean_of_their_probabilities(tmp_path, weights):
    networks = [ImageNetwork(linear(2, 20)), ImageNetwork(linear(3))]
    together, batch = Ensemble(networks, weights), {"images": Data().rows.images}
    shares = np.array(weights or [1.0, 1.0]) / sum(weights or [1.0, 1.0])
    with torch.no_grad():
        said = [n(batch).logits.double().numpy() for n in networks]
    mixed = sum(w * np.exp(z) / np.exp(z).sum(-1, keepdims=True) for w, z in zip(shares, said, strict=True))
    with torch.no_grad():
        np.testing.assert_allclose(together(batch).logits.exp().numpy(), mixed, rtol=1e-5)
    made = DistillModule(linear(1), together, {"kd": {"temperature": 2.0}}, changes=CHANGES, classes=CLASSES)
    run = trainer(tmp_path, max_epochs=1)
    run.fit(made, datamodule=Data())
    assert run.callback_metrics["validation/kl"] > 0
    same = Ensemble([networks[0], networks[0]])
    with torch.no_grad():
        torch.testing.assert_close(same(batch).logits, networks[0](batch).logits.log_softmax(-1))


def test_teachers_that_cannot_speak_together_are_refused():
    networks = [ImageNetwork(linear(2)), ImageNetwork(linear(3, classes=CLASSES + 1))]
    batch = {"images": Data().rows.images}
    with pytest.raises(DistillError, match="teachers tell 4, 5 classes apart"):
        Ensemble(networks)(batch)
    with pytest.raises(DistillError, match="asks several teachers for features, but only what they say"):
        Ensemble(networks)(batch, frozenset({"features"}))
    with pytest.raises(DistillError, match="an ensemble has 2 networks and 1 weights"):
        Ensemble(networks, [1.0])
    with pytest.raises(DistillError, match="weights"):
        Ensemble(networks, [1.0, -1.0])
    with pytest.raises(DistillError, match="hint needs teacher_layers, which the networks or the data do not tell"):
        DistillModule(
            linear(1),
            Ensemble(networks),
            {"hint": {"student": "hidden", "teacher": "hidden"}},
            changes=CHANGES,
            classes=CLASSES,
        )


def test_language_teachers_together_judge_own_samples(tmp_path):
    teachers = Ensemble([LanguageNetwork(llama(16)), LanguageNetwork(llama(16, 5, ids=28))])
    assert known_ids(teachers) == 28
    same = Ensemble([LanguageNetwork(llama(16)), LanguageNetwork(llama(16, 5))])
    ids = words(4)
    options = {"task": "language", "changes": CHANGES | {"epochs": 1}, "samples": {"student": {"own": 1.0}}}
    made = DistillModule(llama(8), same, {"jsd": {}}, chunk=0, prompt_tokens=4, **options)
    trainer(tmp_path, max_epochs=1).fit(made, DataLoader([{"input_ids": ids, "labels": ids}], batch_size=None))
    chunked = DistillModule(llama(8), same, {"jsd": {}}, prompt_tokens=4, **options)
    with pytest.raises(DistillError, match="for language models with chunk 0, or one teacher"):
        trainer(tmp_path, max_epochs=1).fit(chunked, DataLoader([{"input_ids": ids, "labels": ids}], batch_size=None))


def hinted(student, teacher, names, **options):
    torch.manual_seed(0)
    terms = {"hint": {"student": names[0], "teacher": names[1]}}
    return DistillModule(
        student, teacher, terms, changes=CHANGES | {"image_size": 32} | options.pop("changes", {}), **options
    )


def output_of(model, name, *inputs, **named):
    found = []
    hook = dict(model.named_modules())[name].register_forward_hook(lambda m, i, o: found.append(o))
    with torch.no_grad():
        model.eval()(*inputs, **named)
    hook.remove()
    return found[0][0] if isinstance(found[0], tuple) else found[0]


VIT = {"img_size": 32, "patch_size": 8, "embed_dim": 24, "depth": 2, "num_heads": 2, "num_classes": CLASSES}


def image_models():
    torch.manual_seed(1)
    cnn = timm.create_model("resnet18", channels=(4, 4, 8, 8), layers=(1, 1, 1, 1), num_classes=CLASSES)
    return {
        "cnn": cnn,
        "wide": timm.create_model("resnet10t", num_classes=CLASSES),
        "vit": timm.create_model("vit_tiny_patch16_224", **VIT),
    }


@pytest.mark.parametrize(
    ("student", "teacher", "names"),
    [
        ("cnn", "wide", ("layer2.0.conv2", "layer3")),
        ("cnn", "vit", ("layer4", "blocks.1")),
        ("vit", "vit", ("blocks.0.mlp.fc1", "blocks.1")),
        ("vit", "cnn", ("fc_norm", "global_pool")),
    ],
)
def test_hints_between_any_two_image_models(student, teacher, names):
    models, other = image_models(), image_models()
    made = hinted(models[student], other[teacher], names, classes=CLASSES)
    batch = {"images": torch.rand(3, 3, 32, 32), "labels": torch.tensor([0, 1, 2])}
    made.eval()
    term = made.losses["student"].terms["hint"]
    needs = frozenset(made.losses["student"].needs)
    with torch.no_grad():
        found = term(made.students["student"](batch, needs), made.teacher(batch, needs), None)
    z, t = (
        output_of(n.model, name, (batch["images"] - n.mean) / n.std)
        for n, name in ((made.students["student"], names[0]), (made._teacher.network, names[1]))
    )
    weight, bias = term.regressor.weight, term.regressor.bias
    places = {4: lambda v: v.mean((2, 3)), 3: lambda v: v.mean(1), 2: lambda v: v}
    if z.ndim == t.ndim == 4:
        wanted = nn.functional.adaptive_avg_pool2d(
            nn.functional.conv2d(z, weight[:, :, None, None], bias), t.shape[-2:]
        )
    elif z.ndim != t.ndim:
        wanted, t = places[z.ndim](z) @ weight.T + bias, places[t.ndim](t)
    else:
        wanted = z @ weight.T + bias
    torch.testing.assert_close(found, (wanted - t).square().mean().detach(), rtol=1e-4, atol=1e-6)


def bert(width, seed):
    sizes = {"num_hidden_layers": 2, "num_attention_heads": 2, "intermediate_size": 16}
    config = BertConfig(vocab_size=30, hidden_size=width, max_position_embeddings=16, num_labels=2, **sizes)
    torch.manual_seed(seed)
    return BertForSequenceClassification(config)


def test_hints_of_texts_leave_padding_out(tmp_path):
    names = ("bert.encoder.layer.0", "bert.encoder.layer.1")
    made = hinted(bert(8, 0), bert(16, 1), names, task="texts", classes=2, log_gradients_every=1)
    ids, mask = torch.randint(30, (2, 6)), torch.tensor([[1] * 6, [1, 1, 1, 0, 0, 0]])
    batch = {"input_ids": ids, "attention_mask": mask, "labels": torch.tensor([0, 1])}
    made.eval()
    term, needs = made.losses["student"].terms["hint"], frozenset(made.losses["student"].needs)
    with torch.no_grad():
        found = term(made.students["student"](batch, needs), made.teacher(batch, needs), None)
        z, t = (
            output_of(n.model, name, input_ids=ids, attention_mask=mask)[mask.bool()]
            for n, name in ((made.students["student"], names[0]), (made._teacher.network, names[1]))
        )
        wanted = (z @ term.regressor.weight.T + term.regressor.bias - t).square().mean()
    torch.testing.assert_close(found, wanted)
    before = [p.detach().clone() for p in made.losses.parameters()]
    trainer(tmp_path, max_epochs=1, log_every_n_steps=1).fit(made, DataLoader([batch], batch_size=None))
    assert all(not torch.equal(a, b) for a, b in zip(before, made.losses.parameters(), strict=True))


def test_a_loss_of_ones_own_may_have_layers():
    own = nn.Module()
    own.layers, own.forward = nn.ModuleList([nn.Linear(2, 2)]), lambda s, t, y: s.logits.sum()
    assert DistillLoss({"mine": own, "kd": {}}).needs == {"logits"}


def test_hints_between_what_is_not_there_are_refused():
    models = image_models()
    with pytest.raises(DistillError, match="ResNet has no module 'layer9'; close are layer4"):
        hinted(models["cnn"], models["wide"], ("layer9", "layer3"), classes=CLASSES)
    with pytest.raises(DistillError, match=r"VisionTransformer has no module 'block.1'"):
        hinted(models["cnn"], models["vit"], ("layer4", "block.1"), classes=CLASSES)
    made = hinted(models["vit"], image_models()["vit"], ("blocks.0", "patch_embed"), classes=CLASSES)
    batch = {"images": torch.rand(2, 3, 32, 32)}
    needs = frozenset(made.losses["student"].needs)
    with pytest.raises(DistillError, match="of other lengths; name modules whose outputs have as many places"):
        made.losses["student"].terms["hint"](made.students["student"](batch, needs), made.teacher(batch, needs), None)
