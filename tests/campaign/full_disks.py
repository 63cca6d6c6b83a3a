"""Disks that are full at any write: a small tmpfs, in which everything is that a program writes.

Where no file system can be mounted, as without root, the part is skipped.
"""

from __future__ import annotations

import os
import random
import subprocess
from collections import Counter
from pathlib import Path

from tests.campaign.parts import Outcome, Part, Skipped
from tests.campaign.processes import Fault, run
from tests.campaign.works import Files, Inputs, all_works

PAGE = 4096
ROOMY = ("64m", "100000")


class FullDisks(Part):
    name, unit, planned, share = "disks", "full disk", 150, 0.08

    def prepare(self, folder: Path) -> None:
        self._disk, self._log = folder / "disk", folder / "output.txt"
        self._disk.mkdir()
        inputs = Inputs.make(folder / "inputs")
        if problem := self._mount("mount", "-t", "tmpfs", "-o", _options(*ROOMY), "campaign"):
            raise Skipped(f"no file system can be mounted, which needs root ({problem})")
        self._works = all_works(self._disk, inputs)
        self._whole: dict[str, Files] = {}
        self._used: dict[str, tuple[int, int]] = {}
        for work in self._works:
            self._whole[work.name] = work.undisturbed(self._log)
            full = os.statvfs(self._disk)
            self._used[work.name] = full.f_blocks - full.f_bfree, full.f_files - full.f_ffree

    def close(self) -> None:
        if self._disk.is_mount():
            subprocess.run(["umount", str(self._disk)], check=False)

    def trial(self, number: int, moments: random.Random) -> Outcome:
        work = self._works[number % len(self._works)]
        pages, files = self._used[work.name]
        self._resize(*ROOMY)
        work.clear()
        if moments.random() < 0.75:
            self._resize(f"{PAGE * moments.randint(1, pages)}", ROOMY[1])
        else:
            self._resize(ROOMY[0], f"{moments.randint(2, files)}")
        ended = run(work.go_on, self._log, work.environment)
        work.check()
        what = "went on without a cache"
        if ended.status:
            what = "ended with a sentence"
            if "No space left" not in (told := ended.told()):
                raise Fault(f"{work.name} does not say that the disk is full: {told}")
        elif "cannot be kept" in ended.succeeded().output:
            work.assert_result({} if work.name == "caching" else self._whole[work.name])
        else:
            work.assert_result(self._whole[work.name])
            what = "had enough"
        self._resize(*ROOMY)
        run(work.go_on, self._log, work.environment).succeeded()
        work.assert_result(self._whole[work.name])
        return Outcome(1, Counter({what: 1}))

    def _resize(self, size: str, files: str) -> None:
        if problem := self._mount("mount", "-o", f"remount,{_options(size, files)}"):
            raise Fault(f"the file system cannot be resized: {problem}")

    def _mount(self, *command: str) -> str:
        """Run a command on the folder of the disk; why it failed, in a line, empty where it did not."""
        done = subprocess.run([*command, str(self._disk)], capture_output=True, text=True)
        return (" ".join(done.stderr.split()) or f"status {done.returncode}") if done.returncode else ""


def _options(size: str, files: str) -> str:
    return f"size={size},nr_inodes={files}"
