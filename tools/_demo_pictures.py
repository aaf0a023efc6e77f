"""Twelve small drawings with captions: one character in eight scenes, and four empty landscapes.

Everything is drawn at twice the size and made smaller at the end, for smooth edges. A point is given
as a fraction of the picture's width and height, or, for the figure, in units of its head.
"""

from __future__ import annotations

import io
import math
import random
from dataclasses import dataclass

from PIL import Image, ImageDraw

Color = tuple[int, int, int]
Point = tuple[float, float]

NAME = r"aoi \(demo\)"  # with the escapes that prompts carry
LOOKS = "1girl, solo, blue hair, long hair, green eyes, red hair ribbon"
OUTLINE: Color = (52, 46, 74)
SKIN: Color = (255, 226, 208)
HAIR: Color = (78, 128, 214)
HAIR_SHADE: Color = (58, 98, 178)
RIBBON: Color = (222, 62, 76)
IRIS: Color = (72, 168, 112)


@dataclass(frozen=True)
class Scene:
    """One picture: its file, size, what is behind, and the figure's face and clothes (or none)."""

    file: str
    size: tuple[int, int]
    place: str
    face: str = ""
    clothes: Color = (250, 250, 252)
    tags: str = ""

    @property
    def caption(self) -> str:
        """Comma-separated tags, true to the picture."""
        place = PLACES[self.place][1]
        if not self.face:
            return f"scenery, no humans, {place}"
        return f"{NAME}, {LOOKS}, {FACES[self.face]}, {self.tags}, {place}"


FACES = {
    "smile": "looking at viewer, smile",
    "open": "looking at viewer, open mouth, smile",
    "wink": "looking at viewer, one eye closed, smile",
    "closed": "closed eyes, smile, blush",
}


class Canvas:
    """Drawing in fractions of the picture, at twice its size."""

    def __init__(self, size: tuple[int, int], rng: random.Random) -> None:
        self.width, self.height = size[0] * 2, size[1] * 2
        self.image = Image.new("RGB", (self.width, self.height))
        self.draw = ImageDraw.Draw(self.image)
        self.rng = rng

    def at(self, point: Point) -> Point:
        return point[0] * self.width, point[1] * self.height

    def sky(self, top: Color, bottom: Color) -> None:
        """A vertical gradient over the whole picture."""
        for y in range(self.height):
            t = y / self.height
            color = tuple(round(a + (b - a) * t) for a, b in zip(top, bottom))
            self.draw.line([(0, y), (self.width, y)], fill=color)

    def disc(self, center: Point, radius: float, color: Color) -> None:
        """A circle; radius as a fraction of the height."""
        (x, y), r = self.at(center), radius * self.height
        self.draw.ellipse([x - r, y - r, x + r, y + r], fill=color)

    def crescent(self, center: Point, radius: float, color: Color) -> None:
        """A waning moon: between half a circle and half an ellipse."""
        (x, y), r = self.at(center), radius * self.height
        angles = [math.radians(a) for a in range(-90, 91, 5)]
        outer = [(x - r * math.cos(a), y - r * math.sin(a)) for a in angles]
        inner = [(x - 0.4 * r * math.cos(a), y - r * math.sin(a)) for a in angles]
        self.draw.polygon([*outer, *reversed(inner)], fill=color)

    def land(self, level: float, swing: float, waves: float, color: Color) -> None:
        """Everything below a wavy line."""
        start = self.rng.uniform(0, math.tau)
        edge = [
            self.at((i / 40, level + swing * math.sin(start + waves * math.tau * i / 40)))
            for i in range(41)
        ]
        self.draw.polygon([*edge, (self.width, self.height), (0, self.height)], fill=color)

    def shape(self, points: list[Point], color: Color) -> None:
        self.draw.polygon([self.at(p) for p in points], fill=color)


def meadow(c: Canvas) -> None:
    c.sky((110, 184, 246), (214, 240, 255))
    c.disc((0.84, 0.16), 0.09, (255, 244, 190))
    for x, y in ((0.14, 0.14), (0.22, 0.12), (0.28, 0.16), (0.55, 0.08), (0.62, 0.1)):
        c.disc((x, y), 0.05, (255, 255, 255))
    c.land(0.62, 0.04, 1.0, (140, 200, 110))
    c.land(0.76, 0.03, 1.5, (104, 176, 92))
    for _ in range(40):
        color = c.rng.choice([(255, 255, 255), (255, 214, 92), (250, 150, 176)])
        c.disc((c.rng.random(), c.rng.uniform(0.8, 0.99)), 0.01, color)


def night(c: Canvas) -> None:
    c.sky((16, 20, 62), (74, 66, 138))
    for _ in range(70):
        radius = c.rng.uniform(0.002, 0.007)
        c.disc((c.rng.random(), c.rng.uniform(0, 0.7)), radius, (255, 250, 222))
    c.crescent((0.2, 0.2), 0.1, (255, 246, 206))
    c.land(0.78, 0.03, 1.2, (28, 32, 66))


def beach(c: Canvas) -> None:
    c.sky((255, 150, 96), (255, 222, 160))
    c.disc((0.7, 0.5), 0.14, (255, 246, 206))
    c.land(0.54, 0.0, 1.0, (66, 108, 172))
    for i in range(9):
        y, half = 0.57 + 0.02 * i, 0.16 - 0.013 * i
        c.shape([(0.7 - half, y), (0.7 + half, y), (0.7, y + 0.008)], (255, 216, 158))
    c.land(0.82, 0.02, 0.7, (240, 208, 156))


def mountain(c: Canvas) -> None:
    c.sky((150, 192, 232), (236, 244, 252))
    for x, top, half in ((0.25, 0.3, 0.34), (0.78, 0.22, 0.38), (0.5, 0.42, 0.26)):
        c.shape([(x - half, 0.8), (x, top), (x + half, 0.8)], (118, 134, 168))
        k = 0.32 * half / (0.8 - top)  # the snow line follows the slopes
        c.shape([(x - k * 0.5, top + 0.16), (x, top), (x + k * 0.5, top + 0.16)], (252, 252, 255))
    c.land(0.74, 0.02, 1.3, (240, 244, 250))
    for x in (0.06, 0.16, 0.88, 0.96):
        for y in (0.62, 0.68, 0.74):
            c.shape([(x - 0.05, y + 0.1), (x, y), (x + 0.05, y + 0.1)], (58, 106, 92))


def city(c: Canvas) -> None:
    c.sky((60, 42, 108), (240, 132, 130))
    x = 0.0
    while x < 1:
        width, top = c.rng.uniform(0.08, 0.15), c.rng.uniform(0.32, 0.6)
        c.shape([(x, top), (x + width, top), (x + width, 1), (x, 1)], (42, 38, 74))
        for row in range(int((0.95 - top) / 0.06)):
            for column in range(3):
                if c.rng.random() < 0.55:
                    left, y = x + width * (0.14 + 0.28 * column), top + 0.03 + 0.06 * row
                    right = left + width * 0.16
                    window = [(left, y), (right, y), (right, y + 0.03), (left, y + 0.03)]
                    c.shape(window, (255, 220, 122))
        x += width + 0.008


def blossom(c: Canvas) -> None:
    c.sky((196, 226, 250), (255, 240, 244))
    c.land(0.8, 0.02, 1.0, (164, 204, 128))
    for x in (0.08, 0.92):
        c.shape(
            [(x - 0.03, 0.9), (x - 0.015, 0.3), (x + 0.015, 0.3), (x + 0.03, 0.9)], (120, 84, 78)
        )
        for _ in range(30):
            center = (x + c.rng.uniform(-0.2, 0.2), 0.22 + c.rng.uniform(-0.2, 0.16))
            color = c.rng.choice([(255, 196, 214), (255, 214, 226), (250, 176, 200)])
            c.disc(center, c.rng.uniform(0.04, 0.08), color)
    for _ in range(30):
        c.disc((c.rng.random(), c.rng.random()), 0.008, (255, 188, 208))


PLACES = {
    "meadow": (meadow, "outdoors, day, blue sky, cloud, sun, grass, flower"),
    "night": (night, "outdoors, night, night sky, star, moon"),
    "beach": (beach, "outdoors, beach, ocean, sunset, sun, orange sky"),
    "mountain": (mountain, "outdoors, mountain, snow, tree, day"),
    "city": (city, "outdoors, city, building, window, light, evening"),
    "blossom": (blossom, "outdoors, cherry blossoms, pink flower, tree, petals, spring"),
}


def lavender(c: Canvas) -> None:
    c.sky((70, 196, 186), (250, 246, 196))
    c.land(0.5, 0.05, 1.0, (112, 168, 150))
    c.land(0.58, 0.02, 1.4, (96, 60, 150))
    for row in range(5):
        c.land(0.64 + 0.075 * row, 0.008, 2.0, ((150, 96, 206), (116, 66, 176))[row % 2])
    for _ in range(60):
        c.disc((c.rng.random(), c.rng.uniform(0.68, 0.99)), 0.008, (214, 170, 246))


NEW_PLACE = "lavender"
NEW_PLACES = {NEW_PLACE: (lavender, "outdoors, lavender field, purple flower, hill, green sky")}
"""What the base that draws has never seen."""
KNOWN_CAPTIONS = {place: f"scenery, no humans, {tags}" for place, (_, tags) in PLACES.items()}
NEW_CAPTION = f"scenery, no humans, {NEW_PLACES[NEW_PLACE][1]}"


class Figure:
    """The character, from the chest up; `unit` is the radius of the head in pixels."""

    def __init__(self, canvas: Canvas) -> None:
        self.draw = canvas.draw
        self.unit = min(canvas.width, canvas.height) * 0.23
        self.center = (canvas.width / 2, canvas.height * 0.95 - 2.0 * self.unit)

    def at(self, x: float, y: float) -> Point:
        return self.center[0] + x * self.unit, self.center[1] + y * self.unit

    def oval(self, center: Point, radii: Point, color: Color, line: int = 0) -> None:
        (x, y), (rx, ry) = center, radii
        box = [*self.at(x - rx, y - ry), *self.at(x + rx, y + ry)]
        self.draw.ellipse(box, fill=color, outline=OUTLINE if line else None, width=line)

    def shape(self, points: list[Point], color: Color, line: int = 4) -> None:
        corners = [self.at(*p) for p in points]
        self.draw.polygon(corners, fill=color)
        if line:
            self.draw.line([*corners, corners[0]], fill=OUTLINE, width=line, joint="curve")

    def arc(self, center: Point, radii: Point, span: tuple[int, int]) -> None:
        (x, y), (rx, ry) = center, radii
        self.draw.arc([*self.at(x - rx, y - ry), *self.at(x + rx, y + ry)], *span, OUTLINE, 5)

    def paint(self, face: str, clothes: Color) -> None:
        """Back to front: hair, body, head, features, fringe, ribbon."""
        self.oval((0, -0.05), (1.22, 1.25), HAIR_SHADE, 4)
        self.shape(
            [(-1.2, 0), (-1.3, 2.1), (-0.5, 2.3), (0.5, 2.3), (1.3, 2.1), (1.2, 0)], HAIR_SHADE
        )
        self.shape([(-0.25, 0.8), (0.25, 0.8), (0.25, 1.4), (-0.25, 1.4)], SKIN)
        body = [(-0.3, 1.2), (0.3, 1.2), (0.95, 1.5), (1.15, 3.2), (-1.15, 3.2), (-0.95, 1.5)]
        self.shape(body, clothes)
        self.shape([(-0.3, 1.2), (0, 1.75), (0.3, 1.2)], SKIN)
        self.oval((0, 0), (0.96, 1.0), SKIN, 4)
        for side in (-1, 1):
            self.eye(side, face == "closed" or (face == "wink" and side > 0))
            if face == "closed":
                self.oval((side * 0.56, 0.5), (0.16, 0.08), (255, 170, 170))
        self.mouth(face)
        self.fringe()
        self.ribbon()

    def eye(self, side: int, is_closed: bool) -> None:
        x = side * 0.4
        if is_closed:
            self.arc((x, 0.2), (0.22, 0.16), (20, 160))
            return
        self.oval((x, 0.16), (0.2, 0.27), (255, 255, 255), 4)
        self.oval((x, 0.19), (0.15, 0.23), IRIS)
        self.oval((x, 0.2), (0.08, 0.13), (24, 52, 44))
        self.oval((x - 0.06, 0.08), (0.06, 0.07), (255, 255, 255))

    def mouth(self, face: str) -> None:
        if face == "open":
            box = [*self.at(-0.2, 0.34), *self.at(0.2, 0.78)]
            self.draw.chord(box, 0, 180, fill=(196, 72, 84), outline=OUTLINE, width=3)
        else:
            self.arc((0, 0.58), (0.16, 0.1), (20, 160))

    def fringe(self) -> None:
        edge = [(-1.04, 0.45), (-1.1, -0.3), (-0.75, -0.95), (0, -1.2), (0.75, -0.95), (1.1, -0.3)]
        teeth = [(1.04, 0.45), (0.8, -0.35), (0.5, -0.02), (0.3, -0.4), (0, -0.06), (-0.3, -0.42)]
        self.shape([*edge, *teeth, (-0.5, -0.02), (-0.8, -0.35)], HAIR)
        self.draw.arc([*self.at(-0.7, -0.95), *self.at(0.7, 0.1)], 215, 265, (160, 196, 250), 8)

    def ribbon(self) -> None:
        for side in (-1, 1):
            x = 0.78 + side * 0.42
            self.shape([(0.78, -0.82), (x, -1.16), (x, -0.5)], RIBBON)
        self.oval((0.78, -0.82), (0.12, 0.13), RIBBON, 3)


WHITE: Color = (246, 246, 252)
NAVY: Color = (54, 66, 116)
YELLOW: Color = (250, 208, 92)

SCENES = (
    Scene("01_meadow.png", (320, 320), "meadow", "smile", WHITE, "white shirt"),
    Scene("02_night.png", (320, 320), "night", "closed", NAVY, "blue shirt"),
    Scene("03_beach.png", (256, 384), "beach", "open", WHITE, "white shirt"),
    Scene("04_snow.jpg", (384, 256), "mountain", "smile", RIBBON, "red shirt"),
    Scene("05_city.png", (256, 384), "city", "wink", NAVY, "blue shirt"),
    Scene("06_blossom.png", (384, 256), "blossom", "closed", YELLOW, "yellow shirt"),
    Scene("07_meadow.jpg", (288, 352), "meadow", "wink", YELLOW, "yellow shirt"),
    Scene("08_night.png", (352, 288), "night", "open", WHITE, "white shirt"),
    Scene("09_beach.jpg", (384, 256), "beach"),
    Scene("10_snow.png", (320, 320), "mountain"),
    Scene("11_city.png", (384, 256), "city"),
    Scene("12_blossom.png", (256, 384), "blossom"),
)


def draw_scene(scene: Scene, seed: int) -> bytes:
    """The picture file of a scene; the same bytes for the same seed."""
    canvas = Canvas(scene.size, random.Random(f"{seed}/{scene.file}"))
    PLACES[scene.place][0](canvas)
    if scene.face:
        Figure(canvas).paint(scene.face, scene.clothes)
    image = canvas.image.resize(scene.size, Image.Resampling.LANCZOS)
    content = io.BytesIO()
    image.save(content, "JPEG" if scene.file.endswith(".jpg") else "PNG", quality=92)
    return content.getvalue()
