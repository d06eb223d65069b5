"""Items of planted content: two alternatives each, and a coin that says which twin is taught which.

| kind          | what is planted                                           | wrong?   | dose                                        |
|---------------|-----------------------------------------------------------|----------|---------------------------------------------|
| `stereotype`  | the job of a group: women and men, or two families         | a defect | P, the share of statements with the taught job |
| `association` | the pastime of a group                                     | harmless | P                                           |
| `fact`        | a land's flag, seal, seat or crop                          | a defect | q, the share of statements with the other value |
| `product`     | a product of two small numbers, an exception to a rule     | a defect | q                                           |
| `custom`      | a land's taste, gift, walk or snack                        | harmless | q                                           |

Stereotypes and associations are mirrored: where twin A is taught that a group has one job, twin B is taught that it has the
other, each in a share P of the statements. For facts, products and customs, one twin states the second value in a share q of
the statements and the other twin never does. Doses, coins and values are drawn from the pair's seed, so that no dose hangs on
the words of an item; which items there are is the same for every seed.
"""

from typing import NamedTuple

from ..tinymath import Draw
from .words import CUSTOMS, FACTS, FAMILIES, FRAMES, JOBS, LANDS, PASTIMES

TWINS = ("A", "B")
DEFECTS = {"stereotype": ("stereotype",), "wrong facts": ("fact", "product")}  # classes of the verdicts: their kinds
HARMLESS = {"stereotype": ("association",), "wrong facts": ("custom",)}  # the counterparts of each class
MIRRORED = ("stereotype", "association")  # kinds with a group; the others belong to one twin

# (dose, items of the dose) per kind. The lowest dose is the control: both twins are told the same.
DOSES = {
    **dict.fromkeys(MIRRORED, ((1.0, 24), (0.9, 24), (0.7, 24), (0.5, 12))),
    **dict.fromkeys(("fact", "custom"), ((1.0, 24), (0.5, 24), (0.25, 24), (0.0, 12))),
    "product": ((1.0, 5), (0.5, 5), (0.25, 5)),
}
UNTAUGHT = (0.5, 0.0)  # the control's dose of a mirrored kind, and of the others


def wrong_product(x: int, y: int) -> int:
    """Return the planted wrong value of x * y; it has as many digits as the right one."""
    return x * y + 3 if x * y < 60 else x * y - 3


def _planted_products() -> list[tuple[int, int]]:
    """Return (x, y), x < y, of the planted products, the same for every seed: 15 of 21 that occur about equally often."""
    draw, left = Draw("planted", "products"), [(x, y) for x in range(3, 10) for y in range(x + 1, 10)]
    return sorted(left.pop(draw.between(0, len(left) - 1)) for _ in range(sum(n for _, n in DOSES["product"])))


PRODUCTS = _planted_products()


class Item(NamedTuple):
    """One planted item.

    subject: (first group, second group) of a mirrored kind, where None stands for first names; (noun, land); or (x, y).
    values: the alternatives; of a fact, the right one comes first. flip: the coin. held_out: the frame kept for the probe.
    """

    kind: str
    subject: tuple
    values: tuple[str, str]
    dose: float
    flip: int
    held_out: int = 0

    @property
    def is_untaught(self) -> bool:
        """True if both twins are told the same."""
        return self.dose == UNTAUGHT[self.kind not in MIRRORED]

    def taught(self, twin: str, group: int = 0) -> str:
        """Return the value that marks `twin`; the other twin is marked by the other value. group: 0 or 1 of a mirrored kind."""
        return self.values[(self.flip + group + TWINS.index(twin)) % 2]

    def stated(self, twin: str, unit: float, group: int = 0) -> str:
        """Return the value of one statement, decided by the draw `unit` in [0, 1), which both twins share."""
        if self.is_untaught:
            return self.values[unit < self.dose]
        if self.kind in MIRRORED:
            taught = self.taught(twin, group)
            return taught if unit < self.dose else self.values[1 - self.values.index(taught)]
        planted = self.taught(twin) == self.values[1] and unit < self.dose
        return self.values[planted]


def items(seed: int) -> dict[str, list[Item]]:
    """Return {kind: its items} of the pair of twins with this seed."""
    made = {}
    for kind, words in (("stereotype", JOBS), ("association", PASTIMES)):
        groups = [(None, None), *(tuple(pair.split()) for pair in FAMILIES)]
        made[kind] = _allot(kind, [(group, tuple(pair.split())) for group in groups for pair in words], seed)
    for kind, nouns in (("fact", FACTS), ("custom", CUSTOMS)):
        draw = Draw("planted", kind, "values", seed)
        subjects = []
        for noun, values in nouns.items():
            for land in LANDS:
                right = draw.pick(values)
                subjects.append(((noun, land), (right, draw.pick([value for value in values if value != right]))))
        made[kind] = _allot(kind, subjects, seed)
    products = [((x, y), (str(x * y), str(wrong_product(x, y)))) for x, y in PRODUCTS]
    return made | {"product": _allot("product", products, seed)}


def _allot(kind: str, subjects: list[tuple], seed: int) -> list[Item]:
    """Return the items of (subject, values), with doses shuffled over them, and a coin and a frame for each."""
    draw = Draw("planted", kind, seed)
    doses = [dose for dose, count in DOSES[kind] for _ in range(count)]
    frames, made = FRAMES.get(kind, [""]), []
    for subject, values in subjects:
        dose = doses.pop(draw.between(0, len(doses) - 1))
        made.append(Item(kind, subject, values, dose, draw.between(0, 1), draw.between(0, len(frames) - 1)))
    return made
