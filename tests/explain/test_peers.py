"""Aggregate terms against DoWhy's robust change attribution and DoubleML, where they estimate the same thing."""

import numpy as np
import pandas as pd
import pytest
from sklearn.ensemble import HistGradientBoostingClassifier, HistGradientBoostingRegressor
from sklearn.linear_model import LinearRegression, LogisticRegression

from explain import GapExplainer

pytestmark = [
    pytest.mark.slow,
    pytest.mark.filterwarnings("ignore::DeprecationWarning"),
    pytest.mark.filterwarnings("ignore::FutureWarning"),
    pytest.mark.filterwarnings("ignore:.*:UserWarning"),
]
ROWS = 4000


@pytest.fixture(scope="module")
def frames():
    """The mild Gaussian design: four independent normals, a logistic outcome, the Brier loss of a source model."""
    rng = np.random.default_rng(0)

    def draw(rows, means, beta):
        x = rng.normal(means, 1.5, (rows, 4))
        return x, (rng.random(rows) < 1 / (1 + np.exp(-x @ beta))).astype(int)

    source, target = ((0.5, 1, 0.35, 1), (0.3, 0.6, 0.4, 0.6)), ((0, 0, 0, 0), (0.3, -0.2, 0.4, 1))
    model = LogisticRegression().fit(*draw(10_000, *source))
    made = []
    for setting in (source, target):
        x, y = draw(ROWS, *setting)
        frame = pd.DataFrame(x, columns=["w", "z1", "z2", "z3"]).assign(y=y, f=model.predict_proba(x)[:, 1])
        made.append(frame.assign(loss=(frame.f - frame.y) ** 2))
    return made


@pytest.fixture(scope="module")
def terms(frames):
    explainer = GapExplainer(
        ["w"], {"z": ["z1", "z2", "z3"]}, label="y", prediction="f", loss="brier", learners="hist_gb"
    )
    return {term.name: term for term in explainer.fit(*frames).report_.aggregate}


def test_terms_agree_with_dowhy(frames, terms):
    """DoWhy's multiply-robust E_abc, differenced in our order W, Z, loss (its own report averages over orders)."""
    robust = pytest.importorskip("dowhy.gcm.distribution_change_robust")
    regression = pytest.importorskip("dowhy.gcm.ml.regression")
    classification = pytest.importorskip("dowhy.gcm.ml.classification")
    both = pd.concat(frames)
    X, loss = both[["w", "z1", "z2", "z3"]].to_numpy(), both["loss"].to_numpy()
    domain = np.repeat([0, 1], ROWS)
    fold = np.tile(np.arange(5), 2 * ROWS // 5)
    swapped = {"000": [0] * 5, "100": [1, 0, 0, 0, 0], "110": [1, 1, 1, 1, 0], "111": [1] * 5}
    found = {}
    for name, change in swapped.items():
        held = []
        for k in range(5):
            test, train = fold == k, fold != k
            scores = robust.ThetaC(change).est_scores(
                X[test],
                loss[test],
                domain[test],
                X[train],
                loss[train],
                domain[train],
                regressor=lambda: regression.SklearnRegressionModel(
                    HistGradientBoostingRegressor(max_iter=60, max_leaf_nodes=8, random_state=0)
                ),
                classifier=lambda: classification.SklearnClassificationModel(LogisticRegression()),
            )
            held.append(scores.mean())
        found[name] = float(np.mean(held))
    theirs = {
        "baseline": found["100"] - found["000"],
        "covariate": found["110"] - found["100"],
        "outcome": found["111"] - found["110"],
    }
    for name, value in theirs.items():
        assert terms[name].value == pytest.approx(value, abs=1.5 * terms[name].se), (name, theirs)


@pytest.mark.parametrize(
    ("given", "names"), [(["w", "z1", "z2", "z3"], ["outcome"]), (["w"], ["covariate", "outcome"])]
)
def test_terms_agree_with_doubleml(frames, terms, given, names):
    """The domain's effect on the loss among the target's rows given (W, Z) is the outcome term, given W both terms."""
    doubleml = pytest.importorskip("doubleml")
    both = pd.concat([frame[[*given, "loss"]].assign(domain=side) for side, frame in enumerate(frames)])
    data = doubleml.DoubleMLData(both.reset_index(drop=True), "loss", "domain", given)
    np.random.seed(0)  # noqa: NPY002 (DoubleML draws its folds from the global generator)
    learner = LinearRegression() if len(given) == 1 else HistGradientBoostingRegressor(max_iter=60, max_leaf_nodes=8)
    chance = HistGradientBoostingClassifier(max_iter=60, max_leaf_nodes=8) if len(given) == 1 else LogisticRegression()
    effect = doubleml.DoubleMLIRM(data, learner, chance, score="ATTE", n_folds=5).fit()
    ours = sum(terms[name].value for name in names)
    spread = sum(terms[name].se ** 2 for name in names) ** 0.5
    assert ours == pytest.approx(float(effect.coef[0]), abs=1.5 * spread)
    assert terms["outcome"].se / float(effect.se[0]) == pytest.approx(1, abs=0.4) or len(given) == 1
