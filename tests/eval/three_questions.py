"""Three questions of MT-Bench in a folder, their answers, and a scripted judge's ratings of them."""

import json
from pathlib import Path

from eval.mt_bench import main
from tests.eval.json_lines import write
from tests.eval.judging.scripted_judge import ScriptedJudge, serve

TEXTS = {  # each names its turn, so that a script can distinguish them
    "single-v1": "turn 1\nQ: {question}\nA: {answer}",
    "single-math-v1": "turn 1\nQ: {question}\nR: {ref_answer_1}\nA: {answer}",
    "single-v1-multi-turn": "turn 2\nQ: {question_1}\nA: {answer_1}\nQ: {question_2}\nA: {answer_2}",
    "single-math-v1-multi-turn": "turn 2\nR: {ref_answer_1} {ref_answer_2}\nQ: {question_2}\nA: {answer_2}",
}
QUESTIONS = [
    {"question_id": 81, "category": "writing", "turns": ["Write a poem.", "Make it short."]},
    {"question_id": 111, "category": "math", "turns": ["2 + 3?", "And + 1?"]},
    {"question_id": 141, "category": "stem", "turns": ["What is heat?", "And cold?"]},
]
ANSWERS = [
    {"id": question["question_id"], "turn": turn, "completion": f" answer {question['question_id']}-{turn} "}
    for question in QUESTIONS
    for turn in (1, 2)
]


def write_folder(folder, questions=QUESTIONS):
    write(folder / "question.jsonl", questions)
    prompts = [{"name": name, "system_prompt": "s", "prompt_template": text} for name, text in TEXTS.items()]
    write(folder / "judge_prompts.jsonl", prompts)
    answer = {"question_id": 111, "choices": [{"turns": ["five", "six"]}]}
    write(folder / "reference_answer" / "gpt-4.jsonl", [answer])
    return str(folder)


def rating(body):
    """The scripted judge's rating: 8 for the first turn, 5 for the second, 2 less in math."""
    text = body["messages"][-1]["content"]
    return (8 if text.startswith("turn 1") else 5) - 2 * ("R:" in text)


def rate(body, nth=1):
    return f"Fine. Rating: [[{rating(body)}]]"


def run(judge, *arguments):
    """Run the command with a scripted judge; return its score."""
    with serve(judge) as url:
        assert main([*arguments, "--judge", "scripted", "--judge_url", url]) == 0
    return json.loads((Path(arguments[arguments.index("--output_dir") + 1]) / "score.json").read_text())


def rescore(tmp_path, data, script=rate, answers=ANSWERS, *options):
    source, judge = write(tmp_path / "given.jsonl", answers), ScriptedJudge(script)
    score = run(judge, "--rescore", source, "--data", data, "--output_dir", str(tmp_path / "out"), *options)
    return score, judge
