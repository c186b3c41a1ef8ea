"""The process in which vLLM runs: started, asked again and again, started anew when it crashes, ended."""

import json
import os
import shutil
import subprocess
import sys
import weakref
from collections.abc import Iterator
from contextlib import suppress
from pathlib import Path
from typing import Any

import torch

from trl_ext.generation.vllm_worker import REFUSED, part_file

WORKER = "trl_ext.generation.vllm_worker"
PATIENCE = 30  # seconds that the process gets to end
LOG_TAIL = 4000  # characters
DISTRIBUTED = ("RANK", "LOCAL_RANK", "WORLD_SIZE", "LOCAL_WORLD_SIZE", "GROUP_RANK", "MASTER_ADDR", "MASTER_PORT")
ALLOCATOR = ("PYTORCH_CUDA_ALLOC_CONF", "PYTORCH_ALLOC_CONF")  # with expandable segments vLLM could not sleep
BOUNDS = ("max_model_len", "max_lora_rank")  # of the engine: what is larger serves what is smaller too


class VLLMError(ChildProcessError, RuntimeError):
    """vLLM's process has failed; the message ends with the end of its output."""


class VLLMProcess:
    """vLLM's process. It ends when it is closed or collected, with the interpreter, and when this process is killed.

    Args:
        engine: Arguments of `vllm.LLM`.
        variables: Its environment.
        folder: Its own, for the adapters, requests, finished parts and the log; removed when it ends.

    Raises:
        VLLMError: If vLLM cannot be loaded.
    """

    def __init__(self, engine: dict[str, Any], variables: dict[str, str], folder: Path):
        self.engine, self.variables, self.folder = engine, variables, folder
        (folder / "engine.json").write_text(json.dumps(engine), encoding="utf-8")
        self.is_busy = False  # with parts that nobody has asked for yet
        self._has_answered = False  # so that vLLM can run this base
        self._children: list[subprocess.Popen] = []  # the last is alive, unless it has crashed
        self._end = weakref.finalize(self, _end, self._children, folder, os.getpid())
        try:
            self._start()
        except BaseException:
            self.close()
            raise

    def serves(self, engine: dict[str, Any]) -> bool:
        """Whether it is alive, and was started with what is asked for, or room for more."""
        same = all(self.engine.get(name) == engine.get(name) for name in self.engine | engine if name not in BOUNDS)
        enough = all(self.engine.get(name, 0) >= engine.get(name, 0) for name in BOUNDS)
        return self.is_alive and same and enough

    @property
    def is_alive(self) -> bool:
        return self._end.alive and self._children[-1].poll() is None

    def ask(self, request: dict[str, Any]) -> Iterator[tuple[int, list[list]]]:
        """Each part's number and answers, as they are finished. After a crash the missing ones are asked for once more.

        Raises:
            VLLMError: If it crashes again, refuses the adapter, or fails before it has answered anything.
        """
        parts, self.is_busy = {part["index"]: part for part in request["parts"]}, True
        try:
            for may_restart in (True, False):
                self._send(request | {"parts": list(parts.values()), "folder": str(self.folder)})
                yield from self._finished(parts)
                if not parts:
                    return
                self._check_restart(may_restart, f"left {len(parts)} of {len(request['parts'])} parts")
                self._start()
        finally:
            self.is_busy = False
            if parts:  # it has failed, or nobody waits for the rest
                self.close()

    def sleep(self) -> None:
        """Leave the card. Nothing for one that was not started to sleep, or has ended."""
        self._tell("sleep")

    def wakes(self) -> bool:
        """Come back to the card; whether it is alive then."""
        self._tell("wake")
        return self.is_alive

    def close(self) -> None:
        """End it, and remove its folder."""
        self._end()

    def _start(self) -> None:
        ours, theirs = os.pipe()
        command = [sys.executable, "-m", WORKER, str(self.folder / "engine.json"), str(theirs)]
        try:
            with (self.folder / "worker.log").open("ab") as log:
                out = {"stdin": subprocess.PIPE, "stdout": log, "stderr": log, "pass_fds": (theirs,)}
                self._children.append(subprocess.Popen(command, env=self.variables, **out))
        finally:
            os.close(theirs)
        self._answers = os.fdopen(ours)
        if not self._is_done():
            self._check_restart(False, f"could not be started with {self.engine}")

    def _check_restart(self, may_restart: bool, what: str) -> None:
        """After a crash: raise if it is not the call's first, no crash but a refusal, or a base that has never run here.

        One that was killed, which a negative code says, is started anew whatever it has done.
        """
        code = self._children[-1].wait()
        if may_restart and code != REFUSED and (self._has_answered or code < 0):
            return
        log = (self.folder / "worker.log").read_text(errors="replace", encoding="utf-8")[-LOG_TAIL:]
        self.close()
        raise VLLMError(
            f"VLLMGenerator: vLLM ended with code {code} and {what}. Put right what follows, then ask again; a run "
            f"that writes down finished parts is resumed from them.\n{log}"
        )

    def _send(self, request: dict[str, Any]) -> None:
        path = self.folder / "request.json"
        path.write_text(json.dumps(request), encoding="utf-8")
        self._write({"do": "answer", "request": str(path)})

    def _tell(self, what: str) -> None:
        if self.engine.get("enable_sleep_mode") and self.is_alive:
            self._write({"do": what})
            if not self._is_done():
                self.close()

    def _write(self, command: dict[str, Any]) -> None:
        with suppress(BrokenPipeError):  # it has ended, as whoever listens for the answer finds out
            self._children[-1].stdin.write(json.dumps(command).encode() + b"\n")
            self._children[-1].stdin.flush()

    def _is_done(self) -> bool:
        """Whether it gets done with what it was told, rather than ending."""
        return any("done" in json.loads(line) for line in self._answers)

    def _finished(self, parts: dict[int, dict]) -> Iterator[tuple[int, list[list]]]:
        """Parts as they are finished, which are then taken out of `parts`; until all are, or the process has ended."""
        for line in self._answers:
            told, self._has_answered = json.loads(line), True
            path = part_file(self.folder, told["part"])
            answers = json.loads(path.read_text(encoding="utf-8"))
            path.unlink()
            del parts[told["part"]]
            if not parts:
                self._is_done()  # before the caller has the last part, and perhaps asks for no further one
            yield told["part"], answers
            if not parts:
                return


def _end(children: list[subprocess.Popen], folder: Path, owner: int) -> None:
    """End what runs, and remove its folder; not in a fork of the process that started it, which has a copy of all this."""
    if os.getpid() != owner:
        return
    for child in children:
        child.terminate()
        try:
            child.wait(PATIENCE)
        except subprocess.TimeoutExpired:
            child.kill()
            child.wait()
        with suppress(BrokenPipeError):
            child.stdin.close()
    shutil.rmtree(folder, ignore_errors=True)


def environment(device: torch.device, engine: dict[str, Any]) -> dict[str, str]:
    """Of vLLM's process: it is alone, and sees the card that the policy was on, unless it shall spread over several.

    Without a process of its own for the engine, nothing of vLLM outlives the worker, and its scheduling is repeatable.
    """
    variables = {name: value for name, value in os.environ.items() if name not in (*DISTRIBUTED, *ALLOCATOR)}
    variables.setdefault("VLLM_ENABLE_V1_MULTIPROCESSING", "0")
    if device.type == "cuda" and engine.get("tensor_parallel_size", 1) == 1:
        visible = os.environ.get("CUDA_VISIBLE_DEVICES")
        names = visible.split(",") if visible else [str(i) for i in range(torch.cuda.device_count())]
        variables["CUDA_VISIBLE_DEVICES"] = names[device.index or 0]
    return variables
