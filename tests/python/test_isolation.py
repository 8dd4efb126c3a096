"""The module beside another copy of ggml in one process."""

from __future__ import annotations

import subprocess
import sys
from pathlib import Path

import pytest

from tiny import make_corrector, make_model, write_gguf

# libggml-python ships ggml's shared libraries; loading them for all to see is the worst that can happen
PROGRAM = """
import ctypes, pathlib, sys

def load_other():
    import libggml
    folder = next(pathlib.Path(libggml.__file__).parent.glob("lib*"))
    libraries = [ctypes.CDLL(str(folder / name), ctypes.RTLD_GLOBAL)
                 for name in ("libggml-base.so", "libggml-cpu.so", "libggml.so")]
    libraries[0].ggml_version.restype = ctypes.c_char_p
    return libraries[0].ggml_version()

order, path = sys.argv[1:]
if order == "first":
    load_other()
from loradrop._core import Context, Corrector, Model
if order == "after":
    load_other()
model = Model(path)
context = Context(model, n_ctx=256, corrector=Corrector.load(path, model), rho=0.5, k=3)
for token in range(3, 23):
    context.decode([token])
assert context.stats["lora_steps"] == 15, context.stats
print(float(context.logits().sum()), load_other().decode())
"""


@pytest.mark.skipif(sys.platform != "linux", reason="the other package's libraries are Linux's")
def test_beside_another_ggml(tmp_path: Path) -> None:
    pytest.importorskip("libggml")
    model = make_model(n_layer=8)
    path = tmp_path / "model.gguf"
    write_gguf(path, model, make_corrector(model, "segment", segments=[(2, 5)]))
    outputs = []
    for order in ("never", "first", "after"):
        run = subprocess.run(
            [sys.executable, "-c", PROGRAM, order, str(path)],
            check=True,
            capture_output=True,
            text=True,
        )
        outputs.append(run.stdout)
    assert outputs[0] == outputs[1] == outputs[2]
