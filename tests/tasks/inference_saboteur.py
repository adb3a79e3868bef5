"""A worker that measures nothing: it answers at once by a made-up law, or fails in the way that is asked for.

    python inference_saboteur.py RESULT < request

The batch size says what happens: 3 crashes, 5 hangs, 7 runs out of memory, 9 ends without an answer.
"""

import json
import os
import signal
import sys
import time
from pathlib import Path

request = json.loads(sys.stdin.readline())
result = Path(sys.argv[1])
if "limits" in request:
    result.write_text(json.dumps({"copy_bytes_per_s": 1e10, "matmul_flops_per_s": 1e11}))
    sys.exit(0)
point = request["point"]
T, B, d = point["prefill_length"], point["batch_size"], point["model"]["d_model"]
if B == 3:
    os.kill(os.getpid(), signal.SIGSEGV)
if B == 5:
    time.sleep(600)
if B == 7:
    result.write_text(json.dumps({"failure": "out of memory", "reason": "MemoryError: no room"}))
    sys.exit(0)
if B == 9:
    print("said before it went")
    sys.exit(4)
transformer = point["model"]["arch"] == "transformer"
seconds = 1e-6 * T * B * d * (1 + T / 500 * transformer)
step = 1e-5 * d + 1e-6 * B * (T if transformer else 300)
answer = {
    "ttft_s": [seconds, 1.1 * seconds, 0.9 * seconds],
    "step_time_s": [step, step, 1.2 * step],
    "memory_bytes": 10**8,
    "decode": "eager",
    "device": "a made-up device",
    "versions": {"torch": "0"},
}
result.write_text(json.dumps(answer))
