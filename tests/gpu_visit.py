"""One short visit to a CUDA machine: every GPU check, the whole benchmark, one folder of results.

    python tests/gpu_visit.py results            all of it: minutes
    python tests/gpu_visit.py results --quick    the tests, and the benchmark's main sizes

Writes mish.csv (every row), mish.md (a Markdown table of the same) and the logs tests.txt and
benchmark.txt. Without CUDA the tests that need it are skipped and nothing is timed.
"""

import argparse
import csv
import subprocess
import sys
from pathlib import Path

ROOT = Path(__file__).resolve().parent.parent


def run(log, *command):
    """Exit status of a Python command, whose output goes to the log as well as to the screen."""
    streams = {"stdout": subprocess.PIPE, "stderr": subprocess.STDOUT}
    process = subprocess.Popen([sys.executable, *command], cwd=ROOT, text=True, **streams)
    with open(log, "w") as file:
        for line in process.stdout:
            print(line, end="", flush=True)
            file.write(line)
    return process.wait()


def markdown(path):
    """The CSV as a table; rows in which we lose to eager are marked."""
    if not path.exists():
        return "No CUDA device: no timing was made.\n"
    with open(path, newline="") as file:
        rows = list(csv.DictReader(file))
    about = rows[0]["about"]
    keys = [key for key in rows[0] if key != "about"]
    lines = [about, "", "| " + " | ".join(keys) + " |", "|" + " --- |" * len(keys)]
    for row in rows:
        slower = row["provider"].startswith("fused") and float(row["x eager"]) < 1
        cells = [row[key] + " (slower)" * (slower and key == "x eager") for key in keys]
        lines.append("| " + " | ".join(cells) + " |")
    return "\n".join(lines) + "\n"


def main():
    parser = argparse.ArgumentParser(description=__doc__.splitlines()[0])
    parser.add_argument("folder", type=Path, help="for the results; made if missing")
    parser.add_argument("--quick", action="store_true", help="the benchmark's main sizes only")
    args = parser.parse_args()
    folder = args.folder.resolve()
    folder.mkdir(parents=True, exist_ok=True)
    table = folder / "mish.csv"
    table.unlink(missing_ok=True)
    tests = ["-m", "pytest", "-q", "-rs", "-p", "no:cacheprovider", "-k", "cuda"]
    tested = run(folder / "tests.txt", *tests, "tests/test_mish_kernel.py")
    quick = ["--quick"] if args.quick else []
    timed = run(folder / "benchmark.txt", "mish_kernel.py", "--csv", str(table), *quick)
    (folder / "mish.md").write_text(markdown(table))
    print(f"tests: exit {tested}, benchmark: exit {timed}; results in {folder}")
    return int(tested != 0 or timed != 0)


if __name__ == "__main__":
    raise SystemExit(main())
