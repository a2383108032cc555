"""A survey of two years, the recipe that explains it, and the command that runs it."""

import numpy as np
import pandas as pd
import yaml


def people(rows, seed, shift=0.0):
    """Rows of a survey: `skill` matters less, and `city` more, where the shift is."""
    rng = np.random.default_rng(seed)
    age, skill = rng.normal(40, 10, rows).round(), rng.normal(shift / 2, 1, rows)
    city = rng.choice(["north", "south", "west"], rows, p=[0.4, 0.3, 0.3])
    chance = 1 / (1 + np.exp(-(1.5 - shift) * skill - shift * (city == "south") - 0.02 * (age - 40)))
    first = 1 / (1 + np.exp(-1.5 * skill))
    y = (rng.random(rows) < chance).astype(int)
    return pd.DataFrame(
        {
            "age": age,
            "skill": skill,
            "city": city,
            "label": np.where(y, "yes", "no"),
            "number": 2 * skill + y,
            "clinic": rng.integers(0, 40, rows),
            "p": first,
            "q": np.where(city == "south", 0.5, first),
            "guess": 2 * skill,
            "loss_p": np.abs(y - first),
            "loss_q": np.abs(y - np.where(city == "south", 0.5, first)),
            "year": 2000 + seed,
        }
    )


def recipe(**changes):
    made = {
        "recipe": "explain",
        "name": "test",
        "data": {"kind": "csv", "path": "both.csv", "column": "year", "source": 2000, "target": ">= 2001"},
        "label": "label",
        "loss": "brier",
        "model": {"kind": "predictions", "columns": ["p"]},
        "baseline": ["age"],
        "groups": {"skill": ["skill"], "place": ["city"]},
        "estimation": {"learners": "linear", "folds": 2, "n_bins": 4},
    }
    for key, value in changes.items():
        before = made.get(key)
        made[key] = (
            before | value if isinstance(before, dict) and isinstance(value, dict) and key != "groups" else value
        )
        if value is None:
            del made[key]
    return made


def run(front, made, out="out"):
    done = front("r.yaml", "--out", out, r=yaml.safe_dump(made))
    assert done.code == 0, done.err
    return done
