"""Writes the files of an evaluation without running one."""

import json


def evaluation(folder, task, answers):
    """Write the files of `mmdora eval` for questions whose expected answer is `yes`; `answers` are (text, score)."""
    folder.mkdir(parents=True)
    rows = [
        {"id": str(i), "question": f"<b>{i}</b>?", "answer": "yes", "prediction": text, "score": score}
        for i, (text, score) in enumerate(answers)
    ]
    (folder / "predictions.jsonl").write_text("".join(json.dumps(row) + "\n" for row in rows))
    overall = {"score": 0.5, "n": len(rows), "interval95": [0.1, 0.9]}
    scores = {"task": task, "metric": "accuracy", "overall": overall, "by_type": {}}
    (folder / "metrics.json").write_text(json.dumps(scores))
    return rows


def graded(pattern):
    """Answers (text, score): a right one for each `+` in the pattern, and a wrong one for any other character."""
    return [("yes", 1.0) if mark == "+" else ("no", 0.0) for mark in pattern]
