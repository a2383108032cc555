"""The error every input that cannot be explained raises."""

from sklearn.base import BaseEstimator

from gapbridge.arguments import ArgumentError, check_arguments


class ExplainError(ValueError):
    """Data or options cannot be explained; the message is one sentence that says what is wrong and what to do."""


def check_options(explainer: BaseEstimator) -> None:
    """Compare the options of an explainer with the annotations of its `__init__`.

    Called when it is made and, as options can be set later, before it works.

    Raises:
        ExplainError: For the first option that is not accepted.
    """
    try:
        check_arguments(type(explainer).__init__, explainer.get_params(deep=False))
    except ArgumentError as error:
        raise ExplainError(str(error)) from error
