"""A twin is asked once, its answers are read back as they were, and it is asked again where something changed."""

from types import SimpleNamespace

import pytest
import torch

from recipes.distill.answers import FIELD, answer_once
from recipes.running.folder import RunFolder


class Data:
    """Two splits of rows of one number each, dealt out shortest first."""

    eval_batch_size = 2

    def __init__(self) -> None:
        self.splits = {"train": [3, 1, 2], "test": [5, 4]}
        self.noted: dict[str, list[float]] = {}

    def rows(self, split):
        return [{"input_ids": [value], "labels": 0} for value in self.splits[split]]

    def by_length(self, split):
        order = sorted(range(len(self.splits[split])), key=lambda place: self.splits[split][place])
        for start in range(0, len(order), 2):
            places = order[start : start + 2]
            yield places, {"input_ids": torch.tensor([[self.splits[split][place]] for place in places])}

    def note(self, split, field, values):
        assert field == FIELD
        self.noted[split] = values[:, 0].tolist()


@pytest.fixture
def ask(tmp_path):
    """Ask the twin about some data; its answer to a number is ten times that, and what it was asked is counted."""
    twin = tmp_path / "twin"
    twin.mkdir()
    (twin / "MANIFEST.json").write_text("{}")
    asked = []

    def teacher(batch):
        asked.append(len(batch["input_ids"]))
        return SimpleNamespace(logits=10.0 * batch["input_ids"])

    def run(data):
        asked.clear()
        answer_once(teacher, twin, data, ["train", "test"], RunFolder(tmp_path, "t", quiet=True), torch.device("cpu"))
        return data.noted, sum(asked)

    return run


RIGHT = {"train": [30.0, 10.0, 20.0], "test": [50.0, 40.0]}


def test_answers_are_asked_once_and_stand_at_their_rows(ask):
    assert ask(Data()) == (RIGHT, 5)
    assert ask(Data()) == (RIGHT, 0)


def test_other_rows_are_asked_about_again(ask):
    ask(Data())
    other = Data()
    other.splits["test"] = [4, 5]
    assert ask(other) == (RIGHT | {"test": [40.0, 50.0]}, 5)


@pytest.mark.parametrize("damage", ["flip", "cut", "remove the seal", "empty"])
def test_a_damaged_file_is_made_again(ask, tmp_path, damage):
    ask(Data())
    file = tmp_path / "cache" / "answers.safetensors"
    content = bytearray(file.read_bytes())
    if damage == "flip":
        content[-3] ^= 1  # a number of the last tensor
    file.write_bytes({"cut": content[:-4], "empty": b""}.get(damage, content))
    if damage == "remove the seal":
        file.with_name(f"{file.name}.sha256").unlink()
    assert ask(Data()) == (RIGHT, 5)
    assert ask(Data()) == (RIGHT, 0)
