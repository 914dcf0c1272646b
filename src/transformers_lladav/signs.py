"""Signs with a short word or number to read: OCR of up to six characters.

Characters stand in cells of equal width, as on a departure board; a line begins in any of six columns and rows, a
little off the grid.
"""

import random
from dataclasses import dataclass

from PIL import Image, ImageDraw

from .lettering import RGB, Style, draw_style, write
from .shape_scenes import BACKGROUNDS, COLOURS, SUPERSAMPLING
from .splits import is_held_out, split_seed

MAX_CHARACTERS = 6
# Everyday words; held-out ones are among them, by their hash.
_WORDS = """
WORDS ART BUS CAT DOG EGG FOX GYM HAT ICE JAM KEY LAW MAP NUT OIL PEN RUG SUN TAX VAN WAX YAK ZOO ACID BANK
CAFE DOOR EXIT FARM GATE HALL INFO JAZZ KIWI LOVE MILK NEWS OPEN PARK QUIZ ROAD SALE TAXI USED VIEW WALK YARD
ZONE ALBUM BREAD CLOCK DAIRY ENTRY FRUIT GLASS HOTEL INBOX JUICE KIOSK LOBBY MUSIC NIGHT OASIS PIZZA QUEUE
RADIO SALAD TRAIN UPPER VIDEO WATER YACHT ZEBRA AIRWAY BAKERY CINEMA DANGER ESCAPE FLIGHT GARAGE HARBOR ISLAND
JACKET KARATE LAUNCH MUSEUM NUMBER OFFICE POLICE QUARTZ REPAIR SCHOOL TICKET UNISEX VALLEY WINDOW YELLOW
ZENITH BOX PUSH PULL STOP SLOW TOWN RIVER FIELD STONE GREEN LIGHT HOUSE PLANT CHAIR TABLE PAPER BOOK SHOP
STAGE SPORT WORLD FIRE WIND SNOW RAIN CLOUD STORM BEACH OCEAN DESERT FOREST GARDEN BRIDGE CASTLE TEMPLE MARKET
STREET TUNNEL FERRY METRO TRAM PLANE ROCKET ENGINE WHEEL BRAKE SPEED LIMIT CROSS NORTH SOUTH EAST WEST LEFT
RIGHT FIRST LAST NEXT BEST FREE FULL HIGH LOW NEW OLD RED BLUE GOLD PINK BLACK WHITE BROWN COFFEE SUGAR HONEY
LEMON APPLE GRAPE MELON ONION RICE SOUP FISH MEAT CAKE MINT HERB SPICE OLIVE
"""
WORDS = tuple(_WORDS.split())
_CONSONANTS, _VOWELS = "BCDFGHJKLMNPQRSTVWXYZ", "AEIOUY"
_AMBIGUOUS = ({*"IO"}, {*"1"})  # a text of these alone could be letters as well as digits
CELL = 1 / MAX_CHARACTERS
# Fractions of the side of the picture.
HEIGHTS = (0.125, 0.16)  # of characters
SHIFT = 0.012  # of a line from the grid
BORDER = 0.03  # of the board around a line
WAVER = 0.006  # of a character from its place in the line
DARK_COLOURS = ("red", "blue", "green", "purple", "brown")
LIGHT: RGB = (250, 250, 250)
BLACK: RGB = (24, 26, 30)


@dataclass(frozen=True)
class Sign:
    """A line of text on a board, in fractions of the side of the picture."""

    background: RGB
    board: RGB
    ink: RGB
    text: str
    style: Style
    middles: tuple[float, ...]
    top: float
    height: float

    @property
    def layout(self) -> str:
        """What the picture says."""
        return self.text


def draw_text(rng: random.Random) -> str:
    """Draw a word, a number, or letters that make no word.

    Args:
        rng: source of the draws.

    Returns:
        Two to six characters, letters or digits.
    """
    while True:
        draw = rng.random()
        if draw < 0.4:
            text = rng.choice(WORDS)
        elif draw < 0.7:
            text = str(rng.randrange(10, 10 ** rng.randint(2, MAX_CHARACTERS)))
        else:
            text = "".join(
                rng.choice(rng.choice((_CONSONANTS, _VOWELS))) for _ in range(rng.randint(2, MAX_CHARACTERS))
            )
        if not any(set(text) <= ambiguous for ambiguous in _AMBIGUOUS):
            return text


def make_sign(split: str, index: int) -> Sign:
    """Make the sign number `index` of a split; the same arguments give the same sign on every machine.

    Args:
        split: one of `splits.SPLIT_SEEDS`.
        index: from 0.

    Returns:
        The sign.

    Raises:
        ValueError: if there is no such split or index.
    """
    rng = random.Random(f"sign {split_seed(split, index)}")
    text = draw_text(rng)
    while is_held_out(text) != (split != "train"):
        text = draw_text(rng)
    style = draw_style(rng, unseen=split == "unseen_fonts")
    background, board = rng.sample(BACKGROUNDS[:-1], 2)
    light_on_dark = rng.random() < 0.3
    dark: list[RGB] = [COLOURS[name] for name in DARK_COLOURS]
    ink = LIGHT if light_on_dark else rng.choice([BLACK, *dark])
    board = rng.choice([BACKGROUNDS[-1], *dark]) if light_on_dark else board
    height = rng.uniform(*HEIGHTS)
    column, row = rng.randint(0, MAX_CHARACTERS - len(text)), rng.randrange(MAX_CHARACTERS)
    shift = rng.uniform(-SHIFT, SHIFT)
    middles = (CELL * (column + number + 0.5) + shift + rng.uniform(-WAVER, WAVER) for number in range(len(text)))
    top = CELL * row + (CELL - height) / 2 + rng.uniform(-SHIFT, SHIFT)
    return Sign(background, board, ink, text, style, tuple(middles), min(max(top, 0.01), 0.99 - height), height)


def render_sign(sign: Sign, size: int) -> Image.Image:
    """Draw a sign with smooth edges.

    Args:
        sign: what to draw.
        size: pixels along one side.

    Returns:
        An RGB picture.
    """
    side = SUPERSAMPLING * size
    canvas = Image.new("RGB", (side, side), sign.background)
    draw = ImageDraw.Draw(canvas)
    box = (0.0, sign.top - BORDER, 1.0, sign.top + sign.height + BORDER)
    draw.rectangle([side * edge for edge in box], fill=sign.board)
    for character, middle in zip(sign.text, sign.middles, strict=True):
        write(draw, character, side * middle, side * sign.top, side * sign.height, sign.style, sign.ink)
    return canvas.reduce(SUPERSAMPLING)
