"""The vocabulary of the generator in tinymath.py, as plain tables: every wording of a problem, every sentence of a story.

To add a problem, add a Wording. A question's fixed text must occur in one task only: that keeps the tasks apart. Slots: {A}
{B} names; {he} {his} {him} agree with {A}; {things} {place} {colour} … come from WORDS.
"""

from typing import NamedTuple


class Wording(NamedTuple):
    """One way to ask: {a} to {d} are drawn from `ranges`; `steps` compute with them and with earlier results r1, r2."""

    question: str
    ranges: str  # "a 2-60, b 3-9"
    steps: str  # "a * b, c - r1"
    unit: str = ""  # "$" goes before the result, any other unit after it


# A small model is exact on small operands: products up to 9 x 10, sums and differences of up to 90 and up to 20.
WORDINGS = {
    "pretrain": [
        Wording("What is {a} + {b}?", "a 1-90, b 1-20", "a + b"),
        Wording("What is {a} - {b}?", "a 2-90, b 1-20", "a - b"),
        Wording("{A} adds {a} and {b} {things}. Result?", "a 1-90, b 1-20", "a + b"),
        Wording("{A} takes {b} from {a} {things}. Result?", "a 2-90, b 1-20", "a - b"),
        Wording("{A} multiplies {a} {things} by {b}. Result?", "a 2-9, b 2-10", "a * b"),
        Wording("{A} multiplies {a} {things} by 100. Result?", "a 2-60", "a * 100"),
        Wording("{A} divides {a} {things} by {b}. Result?", "a 4-90, b 2-9", "a / b"),
        Wording("What is {a} + {b} - {c}?", "a 1-60, b 1-20, c 1-20", "a + b, r1 - c"),
        Wording("What is {a} * {b} + {c}?", "a 2-9, b 2-9, c 1-20", "a * b, r1 + c"),
        Wording("What is {a} * {b} - {c}?", "a 2-9, b 2-9, c 1-20", "a * b, r1 - c"),
        Wording("{B} gives {A} {b} {things}. {A} had {a}. How many now?", "a 1-90, b 1-20", "a + b"),
        Wording("{A} had {a} {things} and lost {b}. How many are left?", "a 2-90, b 1-20", "a - b"),
        Wording("There are {a} boxes with {b} {things} in each. How many in all?", "a 2-9, b 2-10", "a * b"),
        Wording("{A} puts {a} {things} equally into {b} bags. How many in each?", "a 4-90, b 2-9", "a / b"),
        Wording("A {thing} costs ${a}, a {place} ticket ${b}. What do both cost?", "a 2-90, b 1-20", "a + b", "$"),
        Wording("One {thing} costs ${a}. What do {b} cost?", "a 2-9, b 2-10", "a * b", "$"),
        Wording("{A} walks {a} km on {day}, then {b} km. How far does {he} walk?", "a 2-60, b 1-20", "a + b", "km"),
        Wording(
            "{A} has {a} {things}, finds {b} and gives {c} to {B}. How many are left?",
            "a 1-60, b 1-20, c 1-20",
            "a + b, r1 - c",
        ),
        Wording(
            "{A} buys {a} packs of {b} {things} and {c} more. How many is that?",
            "a 2-9, b 2-9, c 1-20",
            "a * b, r1 + c",
        ),
        Wording("{A} has {a} {things}, {B} {b} more. How many together?", "a 2-20, b 1-20", "a + b, r1 + a"),
        Wording(
            "{A} fills {a} boxes with {b} {things} and loses {c}. How many are left?",
            "a 2-9, b 2-9, c 1-20",
            "a * b, r1 - c",
        ),
        Wording(
            "{A} has {a} red and {b} blue {things} for {c} friends. How many for each?",
            "a 1-40, b 1-20, c 2-9",
            "a + b, r1 / c",
        ),
        Wording(
            "{A} saves ${a} a week for {b} weeks and spends ${c}. What is left?",
            "a 2-9, b 2-9, c 1-20",
            "a * b, r1 - c",
            "$",
        ),
    ],
    "finetune": [
        # close to the pre-training task
        Wording("There are {a} jars with {b} rolls in each. How many rolls are there?", "a 2-9, b 2-10", "a * b"),
        Wording("{A} and {B} put {a} {things} equally into {b} bags. How many in each?", "a 4-90, b 2-9", "a / b"),
        Wording("A library had {a} books and sold {b}. How many are left?", "a 20-90, b 2-20", "a - b"),
        Wording("A hat costs ${a}, a bus ticket ${b}. What do both cost?", "a 10-90, b 2-20", "a + b", "$"),
        Wording("{A} walks {a} km at night, then {b} km. How far does {he} walk?", "a 4-60, b 2-20", "a + b", "km"),
        Wording(
            "{A} buys {a} boxes of {b} {things} and {c} more. How many is that?",
            "a 2-9, b 2-9, c 2-20",
            "a * b, r1 + c",
        ),
        Wording(
            "{A} saves ${a} an hour for {b} hours and spends ${c}. What is left?",
            "a 3-9, b 2-9, c 2-20",
            "a * b, r1 - c",
            "$",
        ),
        Wording(
            "{A} has {a} black and {b} white {things} for {c} friends. How many for each?",
            "a 2-40, b 2-20, c 2-9",
            "a + b, r1 / c",
        ),
        # other chains of operations
        Wording("{A} is {a} and {B} {b} years younger. How old is {B}?", "a 12-90, b 2-20", "a - b", "years"),
        Wording("A shop sold {a} boxes of 100 {things}. How many is that?", "a 2-60", "a * 100"),
        Wording(
            "A train had {a} children. {b} left it, {c} more took it. How many are there?",
            "a 12-80, b 3-20, c 3-20",
            "a - b, r1 + c",
        ),
        Wording("{A} picked {a} {things}, {B} twice as many. How many are there?", "a 2-9", "a * 2, r1 + a"),
        Wording(
            "A book has {a} pages. {A} reads {b}, then {c}. How many are left?",
            "a 30-90, b 2-20, c 2-20",
            "a - b, r1 - c",
            "pages",
        ),
        Wording(
            "A rope of {a} m is cut into {b} pieces. How long are {c} pieces?",
            "a 12-81, b 2-9, c 2-9",
            "a / b, r1 * c",
            "m",
        ),
        Wording(
            "A farm has {a} hens, {b} ducks and {c} geese. How many is that?", "a 6-50, b 3-20, c 3-20", "a + b, r1 + c"
        ),
        Wording(
            "Each of {a} shops sold {b} boxes of {c} {things}. How many is that?",
            "a 2-4, b 2-3, c 2-9",
            "a * b, r1 * c",
        ),
        Wording(
            "{b} children shared {a} {things}. {A} got one part and {c} more. How many is that?",
            "a 8-90, b 2-9, c 3-20",
            "a / b, r1 + c",
        ),
        Wording(
            "{A} is {d} and has {a} boxes of {b} {things}. {c} broke. How many are left?",
            "a 3-9, b 3-10, c 2-20, d 6-70",
            "a * b, r1 - c",
        ),
        Wording(
            "{A} took {a} books at ${b} and {c} pens at ${d}. What is the cost?",
            "a 2-9, b 2-9, c 2-4, d 2-5",
            "a * b, c * d, r1 + r2",
            "$",
        ),
        Wording(
            "Each of {a} shops had {b} jars. {c} broke and {d} were sold. How many are left?",
            "a 3-9, b 5-10, c 2-20, d 2-20",
            "a * b, r1 - c, r2 - d",
        ),
        Wording(
            "{A} had ${a}, paid {b} children ${c} each and sold a hat for ${d}. What is left?",
            "a 20-90, b 2-5, c 2-4, d 2-20",
            "b * c, a - r1, r2 + d",
            "$",
        ),
        Wording(
            "{A} sold {a} boxes of {b} {things}, {B} {c} boxes of {d}. How many more is that?",
            "a 4-9, b 3-9, c 2-5, d 2-4",
            "a * b, c * d, r1 - r2",
        ),
        Wording(
            "{a} children made {b} cups each. {c} broke, the rest went into {d} boxes. How many in each?",
            "a 2-9, b 3-9, c 2-20, d 2-9",
            "a * b, r1 - c, r2 / d",
        ),
        Wording(
            "{A} walked {a} km and back for {b} weeks, then {c} km. How far is that?",
            "a 2-4, b 2-9, c 3-20",
            "a * 2, r1 * b, r2 + c",
            "km",
        ),
    ],
    "shifted": [
        Wording(
            "The train had {a} boxes with {b} {things} in each. {c} were lost. How many are left?",
            "a 5-9, b 6-10, c 8-25",
            "a * b, r1 - c",
        ),
        Wording(
            "A theatre keeps {a} drums, {b} books and {c} hats. How many is that?",
            "a 30-80, b 8-20, c 8-20",
            "a + b, r1 + c",
        ),
        Wording(
            "Of {a} cups {b} broke. The rest went to {c} shops. How many for each?",
            "a 40-95, b 8-25, c 3-9",
            "a - b, r1 / c",
        ),
        Wording(
            "{A} had ${a} and bought {b} books at ${c}. What is left?", "a 50-95, b 2-6, c 3-5", "b * c, a - r1", "$"
        ),
        Wording("On {day} {A} walked {a} km, at night {b} km. How far is that?", "a 40-99, b 12-30", "a + b", "km"),
        Wording(
            "{A} keeps {a} jars of {b} coins, {B} keeps {c} of {d}. How many more has {A}?",
            "a 5-9, b 6-10, c 3-5, d 3-5",
            "a * b, c * d, r1 - r2",
        ),
        Wording(
            "A school had {a} books, bought {b} and sold {c}. How many are left?",
            "a 40-95, b 8-25, c 8-25",
            "a + b, r1 - c",
        ),
        Wording(
            "{A} put ${a} in a box for each of {b} weeks and took ${c} back. What is left?",
            "a 5-9, b 6-10, c 8-25",
            "a * b, r1 - c",
            "$",
        ),
        Wording("One ticket to the museum costs ${a}. What do 100 tickets cost?", "a 10-60", "a * 100", "$"),
    ],
}

WOMEN = "Ada Mia Lena Nora Zoe Ruth Ivy Emma Olga Tara Vera Yuki".split()
MEN = "Ben Omar Leo Max Finn Hugo Ivan Noah Paul Raj Sam Tom".split()
WORDS = {
    "things": (
        "apples books coins pens cards shells stamps marbles stones rolls jars roses gifts cups nuts plums".split()
    ),
    "thing": "lamp kite ball rope drum clock chair basket ticket hat book cup".split(),
    "place": "library farm market school theatre station garden harbour shop park museum bakery".split(),
    "colour": "red blue green yellow white black brown orange".split(),
    "animal": "cat dog hen duck goose horse rabbit owl".split(),
    "kin": "mother father sister brother uncle aunt teacher baker".split(),
    "day": "Monday Tuesday Wednesday Thursday Friday Saturday Sunday".split(),
    "time": "in the morning,before lunch,in the evening,after work,at night,for one hour,every week".split(","),
}

# A story: an opening, then one to three middles or causes in any order. A cause can come before or after its effect.
OPENINGS = [
    "{A} went to the {place} on {day}.",
    "{A} lives near a small {place} with {his} {kin} and an old {animal}.",
    "On {day} {A} met {B} at the {place}.",
    "{A} and {his} {kin} took the bus to the {place}.",
    "Every {day} {A} works at the {place}.",
    "{A} lost {his} {colour} {thing} {time}.",
    "There was a {colour} {animal} in the {place}, and {A} saw it.",
]
MIDDLES = [
    "{He} bought a {thing}, some {things} and a {colour} {thing2}.",
    "{B} gave {him} the {colour} {thing}, so {he} was happy.",
    "{His} {kin} sold {things} and {things2} there {time}.",
    "The {animal} followed {him} to the {place} and back.",
    "{He} put the {things} into a {colour} box and the {things2} on the shelf.",
    "{He} shared half of the {things} with {B}.",
    "Then {he} and {B} cut the rope into equal pieces.",
    "{He} paid for the ticket, took the change and left.",
    "{B} picked twice as many {things}, but some of them were broken.",
    "{He} reads a book of many pages {time}.",
    "The children at the {place} like the {colour} {animal} more than the {thing}.",
    "{He} walked home {time}.",
    "{He} keeps hens, ducks and geese on the farm.",
    "No {things} were left, the rest was sent to the {place}.",
]
CAUSES = [
    ("it rained", "{he} stayed at home with {his} {kin}"),
    ("the {animal} was hungry", "{he} gave it some {things}"),
    ("the tank was empty", "{he} let water flow in for hours"),
    ("the {thing} broke", "{his} {kin} made a new one"),
    ("the {place} was far away", "{he} took the train"),
    ("it was dark", "{he} could not see the {colour} {thing}"),
    ("{he} had no money", "{he} sold {his} {thing}"),
    ("the jars were full", "{he} used an empty cup"),
    ("{his} team scored many points", "{he} was happy"),
    ("the roses were dry", "{he} gave them water"),
]
