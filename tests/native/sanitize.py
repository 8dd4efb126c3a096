"""Builds the native core with AddressSanitizer and UndefinedBehaviorSanitizer and runs engine tests on it.

    python tests/native/sanitize.py [--compiler clang-16] [--build-dir build/sanitize] [TEST ...]

Prints each finding once, but for known ones of ggml, and ends with exit code 1 where there is one or a test fails.
Leaks are soak.py's matter. Needs Clang, the build requirements of pyproject.toml, tests/requirements.txt, CMake and
Ninja; takes most of an hour on two cores.
"""

from __future__ import annotations

import argparse
import importlib.util
import os
import re
import shutil
import subprocess
import sys
import sysconfig
from pathlib import Path

ROOT = Path(__file__).parent.parent.parent
TESTS = [
    "test_engine.py",
    "test_sliding_window.py",
    "test_sequences.py",
    "test_interleavings.py",
    "test_context_shift.py",
    "test_saved_states.py",
    "test_faults.py",
    "test_cache_size.py",
    "test_corrector_of_another_model.py",
    "test_learned_positions.py",
    "test_no_tokenizer.py",
    "test_kv_types.py",
    "test_capture.py",
    "test_bad_files.py",
    "test_corrector_files.py",
    "test_unsupported.py",
    "test_completion.py",
    "test_cpu_products.py",
    "test_attention.py",
    "test_small_batches.py",
    "test_verify.py",
]
FLAGS = "-fsanitize=address,undefined -shared-libasan -fno-omit-frame-pointer -g1 -O1"
FINDING = re.compile(r"runtime error: |ERROR: AddressSanitizer: ")
# ggml's own: it measures a graph's size from a null pointer, its kernels' types differ by `restrict` alone, and it
# reads a type from a file before it checks it
KNOWN = re.compile(
    r"ggml\.c:.*non-zero offset \d+ to null pointer|ggml-cpu/ops\.cpp:.*incorrect function type"
    r"|gguf\.cpp:.*not a valid value for type '(enum ggml|gguf)_type'"
)
# with its assertions on, llama.cpp stops where this test wants its error
LEFT_OUT = "tests/python/test_faults.py::test_invalid_batches_change_nothing"


def build(compiler: str, folder: Path) -> Path:
    """Build the core; return the folder of a package with it."""
    import pybind11

    cxx = compiler.replace("clang", "clang++", 1)
    subprocess.run(
        [
            "cmake",
            *("-S", str(ROOT), "-B", str(folder), "-G", "Ninja", "-DCMAKE_BUILD_TYPE=None"),
            *(f"-DCMAKE_C_COMPILER={compiler}", f"-DCMAKE_CXX_COMPILER={cxx}"),
            *(f"-DCMAKE_{language}_FLAGS={FLAGS}" for language in ("C", "CXX")),
            *(f"-DPython_EXECUTABLE={sys.executable}", f"-Dpybind11_DIR={pybind11.get_cmake_dir()}"),
        ],
        check=True,
    )
    subprocess.run(["cmake", "--build", str(folder), "--target", "_core"], check=True)
    package = folder / "package"
    core = "_core" + sysconfig.get_config_var("EXT_SUFFIX")
    shutil.rmtree(package, ignore_errors=True)
    shutil.copytree(ROOT / "python" / "loradrop", package / "loradrop", ignore=shutil.ignore_patterns("_core*.so"))
    shutil.copytree(ROOT / "convert" / "loradrop_convert", package / "loradrop_convert")
    shutil.copy(folder / "csrc" / core, package / "loradrop" / core)
    return package


def environment(compiler: str, package: Path, log: Path) -> dict[str, str]:
    """Return what Python has to be started with, so that a module with sanitizers can be imported."""

    def library(name: str) -> str:
        command = [compiler, f"-print-file-name={name}"]
        return subprocess.run(command, check=True, capture_output=True, text=True).stdout.strip()

    # the C++ library has to be there before the runtime that wraps its exceptions
    preload = [library(f"libclang_rt.asan-{os.uname().machine}.so"), library("libstdc++.so.6")]
    return os.environ | {
        "LD_PRELOAD": " ".join(preload),
        "PYTHONPATH": os.pathsep.join([str(package), os.environ.get("PYTHONPATH", "")]),
        "PYTHONMALLOC": "malloc",
        "ASAN_OPTIONS": f"detect_leaks=0:log_path={log}",
        "UBSAN_OPTIONS": f"print_stacktrace=1:log_path={log}",
    }


def main() -> int:
    """Build and test; exit code 0 when nothing was found."""
    parser = argparse.ArgumentParser(description=__doc__.splitlines()[0])
    parser.add_argument("tests", nargs="*", metavar="TEST", help="files of tests/python, or what pytest takes for them")
    parser.add_argument("--compiler", default="clang")
    parser.add_argument("--build-dir", type=Path, default=Path("build/sanitize"))
    args = parser.parse_args()
    if importlib.util.find_spec("pytest") is None:
        raise SystemExit("pytest not found: install tests/requirements.txt")

    folder = args.build_dir.resolve()
    package = build(args.compiler, folder)
    logs = folder / "findings"
    shutil.rmtree(logs, ignore_errors=True)
    logs.mkdir()
    failed = []
    for test in args.tests or TESTS:
        # each in a process of its own, which an error of AddressSanitizer ends
        options = ["-q", "-p", "no:cacheprovider", "--timeout=0", "--deselect", LEFT_OUT]
        command = [sys.executable, "-m", "pytest", *options, test]
        env = environment(args.compiler, package, logs / Path(test).name.split("::")[0])
        if subprocess.run(command, cwd=ROOT / "tests" / "python", env=env).returncode != 0:
            failed.append(test)

    texts = [log.read_text(errors="replace") for log in sorted(logs.iterdir())]
    lines = {line for text in texts for line in text.splitlines() if FINDING.search(line)}
    findings = sorted(line for line in lines if not KNOWN.search(line))
    print(*findings, sep="\n")
    print(
        f"{len(findings)} findings and {len(lines) - len(findings)} known ones of ggml, in full in {logs}; "
        f"failed: {', '.join(failed) or 'nothing'}"
    )
    return 1 if findings or failed else 0


if __name__ == "__main__":
    sys.exit(main())
