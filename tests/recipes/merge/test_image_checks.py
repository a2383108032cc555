"""What a run of images would fail at, or answer wrongly about, is said before it: sizes, channels, processors."""

from pathlib import Path

import pytest
import transformers

from benchmarks import families
from recipes.data.looks import check_reader, look_of
from recipes.data.task_source import TaskSource
from recipes.errors import RecipeError, RunError
from recipes.fields import FieldError
from recipes.merge.checks import check_given
from recipes.merge.experts import base_checkpoint
from recipes.merge.routable import check_images_taken
from recipes.merge.schema import Recipe, Training

pytestmark = pytest.mark.filterwarnings("ignore")


def model(where: Path, family: str = "vit", **processor: object) -> Path:
    families.build(family).save_pretrained(where)
    given = {"size": {"height": 32, "width": 32}} | processor
    transformers.ViTImageProcessor(**given).save_pretrained(where)
    return where


def test_a_size_that_the_base_does_not_take_is_refused_before_the_run(tmp_path: Path) -> None:
    base = str(model(tmp_path / "vit"))
    assert check_images_taken(base, 0) == "images: 32 x 32 pixels, as its processor cuts them"
    with pytest.raises(RecipeError, match=r"training.image_size: a ViTModel takes no images of 3 x 64 x 64 pixels"):
        check_images_taken(base, 64)
    net = str(model(tmp_path / "resnet", "resnet"))
    assert check_images_taken(net, 64) == "images: 64 x 64 pixels, resized whole"


def test_a_grey_base_is_refused_before_the_run(tmp_path: Path) -> None:
    config = families.build("resnet").config
    config.num_channels = 1
    where = model(tmp_path / "grey", "resnet")
    transformers.AutoModel.from_config(config).save_pretrained(where)
    with pytest.raises(RecipeError, match="takes no images of 3 x 32 x 32 pixels"):
        check_images_taken(str(where), 0)


def test_a_base_without_a_processor_is_refused_before_the_run(tmp_path: Path) -> None:
    where = model(tmp_path / "vit")
    (where / "preprocessor_config.json").unlink()
    with pytest.raises(RecipeError, match="has no image processor"):
        check_images_taken(str(where), 0)


def test_images_that_are_no_squares_are_not_cut_to_squares(tmp_path: Path) -> None:
    where = model(tmp_path / "wide", size={"height": 32, "width": 64})
    with pytest.raises(RunError, match=r"makes images of 32 x 64 pixels, and tasks of images are squares; set"):
        look_of(where)
    assert look_of(where, 32).processed is None  # whole images, and not the middle of what the processor makes
    transformers.CLIPImageProcessor(size={"shortest_edge": 32}, do_center_crop=False).save_pretrained(where)
    with pytest.raises(RunError, match=r"images of 32 x 48 and 51 x 32 pixels"):
        look_of(where)


def test_an_expert_of_other_images_is_refused(tmp_path: Path) -> None:
    base = model(tmp_path / "base", "resnet")
    look = look_of(base)
    for name, given, said in (
        ("mean", {"image_mean": [0.1, 0.2, 0.3]}, "normalised by mean 0.1/0.2/0.3 and deviation 0.5/0.5/0.5, and here"),
        ("size", {"size": {"height": 48, "width": 48}}, "have 48 pixels a side, and here 32"),
    ):
        assert said in check_reader(model(tmp_path / name, "resnet", **given), look)
    where = model(tmp_path / "cut", "resnet")
    cutting = {"size": {"shortest_edge": 48}, "crop_size": {"height": 32, "width": 32}, "image_mean": [0.5] * 3}
    transformers.CLIPImageProcessor(**cutting, image_std=[0.5] * 3).save_pretrained(where)
    assert "are cut otherwise" in check_reader(where, look)
    (where / "preprocessor_config.json").unlink()
    assert not check_reader(where, look)  # it does not say
    assert not check_reader(model(tmp_path / "same", "resnet"), look)

    tasks = [TaskSource(name=name, kind="images") for name in ("mnist", "digits")]
    recipe = Recipe(base=str(base), tasks=tasks)
    with pytest.raises(RecipeError, match=r"experts.mnist: .* was trained on other images by its own processor"):
        check_given(recipe, "mnist", str(tmp_path / "mean"), base_checkpoint(str(base)), tasks[0])


def test_adapters_hold_no_running_statistics() -> None:
    with pytest.raises(FieldError, match="expected frozen with a lora_rank"):
        Training(lora_rank=4, statistics="trained")
