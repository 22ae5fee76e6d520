#!/usr/bin/env python3
"""Write the table of docs/deployment.md from the results of the scripts that load bundles with other libraries.

    python3 scripts/write_deployments.py RESULTS [--check]

RESULTS is the file that those scripts were given as --results. The table replaces what stands under the heading
"Results". With --check nothing is written: the exit status says whether the table is that of the results.

Exit status: 0 written, or the same; 1 another table, 2 bad usage.
"""

import argparse
import json
import pathlib
import sys
import textwrap

PAGE = pathlib.Path(__file__).parent.parent / "docs" / "deployment.md"
HEADING = "## Results\n"
# Columns in order: consumer, profile, element type.
COLUMNS = [
    *[("optimum", profile, "f32") for profile in ("portable", "onnx", "ort")],
    *[("transformers.js", "portable", dtype) for dtype in ("f32", "f16")],
    ("sentence-transformers", "portable", "f32"),
    ("triton", "portable", "f32"),
    *[("openvino", profile, "f32") for profile in ("portable", "onnx", "ort")],
    *[("tensorrt-rtx", "portable", dtype) for dtype in ("f32", "f16")],
]


def table(rows: list[dict]) -> str:
    """The table, the consumers' faults by number, and their versions."""
    faults: dict[tuple[str, str], int] = {}
    cells: dict[tuple[str, tuple], str] = {}
    for row in rows:
        place = (row["family"], (row["consumer"], row["profile"], row["dtype"]))
        if place[1] not in COLUMNS:
            sys.exit(f"write_deployments.py: there is no column for {place[1]}")
        if row["fault"]:
            number = faults.setdefault((row["consumer"], row["fault"]), len(faults) + 1)
            cells[place] = f"no ({number})"
        cells.setdefault(place, "yes")
    families = sorted({family for family, _ in cells}, key=lambda name: (name[0].isupper(), name))
    lines = ["| family | " + " | ".join(" ".join(column) for column in COLUMNS) + " |", "|---" * (len(COLUMNS) + 1) + "|"]
    for family in families:
        lines.append("| " + " | ".join([f"`{family}`", *(cells.get((family, column), "") for column in COLUMNS)]) + " |")
    lines += ["", *(wrap(f"{number}. {consumer}: {fault}.") for (consumer, fault), number in faults.items())]
    versions = sorted({f"{row['consumer']} {row['version']}" for row in rows})
    return "\n".join([*lines, "", wrap(f"Versions: {', '.join(versions)}.")]) + "\n"


def wrap(text: str) -> str:
    return textwrap.fill(text, 120, subsequent_indent="   " if text[0].isdigit() else "", break_on_hyphens=False)


def main() -> int:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("results", type=pathlib.Path, metavar="RESULTS", help="lines of JSON")
    parser.add_argument("--check", action="store_true", help="compare instead of writing")
    arguments = parser.parse_args()
    rows = [json.loads(line) for line in arguments.results.read_text(encoding="utf-8").splitlines()]
    page = PAGE.read_text(encoding="utf-8")
    before, heading, after = page.partition(HEADING)
    if not heading:
        parser.error(f"{PAGE} has no heading {HEADING.strip()!r}")
    _, following, rest = after.partition("\n## ")
    new = before + heading + "\n" + table(rows) + following + rest
    if arguments.check and new != page:
        print(f"write_deployments.py: {PAGE.name} has another table; run it without --check", file=sys.stderr)
        return 1
    if not arguments.check:
        PAGE.write_text(new, encoding="utf-8")
    return 0


if __name__ == "__main__":
    sys.exit(main())
