"""An SRC that closes its idle TCP connection still hears that the bridge hangs up."""

import asyncio
from pathlib import Path

from harness.bridge import running_bridge
from harness.src import multipart, request


async def test_an_src_that_closed_its_connection_gets_the_bye_of_a_bridge_that_stops(
    tmp_path: Path,
) -> None:
    got: asyncio.Future[bytes] = asyncio.get_running_loop().create_future()

    async def take(reader: asyncio.StreamReader, writer: asyncio.StreamWriter) -> None:
        got.set_result(await reader.readuntil(b"\r\n\r\n"))
        writer.close()

    src = await asyncio.start_server(take, "127.0.0.1", 0)
    own = f"127.0.0.1:{src.sockets[0].getsockname()[1]}".encode()
    async with running_bridge(tmp_path / "data", SHUTDOWN_TIMEOUT="0.1s") as bridge:
        reader, writer = await asyncio.open_connection(*bridge.tcp)
        invite = request("INVITE", body=multipart(), transport="TCP")
        writer.write(invite.replace(b"192.0.2.10:5070", own))
        answer = b""
        while not answer.startswith(b"SIP/2.0 200"):
            answer = await reader.readuntil(b"\r\n\r\n")
        tag = answer.partition(b"\r\nTo:")[2].partition(b";tag=")[2].partition(b"\r\n")[0].decode()
        writer.write(request("ACK", branch="z9hG4bKa", to_tag=tag, transport="TCP"))
        writer.close()
        await writer.wait_closed()

        code = await bridge.stop()
        async with asyncio.timeout(30):
            bye = await got
    src.close()

    assert code == 0
    assert bye.startswith(b"BYE sip:src@" + own)
