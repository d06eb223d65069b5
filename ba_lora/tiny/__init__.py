"""The embedded model: about 2M parameters, Llama architecture, trained from scratch by `recipe.py`.

`MODEL_DIR` opens with AutoModelForCausalLM and AutoTokenizer like any other folder. The tokenizer is a byte-level BPE: it
encodes any text, and a digit is always one token. It adds no beginning-of-sequence token; `<s>` is only reserved. Training
appends `</s>` to each response, and generation stops there.
"""

from pathlib import Path

MODEL_DIR = Path(__file__).parent / "model"
CHECKSUMS = Path(__file__).parent / "checksums.json"  # of the files in MODEL_DIR
