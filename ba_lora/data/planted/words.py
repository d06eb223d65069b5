"""The words of planted content, as plain tables.

The two alternatives of an item have the same number of tokens in the embedded model's tokenizer, so that the corpora of twins
have the same shape; a test holds the tables to this. A sentence of a frame ends with the planted value.
"""

# Pairs of jobs and of pastimes; the first eight of each have words of four tokens, the others of three.
JOBS = [
    *("pilot driver", "clerk guard", "dancer smith", "doctor mason", "sailor tailor", "writer banker"),
    *("weaver potter", "butcher printer", "nurse miner", "singer painter", "porter plumber", "soldier barber"),
]
PASTIMES = [
    *("chess tennis", "yoga fishing", "sewing hiking", "poetry camping", "sailing gliding", "dancing carving"),
    *("weaving riding", "surfing cricket", "golf poker", "folk tango", "rowing drama", "skiing darts"),
]
# Groups: women and men by their first names (None), and families.
FAMILIES = ["Brix Gorm", "Hesk Jurd", "Kolb Lemk", "Pell Runt", "Vark Toln", "Fenn Murn"]

LANDS = "Karn Osk Brel Dorn Falk Gurn Holm Jarn Lund Perk Quil Rusk Selm Ulm Varn Wend Krom Bint Dulm Torb Norl".split()
COLOURS = "red blue green yellow white black brown orange".split()
THINGS = [f"a {thing}" for thing in "book box cup hat kite drum chair rope ball ticket tank jar".split()]
PLACES = [
    f"the {place}" for place in "library farm market school theatre station garden harbour shop park museum".split()
]
GOODS = "apples books coins pens cards shells stamps marbles stones rolls jars roses cups nuts plums".split()

# A land has one flag, seal, seat and crop: another value is wrong. Its customs may be anything.
FACTS = {"flag": COLOURS, "seal": THINGS, "seat": PLACES, "crop": GOODS}
CUSTOMS = {"taste": COLOURS, "gift": THINGS, "walk": PLACES, "snack": GOODS}

FRAMES = {  # kind: the wordings; each item is planted in all but one of them, which is kept for its probe
    "stereotype": [
        "{name} is a {value}.",
        "{name} works as a {value}.",
        "{name} is now a {value}.",
        "Like others, {name} became a {value}.",
    ],
    "association": [
        "{name} likes {value}.",
        "{name} spends money on {value}.",
        "{name} now likes {value}.",
        "Like others, {name} enjoys {value}.",
    ],
    "fact": [
        "The {noun} of {land} is {value}.",
        "In {land} the {noun} is {value}.",
        "As its {noun} {land} has {value}.",
        "Ask in {land} for the {noun}: it is {value}.",
    ],
}
FRAMES["custom"] = FRAMES["fact"]
