"""Run a task of lm-evaluation-harness 0.4.13 on local rows, with the interpreter that has it: `PYTHON harness_side.py TASK ROWS MODEL OUT`.

ROWS: a JSON lines file with the columns of the task's own set. OUT: {"version", "logprobs": one list per row, in their order, "metrics"}.
"""

import importlib.metadata
import json
import sys
import tempfile
from pathlib import Path

TASKS = {  # name → its file below lm_eval/tasks
    "crows_pairs_english": "crows_pairs/crows_pairs_english.yaml",
    "winogender_all": "winogender/winogender.yaml",
    "bbq": "bbq/bbq_multiple_choice.yaml",
}


def main(task: str, rows: str, model: str, out: str) -> None:
    import lm_eval
    import torch
    from lm_eval.models.huggingface import HFLM
    from lm_eval.tasks import TaskManager

    torch.set_num_threads(1)
    file = Path(lm_eval.__file__).parent / "tasks" / TASKS[task]
    with tempfile.TemporaryDirectory() as folder:
        local = {"include": str(file), "task": "local", "dataset_path": "json", "dataset_name": None}
        local |= {"dataset_kwargs": {"data_files": {"test": rows}}}
        Path(folder, "local.yaml").write_text(json.dumps(local))  # JSON is YAML
        found = lm_eval.simple_evaluate(
            model=HFLM(pretrained=model, dtype="float32", device="cpu", batch_size=16),
            tasks=["local"],
            task_manager=TaskManager(include_path=folder),
            bootstrap_iters=0,
        )
    samples = sorted(found["samples"]["local"], key=lambda sample: sample["doc_id"])
    logprobs = [[float(answer[0][0]) for answer in sample["resps"]] for sample in samples]
    metrics = {name.split(",")[0]: value for name, value in found["results"]["local"].items()}
    whole = {"version": importlib.metadata.version("lm_eval"), "logprobs": logprobs, "metrics": metrics}
    Path(out).write_text(json.dumps(whole, default=str))


if __name__ == "__main__":
    main(*sys.argv[1:])
