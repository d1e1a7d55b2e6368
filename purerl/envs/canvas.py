"""Pictures drawn in an environment's own coordinates, and GIFs of them; Pillow is imported late, as few need it."""

from __future__ import annotations

import io
from collections.abc import Iterable, Sequence
from typing import TYPE_CHECKING, Any

if TYPE_CHECKING:
    from PIL import Image

WIDTH, HEIGHT, HEAD, EDGE = 480, 400, 36, 10  # pixels: of a picture, its height at most, the line of text, the margin
FINER = 3  # all is drawn so many times larger and then reduced, so that edges are smooth
INK, PALE, GRID = "#2d3748", "#cbd5e0", "#a0aec0"
BLUE, ORANGE, GREEN, RED = "#2b6cb0", "#dd6b20", "#2f855a", "#c53030"

Point = tuple[float | int, float | int]  # x to the right, y upwards


class Canvas:
    """A picture of what lies between left and right, bottom and top, as large as fits; lines and texts in pixels."""

    def __init__(self, left: float, right: float, bottom: float, top: float):
        from PIL import Image, ImageDraw

        scale = min((WIDTH - 2 * EDGE) / (right - left), (HEIGHT - 2 * EDGE) / (top - bottom))
        self._scale = scale * FINER
        self._origin = (WIDTH * FINER - (left + right) * self._scale) / 2, (HEAD + EDGE + top * scale) * FINER
        size = WIDTH, HEAD + 2 * EDGE + round((top - bottom) * scale)
        self._image = Image.new("RGB", (size[0] * FINER, size[1] * FINER), "white")
        self._draw = ImageDraw.Draw(self._image)
        self._size = size
        self._texts: list[tuple[Point, str, str, str, int]] = []

    def line(self, points: Sequence[Point], color: str, width: int = 2) -> None:
        """Draw a line through the points, with round ends and corners."""
        places, half = [self._place(point) for point in points], width * FINER / 2
        self._draw.line(places, fill=color, width=width * FINER, joint="curve")
        for x, y in (places[0], places[-1]):
            self._draw.ellipse((x - half, y - half, x + half, y + half), fill=color)

    def rectangle(self, left: float, right: float, bottom: float, top: float, color: str, edge: str = "") -> None:
        """Fill a rectangle, and draw its edge."""
        (x0, y0), (x1, y1) = self._place((left, top)), self._place((right, bottom))
        self._draw.rectangle((x0, y0, x1, y1), fill=color, outline=edge or color, width=FINER)

    def polygon(self, points: Sequence[Point], color: str) -> None:
        """Fill a polygon."""
        self._draw.polygon([self._place(point) for point in points], fill=color)

    def circle(self, centre: Point, radius: float, color: str) -> None:
        """Fill a circle, whose radius is in the environment's unit."""
        (x, y), r = self._place(centre), radius * self._scale
        self._draw.ellipse((x - r, y - r, x + r, y + r), fill=color)

    def text(self, place: Point, text: str, color: str = INK, size: int = 14) -> None:
        """Write a text around a place."""
        x, y = self._place(place)
        self._texts.append(((x / FINER, y / FINER), text, color, "mm", size))

    def picture(self, title: str, caption: str) -> Image.Image:
        """Return the finished picture, with a title on its left and a caption on its right above what was drawn."""
        from PIL import Image, ImageDraw

        picture = self._image.resize(self._size, Image.Resampling.BOX)
        draw = ImageDraw.Draw(picture)
        head = [((EDGE, HEAD / 2), title, INK, "lm", 15), ((WIDTH - EDGE, HEAD / 2), caption, INK, "rm", 15)]
        for place, text, color, anchor, size in [*self._texts, *head]:
            draw.text(place, text, fill=color, font=_font(size, bold=text == title), anchor=anchor)
        return picture

    def _place(self, point: Point) -> Point:
        return self._origin[0] + point[0] * self._scale, self._origin[1] - point[1] * self._scale


def gif(pictures: Iterable[Image.Image], milliseconds: int) -> bytes:
    """Return a GIF of the pictures, so long each, the last a second and a half, that begins again at its end."""
    from PIL import Image

    frames = list(pictures)
    # One palette for all: of the first picture, one from the middle and the last.
    width, height = frames[0].size
    sample = frames[0].resize((width, 3 * height))
    for row, index in enumerate((0, len(frames) // 2, len(frames) - 1)):
        sample.paste(frames[index], (0, row * height))
    palette = sample.quantize(64, Image.Quantize.MAXCOVERAGE)
    colors = palette.getpalette() or []
    lightest = max(range(0, len(colors), 3), key=lambda place: sum(colors[place : place + 3]))
    palette.putpalette([*colors[:lightest], 255, 255, 255, *colors[lightest + 3 :]])  # an average of near whites
    drawn = [frame.quantize(palette=palette, dither=Image.Dither.NONE) for frame in frames]
    buffer = io.BytesIO()
    times = [milliseconds] * (len(drawn) - 1) + [1500]
    # Without `optimize` Pillow stores of each picture what differs from the one before.
    drawn[0].save(buffer, "GIF", save_all=True, append_images=drawn[1:], duration=times, loop=0)
    return buffer.getvalue()


def _font(size: int, *, bold: bool) -> Any:
    """Return a font that comes with matplotlib: it is there wherever purerl is."""
    import matplotlib
    from PIL import ImageFont

    name = "DejaVuSans-Bold.ttf" if bold else "DejaVuSans.ttf"
    return ImageFont.truetype(f"{matplotlib.get_data_path()}/fonts/ttf/{name}", size)
