"""Records a command's terminal output as an SVG picture.

usage: python tools/record_terminal.py OUT.svg TITLE COMMAND [ARG...]        (needs: pip install rich)

The command runs under a pseudo-terminal of 100 columns, so that it prints what it prints for people.
"""
import os
import pty
import re
import sys

from rich.console import Console
from rich.text import Text

COLUMNS = 100

if len(sys.argv) < 4:
    sys.exit(__doc__)
out, title, command = sys.argv[1], sys.argv[2], sys.argv[3:]
os.environ.update(COLUMNS=str(COLUMNS), TERM="xterm-256color")
recorded = bytearray()


def read(fd):
    data = os.read(fd, 4096)
    recorded.extend(data)
    return data


status = pty.spawn(command, read)
if status != 0:
    sys.exit(f"the command failed with status {os.waitstatus_to_exitcode(status)}")
text = recorded.decode("utf-8", "replace").replace("\r\n", "\n")
# What a carriage return or an erased line has overwritten is not part of the picture.
text = "\n".join(re.split(r"\r|\x1b\[2K", line)[-1] for line in text.split("\n"))
console = Console(record=True, width=COLUMNS, file=open(os.devnull, "w"))
console.print(Text("$ " + title, style="bold"))
console.print(Text.from_ansi(text.strip("\n")))
picture = console.export_svg(title="kvik")
# A picture should not fetch fonts from the network: the viewer's own monospace font does.
picture = re.sub(r"@font-face \{.*?\}\s*", "", picture, flags=re.DOTALL)
with open(out, "w", encoding="utf-8") as file:
    file.write(picture)
