"""A picture and its labels, painted together.

Everything is drawn at `SUPERSAMPLING` times the final size. The picture is then averaged down, which
antialiases it; the identities are sampled at one point per pixel, so every label is one that was drawn
and no two are ever mixed.
"""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass

import cv2
import numpy as np
from jaxtyping import Bool, Float, UInt8, UInt16

SUPERSAMPLING = 2
_FRACTION_BITS = 4  # sub-pixel precision of cv2.fillPoly
_NOISE_SIDE = 256

Pair = tuple[float, float]
"""A place, the two radii of an ellipse, or a range."""
Colour = tuple[float, float, float]
"""sRGB in [0, 255]."""
Surface = Float[np.ndarray, "s s 3"]
"""A picture of the canvas's supersampled size, sRGB in [0, 255], to cut shapes out of."""
Paint = Colour | Surface
Points = Float[np.ndarray, "N 2"] | Sequence[Sequence[float]]
"""(column, row) in final pixels; (0, 0) is the upper left corner of the upper left pixel."""
Picture = UInt8[np.ndarray, "H W 3"]
Mask = Bool[np.ndarray, "H W"]
Identities = UInt16[np.ndarray, "H W"]
"""Instance ids as `gtFine_instanceIds` files hold them: label id, or label id * 1000 + n if countable."""
_Window = tuple[slice, slice]


@dataclass(frozen=True)
class Sprite:
    """A finished object, cropped to its shape, in supersampled pixels."""

    picture: Picture
    mask: Mask

    def mirrored(self) -> Sprite:
        """Return it with left and right swapped."""
        return Sprite(self.picture[:, ::-1], self.mask[:, ::-1])


class Canvas:
    """Picture, identities, and the haze between the camera and what is painted.

    Whatever paints takes the `identity` that it writes (None paints the picture only, as for a decal), and
    the `depth` in metres from the camera, for the haze.
    """

    def __init__(self, height: int, width: int, rng: np.random.Generator) -> None:
        """Start with a black picture and identity 0; `rng` draws the grain of painted surfaces."""
        shape = (height * SUPERSAMPLING, width * SUPERSAMPLING)
        self.height, self.width = height, width
        self.pixels: UInt8[np.ndarray, "sH sW 3"] = np.zeros((*shape, 3), dtype=np.uint8)
        self.identities: UInt16[np.ndarray, "sH sW"] = np.zeros(shape, dtype=np.uint16)
        self.haze: Colour = (200.0, 205.0, 210.0)
        self.haze_per_metre = 0.0
        self._grain = _grain_field(rng)
        self._instances: dict[int, int] = {}

    def new_instance(self, label: int) -> int:
        """Return the next identity of a countable class: label id * 1000 + n."""
        number = self._instances.get(label, 0)
        self._instances[label] = number + 1
        return label * 1000 + number

    def fill(
        self, points: Points, paint: Paint, identity: int | None = None, *, depth: float = 0, grain: float = 0
    ) -> None:
        """Fill a polygon; `grain` is the relative amplitude of its surface's noise."""
        corners, window = self._locate(points)
        if window is None:
            return
        colour: Float[np.ndarray, "..."] = np.asarray(paint, np.float32)
        colour = colour[window] if colour.ndim == 3 else colour
        if grain > 0:
            rows, columns = (np.arange(part.start, part.stop) % _NOISE_SIDE for part in window)
            colour = colour * (1 + grain * self._grain[np.ix_(rows, columns)][..., None])
        self._paint(window, _polygon(corners, window), colour, identity, depth)

    def stroke(
        self, points: Points, thickness: float, colour: Colour, identity: int, *, depth: float = 0
    ) -> None:
        """Draw a line through `points`, `thickness` final pixels wide (at least half a pixel)."""
        thick = max(1, round(thickness * SUPERSAMPLING))
        corners, window = self._locate(points, margin=thick)
        if window is None:
            return
        mask = np.zeros(_shape(window), dtype=np.uint8)
        cv2.polylines(mask, [_fixed(corners, window)], False, 1, thick, cv2.LINE_8, _FRACTION_BITS)
        self._paint(window, mask.astype(bool), np.asarray(colour, np.float32), identity, depth)

    def warp(
        self, texture: Picture, corners: Points, identity: int, *, depth: float = 0, shade: float = 1
    ) -> None:
        """Stretch a texture over a quadrilateral, in perspective.

        `corners` are the upper left, upper right, lower right and lower left of the texture; `shade` is a
        factor on the colours, such as of a face turned away from the light.
        """
        quad, window = self._locate(corners)
        if window is None:
            return
        texture = _reduce(texture, quad)
        height, width = texture.shape[:2]
        source = np.array(rectangle(0, 0, width, height), dtype=np.float32)
        target = (quad - (window[1].start, window[0].start)).astype(np.float32)
        matrix = cv2.getPerspectiveTransform(source, target)
        warped = cv2.warpPerspective(texture, matrix, _shape(window)[::-1], borderMode=cv2.BORDER_REPLICATE)
        self._paint(window, _polygon(quad, window), warped.astype(np.float32) * shade, identity, depth)

    def stamp(
        self, sprite: Sprite, top_left: tuple[int, int], identity: int, depth: float = 0, opacity: float = 1
    ) -> None:
        """Copy an object; what falls outside is cropped, and `opacity` below 1 lets the ground through.

        `top_left` is (row, column) of its first pixel, in supersampled pixels, and may be negative.
        """
        (top, left), mask = top_left, sprite.mask
        rows = slice(max(top, 0), min(top + mask.shape[0], self.pixels.shape[0]))
        columns = slice(max(left, 0), min(left + mask.shape[1], self.pixels.shape[1]))
        if rows.start >= rows.stop or columns.start >= columns.stop:
            return
        part = (slice(rows.start - top, rows.stop - top), slice(columns.start - left, columns.stop - left))
        colour: Float[np.ndarray, "h w 3"] = sprite.picture[part].astype(np.float32)
        if opacity < 1:
            colour = opacity * colour + (1 - opacity) * self.pixels[rows, columns]
        self._paint((rows, columns), mask[part], colour, identity, depth)

    def sees(self, corners: Points) -> bool:
        """Return whether a polygon's bounding box touches the picture."""
        return self._locate(corners)[1] is not None

    def shadow(self, points: Points, strength: float, softness: float) -> None:
        """Darken a polygon by `strength` in [0, 1], with a soft edge of `softness` final pixels."""
        corners, window = self._locate(points, margin=round(3 * softness * SUPERSAMPLING))
        if window is None:
            return
        hard = _polygon(corners, window).astype(np.float32)
        mask = cv2.GaussianBlur(hard, (0, 0), softness * SUPERSAMPLING)
        region = self.pixels[window]
        region[:] = (region * (1 - strength * mask[..., None])).astype(np.uint8)

    def finish(self) -> tuple[Picture, Identities]:
        """Return the antialiased picture and the point-sampled identities."""
        image = cv2.resize(self.pixels, (self.width, self.height), interpolation=cv2.INTER_AREA)
        middle = SUPERSAMPLING // 2
        return image, self.identities[middle::SUPERSAMPLING, middle::SUPERSAMPLING].copy()

    def _paint(
        self, window: _Window, mask: Mask, colour: np.ndarray, identity: int | None, depth: float
    ) -> None:
        clear = float(np.exp(-depth * self.haze_per_metre))
        colour = colour * clear + np.asarray(self.haze, np.float32) * (1 - clear)
        colour = np.clip(colour, 0, 255).astype(np.uint8)
        self.pixels[window][mask] = colour[mask] if colour.ndim == 3 else colour
        if identity is not None:
            self.identities[window][mask] = identity

    def _locate(self, points: Points, margin: int = 0) -> tuple[Float[np.ndarray, "N 2"], _Window | None]:
        """Return points in supersampled pixels, and the part of the picture around them, if any."""
        limit = 8 * max(self.width, self.height)  # keeps the fixed-point numbers of cv2 in range
        corners = np.clip(np.asarray(points, dtype=np.float64), -limit, limit) * SUPERSAMPLING
        rows, columns = self.pixels.shape[:2]
        left, top = np.floor(corners.min(axis=0)).astype(int) - margin
        right, bottom = np.ceil(corners.max(axis=0)).astype(int) + margin + 1
        window = (slice(max(top, 0), min(bottom, rows)), slice(max(left, 0), min(right, columns)))
        empty = window[0].start >= window[0].stop or window[1].start >= window[1].stop
        return corners, None if empty else window


def rectangle(left: float, top: float, right: float, bottom: float) -> list[tuple[float, float]]:
    """Return the corners of a rectangle: upper left, upper right, lower right, lower left."""
    return [(left, top), (right, top), (right, bottom), (left, bottom)]


def ellipse_points(centre: Pair, radii: Pair, angle: float = 0, count: int = 28) -> Float[np.ndarray, "N 2"]:
    """Return the corners of a polygon close to an ellipse; `angle` in radians turns it clockwise."""
    turn = np.linspace(0, 2 * np.pi, count, endpoint=False)
    flat = np.stack([radii[0] * np.cos(turn), radii[1] * np.sin(turn)], axis=1)
    rotation = np.array([[np.cos(angle), np.sin(angle)], [-np.sin(angle), np.cos(angle)]])
    return flat @ rotation + np.asarray(centre)


def _grain_field(rng: np.random.Generator) -> Float[np.ndarray, "n n"]:
    """Draw noise with fine and middle frequencies, unit variance, that repeats without a seam."""
    white = rng.standard_normal((_NOISE_SIDE, _NOISE_SIDE), dtype=np.float32)
    margin = 12
    tiled = cv2.copyMakeBorder(white, margin, margin, margin, margin, cv2.BORDER_WRAP)
    smooth = cv2.GaussianBlur(tiled, (0, 0), 2.5)[margin:-margin, margin:-margin]
    field = 0.5 * white + smooth / smooth.std()
    return field / field.std()


def _reduce(texture: Picture, quad: Float[np.ndarray, "4 2"]) -> Picture:
    """Shrink a texture to about the size it is shown at, so that warping it does not alias."""
    sides = np.linalg.norm(np.roll(quad, -1, axis=0) - quad, axis=1)  # top, right, bottom, left
    height, width = texture.shape[:2]
    shown = int(max(sides[0], sides[2], 1.0)), int(max(sides[1], sides[3], 1.0))
    size = (min(width, shown[0]), min(height, shown[1]))
    return texture if size == (width, height) else cv2.resize(texture, size, interpolation=cv2.INTER_AREA)


def _shape(window: _Window) -> tuple[int, int]:
    return window[0].stop - window[0].start, window[1].stop - window[1].start


def _fixed(corners: Float[np.ndarray, "N 2"], window: _Window) -> np.ndarray:
    # cv2 puts integer coordinates on pixel centres; ours are pixel edges.
    local = corners - (window[1].start, window[0].start) - 0.5
    return np.round(local * (1 << _FRACTION_BITS)).astype(np.int32)


def _polygon(corners: Float[np.ndarray, "N 2"], window: _Window) -> Mask:
    mask = np.zeros(_shape(window), dtype=np.uint8)
    cv2.fillPoly(mask, [_fixed(corners, window)], 1, cv2.LINE_8, _FRACTION_BITS)
    return mask.astype(bool)
