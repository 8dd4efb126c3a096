"""Builds a small program against the pinned llama.cpp, as it is or with our patches."""

from __future__ import annotations

import subprocess
import sys
from pathlib import Path

HERE = Path(__file__).parent


def build(program: str, folder: Path, *, stock: bool) -> Path:
    """Build one program of this folder's CMakeLists.txt; return its path.

    Parameters
    ----------
    folder : path
        Where to build; it is gone on with if it holds an older build.
    stock : bool
        Whether to build against llama.cpp without our patches.
    """
    import pybind11

    subprocess.run(
        [
            "cmake",
            *("-S", str(HERE), "-B", str(folder), "-G", "Ninja"),
            "-DCMAKE_BUILD_TYPE=Release",
            f"-DSTOCK={'ON' if stock else 'OFF'}",
            f"-DPython_EXECUTABLE={sys.executable}",
            f"-Dpybind11_DIR={pybind11.get_cmake_dir()}",
        ],
        check=True,
    )
    subprocess.run(["cmake", "--build", str(folder), "--target", program], check=True)
    return next(p for p in folder.rglob(f"{program}*") if p.stem == program and p.is_file()).resolve()
