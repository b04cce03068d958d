"""How a server guards itself. Loads nothing heavy."""

from __future__ import annotations

import ipaddress
from dataclasses import dataclass

from memlayers.utils.errors import InputError

MIB = 2**20
LOOPBACK_NAMES = ("localhost", "127.0.0.1", "::1")


@dataclass(frozen=True, slots=True)
class ServeSettings:
    """What a server allows.

    Attributes:
        api_key: what a client must show as ``Authorization: Bearer KEY``; None asks for none.
        open_chat: with a key, ask for it only where the facts and the metrics are: chat needs none.
        abstain: answer "I was not taught that." where neither side is sure, unless a request says otherwise.
        rate: requests of one client, as "60/minute" or "5/second;1000/hour"; None for any number.
        queue: requests for answers at once, those that wait included; one more gets 503.
        body_bytes: the most bytes of a request's body.
        upload_bytes: the most bytes of a table that is uploaded.
        body_seconds: how long a client may be silent while it sends a body.
        hosts: names in the header Host that are answered; None for any. A server on loopback without a key answers
            its own names only, so that no page on the web reaches it by a name of its own (DNS rebinding).
    """

    api_key: str | None = None
    open_chat: bool = False
    abstain: bool = False
    rate: str | None = None
    queue: int = 256
    body_bytes: int = 2 * MIB
    upload_bytes: int = 64 * MIB
    body_seconds: float = 30.0
    hosts: tuple[str, ...] | None = None

    def __post_init__(self) -> None:
        if self.api_key is not None and not self.api_key.strip():
            raise InputError("the API key is empty: give one, or none at all")
        if self.open_chat and self.api_key is None:
            raise InputError("there is no API key to do without in chat: give one, or leave --open-chat out")


def is_loopback(host: str) -> bool:
    """Whether only this machine reaches an address that a server listens on."""
    if host == "localhost":
        return True
    try:
        return ipaddress.ip_address(host.strip("[]")).is_loopback
    except ValueError:
        return False


def check_exposure(host: str, settings: ServeSettings) -> None:
    """Refuses to serve other machines without a key.

    Raises:
        InputError: the host is not of this machine alone, and there is no key.
    """
    if settings.api_key is None and not is_loopback(host):
        raise InputError(
            f"--host {host} can be reached from other machines: give --api-key (or MEMLAYERS_API_KEY), or stay on "
            "127.0.0.1"
        )
