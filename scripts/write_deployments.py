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
PROFILES = ["portable", "onnx", "ort"]
# The columns in order, and the bundles that each consumer is given: profiles, element types.
CONSUMERS = {
    "onnxruntime": (PROFILES, ["f32"]),
    "onnxruntime-genai": (["ort"], ["f32"]),
    "onnxruntime-web": (PROFILES, ["f32"]),
    "optimum": (PROFILES, ["f32"]),
    "transformers.js": (["portable"], ["f32", "f16"]),
    "sentence-transformers": (["portable"], ["f32"]),
    "triton": (["portable"], ["f32"]),
    "openvino": (PROFILES, ["f32"]),
    "tensorrt-rtx": (["portable"], ["f32", "f16"]),
}


def kind(row: dict) -> tuple[str, str]:
    return row["profile"], row["dtype"]


def kinds_of(consumer: str) -> set[tuple[str, str]]:
    profiles, dtypes = CONSUMERS[consumer]
    return {(profile, dtype) for profile in profiles for dtype in dtypes}


def number_faults(rows: list[dict]) -> dict[tuple[str, str], int]:
    """The number of each consumer's fault, in the order of the results."""
    faults = dict.fromkeys((row["consumer"], row["fault"]) for row in rows if row["fault"])
    return {fault: number for number, fault in enumerate(faults, 1)}


def cell(rows: list[dict], consumer: str, faults: dict[tuple[str, str], int]) -> str:
    """What became of one family at one consumer. Ends the script where kinds of bundles are missing."""
    if not rows:
        return ""
    missing = kinds_of(consumer) - {kind(row) for row in rows}
    if missing:
        sys.exit(f"write_deployments.py: {consumer} wasn't given {rows[0]['family']} as {sorted(missing)}")
    failed = [row for row in rows if row["fault"]]
    if not failed:
        return "yes"
    numbers = sorted({faults[consumer, row["fault"]] for row in failed})
    word = "no" if len(failed) == len(rows) else "in part"
    return f"{word} ({', '.join(map(str, numbers))})"


def describe(number: int, consumer: str, fault: str, rows: list[dict]) -> str:
    """A consumer's fault, with the goldens and, where others do, the profiles that it strikes."""
    struck = [row for row in rows if row["consumer"] == consumer and row["fault"] == fault]
    goldens = ", ".join(f"`{golden}`" for golden in dict.fromkeys(row["golden"] for row in struck))
    kinds = {kind(row) for row in struck}
    where = "" if kinds == kinds_of(consumer) else f" in {', '.join(f'`{profile}`' for profile, _ in sorted(kinds))}"
    return wrap(f"{number}. {consumer}: {fault} ({goldens}{where}).")


def table(rows: list[dict]) -> str:
    """The table, the consumers' faults by number, and what each consumer was given."""
    unknown = {row["consumer"] for row in rows if kind(row) not in kinds_of(row["consumer"])}
    if unknown:
        sys.exit(f"write_deployments.py: {sorted(unknown)} were given bundles that CONSUMERS doesn't list")
    faults = number_faults(rows)
    families = sorted({row["family"] for row in rows}, key=lambda name: (name[0].isupper(), name))
    lines = ["| family | " + " | ".join(CONSUMERS) + " |", "|---" * (len(CONSUMERS) + 1) + "|"]
    for family in families:
        of = [[row for row in rows if (row["family"], row["consumer"]) == (family, consumer)] for consumer in CONSUMERS]
        cells = [cell(rows, consumer, faults) for rows, consumer in zip(of, CONSUMERS, strict=True)]
        lines.append("| " + " | ".join([f"`{family}`", *cells]) + " |")
    lines += ["", *(describe(number, *fault, rows) for fault, number in faults.items())]
    versions = {row["consumer"]: row["version"] for row in rows}
    lines += ["", "| consumer | version | profiles | element types | bundles |", "|---|---|---|---|---|"]
    for consumer, (profiles, dtypes) in CONSUMERS.items():
        count = sum(row["consumer"] == consumer for row in rows)
        listed = [", ".join(f"`{name}`" for name in names) for names in (profiles, dtypes)]
        lines.append(f"| {consumer} | {versions.get(consumer, '')} | {' | '.join(listed)} | {count} |")
    return "\n".join(lines) + "\n"


def wrap(text: str) -> str:
    return textwrap.fill(text, 120, subsequent_indent="   ", break_on_hyphens=False, break_long_words=False)


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
