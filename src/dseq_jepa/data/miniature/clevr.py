"""CLEVR in miniature: solids on a plane, ray traced with CLEVR's camera, and their scene descriptions.

    python -m dseq_jepa data make-miniature --config configs/demo.yaml       # draws all miniature data sets

World units, camera, colours and the JSON are CLEVR's (Johnson et al. 2017, https://arxiv.org/abs/1612.06890):
`pixel_coords` is (column, row, depth along the optical axis) of an object's centre.
"""

from dataclasses import dataclass, replace
from typing import Any

import numpy as np
from numpy.random import Generator
from numpy.typing import NDArray

from dseq_jepa.data.miniature.drawing import Floats

Vectors = Floats

COUNTS = range(3, 11)
"""Objects in a picture; each number occurs equally often."""
NEAREST = ((7.4, 8.0), (8.0, 8.5), (8.5, 9.0), (9.0, 9.5), (9.5, 10.0), (10.0, 10.8))
"""Depth of the nearest object in the six classes of VTAB's distance task; each class occurs equally often."""
MARGIN = 0.03
"""Depths keep this far from the limits of their class."""
RADII = {"large": 0.75, "small": 0.45}
"""Larger than CLEVR's 0.7 and 0.35, for the pictures are small."""
SHAPES = ("cube", "sphere", "cylinder")
MATERIALS = ("rubber", "metal")
COLOURS = {
    "gray": (87, 87, 87), "red": (173, 35, 35), "blue": (42, 75, 215), "green": (29, 105, 20),
    "brown": (129, 74, 25), "purple": (129, 38, 192), "cyan": (41, 208, 208), "yellow": (255, 238, 51),
}  # fmt: skip
CAMERA = (7.2, -6.8, 5.1)
TARGET = (0.25, -0.25, 0.0)
FOCAL = 1.4
"""Focal length in picture widths; CLEVR's is 35 / 32."""
GROUND = ((-4.0, 2.6), (-3.2, 3.2))
"""Where objects stand along (away from the camera) and across the line of sight; their neighbours allowing."""
LARGEST = 4
"""Most large objects in a picture."""
DEPTH_SQUEEZE = 0.6
"""Gaps along the line of sight count this much, so that nobody is hidden behind a neighbour."""
GAPS = tuple(0.85**k for k in range(12))
"""Distance that objects keep, in their size; the next smaller one where there is no room."""
REDRAWS = 50
"""Cameras and sets of objects tried: some jitters leave no place that is deep enough and in view."""
SPOTS = 600
"""Places tried for the objects of a picture."""
SUPERSAMPLING = 2
LIGHT = np.array([0.25, -0.75, 0.95], np.float32) / np.float32(1.2359)


@dataclass(frozen=True)
class Camera:
    """A pinhole camera; rows of `axes` are right, up and forward in world coordinates."""

    place: Vectors
    axes: Vectors
    height: int
    width: int

    @staticmethod
    def jittered(rng: Generator, height: int, width: int) -> "Camera":
        """CLEVR's camera, moved a little, looking at the middle of the plane."""
        place = np.array(CAMERA) + rng.uniform(-0.2, 0.2, 3)
        forward = np.array(TARGET) - place
        forward /= np.linalg.norm(forward)
        right = np.cross(forward, (0.0, 0.0, 1.0))
        right /= np.linalg.norm(right)
        axes = np.stack([right, np.cross(right, forward), forward])
        return Camera(place.astype(np.float32), axes.astype(np.float32), height, width)

    def project(self, points_N3: Vectors) -> Vectors:
        """(N, 3) columns and rows in pixels and depths of world points."""
        right_N, up_N, depth_N = ((points_N3 - self.place) @ self.axes.T).T
        focal = FOCAL * self.width
        columns_N = self.width / 2 + focal * right_N / depth_N
        rows_N = self.height / 2 - focal * up_N / depth_N
        return np.stack([columns_N, rows_N, depth_N], axis=1)

    def rays(self) -> Vectors:
        """(H, W, 3) unit directions through the pixels' centres."""
        columns_W = (np.arange(self.width, dtype=np.float32) + 0.5 - self.width / 2) / (FOCAL * self.width)
        rows_H = (self.height / 2 - np.arange(self.height, dtype=np.float32) - 0.5) / (FOCAL * self.width)
        right, up, forward = self.axes
        rays_HWC = forward + columns_W[None, :, None] * right + rows_H[:, None, None] * up
        return np.asarray(rays_HWC / np.sqrt(_dot(rays_HWC, rays_HWC))[..., None], np.float32)


@dataclass(frozen=True)
class Solid:
    """One object."""

    shape: str
    size: str
    material: str
    colour: str
    rotation: float
    """Degrees about the vertical."""
    centre: Vectors
    """(3,) in the world; z is the height of the centre."""

    @property
    def extent(self) -> float:
        """Half height; a cube's is smaller, as in CLEVR, so that its corners fit."""
        radius = RADII[self.size]
        return radius / np.sqrt(2) if self.shape == "cube" else radius


def draw_scene(rng: Generator, height: int, width: int, index: int) -> tuple[NDArray[np.uint8], dict[str, Any]]:
    """A picture and its objects.

    Args:
        rng: of this picture.
        height: of the picture in pixels.
        width: of the picture in pixels.
        index: of the picture; any 24 in a row hold every number of objects three times and every class of the nearest
            one's depth four times, any 48 from a multiple of 48 every pair once.

    Returns:
        (H, W, 3) uint8, and CLEVR's `objects`, `directions` and `relationships`.

    """
    count, nearest = COUNTS[index % len(COUNTS)], NEAREST[(index + index // 24) % len(NEAREST)]
    for _ in range(REDRAWS):
        camera = Camera.jittered(rng, height, width)
        solids = _arrange(rng, camera, count, nearest)
        if solids is not None:
            break
    else:
        raise RuntimeError(f"picture {index}: no room for {count} objects from depth {nearest} on; widen GROUND")
    picture_HWC = _render(camera, solids)
    picture_HWC += rng.standard_normal(picture_HWC.shape, dtype=np.float32) * np.float32(0.008)
    return np.asarray(np.clip(picture_HWC * 255 + 0.5, 0, 255), np.uint8), _describe(camera, solids)


def _arrange(rng: Generator, camera: Camera, count: int, nearest: tuple[float, float]) -> list[Solid] | None:
    """Solids that do not touch, the first in the wanted depth range and all others behind; None without room."""
    sizes = np.array(["small"] * count)
    sizes[rng.permutation(count)[: int(rng.integers(0, min(count, LARGEST) + 1))]] = "large"
    looks = [
        Solid(
            shape=SHAPES[rng.integers(len(SHAPES))],
            size=str(size),
            material=MATERIALS[rng.integers(len(MATERIALS))],
            colour=list(COLOURS)[rng.integers(len(COLOURS))],
            rotation=float(rng.uniform(0, 360)),
            centre=np.zeros(3, np.float32),
        )
        for size in sizes
    ]
    along, across = _ground_axes(camera)
    for gap in GAPS:
        spots_N2 = rng.uniform(*GROUND[0], (SPOTS, 1)) * along + rng.uniform(*GROUND[1], (SPOTS, 1)) * across
        solids = _settle(camera, looks, spots_N2, nearest, gap)
        if solids is not None:
            return solids
    return None


def _settle(
    camera: Camera, looks: list[Solid], spots_N2: NDArray[np.float64], nearest: tuple[float, float], gap: float
) -> list[Solid] | None:
    """Give every solid the first free spot; None if one finds none."""
    settled: list[Solid] = []
    squeezed_N2 = spots_N2 @ (np.stack(_ground_axes(camera), axis=1) * (DEPTH_SQUEEZE, 1.0))
    taken_M2, taken_radii, front = np.empty((0, 2)), np.empty(0), 0.0
    for look in looks:
        centres_N3 = np.column_stack([spots_N2, np.full(len(spots_N2), look.extent)]).astype(np.float32)
        columns_N, rows_N, depths_N = camera.project(centres_N3).T
        reach_N = FOCAL * camera.width * RADII[look.size] / depths_N
        free_N = (columns_N > reach_N) & (columns_N < camera.width - reach_N)
        free_N &= (rows_N > reach_N) & (rows_N < camera.height - 1.1 * reach_N)
        if settled:
            free_N &= depths_N > front + MARGIN
        else:
            free_N &= (depths_N > nearest[0] + MARGIN) & (depths_N < nearest[1] - MARGIN)
        distances_NM = np.linalg.norm(squeezed_N2[:, None] - taken_M2, axis=2)
        free_N &= (distances_NM > gap * (RADII[look.size] + taken_radii + 0.1)).all(axis=1)
        if not free_N.any():
            return None
        chosen = int(np.argmax(free_N))
        front = front or float(depths_N[chosen])
        taken_M2 = np.vstack([taken_M2, squeezed_N2[chosen]])
        taken_radii = np.append(taken_radii, RADII[look.size])
        settled.append(replace(look, centre=centres_N3[chosen]))
    return settled


def _ground_axes(camera: Camera) -> tuple[NDArray[np.float64], NDArray[np.float64]]:
    """Unit vectors on the plane along and across the line of sight."""
    along = camera.axes[2, :2].astype(np.float64)
    along /= np.linalg.norm(along)
    return along, np.array([along[1], -along[0]])


def _render(camera: Camera, solids: list[Solid]) -> Floats:
    """(H, W, 3) in [0, 1], floats that may leave the range a little."""
    floor_HWC = _ground(camera, camera.rays(), solids)
    camera = Camera(camera.place, camera.axes, camera.height * SUPERSAMPLING, camera.width * SUPERSAMPLING)
    rays_HWC = camera.rays()
    picture_HWC = floor_HWC.repeat(SUPERSAMPLING, axis=0).repeat(SUPERSAMPLING, axis=1)
    nearest_HW = np.full(rays_HWC.shape[:2], np.inf, np.float32)
    for solid in solids:
        column, row, depth = camera.project(solid.centre[None])[0]
        reach = 1.8 * FOCAL * camera.width * RADII[solid.size] / depth
        window = (
            slice(max(int(row - reach), 0), max(int(row + reach) + 1, 0)),
            slice(max(int(column - reach), 0), max(int(column + reach) + 1, 0)),
        )
        rays = rays_HWC[window]
        distance_HW, normal_HWC = _hit(camera.place - solid.centre, rays, solid)
        seen_HW = distance_HW < nearest_HW[window]
        nearest_HW[window][seen_HW] = distance_HW[seen_HW]
        picture_HWC[window][seen_HW] = _shade(rays[seen_HW], normal_HWC[seen_HW], solid)
    blocks = (camera.height // SUPERSAMPLING, SUPERSAMPLING, camera.width // SUPERSAMPLING, SUPERSAMPLING, 3)
    return np.asarray(np.einsum("hiwjc->hwc", picture_HWC.reshape(blocks)) / SUPERSAMPLING**2, np.float32)


def _ground(camera: Camera, rays_HWC: Vectors, solids: list[Solid]) -> Floats:
    """The grey plane with soft shadows and a gentle fall-off of light."""
    down_HW = np.minimum(rays_HWC[..., 2], -0.02)
    points_HWC = camera.place[:2] - rays_HWC[..., :2] * (camera.place[2] / down_HW)[..., None]
    light_HW = 0.7 - 0.25 * np.clip(np.hypot(points_HWC[..., 0], points_HWC[..., 1]) / 12, 0, 1)
    for solid in solids:
        radius = RADII[solid.size]
        shift = -LIGHT[:2] / LIGHT[2] * solid.extent * 0.8
        offsets_HWC = (points_HWC - solid.centre[:2] - shift) / np.float32(1.15 * radius)
        light_HW *= 1 - 0.5 * np.exp(-(_dot(offsets_HWC, offsets_HWC) ** 2))
    return np.asarray(light_HW[..., None] * np.array([1.0, 0.99, 0.97], np.float32), np.float32)


def _hit(origin: Vectors, rays_HWC: Vectors, solid: Solid) -> tuple[Vectors, Vectors]:
    """Distances along the rays (inf: missed) and outward normals; `origin` is relative to the solid's centre."""
    if solid.shape == "sphere":
        return _hit_sphere(origin, rays_HWC, solid.extent)
    turn = np.radians(solid.rotation)
    spin = np.array([[np.cos(turn), -np.sin(turn), 0], [np.sin(turn), np.cos(turn), 0], [0, 0, 1]], np.float32)
    hit = _hit_cube if solid.shape == "cube" else _hit_cylinder
    distance_HW, normal_HWC = hit(origin @ spin, rays_HWC @ spin, solid.extent)
    return distance_HW, normal_HWC @ spin.T


def _hit_sphere(origin: Vectors, rays_HWC: Vectors, radius: float) -> tuple[Vectors, Vectors]:
    half_HW = rays_HWC @ origin
    root_HW = half_HW**2 - (origin @ origin - np.float32(radius) ** 2)
    distance_HW = np.where(root_HW > 0, -half_HW - np.sqrt(np.maximum(root_HW, 0)), np.inf).astype(np.float32)
    return distance_HW, (origin + _finite(distance_HW)[..., None] * rays_HWC) / np.float32(radius)


def _hit_cube(origin: Vectors, rays_HWC: Vectors, half: float) -> tuple[Vectors, Vectors]:
    safe_HWC = np.where(np.abs(rays_HWC) < 1e-6, np.float32(1e-6), rays_HWC)
    side_HWC = np.sign(safe_HWC)
    enter_HWC, leave_HWC = (-side_HWC * half - origin) / safe_HWC, (side_HWC * half - origin) / safe_HWC
    enter_HW = np.maximum(np.maximum(enter_HWC[..., 0], enter_HWC[..., 1]), enter_HWC[..., 2])
    leave_HW = np.minimum(np.minimum(leave_HWC[..., 0], leave_HWC[..., 1]), leave_HWC[..., 2])
    distance_HW = np.where(enter_HW < leave_HW, enter_HW, np.inf).astype(np.float32)
    return distance_HW, -side_HWC * (enter_HWC == enter_HW[..., None])


def _hit_cylinder(origin: Vectors, rays_HWC: Vectors, radius: float) -> tuple[Vectors, Vectors]:
    """An upright cylinder as high as wide: the side, or the top seen from above."""
    flat_HWC, up_HW = rays_HWC[..., :2], rays_HWC[..., 2]
    a_HW = np.maximum(_dot(flat_HWC, flat_HWC), 1e-8)
    half_HW = flat_HWC @ origin[:2]
    root_HW = half_HW**2 - a_HW * (origin[:2] @ origin[:2] - np.float32(radius) ** 2)
    side_HW = (-half_HW - np.sqrt(np.maximum(root_HW, 0))) / a_HW
    on_side_HW = (root_HW > 0) & (np.abs(origin[2] + side_HW * up_HW) <= radius)
    top_HW = (np.float32(radius) - origin[2]) / np.minimum(up_HW, -1e-6)
    top_points_HWC = origin[:2] + top_HW[..., None] * flat_HWC
    on_top_HW = (_dot(top_points_HWC, top_points_HWC) <= radius**2) & (up_HW < 0)
    distance_HW = np.where(on_top_HW, top_HW, np.where(on_side_HW, side_HW, np.inf)).astype(np.float32)
    normal_HWC = np.zeros_like(rays_HWC)
    normal_HWC[..., :2] = (origin[:2] + side_HW[..., None] * flat_HWC) / np.float32(radius)
    normal_HWC[on_top_HW] = (0, 0, 1)
    return distance_HW, normal_HWC


def _dot(a_C: Vectors, b_C: Vectors) -> Vectors:
    """Products over the last axis; several times faster than a sum over so short an axis."""
    return np.asarray(np.einsum("...c,...c->...", a_C, b_C))


def _finite(distance_HW: Vectors) -> Vectors:
    return np.where(np.isfinite(distance_HW), distance_HW, np.float32(0))


def _shade(rays_NC: Vectors, normal_NC: Vectors, solid: Solid) -> Vectors:
    """Diffuse light for rubber; for metal also a highlight and a reflected horizon."""
    base = np.array(COLOURS[solid.colour], np.float32) / 255
    diffuse_N = np.maximum(normal_NC @ LIGHT, 0)
    mirrored_NC = rays_NC - 2 * _dot(rays_NC, normal_NC)[:, None] * normal_NC
    glint_N = np.maximum(mirrored_NC @ LIGHT, 0)
    if solid.material == "rubber":
        matt_N, gloss_N = 0.38 + 0.62 * diffuse_N, 0.08 * glint_N**8
    else:
        sky_N = np.clip(0.5 + 1.2 * mirrored_NC[:, 2], 0, 1)
        matt_N, gloss_N = 0.22 + 0.33 * diffuse_N + 0.45 * sky_N, 0.85 * glint_N**40 + 0.08 * sky_N
    return np.asarray(matt_N[:, None] * base + gloss_N[:, None], np.float32)


def _describe(camera: Camera, solids: list[Solid]) -> dict[str, Any]:
    """CLEVR's JSON of a scene, without file name, index and split."""
    along, across = (vector.tolist() for vector in _ground_axes(camera))
    behind, right = [*along, 0.0], [*across, 0.0]
    directions = {
        "right": right, "left": [-v for v in right], "behind": behind, "front": [-v for v in behind],
        "above": [0.0, 0.0, 1.0], "below": [0.0, 0.0, -1.0],
    }  # fmt: skip
    objects = []
    for solid in solids:
        column, row, depth = camera.project(solid.centre[None])[0].tolist()
        objects.append(
            {
                "shape": solid.shape,
                "size": solid.size,
                "material": solid.material,
                "color": solid.colour,
                "rotation": solid.rotation,
                "3d_coords": solid.centre.tolist(),
                "pixel_coords": [round(column), round(row), depth],
            }
        )
    places_N3 = np.stack([solid.centre for solid in solids])
    relationships = {
        name: [np.flatnonzero((places_N3 - place) @ np.array(directions[name]) > 0.2).tolist() for place in places_N3]
        for name in ("left", "right", "front", "behind")
    }
    return {"objects": objects, "directions": directions, "relationships": relationships}
