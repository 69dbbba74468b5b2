"""Which store a URL means. Only that one is loaded: a local disk needs no client of a cloud."""

from __future__ import annotations

import re
from collections.abc import Mapping
from urllib.parse import unquote, urlsplit

from kafka_backup.errors import ConfigurationError
from kafka_backup.repository.store import Store

_CLOUDS = ("s3", "gs", "az")
_NAME = re.compile(r"[a-zA-Z0-9._-]+")


def open_store(url: str, options: Mapping[str, str] | None = None, *, retry_seconds: float = 60.0) -> Store:
    """Return the store at a URL. Nothing is contacted and nothing is created yet.

    Args:
        url: ``file:///absolute/path``; ``memory://name``, shared by all of this process that open the
            same name; ``s3://bucket/prefix``; ``gs://bucket/prefix``; ``az://container/prefix``.
        options: obstore's options for that store (S3Config, GCSConfig, AzureConfig, ClientConfig).
        retry_seconds: how long one request is retried.

    Raises:
        ConfigurationError: the URL or an option is wrong. Values of options are never quoted.
    """
    parts = urlsplit(url)
    if "@" in parts.netloc or parts.query or parts.fragment:
        raise ConfigurationError(
            f"repository URL {parts.scheme}://...: user names, queries and fragments do not belong into it; "
            "give credentials in the repository's options"
        )
    if parts.scheme in _CLOUDS:
        from kafka_backup.repository.cloud_store import open_cloud_store

        return open_cloud_store(url, options or {}, retry_seconds=retry_seconds)
    if parts.scheme not in ("file", "memory"):
        raise ConfigurationError(
            f"repository URL {url!r}: it must begin with file://, memory://, s3://, gs:// or az://"
        )
    if options:
        raise ConfigurationError(f"repository option {min(options)!r}: a {parts.scheme}:// store has none")
    if parts.scheme == "memory":
        from kafka_backup.repository.cloud_store import open_memory_store

        if not _NAME.fullmatch(parts.netloc) or parts.path not in ("", "/"):
            raise ConfigurationError(f"repository URL {url!r}: write memory:// and one name")
        return open_memory_store(parts.netloc)
    from kafka_backup.repository.file_store import FileStore

    path = unquote(parts.path)
    if parts.netloc not in ("", "localhost") or not path.startswith("/") or "\0" in path:
        raise ConfigurationError(f"repository URL {url!r}: write file:// and an absolute path")
    return FileStore(path)
