#!/usr/bin/env python3
"""What capture costs a writer: triggers on statements against triggers on rows, for the same table and key.

Starts a private PostgreSQL in a temporary directory, applies migrations/, publishes one table, and runs the same updates
with no trigger, with statement triggers and with a row trigger, in turn, several times; prints medians. With 32 clients
the caches are cold, and what a trigger needs from memory counts. CPU is that of all server processes (/proc, user and
system). Nothing is flushed, so that neither is a matter of the disk.

    python3 tests/bench/capture.py [runs] [seconds]
"""

import glob
import os
import pwd
import re
import shutil
import statistics
import subprocess
import sys
import tempfile
import time

RUNS = int(sys.argv[1]) if len(sys.argv) > 1 else 5
SECONDS = int(sys.argv[2]) if len(sys.argv) > 2 else 2
ROWS = 200_000
ROOT = os.path.dirname(os.path.dirname(os.path.dirname(os.path.abspath(__file__))))
BIN = sorted(glob.glob("/usr/lib/postgresql/*/bin"))[-1]
MODES = ("none", "statement", "row")


def as_postgres():
    if os.getuid() == 0:
        user = pwd.getpwnam("postgres")
        return {"user": user.pw_uid, "group": user.pw_gid}
    return {}


class Server:
    def __init__(self):
        self.dir = tempfile.mkdtemp(prefix="rowcast-bench-")
        os.chmod(self.dir, 0o755)
        if os.getuid() == 0:
            shutil.chown(self.dir, "postgres", "postgres")
        data = self.dir + "/data"
        subprocess.run([BIN + "/initdb", "-D", data, "-A", "trust", "-U", "bench"], check=True, stdout=subprocess.DEVNULL,
                       cwd=self.dir, **as_postgres())
        settings = ["listen_addresses=", f"unix_socket_directories={self.dir}", "autovacuum=off", "shared_buffers=256MB",
                    "max_wal_size=8GB", "checkpoint_timeout=1h", "fsync=off", "synchronous_commit=off"]
        self.process = subprocess.Popen([BIN + "/postgres", "-D", data] + [x for s in settings for x in ("-c", s)],
                                        cwd=self.dir, stderr=open(self.dir + "/log", "w"), **as_postgres())
        deadline = time.time() + 20
        while subprocess.run(["psql", *self.where(), "-c", "select 1"], capture_output=True).returncode != 0:
            if time.time() > deadline:
                sys.exit("the server did not start: " + open(self.dir + "/log").read())
            time.sleep(0.1)

    def where(self):
        return ["-X", "-q", "-h", self.dir, "-U", "bench", "-d", "postgres", "-v", "ON_ERROR_STOP=1"]

    def sql(self, *commands):
        arguments = [x for command in commands for x in ("-c", command)]
        return subprocess.run(["psql", *self.where(), "-At", *arguments], check=True, capture_output=True, text=True).stdout

    def cpu_seconds(self):
        """Of the postmaster's ended children: those of a run, once they have disconnected."""
        fields = open(f"/proc/{self.process.pid}/stat").read().rsplit(")", 1)[1].split()
        return (int(fields[13]) + int(fields[14])) / os.sysconf("SC_CLK_TCK")

    def stop(self):
        self.process.send_signal(2)
        self.process.wait()
        shutil.rmtree(self.dir)


def prepare(server):
    server.sql("create schema rowcast")
    for path in sorted(glob.glob(ROOT + "/migrations/*.sql")):
        subprocess.run(["psql", *server.where(), "-1", "-f", path], check=True)
    server.sql("create table t (id int primary key, tenant int, status text, qty int, price numeric(10,2),"
               " updated timestamptz, note text) with (fillfactor = 50)",
               f"insert into t select i, i % 100, 'open', 0, 9.90, now(), repeat('x', 60) from generate_series(1, {ROWS}) i",
               "update rowcast.pulse set at = now()",
               "select rowcast.publish('t', policy => 'public', bulk_rows => 1000000)")


def set_mode(server, mode):
    server.sql("drop function rowcast.capture_1() cascade", "truncate rowcast.changes_0, rowcast.changes_1,"
               " rowcast.changes_2, rowcast.changes_3", "vacuum t")
    body = "select rowcast.write_capture_function(1, {})"
    if mode == "none":
        server.sql("create function rowcast.capture_1() returns trigger language plpgsql as 'begin return null; end'")
    elif mode == "row":
        server.sql(body.format("true"), "create trigger \"!rowcast_1_row\" after insert or update or delete on t"
                   " for each row execute function rowcast.capture_1()")
    else:
        server.sql("select rowcast.install_capture(1, 't')")
    server.sql("checkpoint")


def pgbench(server, rows, clients):
    script = server.dir + "/script.sql"
    with open(script, "w") as file:
        file.write(f"\\set b random(0, {ROWS // rows - 1})\n"
                   f"update t set qty = qty + 1, updated = now() where id between :b * {rows} + 1 and :b * {rows} + {rows};\n")
    before = server.cpu_seconds()
    out = subprocess.run([BIN + "/pgbench", "-h", server.dir, "-U", "bench", "-n", "-M", "prepared", "-c", str(clients), "-j", "1",
                          "-T", str(SECONDS), "-f", script, "postgres"], check=True, capture_output=True, text=True).stdout
    time.sleep(0.2)
    count = int(re.search(r"actually processed: (\d+)", out).group(1))
    return (server.cpu_seconds() - before) * 1e6 / count / rows, float(re.search(r"tps = ([0-9.]+)", out).group(1))


def bulk(server, rows):
    before, start = server.cpu_seconds(), time.time()
    server.sql(f"update t set qty = qty + 1 where id <= {rows}")
    seconds = time.time() - start
    time.sleep(0.2)
    return (server.cpu_seconds() - before) * 1e6 / rows, 1 / seconds


def main():
    server = Server()
    # The leader is awake: nobody rings.
    awake = subprocess.Popen(["psql", *server.where()], stdin=subprocess.PIPE, stdout=subprocess.DEVNULL)
    awake.stdin.write(b"select pg_advisory_lock(1919907683, 2);\n")
    awake.stdin.flush()
    try:
        prepare(server)
        print(server.sql("select version()").split(" on ")[0], "-",
              re.search(r"model name\s*: (.*)", open("/proc/cpuinfo").read()).group(1), f"- {os.cpu_count()} cores",
              f"- {RUNS} interleaved runs of {SECONDS} s, medians")
        work = [("1 row", lambda: pgbench(server, 1, 2)), ("1 row, 32 clients", lambda: pgbench(server, 1, 32)),
                ("100 rows", lambda: pgbench(server, 100, 2)),
                ("100,000 rows", lambda: bulk(server, 100_000))]
        for name, run in work:
            results = {mode: [] for mode in MODES}
            for _ in range(RUNS):
                for mode in MODES:
                    set_mode(server, mode)
                    results[mode].append(run())
            medians = {mode: [statistics.median(x[i] for x in results[mode]) for i in (0, 1)] for mode in MODES}
            for mode in MODES:
                cpu, rate = medians[mode]
                print(f"{name:>17} {mode:<10} {cpu:8.2f} us CPU per row (+{cpu - medians['none'][0]:.2f})"
                      f"  {rate:9.1f} statements/s ({rate / medians['none'][1]:.2f})", flush=True)
    finally:
        awake.stdin.close()
        awake.wait()
        server.stop()


main()
