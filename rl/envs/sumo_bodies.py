"""The bodies that wrestle in the ring, as MuJoCo models written for this package."""

from __future__ import annotations

import math
from collections.abc import Callable
from typing import NamedTuple

import torch
from torch import Tensor

COLOURS = {"red": "0.8 0.25 0.2 1", "blue": "0.2 0.35 0.8 1"}


class Body(NamedTuple):
    """What the ring needs to know of a kind of body.

    Attributes:
        xml: A model with two such bodies, red first; red's positions, speeds and motors come before blue's.
        positions: Entries of the position vector of one body.
        speeds: Entries of the velocity vector of one body.
        motors: Motors of one body, each driven by a number in [-1, 1].
        ring: Radius of the ring.
        substeps: Physics steps of one decision.
        rest: Position vector of one body at the centre, heading along x.
        gait: What turns a player's two commands in [-1, 1], ahead and turn (n, 2), and the seconds since the start (n,)
            into numbers for the motors (n, motors). Without one, players drive the motors.
    """

    xml: str
    positions: int
    speeds: int
    motors: int
    ring: float
    substeps: int
    rest: tuple[float, ...]
    gait: Callable[[Tensor, Tensor], Tensor] | None = None


def pusher() -> Body:
    """A box on a plane that thrusts forwards or backwards and turns: strong ahead, helpless when it is pushed sideways.

    It moves in three coordinates without gravity or ground, so that a step costs microseconds.
    """
    bodies, motors = [], []
    for name, colour in COLOURS.items():
        bodies.append(
            f"""
            <body name="{name}">
              <joint name="{name}_x" type="slide" axis="1 0 0" damping="2"/>
              <joint name="{name}_y" type="slide" axis="0 1 0" damping="2"/>
              <joint name="{name}_yaw" type="hinge" axis="0 0 1" damping="0.15"/>
              <geom type="box" size="0.25 0.18 0.1" mass="1" rgba="{colour}"/>
              <geom type="capsule" fromto="0.25 -0.18 0 0.25 0.18 0" size="0.05" mass="0.1" rgba="{colour}"/>
              <site name="{name}_front"/>
            </body>"""
        )
        motors.append(
            f"""
            <general site="{name}_front" gear="4 0 0 0 0 0" ctrllimited="true" ctrlrange="-1 1"/>
            <general site="{name}_front" gear="0 0 0 0 0 0.5" ctrllimited="true" ctrlrange="-1 1"/>"""
        )
    xml = f"""
    <mujoco>
      <option timestep="0.02" gravity="0 0 0" integrator="implicitfast"/>
      <default><geom friction="0.5"/></default>
      <worldbody>{"".join(bodies)}</worldbody>
      <actuator>{"".join(motors)}</actuator>
    </mujoco>"""
    return Body(xml, 3, 3, 2, 1.2, 5, (0.0, 0.0, 0.0))


def ant() -> Body:
    """A round torso on four legs of two hinges each, which stands, walks and topples under gravity."""
    xml = _ants(0.01, '<motor joint="{joint}" gear="40" ctrllimited="true" ctrlrange="-1 1"/>')
    return Body(xml, 15, 14, 8, 3.0, 5, ANT_AT_REST)


def walker() -> Body:
    """An ant that trots by itself, about 0.8 m/s ahead and 1.2 rad/s round, and whose players say where it goes."""
    xml = _ants(0.02, '<position joint="{joint}" kp="100" kv="10" forcelimited="true" forcerange="-40 40"/>')
    return Body(xml, 15, 14, 8, 1.5, 5, ANT_AT_REST, trot)


BODIES = {"pusher": pusher, "ant": ant, "walker": walker}
LEGS = [math.pi / 4 + leg * math.pi / 2 for leg in range(4)]  # their directions, seen from above, ahead is 0
ANT_AT_REST = (0.0, 0.0, 0.5, 1.0, 0.0, 0.0, 0.0, *(0.0, math.radians(45)) * 4)
# Of the trot: steps a second, how far hips swing and knees lift, how far knees are bent, all in radians, and how much
# later than the hip a knee moves. Found by a random search for a fast and straight walk.
PACE, SWING, LIFT, BEND, DELAY = 1.6, 0.44, 0.28, 1.03, 0.88


def trot(commands: Tensor, seconds: Tensor) -> Tensor:
    """Angles for the hips and knees of an ant, opposite legs together.

    Args:
        commands: Ahead and turn of every ant, in [-1, 1], (n, 2).
        seconds: Since the start, (n,).

    Returns:
        Hip and knee of every leg in turn, (n, 8).
    """
    side = torch.tensor(LEGS, dtype=commands.dtype).sin().sign()  # 1 on the left
    phase = 2 * torch.pi * (PACE * seconds[:, None] + torch.tensor([0.0, 0.5, 0.0, 0.5], dtype=commands.dtype))
    stride = (commands[:, :1] - side * commands[:, 1:]).clamp(-1, 1)
    hip = -side * SWING * stride * phase.sin()
    knee = BEND - LIFT * (phase - DELAY).cos() * stride.abs().amax(1, keepdim=True)
    return torch.stack([hip, knee], dim=-1).flatten(1)


def _ants(timestep: float, motor: str) -> str:
    """The model of two ants; ``motor`` is the XML of the one that drives ``{joint}``."""
    bodies, motors = [], []
    for name, colour in COLOURS.items():
        legs = []
        for leg, angle in enumerate(LEGS):
            x, y = math.cos(angle), math.sin(angle)
            hip, knee = f"{name}_hip_{leg}", f"{name}_knee_{leg}"
            legs.append(
                f"""
                <body pos="{0.2 * x:.4f} {0.2 * y:.4f} 0">
                  <joint name="{hip}" type="hinge" axis="0 0 1" range="-35 35"/>
                  <geom type="capsule" fromto="0 0 0 {0.2 * x:.4f} {0.2 * y:.4f} 0" size="0.07" rgba="{colour}"/>
                  <body pos="{0.2 * x:.4f} {0.2 * y:.4f} 0">
                    <joint name="{knee}" type="hinge" axis="{-y:.4f} {x:.4f} 0" range="15 85"/>
                    <geom type="capsule" fromto="0 0 0 {0.5 * x:.4f} {0.5 * y:.4f} 0" size="0.06" rgba="{colour}"/>
                  </body>
                </body>"""
            )
            motors += [motor.format(joint=joint) for joint in (hip, knee)]
        bodies.append(
            f"""
            <body name="{name}" pos="0 0 0.5">
              <freejoint name="{name}_root"/>
              <geom type="sphere" size="0.22" rgba="{colour}"/>
              {"".join(legs)}
            </body>"""
        )
    return f"""
    <mujoco>
      <option timestep="{timestep}" integrator="implicitfast"/>
      <default>
        <joint damping="1" armature="0.5"/>
        <geom density="8" friction="1 0.5 0.5" condim="3"/>
      </default>
      <worldbody><geom name="ground" type="plane" size="20 20 1" rgba="0.8 0.8 0.8 1"/>{"".join(bodies)}</worldbody>
      <actuator>{"".join(motors)}</actuator>
    </mujoco>"""
