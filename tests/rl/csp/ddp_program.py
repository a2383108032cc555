"""Two processes train together and write their weights; run as a program, so that nothing is left in the tests' own."""

import sys
import warnings

import torch

from rl.csp.data import RolloutDataModule
from rl.csp.module import CSPModule
from tests.rl.csp.games import Dilemma, dilemma_data, trainer

if __name__ == "__main__":
    warnings.simplefilter("ignore")
    torch.set_num_threads(1)
    module = CSPModule(
        Dilemma(), dilemma_data(), hidden=[16], agent_rate=2e-2, proxy_rate=2e-2, entropy_start=0.05, epochs=2
    )
    made = trainer(devices=2, strategy="ddp")
    made.fit(module, RolloutDataModule(40, 64))
    torch.save(module.state_dict(), f"{sys.argv[1]}/{made.global_rank}.pt")
