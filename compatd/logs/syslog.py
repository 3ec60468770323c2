"""Syslog servers: their addresses, and connections to them. Errors are worded as Go's net package and moby
daemon/logger/syslog word them."""

import asyncio
import os
import re
import socket
import ssl
from collections.abc import Mapping
from dataclasses import dataclass
from urllib.parse import unquote

from compatd.shim import spec as shim
from compatd.shim.failures import words
from compatd.tasks import Workers

DEFAULT_PORT = "514"
LOCAL_PATHS = ("/dev/log", "/var/run/syslog", "/var/run/log")  # srslog_unix.go
TLS_TIMEOUT_S = 30
_FACILITIES = (
    "kern user mail daemon auth syslog lpr news uucp cron authpriv ftp - - - - "
    "local0 local1 local2 local3 local4 local5 local6 local7"
).split()
_FORMATS = ("", "rfc3164", "rfc5424", "rfc5424micro")
_URL = re.compile(r"([a-zA-Z][a-zA-Z0-9+.-]*):(?://([^/?#]*))?([^?#]*)(?:\?[^#]*)?(?:#.*)?", re.DOTALL)
_STREAMS = {"tcp": socket.SOCK_STREAM, "tcp+tls": socket.SOCK_STREAM, "udp": socket.SOCK_DGRAM}


@dataclass(frozen=True, slots=True, kw_only=True)
class Address:
    """Where a server is: host and port, or a socket's path; with neither it is the machine's own."""

    network: str = ""
    host: str = ""
    port: str = ""
    path: str = ""

    def __str__(self) -> str:
        return self.path or (f"[{self.host}]:{self.port}" if ":" in self.host else f"{self.host}:{self.port}")


def check(options: Mapping[str, str]) -> None:
    """``ValueError`` for values that cannot be (moby daemon/logger/syslog, ValidateLogOpt)."""
    parse_address(options.get("syslog-address", ""))
    parse_facility(options.get("syslog-facility", ""))
    parse_format(options.get("syslog-format", ""))


def parse_address(url: str) -> Address:
    """``tcp://host:port``, ``unix:///path`` and so on. ``ValueError``; also for a socket that is not there."""
    if not url:
        return Address()
    if bad := re.search("%(?![0-9a-fA-F]{2}).{0,2}", url):
        raise ValueError(f'parse "{url}": invalid URL escape "{bad[0]}"')
    if url.startswith(":"):
        raise ValueError(f'parse "{url}": missing protocol scheme')
    match = _URL.fullmatch(url)
    scheme, authority, path = (match[1].lower(), match[2] or "", unquote(match[3])) if match else ("", "", "")
    host = authority.rpartition("@")[2]
    _check_port(url, host)
    if scheme in ("unix", "unixgram"):
        try:
            os.stat(path)
        except OSError as error:
            raise ValueError(f"stat {path}: {words(error)}") from None
        return Address(network=scheme, path=path)
    if scheme not in _STREAMS:
        raise ValueError(f"unsupported scheme: '{scheme}'")
    if host.startswith("["):
        name, _, port = host[1:].partition("]")
        return Address(network=scheme, host=name, port=port.removeprefix(":") if ":" in port else DEFAULT_PORT)
    if host.count(":") > 1:
        raise ValueError(f"address {host}: too many colons in address")
    name, colon, port = host.partition(":")
    return Address(network=scheme, host=name, port=port if colon else DEFAULT_PORT)


def _check_port(url: str, host: str) -> None:
    """net/url's parseHost."""
    if host.startswith("["):
        if "]" not in host:
            raise ValueError(f"parse \"{url}\": missing ']' in host")
        port = host.rpartition("]")[2]
    else:
        port = ":" + host.rpartition(":")[2] if ":" in host else ""
    if port and not re.fullmatch(":[0-9]*", port, re.ASCII):
        raise ValueError(f'parse "{url}": invalid port "{port}" after host')


def parse_facility(text: str) -> int:
    """A facility by name or number, shifted as in a priority. ``ValueError``."""
    if not text:
        return _FACILITIES.index("daemon") << 3
    if text != "-" and text in _FACILITIES:
        return _FACILITIES.index(text) << 3
    if re.fullmatch(r"\+?[0-9]{1,9}", text, re.ASCII) and int(text) < len(_FACILITIES):
        return int(text) << 3
    raise ValueError("invalid syslog facility")


def parse_format(text: str) -> str:
    """``ValueError``."""
    if text not in _FORMATS:
        raise ValueError("Invalid syslog format")
    return text


def describe(options: Mapping[str, str], tag: str) -> shim.Syslog:
    """What the shim is told, but for the addresses. ``ValueError``, as at a start."""
    address = parse_address(options.get("syslog-address", ""))
    document = shim.Syslog(
        network=address.network or "unixgram",  # type: ignore[typeddict-item]
        addresses=[],
        priority=parse_facility(options.get("syslog-facility", "")),
        format=parse_format(options.get("syslog-format", "")),  # type: ignore[typeddict-item]
        tag=tag,
    )
    if address.network == "tcp+tls":
        document["server_name"] = address.host
        document["skip_verify"] = "syslog-tls-skip-verify" in options
        if "syslog-tls-ca-cert" in options and not document["skip_verify"]:
            document["ca"] = options["syslog-tls-ca-cert"]
        if options.get("syslog-tls-cert") or options.get("syslog-tls-key"):
            document["certificate"] = options.get("syslog-tls-cert", "")
            document["key"] = options.get("syslog-tls-key", "")
    return document


async def connect(
    options: Mapping[str, str], document: shim.Syslog, workers: Workers
) -> tuple[shim.Syslog, socket.socket | None]:
    """Connect, or ``ValueError`` with the reason. The document says where to do so again.

    The caller owns the socket. With TLS there is none: that it can be had has been tried, the shim does it itself.
    """
    address = parse_address(options.get("syslog-address", ""))
    if not address.network:
        return _connect_locally(document)
    if address.path:
        kind = socket.SOCK_DGRAM if address.network == "unixgram" else socket.SOCK_STREAM
        try:
            return {**document, "addresses": [(address.path, 0)]}, _connect_path(address.path, kind)
        except OSError as error:
            raise ValueError(f"dial {address.network} {address}: connect: {words(error)}") from None
    context = await workers.run(_tls_context, document) if address.network == "tcp+tls" else None
    found = await workers.run(_resolve, address)
    sock = await _connect_any(address, found)
    if context is not None:
        await workers.run(_shake_hands, context, sock, address.host)
        return {**document, "addresses": found}, None
    return {**document, "addresses": found}, sock


def _connect_path(path: str, kind: int) -> socket.socket:
    sock = socket.socket(socket.AF_UNIX, kind)
    try:
        sock.setblocking(False)  # who does not accept connections is not waited for
        sock.connect(path)
    except BaseException:
        sock.close()
        raise
    return sock


def _connect_locally(document: shim.Syslog) -> tuple[shim.Syslog, socket.socket]:
    for network, kind in (("unixgram", socket.SOCK_DGRAM), ("unix", socket.SOCK_STREAM)):
        for path in LOCAL_PATHS:
            try:
                sock = _connect_path(path, kind)
            except OSError:
                continue
            return {**document, "network": network, "addresses": [(path, 0)]}, sock  # type: ignore[typeddict-item]
    raise ValueError("Unix syslog delivery error")


def _resolve(address: Address) -> list[tuple[str, int]]:
    """Blocks on the resolver. ``ValueError``."""
    network = "udp" if address.network == "udp" else "tcp"
    if not address.port or int(address.port[:9]) > 65535:
        raise ValueError(f"dial {network}: address {address.port}: invalid port")
    if not address.host:
        return [("127.0.0.1", int(address.port)), ("::1", int(address.port))]
    try:
        found = socket.getaddrinfo(address.host, int(address.port), type=_STREAMS[address.network])
    except (OSError, UnicodeError):
        raise ValueError(f"dial {network}: lookup {address.host}: no such host") from None
    return list(dict.fromkeys((str(sockaddr[0]), int(sockaddr[1])) for *_, sockaddr in found))


async def _connect_any(address: Address, found: list[tuple[str, int]]) -> socket.socket:
    loop = asyncio.get_running_loop()
    failure = ""
    for host, port in found:
        sock = socket.socket(socket.AF_INET6 if ":" in host else socket.AF_INET, _STREAMS[address.network])
        try:
            sock.setblocking(False)
            await loop.sock_connect(sock, (host, port))
        except OSError as error:
            sock.close()
            where = f"[{host}]:{port}" if ":" in host else f"{host if address.host else ''}:{port}"
            failure = failure or f"dial {'udp' if address.network == 'udp' else 'tcp'} {where}: connect: {words(error)}"
        except BaseException:
            sock.close()
            raise
        else:
            return sock
    raise ValueError(failure)


def _tls_context(document: shim.Syslog) -> ssl.SSLContext:
    """``ValueError`` in the words of docker/go-connections tlsconfig."""
    context = ssl.SSLContext(ssl.PROTOCOL_TLS_CLIENT)
    if document.get("skip_verify"):
        context.check_hostname = False
        context.verify_mode = ssl.CERT_NONE
    elif ca := document.get("ca"):
        try:
            context.load_verify_locations(ca)
        except ssl.SSLError:
            raise ValueError(f'failed to append certificates from PEM file: "{ca}"') from None
        except OSError as error:
            raise ValueError(f'could not read CA certificate "{ca}": open {ca}: {words(error)}') from None
    else:
        context.load_default_certs()
    if "certificate" in document:
        certificate, key = document["certificate"], document.get("key", "")
        try:
            for path in (certificate, key):
                os.close(os.open(path, os.O_RDONLY | os.O_CLOEXEC))
            context.load_cert_chain(certificate, key)
        except ssl.SSLError as error:
            raise ValueError(
                f"Could not load X509 key pair: tls: {error.reason or 'failed to find any PEM data'}"
            ) from None
        except OSError as error:
            where = error.filename or certificate
            raise ValueError(f"Could not load X509 key pair: open {where}: {words(error)}") from None
    return context


def _shake_hands(context: ssl.SSLContext, sock: socket.socket, host: str) -> None:
    """Take ``sock`` for a trial. Blocks on the server, for a while. ``ValueError``."""
    sock.settimeout(TLS_TIMEOUT_S)
    try:
        with sock, context.wrap_socket(sock, server_hostname=host or None):
            pass
    except ssl.SSLCertVerificationError as error:
        raise ValueError(f"tls: failed to verify certificate: x509: {_verdict(error)}") from None
    except TimeoutError:
        raise ValueError("tls: handshake timed out") from None
    except ssl.SSLError as error:
        raise ValueError(f"tls: {(error.reason or str(error)).lower().replace('_', ' ')}") from None
    except OSError as error:
        raise ValueError(f"read tcp: {words(error)}" if error.errno else "EOF") from None


def _verdict(error: ssl.SSLCertVerificationError) -> str:
    """What Go says of a certificate, as far as OpenSSL tells (verify(1), X509_V_ERR_*)."""
    if error.verify_code in (18, 19, 20, 21):
        return "certificate signed by unknown authority"
    if error.verify_code in (9, 10):
        return "certificate has expired or is not yet valid"
    return str(error.verify_message)
