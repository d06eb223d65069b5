# The types of the public names, which __init__.py loads on first use.
from .methods.attach import attach as attach
from .methods.reference import reference as reference
from .methods.save import export as export
from .methods.save import load as load
from .methods.teacher import teacher as teacher
from .objective.settings import Objective as Objective
from .training.callbacks import ObjectiveCallback as ObjectiveCallback
from .training.objective_model import ObjectiveModel as ObjectiveModel
from .training.trainer import BALoRATrainer as BALoRATrainer

__version__: str
