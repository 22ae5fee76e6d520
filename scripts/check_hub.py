#!/usr/bin/env python3
"""Checks that dlc and huggingface_hub read the caches that the other wrote, against a server here.

  pip install huggingface_hub
  scripts/check_hub.py [DLC]
"""

import hashlib
import json
import os
import subprocess
import sys
import tempfile
import threading
from http.server import BaseHTTPRequestHandler, ThreadingHTTPServer
from pathlib import Path

ROOT = Path(__file__).resolve().parent.parent
MODEL = ROOT / "fixtures/tiny-llama"
REPOSITORY = "org/tiny"
COMMIT = "0123456789abcdef0123456789abcdef01234567"
FILES = {path.name: path.read_bytes() for path in sorted(MODEL.iterdir())}


def etag(name):
    """SHA-256 of large files, git's hash of others."""
    if name.endswith(".safetensors"):
        return hashlib.sha256(FILES[name]).hexdigest()
    return hashlib.sha1(b"blob %d\0" % len(FILES[name]) + FILES[name]).hexdigest()


class Hub(BaseHTTPRequestHandler):
    def log_message(self, *_):
        pass

    def answer(self, status, headers, body=b""):
        self.send_response(status)
        for name, value in {"Content-Length": str(len(body)), **headers}.items():
            self.send_header(name, value)
        self.end_headers()
        if self.command == "GET":
            self.wfile.write(body)

    def do_HEAD(self):
        self.do_GET()

    def do_GET(self):
        path = self.path.split("?")[0]
        name = path.rsplit("/", 1)[-1]
        if path.startswith(f"/api/models/{REPOSITORY}/revision/"):
            siblings = [{"rfilename": name} for name in FILES]
            self.answer(200, {}, json.dumps({"id": REPOSITORY, "sha": COMMIT, "siblings": siblings}).encode())
        elif path.startswith(f"/{REPOSITORY}/resolve/") and name in FILES:
            headers = {"X-Repo-Commit": COMMIT, "ETag": f'"{etag(name)}"'}
            if name.endswith(".safetensors"):
                size = str(len(FILES[name]))
                headers |= {"X-Linked-Etag": f'"{etag(name)}"', "X-Linked-Size": size, "ETag": '"pointer"'}
                self.answer(302, headers | {"Location": f"http://localhost:{self.server.server_port}/content/{name}"})
            else:
                self.answer(200, headers, FILES[name])
        elif path.startswith("/content/"):
            self.answer(200, {}, FILES[name])
        else:
            self.answer(404, {"X-Error-Code": "EntryNotFound"})


def run(command, home, **variables):
    environment = os.environ | {"HF_HOME": str(home), "HF_HUB_DISABLE_TELEMETRY": "1"} | variables
    done = subprocess.run(command, env=environment, capture_output=True, text=True)
    if done.returncode != 0:
        sys.exit(f"{command}: exit {done.returncode}\n{done.stdout}\n{done.stderr}")
    return done.stdout


def tree(home):
    """Links and files of the repository in the cache, but for notes of what there isn't."""
    folder = home / "hub/models--org--tiny"
    entries = {}
    for path in folder.rglob("*"):
        name = path.relative_to(folder).as_posix()
        if path.is_symlink():
            entries[name] = f"-> {os.readlink(path)}"
        elif path.is_file() and not name.startswith((".no_exist/", "trees/")):
            entries[name] = hashlib.sha256(path.read_bytes()).hexdigest()
    return entries


DOWNLOAD = "import sys; from huggingface_hub import hf_hub_download\nfor name in sys.argv[1:]: hf_hub_download('org/tiny', name)"
READ = """
import sys
from huggingface_hub import scan_cache_dir, hf_hub_download, try_to_load_from_cache, _CACHED_NO_EXIST
for name in sys.argv[1:]:
    print(hf_hub_download('org/tiny', name, local_files_only=True))
assert try_to_load_from_cache('org/tiny', 'vocab.json') is _CACHED_NO_EXIST
found = scan_cache_dir()
assert not found.warnings, found.warnings
assert [(r.repo_id, r.nb_files, sorted(r.refs)) for r in found.repos] == [('org/tiny', len(sys.argv) - 1, ['main'])]
"""


def main():
    dlc = sys.argv[1] if len(sys.argv) > 1 else str(ROOT / "target/debug/dlc")
    server = ThreadingHTTPServer(("127.0.0.1", 0), Hub)
    threading.Thread(target=server.serve_forever, daemon=True).start()
    online = {"HF_ENDPOINT": f"http://127.0.0.1:{server.server_port}"}
    with tempfile.TemporaryDirectory() as folder:
        ours, theirs = Path(folder, "ours"), Path(folder, "theirs")
        run([dlc, "inspect", REPOSITORY], ours, **online)
        run([sys.executable, "-c", DOWNLOAD, *FILES], theirs, **online)
        assert tree(ours) == tree(theirs), f"{tree(ours)}\n{tree(theirs)}"
        print("both write the same cache")
        paths = run([sys.executable, "-c", READ, *FILES], ours, HF_HUB_OFFLINE="1").split()
        assert all(Path(path).read_bytes() == FILES[Path(path).name] for path in paths) and len(paths) == len(FILES)
        print("huggingface_hub reads what dlc wrote")
        run([dlc, "inspect", REPOSITORY], theirs, HF_HUB_OFFLINE="1")
        run([dlc, "inspect", REPOSITORY], theirs, **online)
        print("dlc reads what huggingface_hub wrote")


if __name__ == "__main__":
    main()
