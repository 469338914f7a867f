"""A real S3 server of its own (moto's, in memory), and a gate before it that can be shut."""

import asyncio
import contextlib
import json
import os
import socket
import subprocess
import sys
import time
from collections.abc import AsyncIterator
from contextlib import asynccontextmanager
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any
from uuid import uuid4

PATIENCE_S = 30.0
_KEYS = {"AWS_ACCESS_KEY_ID": "siprec", "AWS_SECRET_ACCESS_KEY": "of-no-use-elsewhere"}


class S3:
    """One server; its objects are gone when it is stopped. Share one per test session."""

    def __init__(self, folder: Path) -> None:
        with socket.socket() as one:
            one.bind(("127.0.0.1", 0))
            self.port: int = one.getsockname()[1]
        self._log = folder / "moto.log"
        self._process: subprocess.Popen[bytes] | None = None
        self._client: Any = None

    def start(self) -> None:
        """Return once it answers."""
        program = Path(sys.executable).with_name("moto_server")
        with self._log.open("ab") as log:
            self._process = subprocess.Popen(
                [program, "-H", "127.0.0.1", "-p", str(self.port)],
                stdout=log, stderr=log, env=os.environ | _KEYS,
            )  # fmt: skip
        deadline = time.monotonic() + PATIENCE_S
        while True:
            with (
                contextlib.suppress(OSError),
                socket.create_connection(("127.0.0.1", self.port), 1),
            ):
                return
            assert time.monotonic() < deadline, self._log.read_text()
            time.sleep(0.05)

    def stop(self) -> None:
        """End it."""
        if self._process is not None:
            self._process.terminate()
            self._process.wait(PATIENCE_S)

    @property
    def client(self) -> Any:
        """Amazon's own client, as a witness that has nothing to do with how we store."""
        if self._client is None:
            import boto3

            self._client = boto3.client(
                "s3", endpoint_url=f"http://127.0.0.1:{self.port}", region_name="us-east-1",
                aws_access_key_id="siprec", aws_secret_access_key="of-no-use-elsewhere",
            )  # fmt: skip
        return self._client

    def new_bucket(self) -> str:
        """Make an empty bucket; returns its name."""
        name = f"t{uuid4().hex}"
        self.client.create_bucket(Bucket=name)
        return name

    def objects(self, bucket: str) -> dict[str, bytes]:
        """What is in it, by key."""
        listed = self.client.list_objects_v2(Bucket=bucket).get("Contents", [])
        return {
            one["Key"]: self.client.get_object(Bucket=bucket, Key=one["Key"])["Body"].read()
            for one in listed
        }

    def keys(self, bucket: str) -> list[str]:
        """What is in it."""
        listed = self.client.list_objects_v2(Bucket=bucket).get("Contents", [])
        return [one["Key"] for one in listed]

    def options(self, port: int | None = None) -> dict[str, object]:
        """How fsspec reaches it, perhaps through a gate."""
        return {
            "endpoint_url": f"http://127.0.0.1:{port or self.port}",
            "key": "siprec",
            "secret": "of-no-use-elsewhere",
            "client_kwargs": {"region_name": "us-east-1"},
        }

    def settings(self, bucket: str, port: int | None = None) -> dict[str, str]:
        """The bridge's settings for it."""
        return {
            "ARCHIVE_URL": f"s3://{bucket}/calls",
            "ARCHIVE_OPTIONS": json.dumps(self.options(port)),
        }


@dataclass
class Gate:
    """A TCP relay. `room`: octets that may still pass to the server, then all stands still; None:
    all pass. Shut, it refuses connections and cuts those that there are."""

    port: int = 0
    room: int | None = None
    passed: int = 0
    shut: bool = False
    _writers: set[asyncio.StreamWriter] = field(default_factory=set)

    def close(self) -> None:
        """As if the network were gone."""
        self.shut = True
        for writer in self._writers:
            writer.close()

    def open(self) -> None:
        """As if nothing had been."""
        self.shut, self.room = False, None


@asynccontextmanager
async def gate(to: int) -> AsyncIterator[Gate]:
    """A gate before the server at this port."""
    made = Gate()

    async def serve(reader: asyncio.StreamReader, writer: asyncio.StreamWriter) -> None:
        if made.shut:
            writer.close()
            return
        far_reader, far_writer = await asyncio.open_connection("127.0.0.1", to)
        made._writers |= {writer, far_writer}
        back = asyncio.create_task(_pass(far_reader, writer))
        try:
            with contextlib.suppress(OSError):
                while data := await reader.read(16384):
                    while made.room is not None and made.passed + len(data) > made.room:  # noqa: ASYNC110
                        await asyncio.sleep(0.02)
                    made.passed += len(data)
                    far_writer.write(data)
                    await far_writer.drain()
        finally:
            back.cancel()
            for one in (writer, far_writer):
                made._writers.discard(one)
                one.close()

    server = await asyncio.start_server(serve, "127.0.0.1", 0)
    made.port = server.sockets[0].getsockname()[1]
    try:
        yield made
    finally:
        server.close()
        made.open()
        made.close()


async def _pass(reader: asyncio.StreamReader, writer: asyncio.StreamWriter) -> None:
    with contextlib.suppress(OSError):
        while data := await reader.read(65536):
            writer.write(data)
            await writer.drain()
