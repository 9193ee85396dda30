"""What systemd wants to know of a service (sd_notify): datagrams to the socket that NOTIFY_SOCKET names."""

import os
import socket
import time


def notify(text: str) -> None:
    """Sends lines such as READY=1; nothing without NOTIFY_SOCKET, and nothing is waited for."""
    address = os.environ.get("NOTIFY_SOCKET", "")
    if not address or not hasattr(socket, "AF_UNIX"):
        return
    with socket.socket(socket.AF_UNIX, socket.SOCK_DGRAM) as sock:
        sock.setblocking(False)
        try:
            sock.sendto(text.encode(), "\0" + address[1:] if address.startswith("@") else address)
        except OSError:  # a systemd that is busy or gone is no reason to stop
            pass


def reloading() -> None:
    """The settings are read again; READY=1 ends it."""
    notify(f"RELOADING=1\nMONOTONIC_USEC={time.monotonic_ns() // 1000}")


def watchdog_interval() -> float | None:
    """Seconds within which systemd expects WATCHDOG=1 of this process, if it does."""
    usual, pid = os.environ.get("WATCHDOG_USEC", ""), os.environ.get("WATCHDOG_PID", str(os.getpid()))
    return int(usual) / 1e6 if usual.isdigit() and int(usual) and pid == str(os.getpid()) else None
