"""A simulated camera: what it is set to (true EXIF), and what lens, sensor and processing make of a scene.

Four settings leave physical traces in the picture, as they do in real photographs: ISO (shot and read noise of
the mosaic, before demosaicing), aperture (depth of field, sharpness of the lens, dark corners wide open), focal
length (with it the distance, hence the face's perspective, depth of field, dark corners of short lenses) and exposure
time (shake). Maker, metering mode, exposure mode, exposure programme and white-balance mode leave none.
"""

from __future__ import annotations

from dataclasses import dataclass

import cv2
import numpy as np

from harness.data.demo.render import Scene

MAKERS = ("Canon", "NIKON CORPORATION", "SONY", "FUJIFILM", "OLYMPUS CORPORATION", "Panasonic")
_APERTURES = (1.8, 2.2, 2.8, 3.5, 4.0, 4.5, 5.6, 6.3, 8.0, 11.0)
_FOCAL_LENGTHS = (18.0, 24.0, 28.0, 35.0, 50.0, 70.0, 85.0, 105.0, 135.0)
_SPEEDS = (100, 160, 200, 320, 400, 640, 800, 1250, 1600, 3200, 6400)
_TIMES = tuple(
    1 / n
    for n in (2000, 1600, 1250, 1000, 800, 640, 500, 400, 320, 250, 200, 160, 125, 100, 80, 60, 50, 40, 30, 25, 20, 15)
)
_WHITE_POINT = np.array([0.52, 1.0, 0.66], np.float32)
_FULL_WELL = 42000.0
_READ_NOISE = 12.0


@dataclass(frozen=True)
class Settings:
    """What the camera was set to. Units: mm, f-number, seconds, ISO; `bias` in stops from the metered exposure."""

    iso: int
    aperture: float
    exposure_time: float
    focal_length: float
    bias: float
    make: str
    metering_mode: str
    exposure_mode: str
    exposure_program: str
    white_balance: str

    def exif(self) -> dict[str, str]:
        """The nine tags as text, names and form of the older released files (`"F2.8"`, `"1/60 sec"`, `"18.0 mm"`).

        `bias` is not among them: it is what metering got wrong. Source: METHOD "File formats of the released data".
        """
        return {
            "ISO Speed Ratings": str(self.iso),
            "Aperture Value": f"F{self.aperture:g}",
            "Exposure Time": f"1/{round(1 / self.exposure_time)} sec",
            "Focal Length": f"{self.focal_length:.1f} mm",
            "Make": self.make,
            "Metering Mode": self.metering_mode,
            "Exposure Mode": self.exposure_mode,
            "White Balance Mode": self.white_balance,
            "Exposure Program": self.exposure_program,
        }


def forget_tags(exif: dict[str, str], rng: np.random.Generator, share: float = 0.05) -> dict[str, str]:
    """What is left of the tags: `share` of the photographs lack one of them (one in four of these, two)."""
    if rng.random() >= share:
        return dict(exif)
    lost = rng.choice(sorted(exif), size=2 if rng.random() < 0.25 else 1, replace=False)
    return {name: value for name, value in exif.items() if name not in lost}


def draw_settings(rng: np.random.Generator) -> Settings:
    """A random camera on a random day: lens and sensitivity first, then the time that the light asks for."""
    light_value = rng.uniform(4.5, 14.0)
    aperture = float(rng.choice(_APERTURES))
    ideal = np.log2(aperture**2) - light_value
    dim = float(np.clip(ideal + 7, 0, 6))
    iso = int(_SPEEDS[int(np.argmin(np.abs(np.log2(np.array(_SPEEDS) / 100) - dim - rng.normal(0, 0.8))))])
    wanted = ideal - np.log2(iso / 100)
    stops = np.log2(np.array(_TIMES))
    choice = int(np.argmin(np.abs(stops - wanted)))
    return Settings(
        iso=iso,
        aperture=aperture,
        exposure_time=float(_TIMES[choice]),
        focal_length=float(rng.choice(_FOCAL_LENGTHS)),
        bias=float(np.clip(stops[choice] - wanted, -1.0, 1.0) + rng.normal(0, 0.22)),
        make=str(rng.choice(MAKERS)),
        metering_mode=str(rng.choice(["Multi-segment", "Center-weighted", "Spot"], p=[0.6, 0.25, 0.15])),
        exposure_mode=str(rng.choice(["Auto", "Manual", "Auto-bracketing"], p=[0.75, 0.22, 0.03])),
        exposure_program=str(
            rng.choice(
                ["Normal Program", "Aperture Priority", "Shutter Priority", "Manual Control"], p=[0.35, 0.35, 0.1, 0.2]
            )
        ),
        white_balance=str(rng.choice(["Auto", "Manual"], p=[0.8, 0.2])),
    )


def distance(settings: Settings, rng: np.random.Generator) -> float:
    """How far the camera stands, in half-heads (0.12 m): about 0.95 m at 50 mm, in proportion to the lens."""
    return float(np.clip(settings.focal_length / 50.0 * 8.0 * np.exp(rng.normal(0, 0.12)), 3.2, 26.0))


def _disc(radius: float) -> np.ndarray:
    """A round aperture's kernel of that radius in pixels, with a soft edge; sums to 1."""
    reach = int(np.ceil(radius))
    y, x = np.mgrid[-reach : reach + 1, -reach : reach + 1]
    kernel = np.clip(radius + 0.5 - np.hypot(x, y), 0, 1).astype(np.float32)
    return kernel / kernel.sum()


def _shake(length: float, angle: float) -> np.ndarray:
    """The kernel of a straight hand movement of that length in pixels; sums to 1."""
    reach = int(np.ceil(length / 2)) + 1
    y, x = np.mgrid[-reach : reach + 1, -reach : reach + 1]
    along, across = x * np.cos(angle) + y * np.sin(angle), -x * np.sin(angle) + y * np.cos(angle)
    kernel = np.clip(length / 2 + 0.5 - np.abs(along), 0, 1) * np.clip(1 - np.abs(across), 0, 1)
    return (kernel / kernel.sum()).astype(np.float32)


def _falloff(settings: Settings, size: int) -> np.ndarray:
    """How much light the lens lets through to each place, `[size, size, 1]` float32, 1 in the middle.

    The cosine's fourth power for a picture of 17 mm across its diagonal, and the barrel's shadow, which grows with
    the pupil's area and is gone by about F5.6.
    """
    axis = (np.arange(size, dtype=np.float32) + 0.5) * (2 / size) - 1
    square = (axis[:, None] ** 2 + axis[None, :] ** 2) / 2
    slope = (8.5 / settings.focal_length) ** 2
    barrel = 0.45 * (1.8 / settings.aperture) ** 2
    return ((1 - barrel * square**1.5) / (1 + slope * square) ** 2)[..., None].astype(np.float32)


def _optics(scene: Scene, settings: Settings, size: int, rng: np.random.Generator) -> np.ndarray:
    """The image on the sensor, `[size, size, 3]` float32 linear light."""
    side = scene.face.shape[0]
    # Blur of a far background, in picture widths: the pupil's diameter against the field's width, 0.3 m here.
    pupil = settings.focal_length / settings.aperture / 300.0
    defocus = float(np.clip(0.55 * pupil * rng.uniform(0.4, 1.0) * size, 0.3, 7.0))
    behind = cv2.resize(scene.background, (size, size), interpolation=cv2.INTER_AREA)
    behind = cv2.filter2D(behind, -1, _disc(defocus), borderType=cv2.BORDER_REFLECT)
    behind = cv2.resize(behind, (side, side), interpolation=cv2.INTER_LINEAR)
    image = scene.face * scene.alpha + behind * (1 - scene.alpha)
    wide_open, diffraction = 0.55 / settings.aperture, 0.045 * settings.aperture
    sigma = (0.35 + np.hypot(wide_open, diffraction)) * side / size
    image = cv2.GaussianBlur(image, (0, 0), sigma)
    length = float(np.clip(settings.exposure_time * settings.focal_length * rng.exponential(1.3), 0, 6))
    if length > 0.3:
        kernel = _shake(length * side / size, rng.uniform(0, np.pi))
        image = cv2.filter2D(image, -1, kernel, borderType=cv2.BORDER_REFLECT)
    return cv2.resize(image, (size, size), interpolation=cv2.INTER_AREA) * _falloff(settings, size)


def _sensor(light: np.ndarray, settings: Settings, rng: np.random.Generator) -> np.ndarray:
    """Raw values of an RGGB mosaic, `[size, size]` uint16 (16 bit, full scale 65535), with its noise."""
    gain = settings.iso / 100.0
    channel = np.empty(light.shape[:2], np.float32)
    for row, column, colour in ((0, 0, 0), (0, 1, 1), (1, 0, 1), (1, 1, 2)):
        channel[row::2, column::2] = light[row::2, column::2, colour] * _WHITE_POINT[colour]
    electrons = np.clip(channel, 0, None) * (_FULL_WELL / gain)
    noise = rng.standard_normal(electrons.shape, np.float32) * np.sqrt(electrons + _READ_NOISE**2 / np.sqrt(gain))
    raw = (electrons + noise) * gain / _FULL_WELL
    steps = np.round(np.clip(raw + 0.01, 0, 1) * 4095)
    return (steps * 16).astype(np.uint16)


def _develop(raw: np.ndarray) -> np.ndarray:
    """Demosaicing, white balance, tone curve, a little sharpening: `[size, size, 3]` uint8 RGB."""
    # OpenCV names the pattern by its second row and column: an RGGB sensor is its "BG".
    linear = cv2.cvtColor(raw, cv2.COLOR_BayerBG2RGB_EA).astype(np.float32) / (4095 * 16) - 0.01
    linear = np.clip(linear / _WHITE_POINT, 0, None)
    linear = np.clip(
        linear @ np.array([[1.18, -0.05, 0.0], [-0.16, 1.16, -0.16], [-0.02, -0.11, 1.16]], np.float32), 0, 1
    )
    tone = np.where(linear <= 0.0031308, 12.92 * linear, 1.055 * np.maximum(linear, 1e-8) ** (1 / 2.4) - 0.055)
    tone = tone + 0.10 * tone * (1 - tone) * (2 * tone - 1)
    sharp = tone + 0.35 * (tone - cv2.GaussianBlur(tone, (0, 0), 1.0))
    return np.round(np.clip(sharp, 0, 1) * 255).astype(np.uint8)


def photograph(scene: Scene, settings: Settings, size: int, rng: np.random.Generator) -> np.ndarray:
    """The developed picture of a scene: `[size, size, 3]` uint8 RGB; `size` must be even (a mosaic's)."""
    light = _optics(scene, settings, size, rng)
    middle = light[size // 4 : -size // 4, size // 4 : -size // 4].mean()
    exposure = 0.20 / max(float(middle), 1e-3) * 2.0**settings.bias
    # Metering evens out scenes but does not turn dark skin light: it goes part of the way.
    exposure = float(np.clip(exposure, 0.3, 3.0)) ** 0.6
    return _develop(_sensor(light * exposure, settings, rng))
