"""Imports uploads in forked processes, which spares each of them the seconds of its imports.

Reads requests, one JSON object a line: the working directory, the arguments of `import_upload` and the file for its
answer. Writes the exit code of each, negative for a signal.
"""

import json
import os
import sys

from geograft.commands import import_labels, import_upload


def main() -> None:
    for line in sys.stdin:
        request = json.loads(line)
        child = os.fork()
        if child == 0:
            code = 70
            try:
                import_labels.MAX_OUTLINES = 1000
                os.chdir(request["folder"])
                answer = os.open(request["answer"], os.O_WRONLY)
                os.dup2(answer, 1)
                code = import_upload.main([request["request"]])
                sys.stdout.flush()
            finally:
                os._exit(code)
        sys.stdout.write(f"{os.waitstatus_to_exitcode(os.waitpid(child, 0)[1])}\n")
        sys.stdout.flush()


if __name__ == "__main__":
    main()
