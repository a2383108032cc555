"""A sweep whose runs go to a worker of Dask; in a process of its own, as Dask keeps threads until the process ends."""

import sys

from distributed import Client, LocalCluster

from recipes.running import sweep
from tests.recipes.toy_run import main


def main_on_dask() -> int:
    """Run the sweep of r.yaml, and count what is submitted."""
    sweep.RUN = ("-m", "tests.recipes.toy_run")
    submit, submitted = Client.submit, []
    Client.submit = lambda self, *given, **named: submitted.append(given) or submit(self, *given, **named)
    with LocalCluster(n_workers=1, threads_per_worker=2, processes=False, dashboard_address=None) as cluster:
        code = main(
            ["r.yaml", "--seeds", "2", "--jobs", "2", "--out", "s", "--on", f"dask:{cluster.scheduler_address}"]
        )
    print(f"{len(submitted)} submitted")
    return code


if __name__ == "__main__":
    sys.exit(main_on_dask())
