"""Addresses of servers, without anything secret in them."""

from __future__ import annotations

from ipaddress import ip_address
from urllib.parse import urlsplit


def url_fault(url: str) -> str | None:
    """Fault of a server's address, as the rest of a sentence; None for one that will do.

    The address itself is not told, since it may hold a password.
    """
    hint = "such as http://localhost:8000/v1"
    try:
        parts = urlsplit(url)
        _ = parts.port  # raises where it is no number
    except ValueError:
        return f"is no address of a server, {hint}"
    if parts.scheme not in ("http", "https") or not parts.hostname or not url.isascii() or not url.isprintable():
        return f"must begin with http:// or https:// and a host, {hint}"
    if " " in url:
        return f"must not hold spaces, {hint}"
    if parts.username is not None or parts.password is not None:
        return "must hold no user or password: keys come from the environment variable that model.key_variable names"
    if parts.query or parts.fragment:
        return f"must end with its path, without ? and #, {hint}: what follows is lost or may be a secret"
    if parts.path.rstrip("/").endswith("/chat/completions"):
        return f"is the address before /chat/completions, {hint}"
    return None


def is_local(url: str) -> bool:
    """True for an address on this machine."""
    host = urlsplit(url).hostname or ""
    try:
        return ip_address(host).is_loopback
    except ValueError:
        return host == "localhost" or host.endswith(".localhost")
