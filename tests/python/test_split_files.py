"""Models in several files: from a server that speaks the Hub's API, and from a folder."""

from __future__ import annotations

import hashlib
import os
import subprocess
import sys
import threading
from collections.abc import Iterator
from http.server import BaseHTTPRequestHandler, ThreadingHTTPServer
from pathlib import Path

import pytest
from click.testing import CliRunner
from gguf import GGUFReader, GGUFWriter

from loradrop import Llama, ModelError, cli
from loradrop.models import resolve_model
from loradrop.split_files import part_names
from tiny import make_model, write_gguf

COMMIT = "0123456789abcdef0123456789abcdef01234567"
NAMES = [f"tiny-0000{i}-of-00003.gguf" for i in (1, 2, 3)]


class Hub(BaseHTTPRequestHandler):
    """Gives the files of a folder as the repository owner/repo."""

    folder: Path

    def do_HEAD(self) -> None:
        self.answer()

    def do_GET(self) -> None:
        self.wfile.write(self.answer())

    def answer(self) -> bytes:
        prefix = "/owner/repo/resolve/main/"
        path = self.folder / self.path.removeprefix(prefix)
        if not (self.path.startswith(prefix) and path.is_file()):
            self.send_response(404)
            self.send_header("X-Error-Code", "EntryNotFound")
            self.send_header("Content-Length", "0")
            self.end_headers()
            return b""
        content = path.read_bytes()
        self.send_response(200)
        self.send_header("X-Repo-Commit", COMMIT)
        self.send_header("ETag", f'"{hashlib.sha256(content).hexdigest()}"')
        self.send_header("Content-Length", str(len(content)))
        self.end_headers()
        return content

    def log_message(self, *_: object) -> None:
        pass


@pytest.fixture
def parts(tmp_path: Path) -> Path:
    """Return a folder with a model in parts."""
    folder = tmp_path / "served"
    (folder / "sub").mkdir(parents=True)
    split(folder / "sub")
    return folder


@pytest.fixture
def hub(parts: Path) -> Iterator[str]:
    server = ThreadingHTTPServer(("127.0.0.1", 0), type("HubOfParts", (Hub,), {"folder": parts}))
    threading.Thread(target=server.serve_forever, daemon=True).start()
    yield f"http://127.0.0.1:{server.server_port}"
    server.shutdown()
    server.server_close()


def split(folder: Path) -> None:
    """Write a tiny model in three files, as llama.cpp's tool does."""
    model = make_model()
    write_gguf(folder / "whole.gguf", model)
    reader = GGUFReader(folder / "whole.gguf")
    for i, name in enumerate(NAMES):
        writer = GGUFWriter(folder / name, model.arch)
        for field in reader.fields.values() if i == 0 else ():
            if not field.name.startswith("GGUF.") and field.name != "general.architecture":
                kind = field.types[0]
                writer.add_key_value(
                    field.name, field.contents(), kind, field.types[-1] if len(field.types) > 1 else None
                )
        writer.add_uint16("split.no", i)
        writer.add_uint16("split.count", len(NAMES))
        writer.add_int32("split.tensors.count", len(reader.tensors))
        for tensor in reader.tensors[i :: len(NAMES)]:
            writer.add_tensor(tensor.name, tensor.data)
        writer.write_header_to_file()
        writer.write_kv_data_to_file()
        writer.write_tensors_to_file()
        writer.close()


def text(path: Path) -> str:
    with Llama(path, n_ctx=64, n_threads=1) as llm:
        return llm("a", max_tokens=16, temperature=0)["choices"][0]["text"]  # type: ignore[index]


def pull(name: str, hub: str, home: Path) -> subprocess.CompletedProcess[str]:
    """Pull a model from the server with a Hub's cache of its own."""
    environment = {k: v for k, v in os.environ.items() if k != "HF_HUB_OFFLINE"}
    command = [sys.executable, "-m", "loradrop", "models", "pull", name]
    environment |= {"HF_ENDPOINT": hub, "HF_HOME": str(home), "no_proxy": "127.0.0.1"}
    return subprocess.run(command, env=environment, capture_output=True, text=True, check=False)


def test_all_parts_are_pulled(tmp_path: Path, parts: Path, hub: str) -> None:
    done = pull(f"owner/repo/sub/{NAMES[0]}", hub, tmp_path / "home")
    assert done.returncode == 0, done.stderr
    first = Path(done.stdout.strip())
    assert sorted(path.name for path in first.parent.iterdir()) == NAMES
    assert text(first) == text(parts / "sub" / "whole.gguf")
    done = pull("owner/repo/sub/whole.gguf", hub, tmp_path / "home")
    assert Path(done.stdout.strip()).read_bytes() == (parts / "sub" / "whole.gguf").read_bytes(), done.stderr


def test_a_part_that_the_hub_lacks(tmp_path: Path, parts: Path, hub: str) -> None:
    (parts / "sub" / NAMES[1]).unlink()
    done = pull(f"owner/repo/sub/{NAMES[0]}", hub, tmp_path / "home")
    says = f"a model of 3 files on the Hugging Face Hub (FileNotFoundError: there is no sub/{NAMES[1]} in owner/repo)"
    assert done.returncode == 1 and says in done.stderr.splitlines()[-1]
    done = pull(f"owner/repo/sub/{NAMES[2]}", hub, tmp_path / "home")
    assert done.returncode == 1
    assert f"sub/{NAMES[2]}: part 3 of 3 of a model; give the first, sub/{NAMES[0]}" in done.stderr


def test_local_parts(parts: Path) -> None:
    first = parts / "sub" / NAMES[0]
    assert resolve_model(first) == first
    assert text(first) == text(parts / "sub" / "whole.gguf")
    with pytest.raises(ModelError, match=rf"part 2 of 3 of a model; give the first, {NAMES[0]}"):
        resolve_model(first.with_name(NAMES[1]))
    (parts / "sub" / NAMES[2]).unlink()
    with pytest.raises(FileNotFoundError, match=rf"{NAMES[2]}: no such file, but a part of the model of {NAMES[0]}"):
        Llama(first)
    result = CliRunner().invoke(cli.main, ["generate", str(first), "x"])
    assert result.exit_code == 1 and f"{NAMES[2]}: no such file" in result.stderr


@pytest.mark.parametrize("name", ["x.gguf", "x-00001-of-00000.gguf", "x-1-of-2.gguf", "x-00001-of-00002.gguf.txt"])
def test_names_of_whole_models(name: str) -> None:
    assert part_names(name) == [name]


def test_pull_knows_what_is_no_name() -> None:
    result = CliRunner().invoke(cli.main, ["models", "pull", "nothing"])
    assert result.exit_code == 2 and "give one of smollm2, or owner/repository/file.gguf" in result.stderr
