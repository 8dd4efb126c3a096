"""The command ``loradrop``. Each command has its own module, imported when it is asked for."""

from __future__ import annotations

import importlib
import sys
from typing import Any

import click

from loradrop import __version__

COMMANDS = {
    "analyze": "loradrop.cli.analyze",
    "bench": "loradrop.cli.bench",
    "calibrate": "loradrop.cli.calibrate",
    "convert": "loradrop.cli.convert",
    "generate": "loradrop.cli.generate",
    "inspect": "loradrop.cli.inspect",
    "models": "loradrop.cli.models",
    "pack": "loradrop.cli.pack",
    "perplexity": "loradrop.cli.perplexity",
    "random-model": "loradrop.cli.random_model",
    "train": "loradrop.cli.train",
    "unpack": "loradrop.cli.unpack",
}


class LazyGroup(click.Group):
    """A group whose commands are the ``command`` of the modules in `COMMANDS`."""

    def list_commands(self, ctx: click.Context) -> list[str]:
        """Return the names of the commands."""
        return list(COMMANDS)

    def get_command(self, ctx: click.Context, cmd_name: str) -> click.Command | None:
        """Return a command, and None if there is none of that name."""
        if cmd_name not in COMMANDS:
            return None
        command = importlib.import_module(COMMANDS[cmd_name]).command
        assert isinstance(command, click.Command)
        return command

    def invoke(self, ctx: click.Context) -> Any:
        """Run a command; what goes wrong in it becomes one line on stderr and exit code 1."""
        from loradrop._core import LoradropError

        try:
            return super().invoke(ctx)
        except BrokenPipeError:
            raise
        except (LoradropError, OSError, ValueError, RuntimeError, MemoryError) as error:
            if isinstance(error, (click.exceptions.Exit, click.Abort)):  # both RuntimeErrors
                raise
            message = " ".join(str(error).split()) or type(error).__name__
            raise click.ClickException(message) from error


@click.command(cls=LazyGroup, context_settings={"help_option_names": ["-h", "--help"]})
@click.version_option(__version__, prog_name="loradrop")
def main() -> None:
    """LoRA-Drop decoding for llama.cpp."""
    for stream in (sys.stdout, sys.stderr):
        if hasattr(stream, "reconfigure"):
            stream.reconfigure(errors="replace")  # a console may lack some characters
