"""Requests to policy.mjs: a process each, so that its memory is given back whole."""

import json
import os
import subprocess
import threading
from pathlib import Path

HERE = Path(__file__).resolve().parent


class PolicyFault(Exception):
    def __init__(self, code, message):
        super().__init__(message)
        self.code = code


def node():
    """$TOKENRING_NODE, else the bundle's, else the one on the PATH."""
    own = HERE.parent / "bin" / "node"
    return os.environ.get("TOKENRING_NODE") or (str(own) if own.exists() else "node")


def ask(request, deadline, on_line=None):
    """Lines of the answer. PolicyFault if the program failed, with its code; TimeoutExpired past `deadline` seconds."""
    lines = []
    command = [node(), str(HERE / "policy.mjs")]
    with subprocess.Popen(command, stdin=subprocess.PIPE, stdout=subprocess.PIPE, text=True) as process:
        timer = threading.Timer(deadline, process.kill)
        timer.start()
        try:
            process.stdin.write(json.dumps(request))
            process.stdin.close()
            for text in process.stdout:
                line = json.loads(text)
                if "error" in line:
                    raise PolicyFault(line["code"], line["error"])
                lines.append(line)
                if on_line:
                    on_line(line)
            if process.wait() != 0:
                raise PolicyFault(None, f"the policy's process ended with {process.returncode} (-9: out of time or memory)")
        finally:
            timer.cancel()
            process.kill()
    return lines
