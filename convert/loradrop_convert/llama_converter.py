"""llama.cpp's own converters of checkpoints and adapters, carried as they are and run in a process of their own."""

from __future__ import annotations

import errno
import importlib.util
import os
import re
import subprocess
import sys
import tempfile
from pathlib import Path
from typing import IO

from loradrop._core import ModelError
from loradrop_convert.gguf_writer import Progress

# What the converter writes itself; every other type is the quantiser's.
DIRECT_TYPES = ("f32", "f16", "bf16", "q8_0")
OWN_PRECISION = "auto"

_SCRIPT = "convert_hf_to_gguf.py"
_LORA_SCRIPT = "convert_lora_to_gguf.py"
_RUN = Path(__file__).with_name("run_with_trust.py")
_REQUIRED = ("torch", "transformers", "sentencepiece")
_POLL_SECONDS = 0.3
# NumPy says how much it has written where others give the number of the error.
_NO_ROOM = re.compile(rf"\[Errno ({errno.ENOSPC}|{errno.EFBIG})\]|requested and \d+ written")
_MOST_LINES = 5
NEEDS_TRUST = "read it and, if you trust it, give --trust-remote-code (trust_remote_code=True)"


def check_requirements() -> None:
    """Check, before any work, that the converter and what it imports are there.

    Raises
    ------
    ModelError
        If something is missing; the message says how to install it.
    """
    find_converter()
    for name in _REQUIRED:
        if importlib.util.find_spec(name) is None:
            raise ModelError(f'llama.cpp\'s converter needs {name}: pip install "loradrop[convert]"')


def find_converter(name: str = _SCRIPT) -> Path:
    """Return the converter's script.

    It lies beside this package, or where the package's other part is when this one is imported from its sources.

    Raises
    ------
    ModelError
        If it is not there.
    """
    packages = [Path(__file__).parent, *(Path(entry, "loradrop_convert") for entry in sys.path)]
    for package in packages:
        script = package / "llama_cpp" / name
        if script.is_file():
            return script
    raise ModelError(f"llama.cpp's converter, loradrop_convert/llama_cpp/{name}, is missing; install loradrop again")


def run_converter(
    checkpoint: Path, out: Path, outtype: str, progress: Progress | None = None, *, trust_remote_code: bool = False
) -> None:
    """Write a checkpoint's model as GGUF. Nothing is downloaded.

    Parameters
    ----------
    checkpoint : Path
        A folder as transformers saves it. The model's name is made from the folder's.
    out : Path
        The new file. If the converter fails, or is interrupted, a part of it may be left.
    outtype : str
        One of `DIRECT_TYPES`, or `OWN_PRECISION`.
    progress : callable, optional
        Called again and again.
    trust_remote_code : bool
        Whether Python code that the checkpoint brings for its tokenizer may run.

    Raises
    ------
    ModelError
        If the converter fails; the message has the end of what it said.
    OSError
        If the room on the disk runs out.
    """
    command = [str(find_converter()), str(checkpoint.absolute())]
    _run(checkpoint, command, out, outtype, progress, trust_remote_code)


def run_lora_converter(adapter: Path, base: Path, out: Path, outtype: str, progress: Progress | None = None) -> None:
    """Write an adapter as GGUF; see `run_converter`.

    Parameters
    ----------
    adapter : Path
        A folder as PEFT saves it, of plain LoRA; the converter takes no notice of anything else.
    base : Path
        A folder with the ``config.json`` of the model that it adapts.
    """
    command = [str(find_converter(_LORA_SCRIPT)), str(adapter.absolute()), "--base", str(base.absolute())]
    _run(adapter, command, out, outtype, progress, False)


def _run(
    source: Path, command: list[str], out: Path, outtype: str, progress: Progress | None, trust_remote_code: bool
) -> None:
    choice = "trust" if trust_remote_code else "distrust"
    command = [sys.executable, str(_RUN), choice, *command, "--outfile", str(out.absolute()), "--outtype", outtype]
    with tempfile.TemporaryFile() as log:
        process = subprocess.Popen(
            command, stdin=subprocess.DEVNULL, stdout=log, stderr=subprocess.STDOUT, env=_environment()
        )
        try:
            while not _has_ended(process):
                if progress is not None:
                    progress(f"converting {source.name}", out.stat().st_size if out.exists() else 0, None)
        finally:
            process.kill()  # no-op after its end
            process.wait()
        if process.returncode or not out.exists():
            raise _failure(source, process.returncode, _end_of(log))


def _environment() -> dict[str, str]:
    # The first two would keep the script from finding its own packages.
    environment = {k: v for k, v in os.environ.items() if k not in ("NO_LOCAL_GGUF", "PYTHONSAFEPATH")}
    return environment | {"HF_HUB_OFFLINE": "1", "PYTHONUTF8": "1"}


def _has_ended(process: subprocess.Popen[bytes]) -> bool:
    try:
        process.wait(_POLL_SECONDS)
    except subprocess.TimeoutExpired:
        return False
    return True


def _end_of(log: IO[bytes]) -> str:
    log.seek(0, os.SEEK_END)
    log.seek(max(0, log.tell() - 100_000))
    return log.read().decode(errors="replace")


def _failure(source: Path, code: int, log: str) -> Exception:
    if _NO_ROOM.search(log):
        return OSError(errno.ENOSPC, os.strerror(errno.ENOSPC))
    if code < 0:
        return ModelError(f"{source}: llama.cpp's converter was ended by signal {-code}; was there enough memory?")
    said = _last_words(log)
    if "trust_remote_code=True" in said:
        return ModelError(f"{source}: cannot be converted without running Python code that it brings; {NEEDS_TRUST}")
    if "pre-tokenizer was not recognized" in said:
        return ModelError(
            f"{source}: llama.cpp's converter does not know its tokenizer. If the model was trained from a known one, "
            "put that one's tokenizer.json and tokenizer_config.json in the place of its own, which training has "
            "changed or saved anew; a new tokenizer needs a llama.cpp, and so a loradrop, that knows it"
        )
    return ModelError(f"{source}: llama.cpp's converter failed: {said}")


def _last_words(log: str) -> str:
    """Return the message of the last exception, or the last errors that were logged."""
    lines = [line.rstrip() for line in re.split(r"[\r\n]+", log) if line.strip() and "%|" not in line]
    tracebacks = [i for i, line in enumerate(lines) if line.startswith("Traceback (most recent call last)")]
    if tracebacks:
        said = [line for line in lines[tracebacks[-1] + 1 :] if not line.startswith(" ")][:_MOST_LINES]
    else:
        said = [line.split(":", 2)[-1] for line in lines if line.startswith("ERROR:")][-_MOST_LINES:]
    return " ".join(said or lines[-1:])
