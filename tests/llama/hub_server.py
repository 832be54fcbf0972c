"""A Hugging Face hub on this machine: the endpoints from which `huggingface_hub` downloads models."""

import dataclasses
import hashlib
import json
import threading
import urllib.parse
from http.server import BaseHTTPRequestHandler, ThreadingHTTPServer
from pathlib import Path


def commit(text: str) -> str:
    return hashlib.sha1(text.encode()).hexdigest()


@dataclasses.dataclass
class Hub:
    """Repositories, and what was asked for.

    Attributes:
      repos: folders by name and revision.
      gated: names for which a token must be given.
      moved: revisions that `main` has become, by name.
      sent: files whose contents were sent, as NAME/FILE.
    """

    repos: dict[tuple[str, str], Path]
    gated: dict[str, str] = dataclasses.field(default_factory=dict)
    moved: dict[str, str] = dataclasses.field(default_factory=dict)
    sent: list[str] = dataclasses.field(default_factory=list)
    url: str = ""

    def serve(self) -> ThreadingHTTPServer:
        server = ThreadingHTTPServer(("127.0.0.1", 0), type("Handler", (_Handler,), {"hub": self}))
        threading.Thread(target=server.serve_forever, daemon=True).start()
        self.url = f"http://127.0.0.1:{server.server_address[1]}"
        return server


class _Handler(BaseHTTPRequestHandler):
    hub: Hub
    protocol_version = "HTTP/1.1"

    def log_message(self, *_):
        pass

    def do_HEAD(self):
        self.answer()

    def do_GET(self):
        self.answer()

    def answer(self):
        words = urllib.parse.unquote(urllib.parse.urlparse(self.path).path).strip("/").split("/")
        api = words[:2] == ["api", "models"]
        words = words[2:] if api else words
        repo, kind, rest = "/".join(words[:2]), words[2] if len(words) > 2 else "revision", words[3:]
        revision = rest[0] if rest else "main"
        if revision == "main":
            revision = self.hub.moved.get(repo, revision)
        names = {r for n, r in self.hub.repos if n == repo}
        if not names:
            return self.send(404 if api else 401, {"X-Error-Code": "RepoNotFound"})
        found = next((r for r in names if revision in (r, commit(repo + r))), None)
        if found is None:
            return self.send(404, {"X-Error-Code": "RevisionNotFound"})
        folder, sha = self.hub.repos[repo, found], commit(repo + found)
        files = sorted(path for path in folder.rglob("*") if path.is_file())
        paths = [str(path.relative_to(folder)) for path in files]
        if api and kind == "revision":
            return self.send_json({"id": repo, "sha": sha, "siblings": [{"rfilename": path} for path in paths]})
        if api:  # tree
            tree = [
                {"type": "file", "path": path, "size": file.stat().st_size, "oid": commit(path)}
                for path, file in zip(paths, files, strict=True)
            ]
            return self.send_json(tree)
        if repo in self.hub.gated and self.headers["Authorization"] != f"Bearer {self.hub.gated[repo]}":
            return self.send(403 if self.headers["Authorization"] else 401, {"X-Error-Code": "GatedRepo"})
        name = "/".join(rest[1:])
        if name not in paths:
            return self.send(404, {"X-Error-Code": "EntryNotFound", "X-Repo-Commit": sha})
        body = (folder / name).read_bytes()
        if self.command == "GET":
            self.hub.sent.append(f"{repo}/{name}")
        tag = hashlib.sha1(body).hexdigest()
        self.send(200, {"X-Repo-Commit": sha, "ETag": f'"{tag}"'}, body)

    def send_json(self, value):
        self.send(200, {"Content-Type": "application/json"}, json.dumps(value).encode())

    def send(self, status, headers, body=b""):
        self.send_response(status)
        for name, value in headers.items():
            self.send_header(name, value)
        self.send_header("Content-Length", str(len(body)))
        self.end_headers()
        if self.command == "GET":
            self.wfile.write(body)
