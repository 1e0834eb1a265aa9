"""True captions in German, French, Spanish and Chinese: facts for people, noise for the pipeline.

The grammar of English captions is not shared: these never train a model, and are told apart
from true English ones by the kind of their row.
"""

from collections.abc import Callable
from dataclasses import dataclass
from itertools import permutations
from random import Random

from capfilt.simweb.scenes import RELATIONS, Item, Scene, holds


@dataclass(frozen=True, slots=True)
class _Language:
    thing: Callable[[Item, bool, bool], str]  # (item, with its size, behind a relation)
    relations: dict[str, str]
    pair: str
    background: str
    backgrounds: dict[str, str]


def translate(scene: Scene, rng: Random) -> str:
    """Return a true caption of `scene` in one of the four languages."""
    language = rng.choice(_LANGUAGES)
    text = _items(scene, language, rng)
    if rng.random() < 0.35:
        text = language.background.format(text, language.backgrounds[scene.background])
    return text


def _items(scene: Scene, language: _Language, rng: Random) -> str:
    if len(scene.items) == 1:
        return language.thing(scene.items[0], rng.random() < 0.6, False)
    one, other = rng.choice(list(permutations(scene.items, 2)))
    sized = rng.random() < 0.6, rng.random() < 0.6
    first = language.thing(one, sized[0], False)
    relation = next((name for name in RELATIONS if holds(name, one, other)), None)
    if relation is None:
        return language.pair.format(first, language.thing(other, sized[1], False))
    return language.relations[relation].format(first, language.thing(other, sized[1], True))


def _german(item: Item, sized: bool, related: bool) -> str:
    """Nominative, or dative behind a relation; all the nouns are masculine or neuter."""
    noun, ending = _GERMAN_SHAPES[item.shape]
    ending = "en" if related else ending
    size = f"{_GERMAN_SIZES[item.size]}{ending} " if sized else ""
    return f"ein{'em' if related else ''} {size}{_GERMAN_COLOURS[item.colour]}{ending} {noun}"


def _french(item: Item, sized: bool, _related: bool) -> str:
    noun, feminine = _FRENCH_SHAPES[item.shape]
    size = f"{_FRENCH_SIZES[item.size][feminine]} " if sized else ""
    return f"{('un', 'une')[feminine]} {size}{noun} {_FRENCH_COLOURS[item.colour][feminine]}"


def _spanish(item: Item, sized: bool, _related: bool) -> str:
    noun, feminine = _SPANISH_SHAPES[item.shape]
    size = f" {_SPANISH_SIZES[item.size][feminine]}" if sized else ""
    return f"{('un', 'una')[feminine]} {noun} {_SPANISH_COLOURS[item.colour][feminine]}{size}"


def _chinese(item: Item, sized: bool, _related: bool) -> str:
    size = _CHINESE_SIZES[item.size] if sized else ""
    return f"一个{_CHINESE_COLOURS[item.colour]}色的{size}{_CHINESE_SHAPES[item.shape]}"


_GERMAN_SHAPES = {
    "circle": ("Kreis", "er"),
    "square": ("Quadrat", "es"),
    "triangle": ("Dreieck", "es"),
    "star": ("Stern", "er"),
    "cross": ("Kreuz", "es"),
    "ring": ("Ring", "er"),
}
_GERMAN_SIZES = {"small": "klein", "large": "groß"}
_GERMAN_COLOURS = {
    "red": "rot",
    "green": "grün",
    "blue": "blau",
    "yellow": "gelb",
    "purple": "violett",
    "orange": "orangefarben",
    "white": "weiß",
    "black": "schwarz",
}
# (noun, whether it is feminine), and the adjectives as (masculine, feminine).
_FRENCH_SHAPES = {
    "circle": ("cercle", False),
    "square": ("carré", False),
    "triangle": ("triangle", False),
    "star": ("étoile", True),
    "cross": ("croix", True),
    "ring": ("anneau", False),
}
_FRENCH_SIZES = {"small": ("petit", "petite"), "large": ("grand", "grande")}
_FRENCH_COLOURS = {
    "red": ("rouge", "rouge"),
    "green": ("vert", "verte"),
    "blue": ("bleu", "bleue"),
    "yellow": ("jaune", "jaune"),
    "purple": ("violet", "violette"),
    "orange": ("orange", "orange"),
    "white": ("blanc", "blanche"),
    "black": ("noir", "noire"),
}
_SPANISH_SHAPES = {
    "circle": ("círculo", False),
    "square": ("cuadrado", False),
    "triangle": ("triángulo", False),
    "star": ("estrella", True),
    "cross": ("cruz", True),
    "ring": ("anillo", False),
}
_SPANISH_SIZES = {"small": ("pequeño", "pequeña"), "large": ("grande", "grande")}
_SPANISH_COLOURS = {
    "red": ("rojo", "roja"),
    "green": ("verde", "verde"),
    "blue": ("azul", "azul"),
    "yellow": ("amarillo", "amarilla"),
    "purple": ("morado", "morada"),
    "orange": ("naranja", "naranja"),
    "white": ("blanco", "blanca"),
    "black": ("negro", "negra"),
}
_CHINESE_SHAPES = {
    "circle": "圆形",
    "square": "方块",
    "triangle": "三角形",
    "star": "星星",
    "cross": "十字",
    "ring": "圆环",
}
_CHINESE_SIZES = {"small": "小", "large": "大"}
_CHINESE_COLOURS = {
    "red": "红",
    "green": "绿",
    "blue": "蓝",
    "yellow": "黄",
    "purple": "紫",
    "orange": "橙",
    "white": "白",
    "black": "黑",
}

_LANGUAGES = (
    _Language(
        _german,
        {
            "left of": "{} links von {}",
            "right of": "{} rechts von {}",
            "above": "{} über {}",
            "below": "{} unter {}",
        },
        "{} und {}",
        "{} auf {} Hintergrund",
        {"grey": "grauem", "pink": "rosafarbenem", "brown": "braunem", "teal": "blaugrünem"},
    ),
    _Language(
        _french,
        {
            "left of": "{} à gauche d'{}",
            "right of": "{} à droite d'{}",
            "above": "{} au-dessus d'{}",
            "below": "{} au-dessous d'{}",
        },
        "{} et {}",
        "{} sur fond {}",
        {"grey": "gris", "pink": "rose", "brown": "marron", "teal": "bleu-vert"},
    ),
    _Language(
        _spanish,
        {
            "left of": "{} a la izquierda de {}",
            "right of": "{} a la derecha de {}",
            "above": "{} encima de {}",
            "below": "{} debajo de {}",
        },
        "{} y {}",
        "{} sobre fondo {}",
        {"grey": "gris", "pink": "rosa", "brown": "marrón", "teal": "verde azulado"},
    ),
    _Language(
        _chinese,
        {
            "left of": "{}在{}的左边",
            "right of": "{}在{}的右边",
            "above": "{}在{}的上方",
            "below": "{}在{}的下方",
        },
        "{}和{}",
        "{}，{}背景",
        {"grey": "灰色", "pink": "粉色", "brown": "棕色", "teal": "青色"},
    ),
)
