"""What ipmi_sim runs for its chassis: ``chassis.py SOCKET HOST get|set|check NAME [VALUE] ...``.

Stands alone, so that it starts in a few milliseconds. It passes the command on to the lab, which
alone switches hosts; a command that is repeated, because its answer was slow, changes nothing more.
"""

import json
import socket
import sys


def main() -> int:
    """0: done; 1: it was not, and the BMC says so."""
    path, host, *command = sys.argv[1:]
    with socket.socket(socket.AF_UNIX) as link:
        link.settimeout(30)
        link.connect(path)
        link.sendall(json.dumps({"host": host, "command": command}).encode() + b"\n")
        answer = json.loads(link.makefile().readline())
    sys.stdout.write("".join(f"{line}\n" for line in answer.get("lines", ())))
    return int("error" in answer)


if __name__ == "__main__":
    sys.exit(main())
