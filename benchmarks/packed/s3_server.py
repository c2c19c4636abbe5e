"""moto's S3 server in a process of its own, so that its work is not done between ours; nothing leaves this machine."""

from __future__ import annotations

import os
import subprocess
import sys
from collections.abc import Iterator
from contextlib import contextmanager
from importlib.util import find_spec
from unittest import mock

BUCKET = "features"
_CREDENTIALS = {"AWS_ACCESS_KEY_ID": "test", "AWS_SECRET_ACCESS_KEY": "test", "AWS_DEFAULT_REGION": "us-east-1"}


def missing_package() -> str | None:
    """The first of the packages without which there is no server or no client; None when all are there."""
    return next((name for name in ("moto", "flask", "flask_cors", "boto3", "s3fs") if find_spec(name) is None), None)


@contextmanager
def s3_server() -> Iterator[str]:
    """The URL of an empty bucket that every client of this process finds; the server ends with it."""
    command = [sys.executable, "-m", "benchmarks.packed.s3_server"]
    process = subprocess.Popen(
        command, stdin=subprocess.PIPE, stdout=subprocess.PIPE, stderr=subprocess.DEVNULL, text=True
    )
    try:
        endpoint = process.stdout.readline().strip() if process.stdout else ""
        if not endpoint:
            raise RuntimeError("moto's server did not start")
        with mock.patch.dict(os.environ, {**_CREDENTIALS, "AWS_ENDPOINT_URL": endpoint}):
            import boto3
            import s3fs

            # Its instances are kept, and tell endpoints of the environment not apart.
            s3fs.S3FileSystem.clear_instance_cache()
            boto3.client("s3").create_bucket(Bucket=BUCKET)
            yield f"s3://{BUCKET}/store"
    finally:
        process.kill()
        process.wait()


def _serve() -> None:
    from moto.server import ThreadedMotoServer

    server = ThreadedMotoServer("127.0.0.1", port=0, verbose=False)
    server.start()
    host, port = server.get_host_and_port()
    print(f"http://{host}:{port}", flush=True)
    sys.stdin.read()  # until who started it ends


if __name__ == "__main__":
    _serve()
