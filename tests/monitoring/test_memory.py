import subprocess
import sys

from meguri_monitoring import memory

AFTER_TURNS = """
import os, threading
from meguri_monitoring import memory
{give_back}
turn, all_had_theirs = threading.Lock(), threading.Barrier(13)
held = []

def have_in_hand():
    with turn:
        pieces = [bytearray(100_000) for _ in range(60)]
        held.append(bytearray(1000))
        pieces.clear()
    all_had_theirs.wait()

for _ in range(12):
    threading.Thread(target=have_in_hand).start()
with open("/proc/self/statm") as file:
    all_had_theirs.wait()
    print(int(file.read().split()[1]) * os.sysconf("SC_PAGE_SIZE"))
"""


def resident(give_back: str) -> int:
    """Bytes of a process in which many threads had a lot in hand, one after the other."""
    code = AFTER_TURNS.format(give_back=give_back)
    return int(subprocess.run([sys.executable, "-c", code], check=True, capture_output=True, text=True).stdout)


def test_what_threads_had_in_hand_goes_back_to_the_system():
    assert resident("memory.give_back()") < resident("") - 10 * memory.AT_ONCE


def test_where_the_c_library_has_no_such_setting_nothing_happens(monkeypatch):
    monkeypatch.setattr(memory.ctypes, "CDLL", lambda _: object())

    memory.give_back()
