"""The process behind the fixture `warm_python`: it has torch and transformers imported, and forks for each request.

A new interpreter imports the two for five seconds; here they are imported once. PEFT and memlayers are not among them:
how these are imported is what some tests are about. A request is a line of JSON on the standard input, and its answer a
line on the standard output: a program to start gives its process id, a process its exit code, null while it runs.
"""

import gc
import json
import os
import sys
import traceback

import torch  # noqa: F401
import transformers.models.qwen2.modeling_qwen2  # noqa: F401

assert not {"peft", "memlayers"} & set(sys.modules)
gc.freeze()  # what is here is not looked at again: a child shares its memory

codes: dict[int, int] = {}
for line in sys.stdin:
    request = json.loads(line)
    if "code" in request:
        answer = os.fork()
        if answer == 0:
            break
    else:
        if request["process"] not in codes:
            ended, status = os.waitpid(request["process"], 0 if request["wait"] else os.WNOHANG)
            codes |= {ended: os.waitstatus_to_exitcode(status)} if ended else {}
        answer = codes.get(request["process"])
    print(json.dumps(answer), flush=True)
else:
    os._exit(0)

# The child. Neither process tidies up as it ends: that would take a second.
for number, path, mode in (
    (0, os.devnull, os.O_RDONLY),
    (1, request["stdout"], os.O_WRONLY),
    (2, request["stderr"], os.O_WRONLY),
):
    file = os.open(path, mode)
    os.dup2(file, number)
    os.close(file)
os.environ.clear()
os.environ.update(request["environment"])
sys.argv = ["-c", *request["arguments"]]
sys.path[0] = ""
code = 0
try:
    exec(compile(request["code"], "<string>", "exec"), {"__name__": "__main__"})
except SystemExit as stopped:
    code = stopped.code if isinstance(stopped.code, int) else int(stopped.code is not None)
    if isinstance(stopped.code, str):
        print(stopped.code, file=sys.stderr)
except BaseException:
    code = 1
    traceback.print_exc()
sys.stdout.flush()
sys.stderr.flush()
os._exit(code)
