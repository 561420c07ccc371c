"""Runs the scenarios and tells the sum. See run.sh."""

import os
import shutil
import sys
import time
import traceback

import agent
import cloud
import credentials
import door_amplitude
import door_kinesis
import door_limits
import door_mparticle
import door_segment
import door_browser
import door_tls
import manyreshards
import rights
import scenarios
import selftest
import servers


class Report:
    """Counts checks and prints each with its findings."""

    def __init__(self):
        self.passed = self.failed = 0
        self.left_out = []

    def leave_out(self, what):
        """Something that this machine cannot run: no failure, but told at the end."""
        self.left_out.append(what)
        print(f"LEFT OUT  {what}")

    def check(self, name, findings_of):
        """One check: `findings_of` gives a list; empty is good."""
        try:
            findings = findings_of()
        except Exception:
            findings = [traceback.format_exc(limit=3)]
        if findings:
            self.failed += 1
            print(f"FAILED  {name}")
            for finding in findings[:5]:
                print(f"          {finding}")
            if len(findings) > 5:
                print(f"          and {len(findings) - 5} more findings")
        else:
            self.passed += 1
            print(f"ok      {name}")

    def equal(self, name, value, wanted):
        """One check: two values are equal."""
        self.check(name, lambda: [] if value == wanted else [f"{value!r}, expected {wanted!r}"])


def plan(full):
    """Scenario name -> (server name, what to run with server, report and log directory)."""
    steps = {}
    for server in servers.ALL:
        steps[f"selftest-{server}"] = (server, lambda s, report, _logs: selftest.run(s, report))
        for aggregate in ("kpl", "lines", "off"):
            steps[f"delivers-{aggregate}-{server}"] = (
                server,
                lambda s, report, logs, aggregate=aggregate: scenarios.delivers(s, aggregate, report, logs),
            )
        for aggregate in ("kpl", "off"):
            steps[f"reshards-{aggregate}-{server}"] = (
                server,
                lambda s, report, logs, aggregate=aggregate: scenarios.reshards(s, aggregate, report, logs),
            )
    steps["selftest-manyreshards"] = ("ferrokinesis", manyreshards.selftest)
    for server in ("kinesis-local", "ferrokinesis"):
        for aggregate in ("kpl", "off"):
            steps[f"manyreshards-{aggregate}-{server}"] = (
                server,
                lambda s, report, logs, aggregate=aggregate: manyreshards.run(s, aggregate, full, report, logs),
            )
    steps["door-amplitude"] = ("kinesalite", door_amplitude.run)
    steps["door-mparticle"] = ("kinesalite", door_mparticle.run)
    for name, run in door_limits.ALL.items():
        steps[f"limits-{name}"] = ("kinesalite", run)
    for name, run in door_kinesis.ALL.items():
        steps[name] = ("kinesalite", run)
    steps["tls-clients"] = ("kinesalite", door_tls.run)
    steps["browser"] = ("kinesalite", door_browser.run)
    steps["rights"] = ("ministack", rights.run)
    for name, run in credentials.ALL.items():
        steps[f"credentials-{name}"] = ("ministack", run)
    for name, run in door_segment.ALL.items():
        steps[f"door-segment-{name}"] = ("kinesalite", run)
    return steps


def main(arguments):
    full = "--full" in arguments
    arguments = [argument for argument in arguments if argument != "--full"]
    steps = plan(full)
    if arguments == ["--list"]:
        print("\n".join(steps))
        return 0
    unknown = [name for name in arguments if name not in steps]
    if unknown:
        print(f"no such scenario: {', '.join(unknown)}; known: {', '.join(steps)}", file=sys.stderr)
        return 64
    chosen = {name: step for name, step in steps.items() if not arguments or name in arguments}
    if any(not name.startswith("selftest") for name in chosen) and not os.access(agent.BINARY, os.X_OK):
        print(f"FOREBAY_BIN={agent.BINARY!r} is not a program that can be run", file=sys.stderr)
        return 64

    report = Report()
    kinds = {**servers.ALL, "ferrokinesis": manyreshards.Ferrokinesis, "ministack": cloud.Cloud}
    for server_name in kinds:
        mine = {name: run for name, (server, run) in chosen.items() if server == server_name}
        if not mine:
            continue
        log_dir = os.path.join(servers.HERE, ".work", "logs", server_name)
        shutil.rmtree(log_dir, ignore_errors=True)
        os.makedirs(log_dir)
        server = None
        for name, run in mine.items():
            print(f"\n== {name}")
            begun = time.monotonic()
            try:
                server = server or kinds[server_name](log_dir)
                server.child.check_alive()
                run(server, report, log_dir)
            except Exception as error:
                report.failed += 1
                detail = str(error) if isinstance(error, AssertionError) else traceback.format_exc()
                print(f"FAILED  {name}: {detail}")
            print(f"        {time.monotonic() - begun:.1f} s; logs in {log_dir}")
        if server:
            server.stop()
    for what in report.left_out:
        print(f"LEFT OUT  {what}")
    print(f"\n{report.passed} passed, {report.failed} failed")
    return 0 if report.failed == 0 and report.passed > 0 else 1


if __name__ == "__main__":
    sys.exit(main(sys.argv[1:]))
