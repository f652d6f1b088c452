"""A small hub on localhost. It serves repositories of data sets and models with the needed part of the hub's protocol.

python hub_server.py <folder with owner/name/...>      prints its address, then serves until stopped
"""

import hashlib
import json
import sys
from http.server import BaseHTTPRequestHandler, ThreadingHTTPServer
from pathlib import Path
from urllib.parse import parse_qs, unquote, urlsplit

COMMIT = "a" * 40


class Hub(BaseHTTPRequestHandler):
    protocol_version = "HTTP/1.1"
    root = Path(sys.argv[1])

    def do_GET(self):
        url = urlsplit(self.path)
        parts = unquote(url.path).strip("/").split("/")
        body = self.rfile.read(int(self.headers.get("Content-Length") or 0))
        api = parts[0] == "api"
        named = parts[2:] if api else parts[parts[0] == "datasets" :]  # a model's path has no such part
        owner, name, *rest = [*named, "", ""]
        repository = self.root / owner / name
        if not (owner and name and repository.is_dir()):
            return self.answer(404, {"X-Error-Code": "RepoNotFound"})
        action, *rest = rest[:-2] or ["revision"]
        path = repository.joinpath(*(rest[3:] if rest[:1] == ["refs"] else rest[1:]))  # after the revision
        if action == "resolve" and path.is_file():
            content = path.read_bytes()
            return self.answer(
                200, {"ETag": f'"{hashlib.sha1(content).hexdigest()}"', "X-Repo-Commit": COMMIT}, content
            )
        if action == "tree" and path.is_dir():
            paths = path.rglob("*") if parse_qs(url.query).get("recursive") == ["true"] else path.iterdir()
            return self.answer_json([self.entry(repository, p) for p in paths])
        if action == "paths-info":
            wanted = [repository / p for p in json.loads(body)["paths"]]
            return self.answer_json([self.entry(repository, p) for p in wanted if p.exists()])
        if action == "revision":
            return self.answer_json({"id": f"{owner}/{name}", "sha": COMMIT, "siblings": [], "tags": []})
        return self.answer(404, {"X-Error-Code": "EntryNotFound", "X-Repo-Commit": COMMIT})

    do_HEAD = do_POST = do_GET

    def entry(self, repository, path):
        kind = {"type": "directory"} if path.is_dir() else {"type": "file", "size": path.stat().st_size}
        return {
            "path": path.relative_to(repository).as_posix(),
            "oid": hashlib.sha1(path.name.encode()).hexdigest(),
            **kind,
        }

    def answer_json(self, value):
        self.answer(200, {"Content-Type": "application/json"}, json.dumps(value).encode())

    def answer(self, status, headers, body=b""):
        self.send_response(status)
        for name, value in {**headers, "Content-Length": str(len(body))}.items():
            self.send_header(name, value)
        self.end_headers()
        if self.command != "HEAD":
            self.wfile.write(body)

    def log_message(self, *args):
        pass


if __name__ == "__main__":
    server = ThreadingHTTPServer(("127.0.0.1", 0), Hub)
    print(f"http://127.0.0.1:{server.server_port}", flush=True)
    server.serve_forever()
