"""Rows for language models from files and shipped tasks: prompts, answers, choices, chats, and what is refused."""

import gzip
import json

import pytest

from recipes.data.language_rows import load_language
from recipes.data.language_shipped import LANGUAGE_TASKS
from recipes.data.language_task import Language
from recipes.data.task_source import TaskSource
from recipes.errors import RunError
from recipes.fields import FieldError


def write(folder, rows):
    (folder / "rows.jsonl").write_text("\n".join(map(json.dumps, rows)) + "\n", encoding="utf-8")


def load(folder, rows, language, **changes):
    write(folder, rows)
    given = {"name": "t", "source": "jsonl", "path": str(folder / "rows.jsonl"), **changes}
    task = load_language(TaskSource(**given, language=language), 0)
    return {
        item.prompt or item.completion or item.messages: item for item in (*task.train, *task.validation, *task.test)
    }


def pairs(count=20):
    return [{"text": f"row {i}", "label": "yes" if i % 2 else "no", "all": ["no", "yes"]} for i in range(count)]


def test_every_row_is_in_one_split_and_its_prompt_and_answer_are_written_as_declared(tmp_path):
    language = Language(template="Q: {text}\nA:", between=" -> ", answers={"yes": "surely"}, metric="exact_match")
    items = load(tmp_path, pairs(), language)
    assert len(items) == 20
    assert items["Q: row 1\nA:"].completion == " -> surely"
    assert items["Q: row 2\nA:"].completion == " -> no"
    assert items["Q: row 2\nA:"].answer == "-> no"


def test_choices_are_those_of_train_or_of_the_row(tmp_path):
    assert {i.choices for i in load(tmp_path, pairs(), Language(metric="choice")).values()} == {(" no", " yes")}
    own = Language(metric="choice", choices_from="all")
    rows = [row | {"label": int(row["label"] == "yes")} for row in pairs()]  # an index, as public sets have it
    items = load(tmp_path, rows, own)
    assert items["row 3"].completion == " yes"
    assert items["row 3"].choices == (" no", " yes")


def test_chats_keep_their_messages(tmp_path):
    talk = [{"role": "user", "content": "hi"}, {"role": "assistant", "content": "hello"}]
    rows = [{"talk": [{"role": "system", "content": f"be brief {i}"}, *talk]} for i in range(20)]
    items = load(tmp_path, rows, Language(form="chat"), text=["talk"])
    assert len(items) == 20
    one = next(iter(items.values()))
    assert one.messages[1:] == (("user", "hi"), ("assistant", "hello"))
    assert one.answer == "hello"


@pytest.mark.parametrize(
    ("change", "language", "sentence"),
    [
        ({"text": ""}, Language(), "row 1: column 'text' is ''; give a text, or drop the row"),
        ({"label": None}, Language(), "row 1: column 'label' is None; give a text, or drop the row"),
        ({"all": "no"}, Language(metric="choice", choices_from="all"), "give a list of at least two choices"),
        ({"label": "maybe"}, Language(metric="choice", choices_from="all"), "is none of the choices, nor the index"),
        ({"text": ["hi"]}, Language(form="chat"), "column 'text' is no chat"),
        (
            {"text": [{"role": "user", "content": "hi"}] * 2},
            Language(form="chat"),
            "an answer of the role assistant last",
        ),
    ],
)
def test_a_row_that_says_nothing_is_refused(tmp_path, change, language, sentence):
    with pytest.raises(RunError, match=sentence):
        load(tmp_path, [pairs()[0] | change, *pairs()[1:]], language)


def test_too_many_answers_are_no_choices(tmp_path):
    rows = [{"text": f"row {i}", "label": f"answer {i}"} for i in range(200)]
    with pytest.raises(RunError, match="different answers to choose among, and 2 to 64 are accepted"):
        load(tmp_path, rows, Language(metric="choice"))


def test_a_source_says_one_thing_only():
    with pytest.raises(FieldError, match="metric: expected none beside language"):
        TaskSource("t", "jsonl", "x.jsonl", metric="f1", language=Language())
    with pytest.raises(FieldError, match="no shipped task is called 'pronounce'"):
        TaskSource("pronounce")
    assert TaskSource("pronounce", language=Language()).shipped == "pronounce"


def test_shipped_sources_are_read_as_prompts_and_answers(tmp_path):
    (tmp_path / "cmudict.dict").write_text("zebra Z IY1 B R AH0\nzebra(2) Z EH1 B R AH0\na AH0\nthe DH AH0 # weak\n")
    assert LANGUAGE_TASKS["pronounce"].parse(tmp_path / "cmudict.dict") == [("zebra", "Z IY B R AH"), ("the", "DH AH")]
    with gzip.open(tmp_path / "infl_lu.csv.gz", "wt") as file:
        file.write(
            "mouse,noun,mice\ntake,verb,took,taken,taking,takes\nwalk,verb,walked,,walking,walks\nable,adj,abler,ablest\n"
        )
    assert LANGUAGE_TASKS["inflect"].parse(tmp_path / "infl_lu.csv.gz") == [
        ("plural of mouse", "mice"),
        ("past of take", "took"),
        ("ing form of take", "taking"),
        ("past of walk", "walked"),
        ("ing form of walk", "walking"),
        ("comparative of able", "abler"),
    ]
    (tmp_path / "moviedialog.csv").write_text(",statement,reply\n0,who are you?,miss harrington of course.\n1,hm,no\n")
    assert LANGUAGE_TASKS["dialogue"].parse(tmp_path / "moviedialog.csv") == [
        ("who are you?", "miss harrington of course.")
    ]
