"""Shards behind http(s):// and s3://, fetched into a cache and verified before anyone sees them."""

import hashlib
import logging
import threading
from concurrent.futures import ThreadPoolExecutor
from pathlib import Path

from data_pipeline.storage.address import first_line
from data_pipeline.storage.cache import FileCache
from data_pipeline.storage.errors import DamagedDataError
from data_pipeline.storage.fetch import Fetcher
from data_pipeline.storage.local import read_at
from data_pipeline.storage.manifest import ShardRecord

_log = logging.getLogger(__name__)
_MAX_EVICTED_READS = 20


class RemoteFiles:
    """Shards below a URL, kept in a cache while they are used."""

    def __init__(self, fetcher: Fetcher, cache: FileCache, num_threads: int) -> None:
        self._fetcher, self._cache = fetcher, cache
        self._pool = ThreadPoolExecutor(num_threads, thread_name_prefix="fetch")
        self._scheduled: set[str] = set()
        self._lock = threading.Lock()

    def read(self, record: ShardRecord, offset: int, num_bytes: int) -> bytes:
        for _ in range(_MAX_EVICTED_READS):
            path = self._get(record.name, record.bytes, record.sha256)
            try:
                return read_at(path, offset, num_bytes)
            except FileNotFoundError:
                continue  # evicted by another worker between the two lines
        raise DamagedDataError(
            f"shard {record.name} is evicted from the cache as soon as it is fetched; raise the cache budget of "
            f"{self._cache.max_bytes} bytes"
        )

    def read_index(self, record: ShardRecord) -> bytes:
        for _ in range(_MAX_EVICTED_READS):
            path = self._get(record.index_name, record.index_bytes, record.index_sha256)
            try:
                data = path.read_bytes()
            except FileNotFoundError:
                continue
            if hashlib.sha256(data).hexdigest() == record.index_sha256:
                return data
            self._cache.discard(record.index_sha256)
        raise DamagedDataError(f"the index of shard {record.name} does not stay whole in the cache; check the disk")

    def discard(self, record: ShardRecord) -> bool:
        self._cache.discard(record.sha256)
        return True

    def prefetch(self, records: list[ShardRecord]) -> None:
        num_bytes = 0
        for record in records:
            num_bytes += record.bytes
            # What is fetched further ahead would push out what is needed first.
            if num_bytes > self._cache.max_bytes // 2:
                break
            with self._lock:
                if record.name in self._scheduled:
                    continue
                self._scheduled.add(record.name)
            self._pool.submit(self._prefetch_one, record)

    def close(self) -> None:
        self._fetcher.close()
        self._pool.shutdown(wait=True, cancel_futures=True)

    def _prefetch_one(self, record: ShardRecord) -> None:
        try:
            self._get(record.name, record.bytes, record.sha256)
        except (OSError, ValueError) as error:
            # The reader that needs the shard will try again, and raise.
            _log.warning("prefetching shard %s failed: %s", record.name, first_line(error))
        finally:
            with self._lock:
                self._scheduled.discard(record.name)

    def _get(self, name: str, num_bytes: int, sha256: str) -> Path:
        return self._cache.get(sha256, num_bytes, lambda file: self._fetcher.fetch_known(name, file, num_bytes, sha256))
