"""Who is in a demo photograph: the parameters of a face, its relief, and its colours.

A face is a star-shaped surface round the middle of the head: radius `r(direction)` in units of half a head's
height, on a sphere stretched by `AXES`. Directions are written in stereographic coordinates `(s, t)`,
`s = n.x / (1 + n.z)`, `t = n.y / (1 + n.z)`: x to the image's right, y down, z out of the face. The map keeps
angles, so features keep their shapes, and it is smooth over the whole front of the head. The eye line is
`t = 0`, the mouth lies near 0.30, the chin near 0.47, the hairline near -0.34, the ears near |s| = 1.
"""

from __future__ import annotations

import hashlib
from dataclasses import dataclass

import cv2
import numpy as np

AXES = np.array([0.74, 1.0, 0.88], np.float32)
EXTENT = 1.4
MAP_SIZE = 192

_SKIN = np.array(
    [[0.80, 0.54, 0.43], [0.68, 0.43, 0.32], [0.50, 0.29, 0.19], [0.29, 0.155, 0.095], [0.13, 0.068, 0.045]]
)
_HAIR = np.array(
    [
        [0.012, 0.010, 0.009],
        [0.035, 0.020, 0.012],
        [0.10, 0.052, 0.026],
        [0.42, 0.28, 0.13],
        [0.22, 0.075, 0.03],
        [0.40, 0.39, 0.37],
    ]
)
_IRIS = np.array([[0.06, 0.03, 0.015], [0.12, 0.065, 0.025], [0.10, 0.14, 0.07], [0.10, 0.19, 0.30]])
_LATITUDES = np.array([-90, -60, -30, 0, 20, 33, 42, 49, 57, 70, 90], float)
_FRONT = np.array([1.00, 1.00, 1.00, 0.985, 1.05, 1.12, 1.20, 1.24, 1.12, 0.84, 0.70])
_SIDE = np.array([1.00, 1.00, 1.00, 0.99, 0.99, 0.96, 0.90, 0.83, 0.75, 0.66, 0.60])


def stream(seed: int, *names: object) -> np.random.Generator:
    """A random stream of its own for `(seed, *names)`: sha256 of the words, so no draw moves another."""
    text = ":".join(str(part) for part in (seed, *names))
    return np.random.default_rng(int.from_bytes(hashlib.sha256(text.encode()).digest()[:16], "big"))


@dataclass(frozen=True)
class Identity:
    """Everything about a person that pose, light and camera do not change (lengths in stereographic units)."""

    skin: np.ndarray
    hair: np.ndarray
    iris: np.ndarray
    lips: np.ndarray
    cloth: np.ndarray
    width: float
    jaw: float
    chin: float
    eye_distance: float
    eye_size: float
    eye_open: float
    eye_tilt: float
    brow_height: float
    brow_weight: float
    brow_arch: float
    nose_length: float
    nose_width: float
    nose_height: float
    mouth_width: float
    mouth_height: float
    lip_fullness: float
    smile: float
    mouth_open: float
    hairline: float
    hair_side: float
    hair_low: float
    hair_volume: float
    hair_part: float
    long_hair: float
    beard: float
    freckles: float
    glasses: float
    cloth_stripes: float
    texture_seed: int


def draw_identity(rng: np.random.Generator) -> Identity:
    """A random person; the ranges were set by eye on contact sheets."""
    tone = rng.uniform(0, len(_SKIN) - 1)
    low = min(int(tone), len(_SKIN) - 2)
    skin = _SKIN[low] + (_SKIN[low + 1] - _SKIN[low]) * (tone - low)
    skin = skin * rng.uniform(0.92, 1.08) * (1 + rng.normal(0, 0.025, 3))
    dark = tone > 2.2
    chances = [0.62, 0.28, 0.06, 0.0, 0.0, 0.04] if dark else [0.2, 0.25, 0.25, 0.14, 0.08, 0.08]
    hair = _HAIR[rng.choice(len(_HAIR), p=chances)] * rng.uniform(0.75, 1.3)
    iris = _IRIS[rng.choice(len(_IRIS), p=[0.8, 0.2, 0, 0] if dark else [0.3, 0.3, 0.15, 0.25])]
    long_hair = float(rng.random() < 0.45)
    bald = rng.random() < 0.06 and not long_hair
    male = not long_hair and rng.random() < 0.75
    made_up = long_hair and rng.random() < 0.5
    redness = np.array([1.05, 0.48, 0.50]) if made_up else np.array([0.90, 0.62, 0.62])
    return Identity(
        skin=skin.astype(np.float32),
        hair=hair.astype(np.float32),
        iris=iris.astype(np.float32),
        lips=(skin * redness * rng.uniform(0.85, 1.05)).astype(np.float32),
        cloth=(rng.uniform(0.02, 0.7, 3) * rng.uniform(0.3, 1.0)).astype(np.float32),
        width=rng.uniform(0.93, 1.07),
        jaw=rng.uniform(-0.06, 0.07) + 0.03 * male,
        chin=rng.normal(0, 0.025),
        eye_distance=rng.uniform(0.172, 0.202),
        eye_size=rng.uniform(0.078, 0.096),
        eye_open=rng.uniform(0.30, 0.52),
        eye_tilt=rng.uniform(-0.10, 0.10),
        brow_height=rng.uniform(0.085, 0.118),
        brow_weight=rng.uniform(0.5, 1.0) + 0.35 * male,
        brow_arch=rng.uniform(0.0, 0.035),
        nose_length=rng.uniform(0.135, 0.165),
        nose_width=rng.uniform(0.8, 1.3),
        nose_height=rng.uniform(0.10, 0.17),
        mouth_width=rng.uniform(0.115, 0.155),
        mouth_height=rng.uniform(0.285, 0.31),
        lip_fullness=rng.uniform(0.6, 1.35),
        smile=rng.uniform(-0.25, 0.9),
        mouth_open=max(0.0, rng.normal(-0.15, 0.5)),
        hairline=2.0 if bald else rng.uniform(0.40, 0.52),
        hair_side=rng.uniform(0.53, 0.64),
        hair_low=0.62 if long_hair else rng.uniform(-0.08, 0.14),
        hair_volume=rng.uniform(0.07, 0.15) if long_hair else rng.uniform(0.03, 0.13),
        hair_part=rng.uniform(-0.25, 0.25),
        long_hair=long_hair,
        beard=rng.uniform(0.15, 0.85) if male and rng.random() < 0.45 else 0.0,
        freckles=rng.uniform(0, 0.5) if tone < 1.5 else 0.0,
        glasses=float(rng.random() < 0.12),
        cloth_stripes=float(rng.random() < 0.3),
        texture_seed=int(rng.integers(2**31)),
    )


def smooth_step(x: np.ndarray, low: float, high: float) -> np.ndarray:
    """0 at `low`, 1 at `high`, smooth between (either may be the larger)."""
    u = np.clip((x - low) / (high - low), 0, 1)
    return u * u * (3 - 2 * u)


def bump(s: np.ndarray, t: np.ndarray, at: tuple[float, float], spread: tuple[float, float]) -> np.ndarray:
    """A Gaussian hill of height 1 at `at` with the two standard deviations `spread`."""
    return np.exp(-0.5 * (((s - at[0]) / spread[0]) ** 2 + ((t - at[1]) / spread[1]) ** 2))


def noise_map(rng: np.random.Generator, size: int, cells: int) -> np.ndarray:
    """Smooth noise `[size, size]` float32, mean 0, standard deviation about 1, `cells` bumps a side."""
    coarse = rng.normal(size=(cells, cells)).astype(np.float32)
    return cv2.resize(coarse, (size, size), interpolation=cv2.INTER_CUBIC)


def lookup(texture: np.ndarray, x: np.ndarray, y: np.ndarray) -> np.ndarray:
    """Values of `texture` at the pixel positions `x, y` `[N]`, linear between pixels: `[N]` or `[N, C]`."""
    count, row = len(x), 512
    padded = max(1, -(-count // row)) * row
    grid = np.zeros((2, padded), np.float32)
    grid[0, :count], grid[1, :count] = x, y
    # OpenCV refuses maps with 32,767 rows or more, so the points are laid out in rows of 512.
    found = cv2.remap(
        texture, grid[0].reshape(-1, row), grid[1].reshape(-1, row), cv2.INTER_LINEAR, borderMode=cv2.BORDER_REPLICATE
    )
    return found.reshape(padded, *found.shape[2:])[:count]


def hair_level(face: Identity, s: np.ndarray, t: np.ndarray) -> np.ndarray:
    """How far inside the hair a direction lies: below 0 skin, above 0 hair (about 0.1 a hair's breadth in)."""
    opening = np.sqrt(
        ((s - face.hair_part * np.clip(-t, 0, 1) * 0.5) / face.hair_side) ** 2
        + ((t - 0.14) / (face.hairline + 0.02)) ** 2
    )
    below = (face.hair_low - t) * 3.0 + np.clip(np.abs(s) - 0.7, 0, 1) * 1.5
    # Long hair falls behind the jaw instead of closing under the chin like a hood.
    behind_jaw = (np.abs(s) - 0.50) * 3.0 + (0.26 - t) * 4.0
    return np.minimum(np.minimum(opening - 1.0, below), behind_jaw)


def relief(face: Identity) -> np.ndarray:
    """Radius of the head over `(t, s)` in [-EXTENT, EXTENT]^2: `[MAP_SIZE, MAP_SIZE]` float32."""
    axis = np.linspace(-EXTENT, EXTENT, MAP_SIZE, dtype=np.float32)
    s, t = np.meshgrid(axis, axis)
    norm = 1 + s * s + t * t
    latitude = np.degrees(np.arcsin(np.clip(2 * t / norm, -1, 1)))
    sideways = smooth_step(np.abs(2 * s / norm), 0.10, 0.95)
    front = np.interp(latitude, _LATITUDES, _FRONT) + face.chin * bump(s, t, (0, 0.45), (0.2, 0.1))
    side = np.interp(latitude, _LATITUDES, _SIDE) + face.jaw * smooth_step(t, 0.0, 0.3)
    r = cv2.GaussianBlur((front * (1 - sideways) + side * sideways).astype(np.float32), (0, 0), 4)
    r += (face.width - 1) * sideways * 0.9
    for sign in (-1.0, 1.0):
        r -= 0.055 * bump(s, t, (sign * face.eye_distance * 0.92, -0.005), (0.075, 0.05))
        r += 0.030 * bump(s, t, (sign * face.eye_distance, 0.0), (0.048, 0.034))
        r += 0.018 * bump(s, t, (sign * 0.15, -face.brow_height), (0.09, 0.028))
        r += 0.022 * bump(s, t, (sign * 0.27, 0.16), (0.09, 0.08))
        r += 0.045 * bump(s, t, (sign * 0.047 * face.nose_width, face.nose_length + 0.012), (0.022, 0.022))
        r -= 0.012 * bump(s, t, (sign * (face.mouth_width + 0.02), face.mouth_height - 0.03), (0.03, 0.07))
    along = np.clip((t + 0.06) / (face.nose_length + 0.06), 0, 1)
    spread = (0.022 + 0.022 * along**2) * face.nose_width
    ridge = np.exp(-0.5 * (s / spread) ** 2) * smooth_step(t, -0.07, -0.02)
    ridge *= smooth_step(t, face.nose_length + 0.055, face.nose_length + 0.005)
    r += face.nose_height * (0.12 + 0.88 * along**1.3) * ridge
    for offset, height in ((-0.018, 0.022), (0.026, 0.026)):
        r += height * face.lip_fullness * bump(s, t, (0, face.mouth_height + offset), (0.075, 0.013))
    r -= 0.020 * bump(s, t, (0, face.mouth_height), (face.mouth_width * 0.7, 0.008))
    r -= 0.018 * bump(s, t, (0, face.mouth_height + 0.072), (0.07, 0.02))
    r += 0.030 * bump(s, t, (0, 0.425), (0.075, 0.04))
    hair = smooth_step(hair_level(face, s, t), -0.02, 0.16)
    lumps = noise_map(np.random.default_rng(face.texture_seed), MAP_SIZE, 16)
    return (r + hair * face.hair_volume * (1 + 0.07 * lumps)).astype(np.float32)


def landmarks(face: Identity) -> np.ndarray:
    """The 68 usual face points as `(s, t)` directions, `[68, 2]` float64 (points 0-16 jaw … 60-67 inner lips)."""
    points: list[tuple[float, float]] = []
    angles = np.linspace(-1, 1, 17)
    points += [(0.80 * float(np.sin(a * np.pi / 2)), 0.475 - 0.46 * float(abs(a)) ** 1.9) for a in angles]
    brow = np.linspace(-0.10, 0.10, 5)
    for sign in (-1.0, 1.0):
        arch = [-face.brow_height - face.brow_arch * (1 - (float(b) / 0.10) ** 2) for b in brow]
        points += [(sign * (face.eye_distance + 0.01) + float(b), y) for b, y in zip(brow, arch, strict=True)]
    points += [(0.0, float(y)) for y in np.linspace(-0.01, face.nose_length, 4)]
    wing = 0.055 * face.nose_width
    points += [(wing * k, face.nose_length + 0.03 + 0.008 * (1 - abs(k))) for k in (-1, -0.5, 0, 0.5, 1)]
    size, up, down = face.eye_size, face.eye_open, face.eye_open * 0.6
    ring = ((-1, 0), (-0.4, -up * 0.84), (0.4, -up * 0.84), (1, 0), (0.4, down * 0.84), (-0.4, down * 0.84))
    for sign in (-1.0, 1.0):
        points += [(sign * face.eye_distance + size * x, size * (y + sign * face.eye_tilt * x)) for x, y in ring]
    upper, gap = -0.028 * face.lip_fullness, 0.03 * face.mouth_open
    lower = 0.034 * face.lip_fullness + gap
    there, back = np.linspace(-1, 1, 7), np.linspace(1, -1, 7)[1:-1]
    inner, inner_back = np.linspace(-0.86, 0.86, 5), np.linspace(0.86, -0.86, 5)[1:-1]
    for xs, height in ((there, upper), (back, lower), (inner, -0.002), (inner_back, gap + 0.002)):
        points += [(face.mouth_width * float(x), float(mouth_line(face, x)) + height * (1 - float(x) ** 2)) for x in xs]
    return np.array(points)


def mouth_line(face: Identity, x: float | np.ndarray) -> float | np.ndarray:
    """Height `t` of the line between the lips at `x` in [-1, 1] of the mouth's half width."""
    return face.mouth_height - 0.022 * face.smile * x**2
