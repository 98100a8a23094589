"""A scene with a face, traced through a pinhole: linear light, landmarks, and what lies in focus.

One ray a sample; the head is found by sphere tracing its relief (`face.relief`), ears, neck, shoulders and long
hair are ellipsoids. Rendered at `SUPERSAMPLING` times the picture's
size and averaged by the camera, which is the anti-aliasing.
"""

from __future__ import annotations

from dataclasses import dataclass
from typing import NamedTuple

import cv2
import numpy as np

from harness.data.demo.face import AXES, EXTENT, MAP_SIZE, Identity, landmarks, lookup, noise_map, relief, smooth_step
from harness.data.demo.paint import hair_colour, skin_colour

SUPERSAMPLING = 1.5
_STEPS = 11


@dataclass(frozen=True)
class Setting:
    """Pose (degrees), light and background of one photograph; `distance` in half-heads (about 0.12 m)."""

    yaw: float
    pitch: float
    roll: float
    shift: tuple[float, float]
    half_width: float
    distance: float
    light_azimuth: float
    light_elevation: float
    key: np.ndarray
    ambient: np.ndarray
    texture_seed: int


class Scene(NamedTuple):
    """What the lens sees: `face` and `background` [H, W, 3] float32 linear light, `alpha` [H, W, 1], at
    `SUPERSAMPLING` times the picture's size (the background is opaque behind the face); `landmarks` [68, 2] in
    picture fractions."""

    face: np.ndarray
    alpha: np.ndarray
    background: np.ndarray
    landmarks: np.ndarray


def draw_setting(rng: np.random.Generator, distance: float) -> Setting:
    """A random pose, light and background for a camera that stands `distance` half-heads away."""
    warm = rng.uniform(-0.18, 0.18)
    tint = np.array([1 + warm, 1.0, 1 - warm], np.float32)
    strength = rng.uniform(0.9, 1.9)
    return Setting(
        yaw=float(np.clip(rng.normal(0, 14), -34, 34)),
        pitch=float(np.clip(rng.normal(0, 7), -16, 16)),
        roll=float(np.clip(rng.normal(0, 5), -14, 14)),
        shift=(float(rng.normal(0, 0.03)), float(rng.normal(-0.06, 0.03))),
        half_width=rng.uniform(1.04, 1.28),
        distance=distance,
        light_azimuth=rng.uniform(-70, 70),
        light_elevation=rng.uniform(-5, 60),
        key=strength * tint,
        ambient=rng.uniform(0.10, 0.45) * (2 - tint),
        texture_seed=int(rng.integers(2**31)),
    )


def rotation(yaw: float, pitch: float, roll: float) -> np.ndarray:
    """Head-to-camera rotation `[3, 3]` float32 for angles in degrees."""
    y, p, r = np.radians([yaw, pitch, roll])
    about_y = np.array([[np.cos(y), 0, np.sin(y)], [0, 1, 0], [-np.sin(y), 0, np.cos(y)]])
    about_x = np.array([[1, 0, 0], [0, np.cos(p), -np.sin(p)], [0, np.sin(p), np.cos(p)]])
    about_z = np.array([[np.cos(r), -np.sin(r), 0], [np.sin(r), np.cos(r), 0], [0, 0, 1]])
    return (about_z @ about_x @ about_y).astype(np.float32)


def _sample(texture: np.ndarray, s: np.ndarray, t: np.ndarray) -> np.ndarray:
    """Values of a map over (t, s) at the given directions `[N]` (linear between its points)."""
    scale = np.float32((MAP_SIZE - 1) / (2 * EXTENT))
    return lookup(texture, (s + EXTENT) * scale, (t + EXTENT) * scale)


def _direction(q: np.ndarray) -> tuple[np.ndarray, np.ndarray, np.ndarray]:
    """Length and stereographic `(s, t)` of the points `q` `[3, N]`; directions behind the head are clipped."""
    length = np.sqrt(q[0] * q[0] + q[1] * q[1] + q[2] * q[2])
    below = np.maximum(length + q[2], 0.02 * length)
    return length, np.clip(q[0] / below, -3, 3), np.clip(q[1] / below, -3, 3)


def _ellipsoid(
    origin: np.ndarray, rays: np.ndarray, centre: tuple[float, float, float], radii: tuple[float, float, float]
) -> tuple[np.ndarray, np.ndarray]:
    """Distance along each ray `[N]` (inf where it misses) and the normals `[3, N]` there."""
    size = np.array(radii, np.float32)
    o = (origin - np.array(centre, np.float32)) / size
    d = rays / size[:, None]
    a, b, c = np.einsum("kn,kn->n", d, d), o @ d, float(o @ o) - 1
    disc = b * b - a * c
    hit = np.where(disc > 0, (-b - np.sqrt(np.maximum(disc, 0))) / a, np.float32(np.inf))
    normal = (o[:, None] + d * np.where(np.isfinite(hit), hit, 0)) / size[:, None]
    return hit, normal / np.maximum(np.linalg.norm(normal, axis=0), 1e-6)


def _trace_head(radius: np.ndarray, origin: np.ndarray, rays: np.ndarray) -> tuple[np.ndarray, np.ndarray]:
    """Distance `[N]` along rays (head frame) to the relief, inf where they miss, and the `(s, t)` [2, N] hit."""
    o, d = origin / AXES, rays / AXES[:, None]
    speed = np.sqrt(np.einsum("kn,kn->n", d, d))
    a, b, c = speed**2, o @ d, float(o @ o) - float(radius.max()) ** 2
    disc = b * b - a * c
    index = np.flatnonzero(disc > 0)
    d, step = d[:, index], 0.85 / speed[index]
    distance = (-b[index] - np.sqrt(disc[index])) / a[index]
    gap = np.zeros_like(distance)
    for _ in range(_STEPS):
        length, s, t = _direction(o[:, None] + d * distance)
        gap = length - _sample(radius, s, t)
        distance = distance + gap * step
    hit = np.full(rays.shape[1], np.inf, np.float32)
    hit[index] = np.where(gap < 0.012, distance, np.inf)
    where = np.zeros((2, rays.shape[1]), np.float32)
    where[0, index], where[1, index] = s, t
    return hit, where


def _shadow(radius: np.ndarray, light: np.ndarray) -> np.ndarray:
    """Where the relief hides the light (head frame, unit): 1 lit, 0 in shadow, `[MAP_SIZE, MAP_SIZE]`."""
    axis = np.linspace(-EXTENT, EXTENT, MAP_SIZE, dtype=np.float32)
    s, t = np.meshgrid(axis, axis)
    norm = 1 + s * s + t * t
    n = np.stack([2 * s / norm, 2 * t / norm, (2 - norm) / norm])
    up = np.tensordot(light, n, 1)
    tangent = light[:2, None, None] - up * n[:2] * (1 + n[2]) / np.maximum(1 + n[2], 1e-3)
    size = np.maximum(np.linalg.norm(tangent, axis=0), 1e-3)
    ds, dt = tangent / size
    slope = np.clip(up, 0.05, None) / np.maximum(size, 0.05)
    scale = np.float32((MAP_SIZE - 1) / (2 * EXTENT))
    lit = np.ones_like(radius)
    for step in (0.02, 0.04, 0.065, 0.1, 0.15, 0.22):
        other = cv2.remap(
            radius,
            (s + ds * step + EXTENT) * scale,
            (t + dt * step + EXTENT) * scale,
            cv2.INTER_LINEAR,
            borderMode=cv2.BORDER_REPLICATE,
        )
        path = step * 2 * 0.95
        rise = other - radius - path * slope - 0.5 * path**2
        lit = np.minimum(lit, smooth_step(rise, 0.030, -0.004))
    return cv2.GaussianBlur(lit.astype(np.float32), (0, 0), 1.2)


def _head_normals(maps: np.ndarray, s: np.ndarray, t: np.ndarray) -> np.ndarray:
    """Unit normals `[3, N]` (head frame) of the relief at `(s, t)`; `maps` holds r, dr/ds, dr/dt."""
    r, rs, rt = _sample(maps, s, t).T
    norm = 1 + s * s + t * t
    n = np.stack([2 * s / norm, 2 * t / norm, (2 - norm) / norm])
    along_s = np.stack([1 - n[0] * s, -n[1] * s, -s * (1 + n[2])])
    along_t = np.stack([-n[0] * t, 1 - n[1] * t, -t * (1 + n[2])])
    # dn/ds = (2 / norm) * along_s and the metric is (2 / norm)^2: the gradient on the unit sphere follows.
    gradient = (rs * along_s + rt * along_t) * (norm / 2)
    normal = (n - gradient / r) / AXES[:, None]
    return normal / np.linalg.norm(normal, axis=0)


def _lambert(
    normal: np.ndarray, light: np.ndarray, lit: np.ndarray | float, setting: Setting, wrap: np.ndarray
) -> np.ndarray:
    """Light that leaves a matt surface of albedo 1: `[3, N]`; `wrap` [3] lets red creep round skin's edges."""
    facing = light @ normal
    direct = np.clip((facing + wrap[:, None]) / (1 + wrap[:, None]), 0, None) ** (1 + wrap[:, None])
    sky = 0.72 - 0.28 * normal[1] + 0.15 * normal[2]
    return setting.key[:, None] * direct * lit + setting.ambient[:, None] * sky


def _muted(colour: np.ndarray) -> np.ndarray:
    """The colour, more than half way to its own grey: rooms and streets are rarely vivid."""
    return 0.42 * colour + 0.58 * colour.mean()


def background(setting: Setting, size: int) -> np.ndarray:
    """What stands behind the person: `[size, size, 3]` float32 linear light, sharp (the lens blurs it)."""
    rng = np.random.default_rng(setting.texture_seed)
    y, x = np.mgrid[0:size, 0:size].astype(np.float32) / size
    base, other = (_muted(rng.uniform(0.02, 0.75, 3)) * rng.uniform(0.2, 1.0) for _ in range(2))
    angle = rng.uniform(0, np.pi)
    blend = np.clip(0.5 + 0.9 * ((x - 0.5) * np.cos(angle) + (y - 0.5) * np.sin(angle)), 0, 1)[..., None]
    image = (base * (1 - blend) + other * blend).astype(np.float32)
    kind = rng.integers(4)
    if kind == 1:
        stripe = np.sin((x * np.cos(angle) + y * np.sin(angle)) * rng.uniform(20, 90) + rng.uniform(0, 6))
        image = image * (1 + rng.uniform(0.1, 0.4) * stripe[..., None])
    if kind >= 2:
        for _ in range(int(rng.integers(6, 22))):
            centre = rng.integers(0, size, 2)
            colour = tuple(float(c) for c in _muted(rng.uniform(0.0, 0.9, 3)) * rng.uniform(0.1, 1.0))
            if kind == 2:
                cv2.circle(image, tuple(int(v) for v in centre), int(size * rng.uniform(0.02, 0.14)), colour, -1)
            else:
                corner = centre + (size * rng.uniform(0.05, 0.4, 2)).astype(int)
                cv2.rectangle(image, tuple(map(int, centre)), tuple(map(int, corner)), colour, -1)
    rough = 0.10 * noise_map(rng, size, 8) + 0.06 * noise_map(rng, size, 40) + 0.05 * noise_map(rng, size, size // 2)
    level = (setting.key.mean() * 0.45 + setting.ambient) * np.clip(1 + rough[..., None], 0.1, None)
    return (image * level).astype(np.float32)


def render(face: Identity, setting: Setting, size: int) -> Scene:
    """The scene at `SUPERSAMPLING * size` samples a side, in linear light (1.0 is about a lit white sheet)."""
    side = round(SUPERSAMPLING * size)
    turn = rotation(setting.yaw, setting.pitch, setting.roll)
    axis = (np.arange(side, dtype=np.float32) + 0.5) * (2 / side) - 1
    u, v = np.meshgrid(axis - setting.shift[0] * 2, axis - setting.shift[1] * 2)
    rays = np.stack(
        [
            u.ravel() * setting.half_width,
            v.ravel() * setting.half_width,
            np.full(side * side, -setting.distance, np.float32),
        ]
    )
    rays /= np.linalg.norm(rays, axis=0)
    origin = np.array([0, 0, setting.distance], np.float32)
    elevation, azimuth = np.radians(setting.light_elevation), np.radians(setting.light_azimuth)
    light = np.array(
        [np.sin(azimuth) * np.cos(elevation), -np.sin(elevation), np.cos(azimuth) * np.cos(elevation)], np.float32
    )

    radius = relief(face)
    head_light, head_origin, head_rays = turn.T @ light, turn.T @ origin, turn.T @ rays
    depth, where = _trace_head(radius, head_origin, head_rays)
    colour = np.zeros((3, rays.shape[1]), np.float32)
    _paint_body(colour, depth, face, setting, origin, rays, (head_origin, head_rays, turn), light)

    hit = np.flatnonzero(np.isfinite(depth) & (colour[0] == 0))
    s, t = where[:, hit]
    spacing = 2 * EXTENT / (MAP_SIZE - 1)
    dt, ds = np.gradient(radius, spacing)
    normal = _head_normals(np.dstack([radius, ds, dt]).astype(np.float32), s, t)
    lit = _sample(_shadow(radius, head_light), s, t)
    half = head_light[:, None] - head_rays[:, hit]
    half /= np.linalg.norm(half, axis=0)
    gleam = np.clip(np.einsum("kn,kn->n", normal, half), 0, 1)
    skin, shine = skin_colour(face, s, t, normal, head_light)
    hair, cover = hair_colour(face, s, t)
    wrap = np.array([0.28, 0.14, 0.10], np.float32)
    shaded = skin * _lambert(normal, head_light, lit, setting, wrap)
    shaded += setting.key[:, None] * lit * (shine * (0.55 * gleam**14 + gleam**60))
    strands = hair * _lambert(normal, head_light, 0.35 + 0.65 * lit, setting, np.full(3, 0.2, np.float32))
    strands += setting.key[:, None] * (hair + 0.02) * (0.9 * gleam**10)
    colour[:, hit] = shaded * (1 - cover) + strands * cover

    def image(values: np.ndarray) -> np.ndarray:
        return np.ascontiguousarray(values.reshape(-1, side, side).transpose(1, 2, 0))

    alpha = image(np.isfinite(depth).astype(np.float32)[None])
    return Scene(image(colour), alpha, background(setting, side), _project(face, radius, turn, setting))


def _paint_body(
    colour: np.ndarray,
    depth: np.ndarray,
    face: Identity,
    setting: Setting,
    origin: np.ndarray,
    rays: np.ndarray,
    head: tuple[np.ndarray, np.ndarray, np.ndarray],
    light: np.ndarray,
) -> None:
    """Ears, neck, shoulders and long hair, painted in place wherever they stand before what is there."""
    head_origin, head_rays, turn = head
    ear = float(AXES[0]) * face.width * 1.0
    parts: list[tuple[str, tuple[float, float, float], tuple[float, float, float], bool]] = [
        ("cloth", (0, 2.45, -0.35), (1.55, 1.05, 0.75), False),
        ("neck", (0, 1.2, -0.22), (0.43, 0.95, 0.42), False),
    ]
    if face.long_hair:
        parts.append(("hair", (0, 0.40, -0.42), (0.84 + face.hair_volume, 1.30, 0.50), True))
    elif face.hair_low > -0.5:
        parts += [("ear", (k * ear, 0.10, -0.02), (0.09, 0.22, 0.15), True) for k in (-1.0, 1.0)]
    for name, centre, radii, follows_head in parts:
        o, d = (head_origin, head_rays) if follows_head else (origin, rays)
        hit, normal = _ellipsoid(o, d, centre, radii)
        front = np.flatnonzero(hit < depth)
        if not len(front):
            continue
        depth[front] = hit[front]
        point = o[:, None] + d[:, front] * hit[front]
        normal = normal[:, front]
        towards = turn.T @ light if follows_head else light
        albedo = np.repeat(np.clip(face.skin, 0.003, None)[:, None], len(front), axis=1)
        lit: np.ndarray | float = 1.0
        if name == "cloth":
            stripes = 1 + 0.4 * face.cloth_stripes * np.sign(np.sin(point[1] * 34))
            albedo = face.cloth[:, None] * np.clip(stripes, 0.1, None)
        elif name == "hair":
            albedo = face.hair[:, None] * np.clip(1 + 0.20 * _locks(face, point), 0.15, None)
        elif name == "neck":
            lit = 0.25 + 0.75 * smooth_step(point[1], 0.9, 1.5)
        shade = _lambert(normal, towards, lit, setting, np.full(3, 0.15, np.float32))
        colour[:, front] = np.maximum(albedo * shade, 1e-6)


def _locks(face: Identity, point: np.ndarray) -> np.ndarray:
    """Light and dark `[N]` of hair that falls down: uneven across (`point[0]`), slowly changing along (`point[1]`)."""
    grain = noise_map(np.random.default_rng([face.texture_seed, 8]), 256, 90)
    x = (point[0] + 0.05 * np.sin(point[1] * 2.1 + face.texture_seed % 7)) * 0.33 + 0.5
    y = point[1] * 0.05 + 0.3
    broad, fine = (lookup(grain, (k * x % 1.0) * 255, np.clip(y * k, 0, 1) * 255) for k in (0.6, 1.0))
    return 0.8 * broad + 0.8 * fine


def _project(face: Identity, radius: np.ndarray, turn: np.ndarray, setting: Setting) -> np.ndarray:
    """The 68 landmarks as fractions of the picture's width and height, `[68, 2]` float64."""
    s, t = landmarks(face).T.astype(np.float32)
    norm = 1 + s * s + t * t
    direction = np.stack([2 * s / norm, 2 * t / norm, (2 - norm) / norm])
    x, y, z = turn @ (direction * _sample(radius, s, t) * AXES[:, None])
    scale = setting.distance / (setting.distance - z) / setting.half_width
    return np.stack([0.5 + x * scale / 2 + setting.shift[0], 0.5 + y * scale / 2 + setting.shift[1]], axis=1)
