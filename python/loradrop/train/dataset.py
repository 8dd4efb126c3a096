"""Text from a dataset, read with the library ``datasets``: a name on a hub, or a local folder."""

from __future__ import annotations

from typing import Any, cast


def dataset_text(name: str, split: str, column: str, n_characters: int) -> str:
    """Return the first rows of a dataset as one text, an empty line between two rows.

    Parameters
    ----------
    name : str
        What `datasets.load_dataset` takes: a dataset's name, or a folder of JSON lines, CSV, Parquet or text files.
    split : str
        Such as ``train``.
    column : str
        The column that holds the text.
    n_characters : int
        Rows are read, as a stream, until there are so many.

    Raises
    ------
    ValueError
        If the dataset cannot be read, has no such column, or is empty.
    """
    import datasets

    try:
        rows = cast(Any, datasets.load_dataset(name, split=split, streaming=True))
    except (OSError, ValueError) as error:  # the library's own errors derive from these
        raise ValueError(f"--dataset {name}, split {split!r}: {error}") from error
    parts: list[str] = []
    length = 0
    for row in rows:
        if not isinstance(row.get(column), str):
            raise ValueError(
                f"--dataset {name}: no text in a column {column!r}; its columns are {', '.join(row)}: give --column"
            )
        parts.append(row[column])
        length += len(row[column]) + 2
        if length >= n_characters:
            break
    if not parts:
        raise ValueError(f"--dataset {name}, split {split!r}: it is empty")
    return "\n\n".join(parts)
