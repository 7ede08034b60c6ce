"""Measure what can still pass from one sandbox to another.

    processor    the sender computes or sleeps; the receiver counts how far it gets meanwhile
    futex        the sender waits at a page of a shared library or not; the receiver tries to wake it
    descriptors  the sender has descriptors in flight or not; they count against the user of both
    numbers      the sender makes pipes, which the kernel numbers for the whole machine, until the number
                 tells the bit; the receiver starts when that sandbox is gone, and looks at its own number

But for the last, both are alive, and a random message is sent in slots of a fixed length, by the clock. Each
channel is tried with several slots, and the best rate counts: the capacity of a binary symmetric channel with
the error rate that was found. Locks, pages and watches carry nothing; ``tests/sandboxes/test_channels.py``
shows that. Writes ``runs/bench/channels.json``.
"""

from __future__ import annotations

import json
import math
import random
import sys
import threading
import time
from pathlib import Path
from typing import Final

from envkit.sandbox import PYTHON_OPTIONS, Limits, SandboxBackend
from envkit.sandboxes.bubblewrap import BubblewrapBackend
from envkit.sandboxes.zygote import ZygoteBackend

BITS: Final = 200
SLOTS_S: Final = (0.0005, 0.002, 0.01, 0.05)
#: Bits sent by numbers, one a pair of sandboxes.
NUMBERED_BITS: Final = 24
LIMITS: Final = Limits(cpu_s=600, wall_s=900)
#: Reads lines of JSON: begin, length of a slot, bits (for the receiver: their number).
COMMON: Final = """
import array, ctypes, errno, json, mmap, os, socket, struct, sys, threading, time
libc = ctypes.CDLL(None, use_errno=True)
handle = os.open("/usr/lib/libc.so.6", os.O_RDONLY)
libc.mmap.restype = ctypes.c_void_p
page = libc.mmap(None, ctypes.c_size_t(4096), mmap.PROT_READ, mmap.MAP_SHARED, handle, ctypes.c_long(0))
word = ctypes.c_void_p(page)
value = ctypes.c_uint32.from_address(page).value
FUTEX = {"x86_64": 202, "aarch64": 98}[os.uname().machine]
def until(moment):
    while (left := moment - time.monotonic()) > 0:
        if left > 0.0003: time.sleep(left - 0.0002)
def stall(seconds):
    libc.syscall(FUTEX, word, 0, ctypes.c_uint32(value), struct.pack("qq", 0, int(seconds * 1e9)), None, 0)
one, other = socket.socketpair()
for end in (one, other): end.setblocking(False)  # because send_fds and recv_fds ignore their flags
def fill():
    null = [os.open("/dev/null", os.O_RDONLY)] * 253
    try:
        while True: socket.send_fds(one, [b"x"], null)
    except OSError: pass
def drain():
    while True:
        try:
            for given in socket.recv_fds(other, 1, 253)[1]: os.close(given)
        except OSError: return
"""
SENDERS: Final = {
    "processor": """
end = start + slot
if bit:
    while time.monotonic() < end: pass
""",
    "futex": "if bit: stall(slot * 0.9)",
    "descriptors": "fill() if bit else drain()",
}
RECEIVERS: Final = {
    "processor": """
count, end = 0, start + slot * 0.9
while time.monotonic() < end: count += 1
seen = -count
""",
    "futex": """
until(start + slot * 0.4)
seen = libc.syscall(FUTEX, word, 1, 1, None, None, 0)
""",
    "descriptors": """
until(start + slot * 0.6)
try:
    socket.send_fds(one, [b"x"], [0])
    drain()
    seen = 0
except OSError as error: seen = int(error.errno == errno.ETOOMANYREFS)
""",
}


NUMBER: Final = """
import os
STEP = 1 << 17
def number():
    ends = os.pipe()
    found = os.fstat(ends[0]).st_ino
    for end in ends: os.close(end)
    return found
"""
SEND_NUMBER: Final = """
while True:
    found = number()
    if found // STEP % 2 == BIT and STEP // 4 < found % STEP < STEP // 2: break
"""


def program(body: str, bits: str) -> str:
    """Return a program that runs ``body`` once a slot; ``bits`` is an expression for the bits to send."""
    indented = body.strip("\n").replace("\n", "\n        ")
    return (
        f"{COMMON}\nfor line in sys.stdin:\n    begin, slot, given = json.loads(line)\n    found = []\n"
        f"    for number, bit in enumerate({bits}):\n"
        f"        start, seen = begin + number * slot, 0\n        until(start)\n        {indented}\n"
        f"        found.append(seen)\n    drain()\n    print(json.dumps(found), flush=True)\n"
    )


def errors(message: list[int], seen: list[float]) -> float:
    """Return the share of bits read wrongly, with the best threshold for ``seen``."""
    best = 0.5
    for threshold in sorted(set(seen)):
        wrong = sum(bit != (value > threshold) for bit, value in zip(message, seen, strict=True))
        best = min(best, wrong / len(message), 1 - wrong / len(message))
    return best


def capacity(error: float) -> float:
    """Return bits per slot of a binary symmetric channel."""
    if error in (0.0, 1.0):
        return 1.0
    return 1 + error * math.log2(error) + (1 - error) * math.log2(1 - error)


def rate(backend: SandboxBackend, channel: str, slot_s: float) -> tuple[float, float]:
    """Return bits per second and the share of errors."""
    message = [random.Random(7).randrange(2) for _ in range(BITS)]
    with backend.create() as one, backend.create() as other:
        sender = one.open(
            [one.python, *PYTHON_OPTIONS, "-c", program(SENDERS[channel], "given")], limits=LIMITS
        )
        receiver = other.open(
            [other.python, *PYTHON_OPTIONS, "-c", program(RECEIVERS[channel], "range(given)")], limits=LIMITS
        )
        begin = time.monotonic() + 0.5
        sending = threading.Thread(
            target=sender.ask, args=(json.dumps([begin, slot_s, message]).encode(), 300.0)
        )
        sending.start()
        seen = json.loads(receiver.ask(json.dumps([begin, slot_s, BITS]).encode(), 300.0))
        sending.join()
        sender.close()
        receiver.close()
    error = errors(message, seen)
    # As many errors as chance gives in a message of this length are no signal.
    if error > 0.5 - 1.5 / math.sqrt(BITS):
        return 0.0, error
    return capacity(error) / slot_s, error


def numbered_rate(backend: SandboxBackend) -> tuple[float, float, float]:
    """Return bits per second, seconds a bit, and the share of errors, for one sandbox after another."""
    message = [random.Random(7).randrange(2) for _ in range(NUMBERED_BITS)]
    began = time.monotonic()
    seen: list[float] = []
    for bit in message:
        send = SEND_NUMBER.replace("BIT", str(bit))
        for code in (NUMBER + send, NUMBER + "print(number() // STEP % 2)"):
            with backend.create() as sandbox:
                done = sandbox.run([sandbox.python, *PYTHON_OPTIONS, "-c", code], limits=LIMITS)
        seen.append(float(done.stdout))
    slot_s, error = (time.monotonic() - began) / NUMBERED_BITS, errors(message, seen)
    return capacity(error) / slot_s, slot_s, error


def main() -> None:
    found: dict[str, dict[str, float]] = {}
    for backend in (ZygoteBackend(), BubblewrapBackend()):
        bits, slot_s, error = numbered_rate(backend)
        found[f"{backend.name} numbers"] = {"bits_per_s": bits, "slot_s": slot_s, "errors": error}
        print(f"{backend.name:11} numbers      {bits:8.1f} bits/s  ({slot_s:.2f} s a bit, {error:.1%} wrong)")
        for channel in SENDERS:
            rates = {slot_s: rate(backend, channel, slot_s) for slot_s in SLOTS_S}
            best = max(rates, key=lambda slot_s: rates[slot_s][0])
            bits, error = rates[best]
            found[f"{backend.name} {channel}"] = {"bits_per_s": bits, "slot_s": best, "errors": error}
            how = f"slots of {best * 1000:g} ms, {error:.1%} wrong"
            print(f"{backend.name:11} {channel:12} {bits:8.0f} bits/s  ({how})")
    path = Path("runs/bench/channels.json")
    path.parent.mkdir(parents=True, exist_ok=True)
    path.write_text(json.dumps(found, indent=1) + "\n")
    print(path, file=sys.stderr)


if __name__ == "__main__":
    main()
