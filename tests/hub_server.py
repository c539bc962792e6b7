"""A Hugging Face Hub on this machine, for tests: repositories with commits, branches and tokens, and failures on purpose.

It answers what huggingface_hub and transformers ask for when they read: `/api/models/REPO[/revision/REV]`, `tree`,
`paths-info`, and `/REPO/resolve/REV/FILE` with the Hub's headers. What they upload becomes a commit (`messages`). Large files are redirected to another host, as the Hub
redirects to its storage. Data sets are repositories whose names begin with "datasets/".

    with HubServer() as hub:
        commit = hub.commit("owner/name", {"config.json": b"{}"})
        hub.fail("/resolve/.*model.safetensors", status=503)
"""

import base64
import hashlib
import json
import os
import re
import socket
import threading
from dataclasses import dataclass, field
from http.server import BaseHTTPRequestHandler, ThreadingHTTPServer
from pathlib import Path
from urllib.parse import parse_qs, unquote, urlsplit

LARGE = (".safetensors", ".bin", ".h5", ".msgpack", ".parquet")  # what the Hub keeps in its storage


@dataclass
class Repository:
    commits: dict[str, dict[str, bytes]] = field(default_factory=dict)  # commit → name → content
    branches: dict[str, str] = field(default_factory=dict)  # branch or tag → commit
    access: str = "public"  # or "private", "gated"
    messages: dict[str, str] = field(default_factory=dict)  # commit that was uploaded → its first line


@dataclass
class Failure:
    """Requests whose method and path match are answered badly.

    Attributes:
        status: this status instead of the answer.
        cut: the connection breaks after so many bytes of the answer's body.
        hang: no answer until the server ends.
        times: so many requests only.
    """

    pattern: str
    status: int | None = None
    cut: int | None = None
    hang: bool = False
    times: int | None = None


class HubServer:
    """Attributes: `url`; `requests`, "METHOD path" of each that came; `tokens`, those that may read everything."""

    def __init__(self):
        self.repositories: dict[str, Repository] = {}
        self.requests: list[str] = []
        self.tokens: set[str] = set()
        self._failures: list[Failure] = []
        self._lock, self.ended = threading.Lock(), threading.Event()
        self._server = ThreadingHTTPServer(("127.0.0.1", 0), type("Handler", (_Handler,), {"hub": self}))
        self._server.daemon_threads = True
        self.port = self._server.server_address[1]
        self.url = f"http://127.0.0.1:{self.port}"

    def __enter__(self) -> "HubServer":
        threading.Thread(target=self._server.serve_forever, kwargs={"poll_interval": 0.02}, daemon=True).start()
        return self

    def __exit__(self, *error) -> None:
        self.ended.set()
        self._server.shutdown()
        self._server.server_close()

    def commit(
        self, repo: str, files: dict[str, bytes] | str | os.PathLike, branch: str = "main", access: str = "public"
    ):
        """Makes `files`, or those of a folder, the state of a branch; returns the commit."""
        if not isinstance(files, dict):
            folder = Path(files)
            paths = [path for path in folder.rglob("*") if path.is_file()]
            files = {path.relative_to(folder).as_posix(): path.read_bytes() for path in paths}
        repository = self.repositories.setdefault(repo, Repository())
        name = hashlib.sha1(f"{repo} {branch} {len(repository.commits)}".encode()).hexdigest()
        repository.commits[name], repository.branches[branch], repository.access = dict(files), name, access
        return name

    def fail(self, pattern: str, **how) -> None:
        self._failures.append(Failure(pattern, **how))

    def works_again(self) -> None:
        self._failures.clear()

    def count(self, pattern: str) -> int:
        """Requests so far that match."""
        return sum(bool(re.search(pattern, request)) for request in self.requests)

    def failure(self, request: str) -> Failure | None:
        """Notes a request, and says how it is to fail."""
        with self._lock:
            self.requests.append(request)
            for failure in self._failures:
                if failure.times != 0 and re.search(failure.pattern, request):
                    failure.times = None if failure.times is None else failure.times - 1
                    return failure
        return None


class _Handler(BaseHTTPRequestHandler):
    hub: HubServer
    protocol_version = "HTTP/1.1"

    def log_message(self, *arguments) -> None:
        pass

    def do_HEAD(self) -> None:
        self._answer()

    def do_GET(self) -> None:
        self._answer()

    def do_POST(self) -> None:
        self._answer()

    def _answer(self) -> None:
        self._body = self.rfile.read(int(self.headers.get("Content-Length") or 0))
        self._failure = self.hub.failure(f"{self.command} {self.path}")
        if self._failure and self._failure.hang:
            self.hub.ended.wait()
            self.close_connection = True
            return
        if self._failure and self._failure.status:
            self._send(self._failure.status, b"failed on purpose", {"Content-Type": "text/html"})
            return
        path = unquote(urlsplit(self.path).path)
        if self.command == "POST" and self._upload(path):
            return
        if path == "/api/whoami-v2":
            known = (self.headers.get("Authorization") or "").removeprefix("Bearer ") in self.hub.tokens
            self._json({"name": "me"}) if known else self._refuse(401, None, "Invalid username or password.")
        elif match := re.fullmatch(r"/storage/(\w+)", path):
            self._content(self._stored(match[1]), {"ETag": f'"{match[1]}"'})
        elif match := re.fullmatch(
            r"/api/(models|datasets)/([^/]+/[^/]+)(?:/(revision|tree|paths-info)/([^/]+)(/.*)?)?", path
        ):
            kind, repo, what, revision, folder = match.groups()
            self._describe(repo if kind == "models" else f"datasets/{repo}", what, revision, (folder or "").strip("/"))
        elif match := re.fullmatch(r"/((?:datasets/)?[^/]+/[^/]+)/resolve/([^/]+)/(.+)", path):
            self._file(*match.groups())
        else:
            self._send(404, b"")

    def _upload(self, path: str) -> bool:
        """Whether it is a request to write: of a token that the Hub knows, or else it is refused."""
        match = re.fullmatch(r"/api/models/([^/]+/[^/]+)/(preupload|commit)/([^/]+)", path)
        if not match and path not in ("/api/repos/create", "/api/validate-yaml"):
            return False
        if (self.headers.get("Authorization") or "").removeprefix("Bearer ") not in self.hub.tokens:
            self._refuse(401, None, "Invalid username or password.")
        elif path == "/api/validate-yaml":
            self._json({"errors": [], "warnings": []})
        elif path == "/api/repos/create":
            asked = json.loads(self._body)
            repo = "/".join(filter(None, (asked.get("organization"), asked["name"])))
            self.hub.repositories.setdefault(repo, Repository({"0" * 40: {".gitattributes": b""}}, {"main": "0" * 40}))
            self._json({"url": f"{self.hub.url}/{repo}", "name": repo, "id": repo})
        elif match[2] == "preupload":
            files = [{"uploadMode": "regular", "shouldIgnore": False} | f for f in json.loads(self._body)["files"]]
            self._json({"files": [{k: f[k] for k in ("path", "uploadMode", "shouldIgnore")} for f in files]})
        else:
            repository = self.hub.repositories[match[1]]
            files = dict(repository.commits[repository.branches[match[3]]])
            lines = [json.loads(line) for line in self._body.splitlines()]
            if lines[0]["value"].get("parentCommit") not in (None, repository.branches[match[3]]):
                self._refuse(412, None, "A commit has happened since.")
                return True
            for entry in (line["value"] for line in lines if line["key"] == "file"):
                files[entry["path"]] = base64.b64decode(entry["content"])
            for entry in (line["value"] for line in lines if line["key"] == "deletedFile"):
                del files[entry["path"]]
            commit = self.hub.commit(match[1], files, match[3])
            repository.messages[commit] = lines[0]["value"]["summary"]
            self._json({"commitUrl": f"{self.hub.url}/{match[1]}/commit/{commit}", "commitOid": commit})
        return True

    def _repository(self, repo: str, reading: bool) -> Repository | None:
        """The repository, or None after the Hub's answer to those who may not know it or read its files."""
        token = (self.headers.get("Authorization") or "").removeprefix("Bearer ")
        repository, known = self.hub.repositories.get(repo), token in self.hub.tokens
        if token and not known and not token.startswith("hf_other"):
            self._refuse(401, None, "Invalid credentials in Authorization header")
        elif repository is None or (repository.access == "private" and not known):
            if token:
                self._refuse(404, "RepoNotFound", "Repository not found")
            else:
                self._refuse(401, "RepoNotFound", "Invalid username or password.")
        elif repository.access == "gated" and reading and not known:
            start = f"Access to model {repo} is restricted"
            if token:
                address = f"https://huggingface.co/{repo}"
                more = f"and you are not in the authorized list. Visit {address} to ask for access."
                self._refuse(403, "GatedRepo", f"{start} {more}")
            else:
                more = "You must have access to it and be authenticated to access it. Please log in."
                self._refuse(401, "GatedRepo", f"{start}. {more}")
        else:
            return repository
        return None

    def _commit(self, repository: Repository, revision: str | None) -> str | None:
        commit = repository.branches.get(revision or "main", revision)
        if commit in repository.commits:
            return commit
        self._refuse(404, "RevisionNotFound", f"Invalid rev id: {revision}")
        return None

    def _describe(self, repo: str, what: str | None, revision: str | None, folder: str) -> None:
        repository = self._repository(repo, reading=what in ("tree", "paths-info"))
        commit = repository and self._commit(repository, revision)
        if not commit:
            return
        files = repository.commits[commit]
        if what == "tree":
            recursive = "true" in parse_qs(urlsplit(self.path).query).get("recursive", [])
            listed = [entry for entry in _entries(files) if _is_in(entry["path"], folder, recursive)]
            self._json(listed) if listed else self._refuse(
                404, "EntryNotFound", f"{folder} does not exist on {revision}"
            )
        elif what == "paths-info":
            form = self._body[:1] != b"{"
            wanted = parse_qs(self._body.decode()).get("paths", []) if form else json.loads(self._body)["paths"]
            self._json([entry for entry in _entries(files) if entry["path"] in wanted])
        else:
            siblings = [{"rfilename": name} | _entry(name, content) for name, content in sorted(files.items())]
            name = repo.removeprefix("datasets/")
            self._json({"id": name, "modelId": name, "sha": commit, "siblings": siblings, "tags": []})

    def _file(self, repo: str, revision: str, name: str) -> None:
        repository = self._repository(repo, reading=True)
        commit = repository and self._commit(repository, revision)
        if not commit:
            return
        content = repository.commits[commit].get(name)
        if content is None:
            self._refuse(404, "EntryNotFound", "Entry not found", {"X-Repo-Commit": commit})
        elif name.endswith(LARGE):
            digest = hashlib.sha256(content).hexdigest()
            storage = f"http://localhost:{self.hub.port}/storage/{digest}"
            linked = {"X-Linked-Etag": f'"{digest}"', "X-Linked-Size": str(len(content)), "X-Repo-Commit": commit}
            self._send(302, b"", linked | {"Location": storage})
        else:
            self._content(content, {"ETag": f'"{hashlib.sha1(content).hexdigest()}"', "X-Repo-Commit": commit})

    def _stored(self, digest: str) -> bytes:
        every = (
            content
            for repository in self.hub.repositories.values()
            for files in repository.commits.values()
            for content in files.values()
        )
        return next(content for content in every if hashlib.sha256(content).hexdigest() == digest)

    def _content(self, content: bytes, headers: dict[str, str]) -> None:
        match = re.fullmatch(r"bytes=(\d*)-(\d*)", self.headers.get("Range") or "")
        if not match:
            self._send(200, content, headers | {"Accept-Ranges": "bytes"})
            return
        first, last = match.groups()
        start = int(first) if first else max(0, len(content) - int(last))
        stop = min(int(last) + 1, len(content)) if first and last else len(content)
        self._send(206, content[start:stop], headers | {"Content-Range": f"bytes {start}-{stop - 1}/{len(content)}"})

    def _json(self, value) -> None:
        self._send(200, json.dumps(value).encode(), {"Content-Type": "application/json"})

    def _refuse(self, status: int, code: str | None, message: str, headers: dict[str, str] | None = None) -> None:
        about = {"X-Error-Message": message} | ({"X-Error-Code": code} if code else {}) | (headers or {})
        body = json.dumps({"error": message}).encode()
        self._send(status, body, about | {"Content-Type": "application/json"})

    def _send(self, status: int, body: bytes, headers: dict[str, str] | None = None) -> None:
        self.send_response(status)
        for name, value in (headers or {}).items():
            self.send_header(name, value)
        self.send_header("Content-Length", str(len(body)))
        self.end_headers()
        if self.command == "HEAD":
            return
        if self._failure and self._failure.cut is not None and status in (200, 206):
            self.wfile.write(body[: self._failure.cut])
            self.wfile.flush()
            self.connection.shutdown(socket.SHUT_RDWR)
            self.close_connection = True
        else:
            self.wfile.write(body)


def _entries(files: dict[str, bytes]) -> list[dict]:
    """What the Hub says of the files and folders of a commit."""
    folders = sorted({parent.as_posix() for name in files for parent in Path(name).parents} - {"."})
    return [{"type": "directory", "path": name, "oid": "0"} for name in folders] + [
        _entry(name, content) for name, content in sorted(files.items())
    ]


def _is_in(path: str, folder: str, recursive: bool) -> bool:
    inside = path.removeprefix(f"{folder}/") if folder else path
    return (not folder or inside != path) and (recursive or "/" not in inside)


def _entry(name: str, content: bytes) -> dict:
    entry = {"type": "file", "path": name, "size": len(content), "oid": hashlib.sha1(content).hexdigest()}
    if name.endswith(LARGE):
        entry["lfs"] = {
            "oid": (digest := hashlib.sha256(content).hexdigest()),
            "sha256": digest,
            "size": len(content),
            "pointerSize": 130,
        }
    return entry
