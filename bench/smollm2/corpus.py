"""Make the texts for SmolLM2's correctors out of four Debian packages.

    python corpus.py OUT_DIR [--packages DIR]

writes ``train/*.txt`` and ``held-out/*.txt``. Prose is Jane Austen's novels, the last one held out; the rest is
documentation, essays and dictionary entries, every 16th document held out. Needs Debian's ``apt-get`` and
``dpkg-deb``, and ``pip install rdata``.
"""

from __future__ import annotations

import argparse
import html
import re
import struct
import subprocess
import tempfile
import zlib
from collections.abc import Iterator
from pathlib import Path

import rdata

PACKAGES = ("r-cran-janeaustenr", "anarchism", "rust-doc", "dict-foldoc")
RUST_BOOKS = ("book", "cargo", "edition-guide", "embedded-book", "nomicon", "reference", "rust-by-example", "rustc")
HELD_OUT_EVERY = 16
SHORTEST = 1500  # characters of a document worth keeping


def unpack(packages: Path, into: Path) -> None:
    """Download what is not in `packages` yet, and unpack all of it."""
    packages.mkdir(parents=True, exist_ok=True)
    for name in PACKAGES:
        if not list(packages.glob(f"{name}_*.deb")):
            subprocess.run(["apt-get", "download", name], cwd=packages, check=True)
        subprocess.run(["dpkg-deb", "-x", next(packages.glob(f"{name}_*.deb")), into], check=True)


def novels(root: Path) -> list[str]:
    """Return the texts of janeaustenr: an R database of compressed character vectors."""
    data = (root / "usr/lib/R/site-library/janeaustenr/data/Rdata.rdb").read_bytes()
    texts, at = [], 0
    while at < len(data):
        (length,) = struct.unpack(">I", data[at : at + 4])
        block = zlib.decompressobj()
        raw = block.decompress(data[at + 4 :])
        assert len(raw) == length
        at = len(data) - len(block.unused_data)
        lines = rdata.conversion.convert(rdata.parser.parse_data(raw, expand_altrep=True))
        texts.append(re.sub(r"(?<!\n)\n(?!\n)", " ", "\n".join(map(str, lines))))
    return [text for text in texts if len(text) > 100_000]


def html_text(source: str) -> str:
    """Return the text of a page, a paragraph a line."""
    main = re.search(r"<main>(.*?)</main>", source, re.S)
    text = main.group(1) if main else source
    text = re.sub(r"<(script|style|head).*?</\1>", "", text, flags=re.S)
    text = re.sub(r"</(p|h\d|li|pre|div|tr)>", "\n\n", text)
    text = html.unescape(re.sub(r"<[^>]+>", "", text))
    return re.sub(r"\n{3,}", "\n\n", text).strip()


def documents(root: Path) -> Iterator[str]:
    """Yield documentation, essays and batches of dictionary entries."""
    pages = [p for book in RUST_BOOKS for p in sorted((root / "usr/share/doc/rust-doc/html" / book).rglob("*.html"))]
    pages += sorted((root / "usr/share/doc/anarchism").rglob("*.html"))
    for page in pages:
        if page.name not in ("print.html", "toc.html"):
            yield html_text(page.read_text(errors="ignore"))
    entries = subprocess.run(
        ["gzip", "-dc", next(root.rglob("foldoc.dict.dz"))], stdout=subprocess.PIPE, check=True
    ).stdout.decode(errors="ignore")
    for at in range(0, len(entries), 20_000):
        yield re.sub(r"\n +", " ", entries[at : at + 20_000])


def main() -> None:
    """Write the two folders."""
    parser = argparse.ArgumentParser(description=__doc__)
    parser.add_argument("out", type=Path)
    parser.add_argument("--packages", type=Path, default=Path("packages"), help="where the .deb files are kept")
    args = parser.parse_args()
    train, held_out = args.out / "train", args.out / "held-out"
    for folder in (train, held_out):
        folder.mkdir(parents=True, exist_ok=True)
    with tempfile.TemporaryDirectory() as unpacked:
        unpack(args.packages.resolve(), Path(unpacked))
        prose = novels(Path(unpacked))
        other = [text for text in documents(Path(unpacked)) if len(text) >= SHORTEST]
    (held_out / "prose.txt").write_text(prose[-1])
    (train / "prose.txt").write_text("\n\n".join(prose[:-1]))
    (held_out / "documents.txt").write_text("\n\n".join(other[::HELD_OUT_EVERY]))
    (train / "documents.txt").write_text("\n\n".join(t for i, t in enumerate(other) if i % HELD_OUT_EVERY))


if __name__ == "__main__":
    main()
