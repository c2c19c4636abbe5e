"""A server that speaks S3's protocol, of this process, started by the first test that asks for a bucket."""

from __future__ import annotations

import functools
import itertools

import pytest

_CREDENTIALS = {"AWS_ACCESS_KEY_ID": "test", "AWS_SECRET_ACCESS_KEY": "test", "AWS_DEFAULT_REGION": "us-east-1"}
_latest: list[str | None] = []
_numbers = itertools.count()


def s3_bucket(monkeypatch: pytest.MonkeyPatch, endpoint: str | None = None) -> str:
    """A new, empty bucket, `s3://<name>`, which every client of this test finds, through `endpoint` if given."""
    for module in ("s3fs", "moto.server", "flask_cors"):
        pytest.importorskip(module)
    for name, value in {**_CREDENTIALS, "AWS_ENDPOINT_URL": endpoint or server_url()}.items():
        monkeypatch.setenv(name, value)
    if _latest != [endpoint]:
        import s3fs

        # Its instances are kept, and tell endpoints of the environment not apart.
        s3fs.S3FileSystem.clear_instance_cache()
        _latest[:] = [endpoint]
    bucket = f"bucket-{next(_numbers)}"
    from moto.s3.models import s3_backends

    s3_backends["123456789012"]["aws"].create_bucket(bucket, "us-east-1")
    return f"s3://{bucket}"


@functools.cache
def server_url() -> str:
    from moto.server import ThreadedMotoServer

    server = ThreadedMotoServer("127.0.0.1", port=0, verbose=False)
    server.start()
    host, port = server.get_host_and_port()
    return f"http://{host}:{port}"
