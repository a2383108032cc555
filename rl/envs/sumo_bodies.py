"""The bodies that wrestle in the ring, as MuJoCo models written for this package."""

from __future__ import annotations

import math
from typing import NamedTuple

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
    """

    xml: str
    positions: int
    speeds: int
    motors: int
    ring: float
    substeps: int
    rest: tuple[float, ...]


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
    bodies, motors = [], []
    for name, colour in COLOURS.items():
        legs = []
        for leg in range(4):
            angle = math.pi / 4 + leg * math.pi / 2
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
            motors += [
                f'<motor joint="{joint}" gear="40" ctrllimited="true" ctrlrange="-1 1"/>' for joint in (hip, knee)
            ]
        bodies.append(
            f"""
            <body name="{name}" pos="0 0 0.5">
              <freejoint name="{name}_root"/>
              <geom type="sphere" size="0.22" rgba="{colour}"/>
              {"".join(legs)}
            </body>"""
        )
    xml = f"""
    <mujoco>
      <option timestep="0.01" integrator="implicitfast"/>
      <default>
        <joint damping="1" armature="0.5"/>
        <geom density="8" friction="1 0.5 0.5" condim="3"/>
      </default>
      <worldbody><geom name="ground" type="plane" size="20 20 1" rgba="0.8 0.8 0.8 1"/>{"".join(bodies)}</worldbody>
      <actuator>{"".join(motors)}</actuator>
    </mujoco>"""
    legs_at_rest = (0.0, math.radians(45)) * 4
    return Body(xml, 15, 14, 8, 3.0, 5, (0.0, 0.0, 0.5, 1.0, 0.0, 0.0, 0.0, *legs_at_rest))


BODIES = {"pusher": pusher, "ant": ant}
