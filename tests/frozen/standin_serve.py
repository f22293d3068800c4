"""A stand-in for `edgeapp serve` and `edgeapp ctl`: speaks to systemd as they do, and ends as it is told to.

Usage: standin_serve.py ready|dies serve ...|ctl reload --wait
`dies` never becomes ready. With $STATE_DIRECTORY/exit it ends with the number in it. ctl refuses a model whose card
names the label "bad".
"""

import os
import signal
import socket
import sys
import time
from pathlib import Path

how, command, *words = sys.argv[1:]
if command == "ctl":
    if words[:1] == ["status"]:
        print('{"queue_depth": 0}')
    elif '"bad"' in Path("/opt/edgeapp/models/model/current/model.json").read_text():
        sys.exit("edgeapp: the golden output differs")
    sys.exit(0)
if (number := Path(os.environ["STATE_DIRECTORY"], "exit")).exists():
    sys.exit(int(number.read_text()))
if how == "dies":
    sys.exit(1)


def tell(text: str) -> None:
    with socket.socket(socket.AF_UNIX, socket.SOCK_DGRAM) as sender:
        sender.sendto(text.encode(), os.environ["NOTIFY_SOCKET"].replace("@", "\0", 1))


signal.signal(signal.SIGTERM, lambda *_: sys.exit(0))
signal.pthread_sigmask(signal.SIG_UNBLOCK, [signal.SIGTERM])  # the launcher lets it wait until there is a handler
for folder in ("CACHE_DIRECTORY", "RUNTIME_DIRECTORY", "STATE_DIRECTORY"):
    Path(os.environ[folder], "written").touch()
print(f"stand-in: {os.environ['_EDGEAPP_FILE']}", flush=True)
tell("READY=1\nSTATUS=0.0 a second, 0 waiting")
while True:
    tell("WATCHDOG=1")
    time.sleep(1)
