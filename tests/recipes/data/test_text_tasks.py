"""The parsers on small files of each format, and the true tasks where the cache holds them."""

import pytest

from recipes.data import text_tasks, wheels
from recipes.data.sources import load_task
from recipes.data.splits import text_key
from recipes.data.task_source import TaskSource

HUTTO = "hutto_ICWSM_2014"


@pytest.fixture
def write(tmp_path, monkeypatch):
    """Put text where the parsers look for a fetched member."""
    monkeypatch.setattr(text_tasks, "fetch", lambda _: tmp_path)

    def put(name, text, encoding="utf-8"):
        path = tmp_path / name
        path.parent.mkdir(exist_ok=True)
        path.write_bytes(text.encode(encoding))

    return put


def tab(*rows):
    return "\n".join(["Category\tText", "d\tstring", "class\t", *rows]) + "\n"


def test_topics_keep_the_official_test_split_without_texts_of_train(write):
    write("20newsgroups-train.tab", tab("sci.space\t orbit ", "sci.med\tdose", "sci.med\tDose", "sci.med\t"))
    write("20newsgroups-test.tab", tab("sci.space\tORBIT", "sci.space\tmoon", "sci.space\tmoon"))
    train, test = text_tasks.read_rows("newsgroups")
    assert train == [("orbit", "sci.space"), ("dose", "sci.med")]
    assert test == [("moon", "sci.space")]


def test_tweets_lose_retweets_and_links(write):
    rows = [
        "Is retweet\tAuthor\tContent",
        "discrete\tdiscrete\tstring",
        "\tclass\tmeta",
        'False\tA\t"Say ""no"" https://t.co/x1 today"',
        "True\tA\tshared by another",
        "False\tB\thttps://t.co/only",
        "False\tB\tsame https://t.co/1",
        "False\tB\tsame https://t.co/2",
    ]
    write("election-tweets-2016.tab", "\r\n".join(rows) + "\r\n")
    assert text_tasks.read_rows("election") == ([('Say "no"  today', "A"), ("same", "B")], [])


def test_sms_that_a_stray_quote_swallowed_come_back(write):
    write("sms-spam.csv", ',spam,text\n0,0,"first"" one\nham\tsecond\nspam\tWIN now"\n1,1,NA\n')
    rows = [('first" one', "ham"), ("second", "ham"), ("WIN now", "spam"), ("NA", "spam")]
    assert text_tasks.read_rows("spam") == (rows, [])


def test_questions_are_latin_1_with_the_coarse_label(write):
    write("question_labels.txt", "DESC:manner How is café made ?\nHUM:ind Who ?\nDESC:def who ?\n", "latin-1")
    assert text_tasks.read_rows("trec") == ([("How is café made ?", "DESC"), ("Who ?", "HUM")], [])


@pytest.mark.parametrize(
    ("task", "name"), [("movie", "movieReview"), ("amazon", "amazonReview"), ("nyt", "nytEditorial")]
)
def test_ratings_near_zero_are_left_out_and_quotes_are_text(write, task, name):
    lines = ["id\tsentiment\ttext", "1\t0.5\tgood", "2\t0.49\tso so", '3\t-0.5\t"bad', '4\t-3\tworse"']
    write(f"{HUTTO}/{name}Snippets_GroundTruth.txt", "\r\n".join(lines) + "\r\n")
    rows = [("good", "positive"), ('"bad', "negative"), ('worse"', "negative")]
    assert text_tasks.read_rows(task) == (rows, [])


SIZES = {  # task: classes, train, validation, test
    "newsgroups": (20, 10146, 1127, 7514),
    "reuters8": (8, 4881, 542, 2172),
    "election": (2, 3943, 563, 1126),
    "spam": (2, 3611, 516, 1032),
    "trec": (6, 3766, 538, 1076),
    "movie": (2, 7049, 1007, 2014),
    "amazon": (2, 2084, 298, 595),
    "nyt": (2, 2052, 293, 586),
}


def check_true_task(name):
    task = load_task(TaskSource(name), seed=0)
    splits = (task.train, task.validation, task.test)
    assert (len(task.labels), *map(len, splits)) == SIZES[name]
    keys = [text_key(text) for split in splits for text in split.texts]
    assert len(set(keys)) == len(keys), "a text occurs twice"
    for split in splits:
        assert set(split.labels) == set(range(len(task.labels)))
        assert all(text == text.strip() and text for text in split.texts)
        for label in range(len(task.labels)):
            share = [part.labels.count(label) / len(part) for part in (split, task.train)]
            assert abs(share[0] - share[1]) < (0.05 if task.labels[0] == "acq" else 0.01)
    if name == "election":
        assert not any("http" in text for split in splits for text in split.texts)


CACHED = [name for name, task in text_tasks.TASKS.items() if wheels.cached(task.wheel)]


@pytest.mark.parametrize("name", CACHED)
def test_true_task_in_the_cache(name):
    check_true_task(name)


@pytest.mark.slow
@pytest.mark.parametrize("name", text_tasks.TASKS)
def test_true_task(name):
    check_true_task(name)
