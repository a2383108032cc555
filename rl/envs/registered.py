"""The simulators as environments that ``gymnasium.make`` knows by name: ``gapbridge/SingleItem-v0`` and others.

Import this module before, or have Gymnasium do it, which loads what stands before the colon:
``gymnasium.make("rl.envs.registered:gapbridge/SingleItem-v0")``. What `make` gets beside the name goes to the
simulator, but for ``bound`` and ``flat``, see `rl.envs.to_gymnasium.make_env`.
"""

import gymnasium

SIMULATORS = {
    "Newsvendor": "rl.envs.newsvendor.Newsvendor",
    "SingleItem": "rl.envs.inventory.single_item",
    "JointReplenishment": "rl.envs.inventory.joint_replenishment",
    "Stores": "rl.envs.stores.Stores",
    "LotSizing": "rl.envs.lot_sizing.ten_items",
    "SwitchedLQR": "rl.envs.switched_lqr.switched_lqr",
    "BouncingPoint": "rl.envs.bouncing.BouncingPoint",
}


def register() -> None:
    """Tell Gymnasium of every simulator, once."""
    for name, path in SIMULATORS.items():
        key = f"gapbridge/{name}-v0"
        if key not in gymnasium.registry:
            gymnasium.register(
                key,
                entry_point="rl.envs.to_gymnasium:make_env",
                vector_entry_point="rl.envs.to_gymnasium:make_vector_env",
                kwargs={"simulator": path},
            )


register()
