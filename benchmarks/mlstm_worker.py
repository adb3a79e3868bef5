"""A process for one contender: reads requests from stdin, answers on stdout, a line of JSON each.

A peer may abort its process; then only its row is lost. All contenders compile at the same time, each in
its worker, and are measured one after the other while the other workers sleep.
"""

import gc
import json
import os
import sys
from typing import Any

import torch

from benchmarks import mlstm_decode, mlstm_measure
from benchmarks.mlstm_cases import CONTENDERS, Shape


def main() -> None:
    answers = os.fdopen(os.dup(1), "w")
    os.dup2(2, 1)  # a contender may print
    device = torch.device("cuda" if torch.cuda.is_available() else "cpu")
    for line in sys.stdin:
        request = json.loads(line)
        try:
            answer = _answer(request, device)
        except Exception as error:
            answer = {"error": mlstm_measure.describe(error)}
        gc.collect()
        if device.type == "cuda":
            torch.cuda.synchronize()  # raises where the device is lost: then this process must end
            torch.cuda.empty_cache()
        print(json.dumps(answer), file=answers, flush=True)


def _answer(request: dict[str, Any], device: torch.device) -> dict[str, Any]:
    kind, name, budget = request["kind"], request.get("contender", ""), request.get("budget_s", 0.3)
    if kind == "start":
        return {}
    if kind == "bandwidth":
        return {"bytes_per_s": mlstm_measure.copy_bandwidth(device, request["size"])}
    if kind == "decode":
        return mlstm_decode.measure_decode(mlstm_decode.DECODE[name], request["batch"], device, budget)
    if kind == "decode-errors":
        return mlstm_decode.decode_error(mlstm_decode.DECODE[name], device)
    contender, shape = CONTENDERS[name], Shape(**request["shape"])
    if kind == "warm-up":
        return mlstm_measure.warm_up(contender, shape, device)
    if kind == "errors":
        return mlstm_measure.measure_errors(contender, shape, device)
    return mlstm_measure.measure_speed(contender, shape, device, budget)


if __name__ == "__main__":
    main()
