"""Images in tables: Parquet files with image bytes (the Hugging Face layout) and LMDB (the LSUN layout).

pyarrow and lmdb are needed for these sources alone; a message says how to install them.
"""

import importlib
import json
from collections.abc import Iterator, Sequence
from contextlib import contextmanager
from pathlib import Path
from typing import Any

from data_pipeline.sources.source import (
    MAX_FILE_BYTES,
    Entry,
    FilesSource,
    Sample,
    check_no_images,
    is_image_name,
    is_of_the_system,
    key_of,
    unique_keys,
    visible,
)
from data_pipeline.storage.tar_index import plain_name

_LMDB_NOTES = (b"length", b"__len__", b"keys", b"__keys__", b"num-samples", b"num_samples")
"""Keys under which the usual writers keep counts and lists of keys; what lies under any other key is an image"""


class ParquetSource(FilesSource):
    """The rows of Parquet files that have a column of encoded images: binary, or a struct with a field "bytes"."""

    kind = "parquet"

    def __init__(self, paths: Sequence[Path], root: Path) -> None:
        """root: keys are made of the paths relative to it."""
        super().__init__(paths)
        self._names = [path.relative_to(root).as_posix() for path in paths]

    @classmethod
    def opened(cls, path: Path, follow_links: bool) -> "ParquetSource | None":
        """The reader of a .parquet file, or of a folder with such files in any depth."""
        if path.is_file():
            return cls([path], path.parent) if path.name.lower().endswith(".parquet") else None
        tables = visible(path.rglob("*.parquet"), path)
        if tables:
            check_no_images(path, ".parquet")
        return cls(tables, path) if tables else None

    def entries(self) -> list[Entry]:
        found = []
        for number, path in enumerate(self._paths):
            file = self._open(number)
            _image_column(file, path)
            row = 0
            for group in range(file.num_row_groups):
                metadata = file.metadata.row_group(group)
                for row_of_group in range(metadata.num_rows):
                    key = f"{key_of(self._names[number])}-{row:08d}"
                    name = f"{self._names[number]}, row {row}"
                    found.append(Entry(key, name, metadata.total_byte_size, (number, group, row_of_group)))
                    row += 1
        return unique_keys(found)

    def read(self, entry: Entry) -> Sample:
        number, group, row = entry.place
        images, labels = self._row_group(number, group)
        if row >= len(images):
            raise ValueError(f"its row group holds {len(images)} rows, fewer than it states")
        image = images[row].as_py()
        if isinstance(image, dict):
            image = image.get("bytes")
        if not image:
            raise ValueError("has no image bytes, only a path or nothing")
        if len(image) > MAX_FILE_BYTES:
            raise ValueError(f"is larger than {MAX_FILE_BYTES} bytes")
        return Sample(image, None if labels is None else _label_json(labels[row].as_py()))

    def _open(self, number: int) -> Any:
        parquet = _optional_module("pyarrow.parquet", "pyarrow")
        arrow = _optional_module("pyarrow", "pyarrow")
        try:
            return parquet.ParquetFile(self._paths[number])
        except (arrow.ArrowException, OSError) as error:
            if is_of_the_system(error):
                raise
            raise ValueError(f"{self._paths[number]} is not a usable Parquet file: {error}") from error

    def _row_group(self, number: int, group: int) -> tuple[Any, Any]:
        """Images and labels of a row group; the last one is kept, as rows are read in order."""
        if self._handle is None or self._handle[0] != (number, group):
            file = self._open(number)
            column = _image_column(file, self._paths[number])
            label = "label" if "label" in file.schema_arrow.names else None
            arrow = _optional_module("pyarrow", "pyarrow")
            try:
                table = file.read_row_group(group, columns=[column, *([label] if label else [])])
            except (arrow.ArrowException, OSError) as error:
                if is_of_the_system(error):
                    raise
                raise ValueError(f"its row group cannot be read: {error}") from error
            images = table.column(column)
            self._handle = ((number, group), images, table.column(label) if label else None)
        return self._handle[1], self._handle[2]


class LmdbSource(FilesSource):
    """An LMDB of encoded images, as LSUN ships them: a folder with data.mdb, name -> image file."""

    kind = "lmdb"

    def __init__(self, path: Path) -> None:
        super().__init__([path / "data.mdb" if path.is_dir() else path])

    @classmethod
    def opened(cls, path: Path, follow_links: bool) -> "LmdbSource | None":
        """The reader of an LMDB: its folder, or its file."""
        is_file = path.is_file() and path.name.lower().endswith((".mdb", ".lmdb"))
        return cls(path) if is_file or (path / "data.mdb").is_file() else None

    def entries(self) -> list[Entry]:
        found = []
        self.num_ignored = 0
        with self._reading(buffers=True) as transaction:
            for key, value in transaction.cursor():
                if bytes(key) in _LMDB_NOTES:
                    self.num_ignored += 1
                    continue
                name = _readable(bytes(key))
                found.append(Entry(_key_of_name(name), name, len(value), bytes(key)))
        return unique_keys(found)

    def read(self, entry: Entry) -> Sample:
        with self._reading() as transaction:
            data = transaction.get(entry.place)
        if data is None or len(data) > MAX_FILE_BYTES:
            raise ValueError(f"is no longer there, or larger than {MAX_FILE_BYTES} bytes")
        return Sample(bytes(data))

    @contextmanager
    def _reading(self, buffers: bool = False) -> Iterator[Any]:
        lmdb, path = _optional_module("lmdb", "rayddpm[lmdb]"), self._paths[0]
        try:
            if self._handle is None:
                self._handle = _open_lmdb(lmdb, path)
            with self._handle.begin(buffers=buffers) as transaction:
                yield transaction
        except lmdb.Error as error:
            raise ValueError(f"{path} is not a usable LMDB: {error}") from error


def _open_lmdb(lmdb: Any, path: Path) -> Any:
    handle = lmdb.open(str(path), readonly=True, lock=False, readahead=False, subdir=False)
    # The file is mapped into memory: to read a page behind its end would kill the process.
    num_bytes = (handle.info()["last_pgno"] + 1) * handle.stat()["psize"]
    if path.stat().st_size < num_bytes:
        handle.close()
        raise ValueError(f"{path} has {path.stat().st_size} of its {num_bytes} bytes: it is truncated")
    return handle


def _image_column(file: Any, path: Path) -> str:
    """The column that holds the images: "image" or "img" if there is one, else the only binary column."""
    arrow = _optional_module("pyarrow", "pyarrow")

    def holds_images(kind: Any) -> bool:
        if arrow.types.is_struct(kind):
            return any(field.name == "bytes" and holds_images(field.type) for field in kind)
        return bool(arrow.types.is_binary(kind) or arrow.types.is_large_binary(kind))

    names = [field.name for field in file.schema_arrow if holds_images(field.type)]
    preferred = [name for name in ("image", "img", "jpg", "png") if name in names]
    if preferred or len(names) == 1:
        return str((preferred or names)[0])
    raise ValueError(
        f"{path} has {len(names)} columns of image bytes ({', '.join(names) or 'none'}) and none called image; "
        f"its columns are {', '.join(file.schema_arrow.names)}"
    )


def _label_json(label: Any) -> bytes | None:
    try:
        return None if label is None else json.dumps({"label": label}, allow_nan=False).encode()
    except (TypeError, ValueError) as error:
        raise ValueError(f"its label {label!r} cannot be stored as JSON: {error}") from error


def _readable(key: bytes) -> str:
    try:
        text = key.decode()
    except UnicodeDecodeError:
        return key.hex()
    return text if text.isprintable() and ".." not in text and plain_name(text) == text else key.hex()


def _key_of_name(name: str) -> str:
    return key_of(name) if is_image_name(name) else name.replace(".", "_").replace("\\", "_")


def _optional_module(name: str, package: str) -> Any:
    try:
        return importlib.import_module(name)
    except ImportError as error:
        raise ValueError(f"reading this source needs more packages: pip install '{package}'") from error
