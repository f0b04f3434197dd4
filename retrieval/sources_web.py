"""Images over HTTP(S): from hosts on an allow-list only, never from an address inside the network this runs in."""

from __future__ import annotations

import ipaddress
import socket
import time
from collections.abc import Callable, Collection, Mapping
from dataclasses import dataclass, field
from functools import cached_property
from typing import TYPE_CHECKING

from foveal.errors import BadImage, BadInput
from retrieval.sources_item import MAX_BYTES

if TYPE_CHECKING:
    import httpx

NAT64 = ipaddress.IPv6Network("64:ff9b::/96")  # RFC 6052
SECONDS = 30.0  # to connect, and between two pieces of an answer


def is_public(address: str) -> bool:
    """Whether an IP address belongs to the internet at large: not private, local to the link, multicast or reserved.

    An IPv6 address that stands for an IPv4 one counts as that.
    """
    ip = ipaddress.ip_address(address)
    if isinstance(ip, ipaddress.IPv6Address):
        translated = ipaddress.IPv4Address(int(ip) & 0xFFFF_FFFF) if ip in NAT64 else None
        if inner := ip.ipv4_mapped or ip.sixtofour or translated:
            return is_public(str(inner))
    return ip.is_global and not ip.is_multicast


@dataclass
class Web:
    """Fetches from the hosts in `allow`; threads may share it.

    The address that was checked is the one connected to, so a name that resolves anew gains nothing. Redirects are not
    followed and proxies not used, for either would reach an address that nobody checked.
    """

    allow: Collection[str]
    public: Callable[[str], bool] = field(default=is_public)  # tests serve from 127.0.0.1
    headers: Mapping[str, str] = field(default_factory=dict[str, str])  # sent to every host, such as a key
    most: int | None = None  # bytes of one answer; None: MAX_BYTES
    seconds: float | None = None  # until an answer must be whole; None: as long as something comes every 30 s

    def __getstate__(self) -> dict[str, object]:
        # Another process makes connections of its own.
        return {
            "allow": self.allow,
            "public": self.public,
            "headers": self.headers,
            "most": self.most,
            "seconds": self.seconds,
        }

    def check(self, url: str) -> httpx.URL:
        """The parsed URL.

        Raises:
            BadInput: it is none, or its host is not on the allow-list.
        """
        import httpx

        try:
            parsed = httpx.URL(url)
        except (httpx.InvalidURL, ValueError) as error:
            raise BadInput(f"{url} is not a URL: {error}") from error
        if parsed.scheme not in ("http", "https") or not parsed.host:
            raise BadInput(f"{url} cannot be fetched", expected="http:// or https:// and a host")
        if parsed.host not in {host.lower() for host in self.allow}:
            raise BadInput(
                f"{url} is not fetched: {parsed.host} is not an allowed host",
                expected=f"one of {', '.join(sorted(self.allow))}" if self.allow else "an allow-list of hosts",
                remedy=f"If you trust that host: --allow-host {parsed.host}",
            )
        return parsed

    def read(self, url: str) -> bytes:
        """What lies at `url`.

        Raises:
            BadInput: the host is not allowed or not public, the answer is a redirect, an error or too large.
            OSError: it does not answer, or not in time.
        """
        import httpx

        parsed, began = self.check(url), time.monotonic()
        address = self._resolve(parsed)
        headers = {"Host": parsed.netloc.decode("ascii"), "Accept": "image/*,*/*;q=0.1", **self.headers}
        request = self._client.build_request(
            "GET",
            parsed.copy_with(host=address),
            headers=headers,
            extensions={"sni_hostname": parsed.raw_host.decode("ascii")},
        )
        data, most = bytearray(), MAX_BYTES if self.most is None else self.most
        try:
            response = self._client.send(request, stream=True)
            try:
                if response.is_redirect:
                    raise BadInput(
                        f"{url} redirects, which is not followed",
                        received=response.headers.get("location", "no location"),
                        remedy="Name the final URL, and allow its host.",
                    )
                if response.status_code != 200:
                    raise BadInput(
                        f"{url} cannot be fetched", expected="status 200", received=str(response.status_code)
                    )
                for piece in response.iter_bytes():
                    data += piece
                    if len(data) > most:
                        raise BadImage(f"{url} is too large", expected=f"at most {most:,} bytes")
                    if self.seconds is not None and time.monotonic() - began > self.seconds:
                        raise OSError(f"{url} is not here within {self.seconds:g} s")
            finally:
                response.close()
        except httpx.HTTPError as error:
            raise OSError(f"{url} cannot be fetched: {error or type(error).__name__}") from error
        return bytes(data)

    def _resolve(self, url: httpx.URL) -> str:
        """An address of the host, all of which must be public."""
        port = url.port or (443 if url.scheme == "https" else 80)
        try:
            found = {str(entry[4][0]) for entry in socket.getaddrinfo(url.host, port, type=socket.SOCK_STREAM)}
        except (OSError, UnicodeError) as error:
            raise OSError(f"host {url.host} is not known: {error}") from error
        inside = sorted(address for address in found if not self.public(address.partition("%")[0]))
        if inside:
            raise BadInput(
                f"{url} is not fetched: {url.host} is inside a private network",
                expected="a public address",
                received=", ".join(inside),
            )
        return min(found, key=lambda address: (":" in address, address))  # IPv4 first: it is routed everywhere

    @cached_property
    def _client(self) -> httpx.Client:
        import httpx

        return httpx.Client(timeout=min(SECONDS, self.seconds or SECONDS), follow_redirects=False, trust_env=False)
