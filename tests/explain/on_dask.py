"""Explain one gap here and on dask workers, and fail unless the reports are the same to the bit."""

import joblib
from distributed import Client, LocalCluster

from explain import GapExplainer
from tests.explain.test_gap_explainer import make


def main():
    frames = make(300, 0, 1), make(300, 1, 1)
    explainer = GapExplainer(["w"], {"a": "a", "b": "b"}, learners="linear", folds=2, n_jobs=2)
    here = GapExplainer(**{**explainer.get_params(), "n_jobs": 1}).fit(*frames).report_
    with (
        LocalCluster(n_workers=1, threads_per_worker=2, processes=False, dashboard_address=None) as cluster,
        Client(cluster),
        joblib.parallel_config("dask"),
    ):
        there = explainer.fit(*frames).report_
    if there.to_json() != here.to_json():
        raise SystemExit("the reports differ")
    print("the reports are the same")


if __name__ == "__main__":
    main()
