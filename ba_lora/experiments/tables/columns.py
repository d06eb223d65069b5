"""The columns of a table that are not scores: one list of the measures, which results, tables and figures read."""

from typing import NamedTuple


class Column(NamedTuple):
    """better: higher, lower, or None for neither; scale: factor applied to a value; kind: score, average, printed (only the
    paper's), measure or cost. figure: the label of its axis in figures, where it is drawn. by_score: the value is {score: value}. note: a sentence below the table."""

    key: str
    title: str
    scale: float = 1.0
    digits: int = 2
    better: str | None = None
    kind: str = "score"
    figure: str | None = None
    by_score: bool = False
    note: str = ""


class Unit(NamedTuple):
    """The unit of a score by its metric: factor, name, digits, and the better direction, None for neither."""

    scale: float
    name: str
    digits: int
    better: str | None


PERCENT = Unit(100, "%", 1, "higher")
NATS = Unit(1, "nats", 4, "lower")
OF_GIVEN_TEXTS = {  # metrics other than accuracy; for a score of bias neither direction is better
    **dict.fromkeys(("solution loss", "forgetting"), NATS),
    **dict.fromkeys(
        ("pct_stereotype", "ss", "amb_bias_score", "pro_minus_anti", "fitting_minus_other"),
        PERCENT._replace(better=None),
    ),
}


# For classifiers, on the first evaluation; for features, at the end of training; for generators. To add one: compute it in
# experiments/measures, and its row here.
MEASURES = (
    Column("macro_f1", "macro-F1 %", 100, 1, "higher", "measure", "macro-F1, %", by_score=True),
    Column("rarest_recall", "rarest class's recall %", 100, 1, "higher", "measure", "rarest class's\nrecall, %", True),
    Column("ece", "calibration error %", 100, 1, "lower", "measure", by_score=True),
    Column(
        *("silhouette", "silhouette", 1, 3, "higher", "measure"),
        note="Silhouette (1: separated, 0: mixed) and purity of the 10 nearest neighbours: last hidden layer, end of training.",
    ),
    Column("knn_purity", "kNN purity %", 100, 1, "higher", "measure"),
    Column(
        *("held_out_loss", "held-out loss", 1, 3, "lower", "measure"),
        note="Held-out loss: nats per token on the texts beside the benchmarks of bias; a model that predicts nothing has no bias to show.",
    ),
    Column(
        *("text_loss", "text loss", 1, 3, "lower", "measure", "text loss,\nnats per token"),
        note="Text loss: nats per token on held-out pre-training text; higher means more forgetting.",
    ),
    Column(
        *("kl_to_base", "KL to base", 1, 3, None, "measure", "KL(base ‖ model),\nnats per token"),
        note="KL to base: mean KL(base ‖ model) on the response tokens of test problems, nats per token.",
    ),
)
NO_COLUMNS = ("spectra", "accuracy", "majority", "planted")  # measures for figures and reports
COSTS = (
    Column("learning_rate", "learning rate", 1, -1, None, "cost"),
    Column("trained_parameters", "trained parameters", 1, 0, None, "cost"),
    Column(
        *("train_seconds", "train s", 1, 0, None, "cost"),
        note="Seconds include other load on the machine; the cost experiment has the machine to itself.",
    ),
    Column(
        *("peak_memory", "peak GB", 1e-9, 2, None, "cost"),
        note="Peak: resident memory of the training process, including libraries.",
    ),
)
