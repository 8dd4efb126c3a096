"""A checkpoint of transformers, or of the paper's reference code, becomes a GGUF file, with a corrector if wanted."""

from __future__ import annotations

import os
import tempfile
from collections.abc import Iterator, Sequence
from contextlib import ExitStack, contextmanager
from pathlib import Path

from loradrop._core import LoradropError, ModelError, quantize, quantize_types
from loradrop_convert.adapter_scales import AdapterPaths, adapter_scales
from loradrop_convert.base import base_of, read_model_header
from loradrop_convert.convert_adapter import check_adapter_alone, convert_adapter
from loradrop_convert.converter_input import converter_input
from loradrop_convert.gguf_writer import Progress
from loradrop_convert.llama_converter import DIRECT_TYPES, OWN_PRECISION, check_requirements, run_converter
from loradrop_convert.output import check_outputs, complete_file, no_room_names
from loradrop_convert.pack import pack, pack_sidecar
from loradrop_convert.peft_adapter import is_peft_folder, read_peft_adapter
from loradrop_convert.reference_checkpoint import CONFIG, is_reference_checkpoint
from loradrop_convert.remote_code import check_needs_no_code
from loradrop_convert.sources import read_source
from loradrop_convert.storage import STORAGE_TYPES, StorageType

AnyPath = str | os.PathLike[str]


def convert(
    checkpoint: AnyPath,
    out: AnyPath,
    *,
    outtype: str = "f16",
    corrector: AnyPath | None = None,
    corrector_type: StorageType | None = None,
    sidecar: bool = False,
    lora: AdapterPaths = None,
    lora_scale: float | Sequence[float] = 1.0,
    adapter: bool = False,
    trust_remote_code: bool = False,
    force: bool = False,
    n_threads: int = 0,
    progress: Progress | None = None,
) -> list[Path]:
    """Write a checkpoint's model as GGUF, by llama.cpp's converter and quantiser.

    No code that the checkpoint brings is run, unless `trust_remote_code` is set.

    Parameters
    ----------
    checkpoint : path
        A folder as transformers saves it, or one of the reference code with base weights in it.
    out : path
        The new file; it and the sidecar appear when both are complete.
    outtype : str
        Type of the weights, one of `outtypes`. What the converter does not know is quantised from the
        checkpoint's own 16 bits.
    corrector : path, optional
        As `read_corrector` takes it. None takes the one in a checkpoint of the reference code.
    corrector_type : {"f16", "q8_0"}, optional
        Of the corrector's matrices; see `pack`.
    sidecar : bool
        Whether the corrector goes into `sidecar_path` instead of `out`.
    lora : path or sequence of paths, optional
        Folders of LoRA adapters as PEFT saves them, which are added to the weights.
    lora_scale : float or sequence of float
        What each is multiplied by; one number holds for all.
    adapter : bool
        Whether to write the one adapter `lora` as a GGUF file of its own, instead of the model; then `outtype` is one
        of the converter's and of the checkpoint only the configuration is needed.
    trust_remote_code : bool
        Whether the converter may run Python code that the checkpoint brings for its tokenizer.
    force : bool
        Whether files of these names may be replaced.
    n_threads : int
        Of the quantiser; 0 takes all processors.
    progress : callable, optional
        Called again and again.

    Returns
    -------
    list of Path
        What was written: `out`, and the sidecar if there is one.

    Raises
    ------
    ValueError
        If `outtype` or `corrector_type` is unknown, there is no corrector for a sidecar, or arguments do not go
        together.
    ModelError
        If the checkpoint cannot be converted, an adapter does not fit it or is no plain LoRA, or what the converter
        imports is not installed.
    CorrectorError
        If the corrector cannot be read, or does not fit the model.
    OSError
        As `complete_file`, or if an input is missing or is an output.
    """
    checkpoint, out = Path(checkpoint), Path(out)
    _check_types(outtype, corrector_type)
    _check_checkpoint(checkpoint)
    reference = is_reference_checkpoint(checkpoint)
    loras = adapter_scales(lora, lora_scale, ("lora", "lora_scale"))
    if adapter:
        check_adapter_alone(loras, outtype, corrector, sidecar)
    elif corrector is None and reference:
        corrector = checkpoint
    if corrector is None and sidecar:
        raise ValueError("sidecar=True: there is no corrector for it; give one with --corrector (corrector=PATH)")
    outputs = [out, sidecar_path(out)] if sidecar else [out]
    check_outputs(outputs, force, _files(checkpoint, corrector, *(path for path, _ in loras)))
    check_requirements()
    adapters = [(read_peft_adapter(path), scale) for path, scale in loras]
    if adapter:
        convert_adapter(checkpoint, adapters[0][0], out, outtype, force, progress)
        return outputs
    if not trust_remote_code and not reference:  # of the latter no code is copied
        check_needs_no_code(checkpoint)
    if corrector is not None:
        read_source(corrector)  # a bad one should not show only after the long conversion

    with _work_folder(out) as work, converter_input(checkpoint, adapters, work, progress) as base_folder:
        model = work / "converted.gguf"
        _write_model(base_folder, model, outtype, n_threads, progress, trust_remote_code)
        made = [model]
        if corrector is not None:
            made = _add_corrector(model, corrector, corrector_type, sidecar, progress)
        _appear(made, outputs, force)
    return outputs


def outtypes() -> list[str]:
    """Return the types that `convert` knows."""
    return [*DIRECT_TYPES, *(name for name in quantize_types() if name not in DIRECT_TYPES)]


def sidecar_path(out: Path) -> Path:
    """Return where the sidecar of a model goes."""
    return out.with_name(out.name.removesuffix(".gguf") + ".lora-drop.gguf")


def _check_types(outtype: str, corrector_type: str | None) -> None:
    if outtype not in outtypes():
        raise ValueError(f"outtype={outtype!r}: give one of {', '.join(outtypes())}")
    if corrector_type not in (None, *STORAGE_TYPES):
        raise ValueError(f"corrector_type={corrector_type!r}: give one of {', '.join(STORAGE_TYPES)}")


def _check_checkpoint(path: Path) -> None:
    if not path.is_dir():
        found = "a file" if path.exists() else "not there"
        raise FileNotFoundError(f"{path} is {found}; give the folder of a checkpoint, with its {CONFIG}")
    if not (path / CONFIG).is_file() and is_peft_folder(path):
        raise FileNotFoundError(f"{path}: holds an adapter alone; give the folder of its model, and this with --lora")
    if not (path / CONFIG).is_file():
        raise FileNotFoundError(f"{path}: there is no {CONFIG} in it; give the folder of a checkpoint")


def _files(*inputs: AnyPath | None) -> Iterator[Path]:
    """Give all files of the inputs; a GGUF file in a folder is none of them."""
    for path in (Path(given) for given in inputs if given is not None):
        if path.is_dir():
            yield from (file for file in path.iterdir() if file.suffix != ".gguf")
        else:
            yield path


@contextmanager
def _work_folder(out: Path) -> Iterator[Path]:
    """Give a folder on the output's disk, which goes with all it holds."""
    with no_room_names(out), tempfile.TemporaryDirectory(prefix=".loradrop-", dir=out.parent) as folder:
        yield Path(folder)


def _write_model(
    checkpoint: Path, path: Path, outtype: str, n_threads: int, progress: Progress | None, trust_remote_code: bool
) -> None:
    if outtype in DIRECT_TYPES:
        run_converter(checkpoint, path, outtype, progress, trust_remote_code=trust_remote_code)
        _check_complete(checkpoint, path)
        return
    source = path.with_name("source.gguf")
    run_converter(checkpoint, source, OWN_PRECISION, progress, trust_remote_code=trust_remote_code)
    _check_complete(checkpoint, source)
    if progress is not None:
        progress(f"quantising {checkpoint.name} to {outtype}", 0, None)
    try:
        quantize(str(source), str(path), outtype, n_threads=n_threads)
    except LoradropError as error:
        raise ModelError(f"{checkpoint}: converted, but not quantised: {error}") from error
    source.unlink()


def _check_complete(checkpoint: Path, path: Path) -> None:
    """Check for what the converter does not notice: weights that no index names and no file holds."""
    header = read_model_header(path)
    names = {tensor.name for tensor in header.tensors}
    for part in ("token_embd.", *(f"blk.{i}." for i in range(base_of(header).n_layer))):
        if not any(name.startswith(part) for name in names):
            raise ModelError(f"{checkpoint}: there are no weights for {part}*; is a file of the checkpoint missing?")


def _add_corrector(
    model: Path, corrector: AnyPath, type_: StorageType | None, sidecar: bool, progress: Progress | None
) -> list[Path]:
    joined = model.with_name("with-corrector.gguf")
    if sidecar:
        pack_sidecar(model, corrector, joined, type=type_)
        return [model, joined]
    pack(model, corrector, joined, type=type_, progress=progress)
    return [joined]


def _appear(made: list[Path], outputs: list[Path], force: bool) -> None:
    # Left in reverse, so the model gets its name last.
    with ExitStack() as stack:
        for file, out in zip(made, outputs, strict=True):
            os.replace(file, stack.enter_context(complete_file(out, force)))
