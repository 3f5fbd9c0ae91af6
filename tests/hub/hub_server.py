"""A small Hub on loopback: what huggingface_hub calls to create a repository, upload, commit, list and download.

It keeps everything in memory and answers as the Hub does as far as the client can tell, errors and their headers
included. What the client asks for beyond that is answered with 501 and noted in `unknown`.
"""

import base64
import hashlib
import json
import os
import re
import socket
import struct
import threading
from collections.abc import Iterator
from contextlib import contextmanager
from dataclasses import dataclass, field
from http.server import BaseHTTPRequestHandler, ThreadingHTTPServer
from typing import Any
from urllib.parse import parse_qs, unquote, urlsplit

import yaml

USER, TOKEN = "user", "hf_right"
ID = r"(?P<id>[\w.-]+/[\w.-]+)"
REVISION = r"(?P<revision>[\w.%-]+)"


@dataclass
class Repository:
    """Its commits, oldest first: id, message and the files by their paths."""

    private: bool
    commits: list[tuple[str, str, dict[str, bytes]]]

    @property
    def files(self) -> dict[str, bytes]:
        return self.commits[-1][2]

    def commit(self, message: str, files: dict[str, bytes]) -> str:
        oid = hashlib.sha1(f"{len(self.commits)} {message}".encode()).hexdigest()
        self.commits.append((oid, message, files))
        return oid


@dataclass
class Hub:
    """The server's state, for tests to look at and to set traps in."""

    url: str = ""
    repositories: dict[str, Repository] = field(default_factory=dict)
    visibility: dict[str, str | None] = field(default_factory=dict)  # that was asked for, of each repository
    blobs: dict[str, bytes] = field(default_factory=dict)  # LFS, by SHA-256
    requests: list[tuple[str, str, bool]] = field(default_factory=list)  # method, path, whether with the right token
    unknown: list[str] = field(default_factory=list)
    cut_uploads: int = 0  # of so many uploads of large files the connection is cut half-way
    lose_commits: int = 0  # so many commits are made, but the connection is cut before the answer
    refuse_commits: int = 0  # so many commits are answered with 503
    lock: threading.RLock = field(default_factory=threading.RLock)

    def trap(self, name: str) -> bool:
        """Whether the trap of this name is set; it then has one time less to go."""
        with self.lock:
            left = getattr(self, name)
            setattr(self, name, max(0, left - 1))
            return left > 0


class Cut(Exception):
    """The connection ends here."""


class Refused(Exception):
    """An answer that is an error."""

    def __init__(self, status: int, message: str, code: str | None = None, **body: Any) -> None:
        self.status, self.message, self.code, self.body = status, message, code, body


def is_large(path: str) -> bool:
    return path.endswith((".safetensors", ".png"))


def blob_id(content: bytes) -> str:
    return hashlib.sha1(b"blob %d\0" % len(content) + content).hexdigest()


class Handler(BaseHTTPRequestHandler):
    protocol_version = "HTTP/1.1"
    disable_nagle_algorithm = True
    hub: Hub

    ROUTES = [
        ("GET", r"/api/whoami-v2", "whoami"),
        ("GET", r"/api/agent-harnesses", "nothing"),
        ("POST", r"/api/repos/create", "create"),
        ("POST", r"/api/validate-yaml", "validate_yaml"),
        ("GET", rf"/api/models/{ID}(/revision/{REVISION})?", "info"),
        ("GET", rf"/api/models/{ID}/tree/{REVISION}(/(?P<path>.+))?", "tree"),
        ("POST", rf"/api/models/{ID}/preupload/{REVISION}", "preupload"),
        ("POST", rf"/api/models/{ID}/commit/{REVISION}", "commit"),
        ("POST", rf"/{ID}\.git/info/lfs/objects/batch", "lfs_batch"),
        ("PUT", r"/lfs/(?P<oid>[0-9a-f]{64})", "lfs_upload"),
        ("HEAD", rf"/{ID}/resolve/{REVISION}/(?P<path>.+)", "resolve"),
        ("GET", rf"/{ID}/resolve/{REVISION}/(?P<path>.+)", "resolve"),
    ]

    def log_message(self, *args: Any) -> None:
        pass

    def handle_one_request(self) -> None:
        try:
            super().handle_one_request()
        except ConnectionError:
            self.close_connection = True
        except Cut:
            self.close_connection = True
            self.connection.setsockopt(socket.SOL_SOCKET, socket.SO_LINGER, struct.pack("ii", 1, 0))
            os.close(self.connection.detach())  # with no time to linger, this resets the connection

    def answer(self) -> None:
        path = unquote(urlsplit(self.path).path)
        self.query = {name: values[0] for name, values in parse_qs(urlsplit(self.path).query).items()}
        with self.hub.lock:
            self.hub.requests.append((self.command, path, self.token == TOKEN))
        try:
            for method, pattern, name in self.ROUTES:
                if method == self.command and (match := re.fullmatch(pattern, path)):
                    self.place = match.groupdict()
                    return getattr(self, name)()
            self.hub.unknown.append(f"{self.command} {path}")
            raise Refused(501, f"the test's Hub has no {self.command} {path}")
        except Refused as refused:
            headers = {"X-Error-Message": refused.message}
            if refused.code:
                headers["X-Error-Code"] = refused.code
            self.read_body()
            self.send_json({"error": refused.message, **refused.body}, refused.status, headers)

    do_GET = do_POST = do_PUT = do_HEAD = answer

    # Parts

    @property
    def token(self) -> str | None:
        return self.headers.get("Authorization", "").removeprefix("Bearer ") or None

    def check_token(self) -> None:
        if self.token is None:
            raise Refused(401, "Invalid username or password.")
        if self.token != TOKEN:
            raise Refused(401, "Invalid credentials in Authorization header")

    def repository(self, write: bool = False) -> Repository:
        """The request's repository, if whoever asks may know of it."""
        if write or self.token is not None:
            self.check_token()
        repository = self.hub.repositories.get(self.place["id"])
        if repository is None or repository.private and self.token != TOKEN:
            raise Refused(404 if self.token else 401, "Repository not found", "RepoNotFound")
        if write and not self.place["id"].startswith(f"{USER}/"):
            raise Refused(403, "You don't have the rights to write here")
        return repository

    def files_at_revision(self, repository: Repository) -> tuple[str, dict[str, bytes]]:
        wanted = self.place.get("revision") or "main"
        for oid, _, files in reversed(repository.commits):
            if wanted in ("main", oid):
                return oid, files
        raise Refused(404, f"Invalid rev id: {wanted}", "RevisionNotFound")

    def read_body(self) -> bytes:
        if self.headers.get("Transfer-Encoding") == "chunked":
            body = b""
            while size := int(self.rfile.readline(), 16):
                body += self.rfile.read(size)
                self.rfile.readline()
            self.rfile.readline()
        else:
            body = self.rfile.read(int(self.headers.get("Content-Length", 0)))
        del self.headers["Content-Length"], self.headers["Transfer-Encoding"]  # read once
        return body

    def send(self, body: bytes, status: int = 200, headers: dict[str, str] | None = None) -> None:
        self.send_response(status)
        for name, value in ({"Content-Length": str(len(body))} | (headers or {})).items():
            self.send_header(name, value)
        self.end_headers()
        if self.command != "HEAD":
            self.wfile.write(body)

    def send_json(self, data: Any, status: int = 200, headers: dict[str, str] | None = None) -> None:
        self.send(json.dumps(data).encode(), status, {"Content-Type": "application/json"} | (headers or {}))

    # Answers

    def whoami(self) -> None:
        self.check_token()
        self.send_json({"type": "user", "id": "1", "name": USER, "orgs": []})

    def nothing(self) -> None:
        """Names that newer clients ask for, to tell programs that call them apart."""
        self.send_json({})

    def create(self) -> None:
        wanted = json.loads(self.read_body())
        self.check_token()
        owner = wanted.get("organization") or USER
        if owner != USER:
            raise Refused(403, f'You don\'t have the rights to create a model under the namespace "{owner}"')
        name = f"{owner}/{wanted['name']}"
        created = {"name": name, "url": f"{self.hub.url}/{name}"}
        with self.hub.lock:
            if name in self.hub.repositories:
                raise Refused(409, "You already created this model repo", **created)
            asked = wanted.get("visibility") or ("private" if wanted.get("private") else None)
            self.hub.visibility[name] = asked
            private = asked == "private"
            self.hub.repositories[name] = repository = Repository(private, [])
            repository.commit("initial commit", {".gitattributes": b"*.safetensors filter=lfs\n"})
        self.send_json(created)

    def validate_yaml(self) -> None:
        content = json.loads(self.read_body())["content"]
        block = re.match(r"---\n(.*?)\n---\n", content, re.DOTALL)
        try:
            errors = [] if isinstance(yaml.safe_load(block[1]), dict) else ["the metadata must be a mapping"]
        except (TypeError, yaml.YAMLError) as error:
            errors = [str(error)]
        self.send_json({"errors": [{"message": error} for error in errors], "warnings": []}, 400 if errors else 200)

    def info(self) -> None:
        repository = self.repository()
        oid, files = self.files_at_revision(repository)
        siblings = [{"rfilename": path} for path in sorted(files)]
        self.send_json({"id": self.place["id"], "sha": oid, "private": repository.private, "siblings": siblings})

    def tree(self) -> None:
        oid, files = self.files_at_revision(self.repository())
        folder = f"{self.place['path']}/" if self.place["path"] else ""
        listed = [path for path in sorted(files) if path.startswith(folder)]
        if folder and not listed:
            raise Refused(404, f"{folder} does not exist on {oid}", "EntryNotFound")
        if self.query.get("recursive") != "true" and any("/" in path.removeprefix(folder) for path in listed):
            raise Refused(501, "the test's Hub lists no folders in folders")
        self.send_json(
            [{"type": "file", "path": path, "size": len(files[path]), "oid": blob_id(files[path])} for path in listed]
        )

    def preupload(self) -> None:
        files = json.loads(self.read_body())["files"]
        there = self.repository(write=True).files
        answers = []
        for path in (file["path"] for file in files):
            large = is_large(path)
            answer = {"path": path, "uploadMode": "lfs" if large else "regular", "shouldIgnore": False}
            if path in there:
                answer["oid"] = hashlib.sha256(there[path]).hexdigest() if large else blob_id(there[path])
            answers.append(answer)
        self.send_json({"files": answers})

    def lfs_batch(self) -> None:
        wanted = json.loads(self.read_body())
        self.repository(write=True)
        answers = []
        for wanted_object in wanted["objects"]:
            answer = {name: wanted_object[name] for name in ("oid", "size")}
            if answer["oid"] not in self.hub.blobs:
                answer["actions"] = {"upload": {"href": f"{self.hub.url}/lfs/{answer['oid']}"}}
            answers.append(answer)
        self.send_json({"transfer": "basic", "objects": answers})

    def lfs_upload(self) -> None:
        if self.hub.trap("cut_uploads"):
            self.rfile.read(int(self.headers["Content-Length"]) // 2)
            raise Cut
        body = self.read_body()
        if hashlib.sha256(body).hexdigest() != self.place["oid"]:
            raise Refused(400, "the content has another SHA-256")
        self.hub.blobs[self.place["oid"]] = body
        self.send(b"")

    def commit(self) -> None:
        lines = [json.loads(line) for line in self.read_body().splitlines()]
        repository = self.repository(write=True)
        if self.hub.trap("refuse_commits"):
            raise Refused(503, "the Hub is down for maintenance")
        files = dict(repository.files)
        for key, value in ((line["key"], line["value"]) for line in lines):
            if key == "header":
                message = value["summary"]
            elif key == "file":
                files[value["path"]] = base64.b64decode(value["content"])
            elif key == "lfsFile":
                files[value["path"]] = self.hub.blobs[value["oid"]]
            elif key == "deletedFile":
                del files[value["path"]]
            else:
                raise Refused(501, f"the test's Hub knows no {key}")
        with self.hub.lock:
            oid = repository.commit(message, files)
        if self.hub.trap("lose_commits"):
            raise Cut
        self.send_json({"commitUrl": f"{self.hub.url}/{self.place['id']}/commit/{oid}", "commitOid": oid})

    def resolve(self) -> None:
        oid, files = self.files_at_revision(self.repository())
        headers = {"X-Repo-Commit": oid}
        path = self.place["path"]
        if path not in files:
            self.send(b"", 404, headers | {"X-Error-Code": "EntryNotFound", "X-Error-Message": "Entry not found"})
            return
        if is_large(path):
            large = {"X-Linked-Etag": f'"{hashlib.sha256(files[path]).hexdigest()}"'}
            headers |= large | {"X-Linked-Size": str(len(files[path]))}
        self.send(files[path], headers=headers | {"ETag": f'"{blob_id(files[path])}"'})


@contextmanager
def running_hub() -> Iterator[Hub]:
    """A Hub that listens on a free port of 127.0.0.1."""
    hub = Hub()
    server = ThreadingHTTPServer(("127.0.0.1", 0), type("HubHandler", (Handler,), {"hub": hub}))
    server.daemon_threads = True
    hub.url = f"http://127.0.0.1:{server.server_port}"
    thread = threading.Thread(target=server.serve_forever, kwargs={"poll_interval": 0.05}, daemon=True)
    thread.start()
    try:
        yield hub
    finally:
        server.shutdown()
        server.server_close()
        thread.join()
