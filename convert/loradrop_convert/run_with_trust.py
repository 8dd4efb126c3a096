"""Runs a script in which transformers runs code of checkpoints, or never does: trust|distrust SCRIPT ARGUMENT..."""

from __future__ import annotations

import runpy
import sys
from pathlib import Path
from typing import Any


def main() -> None:
    """Run the script as Python would have run it."""
    trusts = sys.argv[1] == "trust"
    del sys.argv[:2]
    sys.path[0] = str(Path(sys.argv[0]).parent)
    _decide(trusts)
    runpy.run_path(sys.argv[0], run_name="__main__")


def _decide(trusts: bool) -> None:
    """Make the user's decision that of transformers, before any of its modules takes these functions."""
    from transformers import dynamic_module_utils

    resolve = dynamic_module_utils.resolve_trust_remote_code

    def decided(trust_remote_code: Any, model_name: Any, has_local_code: Any, *args: Any, **options: Any) -> Any:
        if trust_remote_code is None and not has_local_code:
            trust_remote_code = trusts
        return resolve(trust_remote_code and trusts, model_name, has_local_code, *args, **options)

    def load_nothing(class_reference: str, *_: Any, **__: Any) -> None:
        raise RuntimeError(f"{class_reference} is code of the checkpoint, and runs with trust_remote_code=True alone")

    dynamic_module_utils.resolve_trust_remote_code = decided
    if not trusts:
        dynamic_module_utils.get_class_from_dynamic_module = load_nothing


if __name__ == "__main__":
    main()
