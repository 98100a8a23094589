"""Colours on a demo head: skin, eyes, brows, lips, beard, glasses and hair, as functions of direction `(s, t)`."""

from __future__ import annotations

import numpy as np

from harness.data.demo.face import Identity, bump, hair_level, lookup, mouth_line, noise_map, smooth_step

_GRAIN = 256


def _texture(face: Identity, name: int, cells: int, u: np.ndarray, v: np.ndarray) -> np.ndarray:
    """The person's own smooth noise at `(u, v)` (mirrored at -0.5 and 0.5), `[N]`, standard deviation about 1."""
    grain = noise_map(np.random.default_rng([face.texture_seed, name]), _GRAIN, cells)
    x, y = (np.abs(w + 0.5 - 2 * np.floor(w / 2 + 0.75)) for w in (u, v))
    return lookup(grain, x * (_GRAIN - 1), y * (_GRAIN - 1))


def _mix(below: np.ndarray, above: np.ndarray, cover: np.ndarray) -> np.ndarray:
    """`above` ([3] or [3, N]) over `below` [3, N] with opacity `cover` [N]."""
    return below + (above.reshape(3, -1) - below) * cover


def skin_colour(
    face: Identity, s: np.ndarray, t: np.ndarray, normal: np.ndarray, light: np.ndarray
) -> tuple[np.ndarray, np.ndarray]:
    """Albedo `[3, N]` of the face without hair, and how glossy it is `[N]`."""
    mottle = 0.045 * _texture(face, 1, 12, s * 0.35, t * 0.35) + 0.035 * _texture(face, 2, 110, s * 0.5, t * 0.5)
    albedo = face.skin[:, None] * (1 + mottle)
    blush = sum(bump(s, t, (sign * 0.27, 0.17), (0.10, 0.09)) for sign in (-1.0, 1.0))
    blush = 0.6 * blush + 0.5 * bump(s, t, (0, face.nose_length), (0.05, 0.05))
    albedo = albedo * (1 - np.array([0.0, 0.16, 0.14], np.float32)[:, None] * blush)
    if face.freckles:
        spots = smooth_step(_texture(face, 3, 90, s * 0.8, t * 0.8), 0.9, 1.7) * face.freckles
        albedo = albedo * (1 - 0.45 * spots * bump(s, t, (0, 0.1), (0.35, 0.14)))
    if face.beard:
        area = smooth_step(t, 0.13, 0.27) * smooth_step(np.abs(s) * 0.45 - t, -0.14, -0.24)
        around = 1 - 0.9 * bump(s, t, (0, face.mouth_height + 0.005), (0.10, 0.035))
        hairs = np.clip(0.75 + 0.35 * _texture(face, 4, 120, s * 0.9, t * 0.5), 0, 1)
        side = smooth_step(np.abs(s) + 1.2 * t, 0.33, 0.45)
        albedo = _mix(albedo, face.hair * 1.1, face.beard * area * around * hairs * side)
    shine = 0.045 + 0.05 * bump(s, t, (0, 0.05), (0.2, 0.2)) + 0.05 * bump(s, t, (0, -0.2), (0.2, 0.1))
    for wing in (-1.0, 1.0):
        nostril = bump(s, t, (wing * 0.026 * face.nose_width, face.nose_length + 0.036), (0.014, 0.008))
        albedo = _mix(albedo, face.skin * 0.10, np.clip(1.5 * nostril, 0, 0.9))
        groove = bump(s, t, (wing * 0.066 * face.nose_width, face.nose_length + 0.012), (0.008, 0.022))
        albedo = albedo * (1 - 0.30 * groove)
    albedo, shine = _lips(face, s, t, albedo, shine)
    for sign in (-1.0, 1.0):
        albedo, shine = _eye(face, sign, s, t, albedo, shine, light)
        albedo = _brow(face, sign, s, t, albedo)
    if face.glasses:
        albedo = _glasses(face, s, t, albedo)
    return albedo.astype(np.float32), shine.astype(np.float32)


def _lips(
    face: Identity, s: np.ndarray, t: np.ndarray, albedo: np.ndarray, shine: np.ndarray
) -> tuple[np.ndarray, np.ndarray]:
    x = s / face.mouth_width
    taper = np.sqrt(np.clip(1 - x * x, 0, 1))
    line = np.asarray(mouth_line(face, x))
    gap = 0.030 * face.mouth_open * taper**1.5
    bow = 1 - 0.22 * np.exp(-((x / 0.13) ** 2)) + 0.06 * np.exp(-(((np.abs(x) - 0.3) / 0.15) ** 2))
    top = line - 0.027 * face.lip_fullness * bow * taper
    bottom = line + gap + 0.034 * face.lip_fullness * taper
    soft = 0.006
    inside = smooth_step(t - top, -soft, soft) * smooth_step(bottom - t, -soft, soft) * smooth_step(taper, 0.05, 0.35)
    albedo = _mix(albedo, face.lips, 0.85 * inside)
    between = smooth_step(t - line, -0.004, 0.004) * smooth_step(line + gap - t, -0.004, 0.004)
    teeth = smooth_step(line + 0.75 * gap - t, -0.003, 0.003)
    cavity = np.array([0.05, 0.012, 0.012], np.float32)[:, None] * (1 - teeth)
    albedo = _mix(
        albedo,
        cavity + np.array([0.62, 0.58, 0.50], np.float32)[:, None] * teeth,
        between * float(face.mouth_open > 0.12),
    )
    seam = np.exp(-0.5 * ((t - line) / 0.005) ** 2) * smooth_step(1.06 - np.abs(x), 0, 0.1)
    albedo = albedo * (1 - 0.62 * seam * float(face.mouth_open <= 0.5))
    shadow = bump(s, t, (0, face.mouth_height + 0.065 + 0.02 * face.mouth_open), (0.06, 0.012))
    return albedo * (1 - 0.18 * shadow), shine + 0.05 * inside


def _eye(
    face: Identity, sign: float, s: np.ndarray, t: np.ndarray, albedo: np.ndarray, shine: np.ndarray, light: np.ndarray
) -> tuple[np.ndarray, np.ndarray]:
    x = (s - sign * face.eye_distance) / face.eye_size
    y = t / face.eye_size - sign * face.eye_tilt * x
    arc = np.clip(1 - x * x, 0, 1)
    lid, low = -face.eye_open * arc**0.8, 0.6 * face.eye_open * arc
    inside = smooth_step(y - lid, -0.03, 0.05) * smooth_step(low - y, -0.03, 0.05) * (np.abs(x) < 1)
    socket = bump(x, y, (0, -0.1), (1.1, 0.75))
    albedo = albedo * (1 - np.array([0.20, 0.24, 0.22], np.float32)[:, None] * socket)
    crease = np.exp(-0.5 * ((y - lid + 0.24) / 0.07) ** 2) * smooth_step(1.15 - np.abs(x), 0, 0.3)
    bag = np.exp(-0.5 * ((y - low - 0.22) / 0.10) ** 2) * smooth_step(1.0 - np.abs(x), 0, 0.4)
    albedo = albedo * (1 - 0.38 * crease - 0.13 * bag)
    gaze = 0.10 * float(np.sin(face.texture_seed))
    round_eye = np.sqrt((x - gaze) ** 2 + (y + 0.04) ** 2)
    # Lids shade the eyeball, and a white beside dark skin must not blaze when the meter opens up for the skin.
    bright = 0.62 + 0.38 * float(np.clip(face.skin.mean() / 0.4, 0, 1))
    white = (
        bright
        * np.array([0.56, 0.52, 0.49], np.float32)[:, None]
        * (1 - 0.30 * x * x - 0.30 * smooth_step(y - lid, 0.2, 0))
    )
    rim = smooth_step(round_eye, 0.28, 0.40)
    colour = face.iris[:, None] * (1.25 - 0.75 * rim)
    eye = _mix(white, colour, smooth_step(round_eye, 0.44, 0.38))
    eye = _mix(eye, np.full(3, 0.006, np.float32), smooth_step(round_eye, 0.20, 0.15))
    spot = np.sqrt((x - gaze - 0.16 * light[0]) ** 2 + (y + 0.06 - 0.16 * light[1]) ** 2)
    eye = _mix(eye, np.full(3, 1.2 * bright, np.float32), 0.8 * smooth_step(spot, 0.12, 0.05))
    albedo = _mix(albedo, eye, inside)
    lash = np.exp(-0.5 * ((y - lid + 0.02) / 0.060) ** 2) * smooth_step(1.08 - np.abs(x), 0, 0.12)
    under = np.exp(-0.5 * ((y - low) / 0.05) ** 2) * smooth_step(1.0 - np.abs(x), 0, 0.2)
    albedo = _mix(albedo, face.hair * 0.3, np.clip(0.92 * lash + 0.25 * under, 0, 0.95))
    return albedo, shine * (1 - 0.6 * inside)


def _brow(face: Identity, sign: float, s: np.ndarray, t: np.ndarray, albedo: np.ndarray) -> np.ndarray:
    x = sign * (s - sign * (face.eye_distance + 0.012)) / 0.115
    middle = -face.brow_height - face.brow_arch * (1 - x * x) + 0.012 * x * x + 0.010 * np.clip(x, 0, 1)
    thick = 0.0165 * face.brow_weight * np.clip(1.05 - 0.5 * np.clip(x, -1, 1), 0.3, 1.5)
    hairs = 0.75 + 0.3 * _texture(face, 5, 100, s * 1.8 + t * 1.2, t * 0.9)
    cover = np.exp(-0.5 * ((t - middle) / (0.75 * thick)) ** 2) * smooth_step(1.0 - np.abs(x), 0, 0.25)
    return _mix(albedo, face.hair * 0.75, np.clip(cover * hairs, 0, 0.92))


def _glasses(face: Identity, s: np.ndarray, t: np.ndarray, albedo: np.ndarray) -> np.ndarray:
    width, height = 0.125, 0.10
    frame = np.zeros_like(s)
    for sign in (-1.0, 1.0):
        x, y = (s - sign * (face.eye_distance + 0.01)) / width, (t - 0.012) / height
        shape = (np.abs(x) ** 3.2 + np.abs(y) ** 3.2) ** (1 / 3.2)
        frame = np.maximum(frame, smooth_step(np.abs(shape - 1), 0.10, 0.05))
        arm = smooth_step(np.abs(t + 0.02), 0.013, 0.008) * (sign * s > face.eye_distance + width)
        frame = np.maximum(frame, arm)
    bridge = smooth_step(np.abs(t + 0.012), 0.012, 0.007) * (np.abs(s) < face.eye_distance - width + 0.02)
    return _mix(albedo, np.array([0.02, 0.018, 0.017], np.float32), 0.93 * np.maximum(frame, bridge))


def hair_colour(face: Identity, s: np.ndarray, t: np.ndarray) -> tuple[np.ndarray, np.ndarray]:
    """Albedo `[3, N]` of the hair and how much of it covers the skin `[N]`."""
    angle = np.arctan2(t + 0.62, s - face.hair_part) / (2 * np.pi)
    reach = np.hypot(t + 0.62, s - face.hair_part)
    strands = _texture(face, 6, 128, angle * 1.6, reach * 0.12) + 0.6 * _texture(face, 7, 60, angle, reach * 0.3)
    # The tips are ragged on the forehead and nearly smooth beside the face, where strands run along the edge.
    tips = 0.010 + 0.020 * smooth_step(t, 0.0, -0.25)
    cover = smooth_step(hair_level(face, s, t) + tips * strands, -0.01, 0.075)
    return np.clip(face.hair[:, None] * (1 + (0.18 + 4 * tips) * strands), 0.002, None).astype(np.float32), cover
