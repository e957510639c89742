"""gpu_visit: what hangs or fails in a part is seen in the output. All of it runs without a GPU."""

import csv
import re
import signal

import gpu_visit
import pytest

HANG = """
import time

def waits_forever():
    print("it begins")
    time.sleep(600)

waits_forever()
"""
STUBBORN = """
import signal, time
signal.signal(signal.SIGINT, signal.SIG_IGN)
signal.signal(signal.SIGABRT, signal.SIG_IGN)
print("it begins", flush=True)
time.sleep(600)
"""
FAIL = "def broken():\n    raise ValueError('a planted failure')\n\nbroken()"
ROW = ["head", "fp16", "64x2048", "fwd", "graph", "fused", "4.5", "4.4", "4.6", "0.9", "512", "0.2"]


@pytest.fixture
def visit(tmp_path, monkeypatch, capsys, signals):
    """Runs these parts, name -> (limit, program), and gives the exit status and the output."""
    monkeypatch.setattr(gpu_visit, "GRACE", {signal.SIGINT: 0.3, signal.SIGABRT: 0.3})

    def run(**programs):
        parts = {name: (limit, ["-c", code]) for name, (limit, code) in programs.items()}
        monkeypatch.setattr(gpu_visit, "PARTS", {"smoke": (20, ["-c", "print('well')"])} | parts)
        code = gpu_visit.main([str(tmp_path / "results")])
        assert len(list((tmp_path / "results").rglob("*"))) <= 6
        return code, capsys.readouterr().out

    return run


def test_where_a_part_hangs_is_shown_and_the_next_one_runs(visit, tmp_path):
    code, out = visit(tiles=(0.5, HANG), step=(20, "print('train.py is fast')"))
    assert code == 1
    assert "tiles ended: stopped at its limit" in out and "step: exit 0" in out
    table = out[out.index("smoke: exit 0") :]
    assert "line 6, in waits_forever" in table and "KeyboardInterrupt" in table
    assert "train.py is fast" in table
    log = (tmp_path / "results" / "log.txt").read_text()
    assert "it begins" in log and "line 8, in <module>" in log


def test_a_hang_outside_python_is_shown(visit):
    """SIGINT is not answered there; faulthandler answers SIGABRT."""
    deaf = "import signal\nsignal.signal(signal.SIGINT, lambda *_: None)\n"
    code, out = visit(tiles=(0.5, deaf + HANG))
    assert code == 1 and "KeyboardInterrupt" not in out
    assert "in waits_forever" in out[out.index("smoke: exit 0") :]


def test_a_part_that_ignores_signals_is_killed(visit):
    code, out = visit(tiles=(0.5, STUBBORN), step=(20, ""))
    assert code == 1
    assert re.search("tiles: stopped at its limit after [12] s", out) and "step: exit 0" in out


def test_processes_of_a_part_end_with_it(visit, tmp_path):
    late = f"import time; time.sleep(0.5); open({str(tmp_path / 'mark')!r}, 'w')"
    starts = f"import subprocess, sys; subprocess.Popen([sys.executable, '-c', {late!r}])"
    code, _ = visit(tiles=(20, starts), step=(20, "import time; time.sleep(0.8)"))
    assert code == 0 and not (tmp_path / "mark").exists()


def test_why_a_part_failed_is_shown(visit):
    code, out = visit(tiles=(20, FAIL), step=(20, "print('train.py is fast')"))
    assert code == 1 and "tiles: exit 1 after" in out and "step: exit 0" in out
    assert "ValueError: a planted failure" in out[out.index("smoke: exit 0") :]


def test_nothing_runs_after_a_failed_smoke_test(visit):
    code, out = visit(smoke=(20, FAIL), tiles=(20, "print('fwd as chosen')"))
    assert code == 1 and "tiles" not in out
    assert "smoke: exit 1" in out and "ValueError: a planted failure" in out


def test_no_part_begins_after_the_deadline(visit, monkeypatch):
    monkeypatch.setattr(gpu_visit, "SECONDS", 2)  # of which the grace takes 0.6
    code, out = visit(tiles=(20, HANG), step=(20, ""))
    assert code == 1
    assert "tiles begins, with a limit of 1 s" in out
    assert "step is skipped" in out and "step: skipped" in out


def test_the_table_holds_a_flood(tmp_path):
    rows = tmp_path / "rows.csv"
    with open(rows, "w", newline="") as file:
        writer = csv.writer(file)
        writer.writerow(gpu_visit.mk.COLUMNS)
        for i in range(500):
            writer.writerow([*ROW[:2], f"{i}x2048", *ROW[3:]])
    failed = "".join(f"FAILED tests/test_x.py::test_{i} - {'assert 1 ' * 90}\n" for i in range(300))
    lines = "".join(f"fwd {i}: 4.5 us\n" for i in range(500))
    results = [gpu_visit.Result(name, "exit 1", 60, failed + lines) for name in gpu_visit.PARTS]
    table = gpu_visit.table(results, rows)

    assert 8000 < len(table) <= gpu_visit.CHARACTERS
    assert "head 0x2048 fp16 fused: 4.5 0.9x! | - | - | -" in table
    assert "FAILED tests/test_x.py::test_0 - assert 1" in table and "fwd 0: 4.5 us" in table
    for file in ("rows.csv", "log.txt"):
        assert f"lines more, which are in {file}" in table


def test_failed_tests_and_rows_that_failed_are_shown(tmp_path):
    rows = tmp_path / "rows.csv"
    rows.write_text(",".join(gpu_visit.mk.COLUMNS) + "\n")
    summary = "FAILED tests/test_x.py::test_y - assert 2 == 1\n1 failed, 3 passed in 2.1s\n"
    results = [
        gpu_visit.Result("tests", "exit 1", 2, f"....F\n{summary}"),
        gpu_visit.Result("fused", "exit 0", 2, "head fp16 (64, 2048) fwd wall fused failed: E()\n"),
    ]
    lines = gpu_visit.table(results, rows).splitlines()
    assert lines.count("FAILED tests/test_x.py::test_y - assert 2 == 1") == 1
    assert "1 failed, 3 passed in 2.1s" in lines
    assert "head fp16 (64, 2048) fwd wall fused failed: E()" in lines


def test_steps_of_the_smoke_test_that_a_cpu_can_make():
    assert "100000 elements" in gpu_visit.masks("cpu")
    assert "the same bits" in gpu_visit.repeats("cpu", 2)
    assert "at most 2e-3" in gpu_visit.heads("cpu", (2,))


def test_another_tile_is_timed_and_taken_back(monkeypatch, capsys):
    seen = []

    def timed(step, inputs, clock):
        seen.append(options.copy())
        if options["BM"] == 16:
            raise RuntimeError("out of resources")
        return [4.5, 4.4, 4.6]

    monkeypatch.setattr(gpu_visit.mk, "timed", timed)
    options = {"BM": 32}
    gpu_visit.try_tiles("fwd", None, [], options, [{}, {"BM": 16}, {"PDL": True}])
    assert options == {"BM": 32} and seen[1:] == [{"BM": 16}, {"BM": 32, "PDL": True}]
    lines = capsys.readouterr().out.splitlines()
    assert lines[0] == "fwd as chosen: 4.50 us (4.40 to 4.60)" and "out of resources" in lines[1]


def test_parts_that_do_not_exist_are_refused(tmp_path):
    with pytest.raises(SystemExit, match="2"):
        gpu_visit.main([str(tmp_path), "nothing"])
