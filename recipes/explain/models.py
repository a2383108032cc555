"""The models that an explain recipe explains: trained on held-out source rows, or left in the table as columns."""

from __future__ import annotations

import inspect
from dataclasses import dataclass, field
from typing import TYPE_CHECKING, Any, Literal

from recipes.errors import RecipeError, RunError
from recipes.fields import FieldError
from recipes.front.schema import did_you_mean

if TYPE_CHECKING:
    import numpy as np
    import pandas as pd
    from numpy.typing import NDArray
    from sklearn.base import BaseEstimator

__all__ = ["ExplainedModel", "check_model_options", "fit", "predicted"]

Kind = Literal["logistic", "boosting", "forest", "mlp", "predictions", "losses"]
# kind -> where scikit-learn has it
CLASSES = {
    "logistic": ("sklearn.linear_model", "LogisticRegression"),
    "boosting": ("sklearn.ensemble", "HistGradientBoostingClassifier"),
    "forest": ("sklearn.ensemble", "RandomForestClassifier"),
    "mlp": ("sklearn.neural_network", "MLPClassifier"),
}
DEFAULTS: dict[str, dict[str, Any]] = {"logistic": {"max_iter": 1000}, "mlp": {"max_iter": 1000}}


@dataclass
class ExplainedModel:
    """A model that is explained: one to train, or what one left in the table.

    Attributes:
        kind: logistic, boosting, forest or mlp (scikit-learn, trained on source rows that are not analysed),
            predictions (columns of the table), or losses (one column).
        options: Arguments of the scikit-learn class.
        calibrated: Calibrate a trained model with a sigmoid, 5-fold.
        columns: For predictions the probability of the second class, or a column for each class in sorted order, or the
            predicted number for the mse; for losses the loss of every row.
    """

    kind: Kind = "logistic"
    options: dict[str, Any] = field(default_factory=dict)
    calibrated: bool = False
    columns: list[str] = field(default_factory=list)

    def __post_init__(self) -> None:
        """Refuse what does not belong to the kind."""
        if self.fitted and self.columns:
            raise FieldError("columns", f"expected none for kind {self.kind}, which is trained, got {self.columns}")
        if not self.fitted and (self.options or self.calibrated):
            raise FieldError("options", f"expected none for kind {self.kind}, which is not trained")
        if not self.fitted and not self.columns:
            raise FieldError("columns", f"expected at least one column for kind {self.kind}, got none")
        if self.kind == "losses" and len(self.columns) > 1:
            raise FieldError("columns", f"expected one column for kind losses, got {self.columns}")

    @property
    def fitted(self) -> bool:
        """Whether the recipe trains it."""
        return self.kind in CLASSES


def check_model_options(model: ExplainedModel, where: str) -> str:
    """One sentence for the pre-flight.

    Raises:
        RecipeError: When scikit-learn's class does not take one of the options.
    """
    if not model.fitted:
        return f"{where}: {model.kind} in {', '.join(model.columns)}"
    known = list(inspect.signature(_class(model)).parameters)
    if unknown := [name for name in model.options if name not in known]:
        problems = [
            f"{where}.options.{name}: {_class(model).__name__} does not take it; {did_you_mean(name, known)}"
            for name in unknown
        ]
        raise RecipeError(*problems)
    calibrated = ", calibrated" if model.calibrated else ""
    return f"{where}: {_class(model).__name__}{calibrated}, trained on held-out source rows"


def fit(model: ExplainedModel, rows: pd.DataFrame, features: list[str], label: str, seed: int) -> BaseEstimator:
    """Train a model on rows that are not analysed: categories one-hot, numbers and days standardised, gaps marked.

    Args:
        model: What to train.
        rows: The frame.
        features: Its columns to learn from.
        label: Its column to predict.
        seed: Of the class, where it takes one.

    Returns:
        A fitted scikit-learn classifier over the features.

    Raises:
        RunError: When scikit-learn refuses the options or the rows.
    """
    from sklearn.calibration import CalibratedClassifierCV
    from sklearn.compose import make_column_transformer
    from sklearn.impute import SimpleImputer
    from sklearn.pipeline import make_pipeline
    from sklearn.preprocessing import FunctionTransformer, OneHotEncoder, StandardScaler

    from explain.dates import is_dates

    options = DEFAULTS.get(model.kind, {}) | model.options
    if "random_state" in inspect.signature(_class(model)).parameters:
        options.setdefault("random_state", seed)
    numbers = [name for name in features if rows[name].dtype.kind in "fiub"]
    dates = [name for name in features if is_dates(rows[name])]
    others = [name for name in features if name not in (*numbers, *dates)]
    filled = make_pipeline(SimpleImputer(add_indicator=True, keep_empty_features=True), StandardScaler())
    encoder = make_column_transformer(
        (filled, numbers),
        (make_pipeline(FunctionTransformer(_in_days), filled), dates),
        (OneHotEncoder(handle_unknown="ignore", sparse_output=False), others),
    )
    try:
        pipeline = make_pipeline(encoder, _class(model)(**options))
        if model.calibrated:
            pipeline = CalibratedClassifierCV(pipeline, method="sigmoid", cv=5)
        return pipeline.fit(rows[features], rows[label])
    except ValueError as error:
        reason = " ".join(str(error).split())[:200]
        raise RunError(f"the {model.kind} cannot be trained on {len(rows)} rows ({reason}); see its options") from error


def predicted(fitted: BaseEstimator, rows: pd.DataFrame, features: list[str]) -> NDArray[np.generic]:
    """Probabilities of a trained model: of the second class where there are two, else of every class, shape (n, k)."""
    chances = fitted.predict_proba(rows[features])
    found: NDArray[np.generic] = chances[:, 1:] if chances.shape[1] == 2 else chances
    return found


def _in_days(dates: pd.DataFrame) -> pd.DataFrame:
    """Columns of dates as days; what was a date in training must be one ever after."""
    from explain.dates import days_of_dates

    return dates.assign(**{name: days_of_dates([dates[name]])[0] for name in dates})


def _class(model: ExplainedModel) -> type[BaseEstimator]:
    import importlib

    module, name = CLASSES[model.kind]
    found: type[BaseEstimator] = getattr(importlib.import_module(module), name)
    return found
