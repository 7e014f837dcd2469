#!/usr/bin/env python3
# SPDX-License-Identifier: MIT
"""A calibration and a refinement by two ranks in two network namespaces, as on two machines, whose link of 1 Gbit/s loses
1 % of the packets: test_network.py WKVQ WKVQ_EMU DEMO mpi|none.

mpirun starts its daemon in the second namespace by a script in the place of ssh. Exits with 77 where namespaces, traffic
control or nftables are not allowed or not installed."""
import os
import pathlib
import re
import shutil
import sys

HERE = pathlib.Path(__file__).parent
sys.path[:0] = [str(HERE), str(HERE.parent / "cli")]
import harness
import test_mpi
from test_mpi import REFINE, SHORT

ADDRESS = ["10.77.0.1", "10.77.0.2"]
LOSE = "add table inet t; add chain inet t c { type filter hook input priority 0; }; " \
       "add rule inet t c ip saddr 10.77.0.0/24 numgen random mod 100 < 1 counter drop"
# The host names differ, because ranks on one host would share memory. The first word is the host's address.
AGENT = """#!/bin/sh
shift
exec ip netns exec {space} unshare --uts sh -c 'hostname second && exec sh -c "$0"' "$*"
"""


class Fixture(test_mpi.Fixture):
    def __init__(self, *arguments):
        missing = [p for p in ("ip", "tc", "nft", "unshare") if not shutil.which(p)]
        if missing:
            raise harness.Skip(f"no {', '.join(missing)}")
        super().__init__(*arguments)


class Link:
    def __init__(self, f):
        self.f, self.spaces = f, [f"wkvq-{os.getpid()}-{i}" for i in range(2)]

    def call(self, *args, space=None):
        return self.f.call([*(["ip", "netns", "exec", space] if space else []), *args]).stdout

    def open(self):
        for space in self.spaces:
            self.call("ip", "netns", "add", space)
        first, second = self.spaces
        self.call("ip", "link", "add", "eth0", "netns", first, "type", "veth", "peer", "name", "eth0", "netns", second)
        for space, address in zip(self.spaces, ADDRESS):
            self.call("ip", "addr", "add", f"{address}/24", "dev", "eth0", space=space)
            for device in ("lo", "eth0"):
                self.call("ip", "link", "set", device, "up", space=space)
            self.call("tc", "qdisc", "add", "dev", "eth0", "root", "tbf", "rate", "1gbit", "burst", "128kb", "latency", "50ms",
                      space=space)
            self.call("nft", LOSE, space=space)

    def lost(self):
        """Returns the number of packets that each end has lost."""
        return [int(re.search(r"counter packets (\d+)", self.call("nft", "list", "ruleset", space=s))[1]) for s in self.spaces]

    def close(self):
        for space in self.spaces:
            self.f.call(["ip", "netns", "del", space], want=None)


def ranks(f, link, args):
    agent = f.path / "agent"
    agent.write_text(AGENT.format(space=link.spaces[1]))
    agent.chmod(0o755)
    mca = {"plm_rsh_agent": agent, "btl": "tcp,self", "btl_tcp_if_include": "eth0", "oob_tcp_if_include": "eth0"}
    return ["ip", "netns", "exec", link.spaces[0], "mpirun", *(w for k, v in mca.items() for w in ("--mca", k, str(v))),
            "--host", ",".join(f"{a}:1" for a in ADDRESS), "--wdir", str(f.path),
            *(w for n in ("OMPI_ALLOW_RUN_AS_ROOT", "OMPI_ALLOW_RUN_AS_ROOT_CONFIRM") for w in ("-x", n)), *args]


def compare(f, link):
    more = [*SHORT, *REFINE]
    f.call(f.wkvq_args("alone", more=more))
    done = f.call(ranks(f, link, f.wkvq_args("apart", more=more)))
    assert "2 ranks of 1 threads" in done.stderr, done.stderr
    assert f.blocks("alone") == f.blocks("apart") and f.refined("alone") == f.refined("apart")
    lost = link.lost()
    print("packets lost by the two ends:", *lost)
    assert all(n > 0 for n in lost), lost


def test_two_machines(f):
    link = Link(f)
    try:
        try:
            link.open()
        except AssertionError as e:
            raise harness.Skip(e) from e
        compare(f, link)
    finally:
        link.close()


if __name__ == "__main__":
    harness.main(globals(), Fixture, arguments=4)
