#!/usr/bin/env python3
"""Reads what the emulated GPU was asked to do in the tests of whole images, and fails where steps are not as they are meant to be.

    check_trace.py FILE
"""

import sys
from collections import Counter


def steps(lines):
    """What was asked for from a graph's launch to the wait at a step's end, for each step of a recorded shape."""
    events, records = [], False
    for line in lines:
        event = line.rstrip("\n")
        if event == "begin capture":
            # What is launched next is compared with what it recorded.
            events, records = [], True
        elif event.startswith("launch graph"):
            # What was before belongs to a comparison of the test's own.
            events = [event]
        elif event != "synchronize":
            events.append(event)
        elif events and events[0].startswith("launch graph"):
            if not records:
                yield events
            events, records = [], False
        else:
            events = []


def main():
    with open(sys.argv[1], encoding="utf-8") as file:
        lines = file.readlines()
    forbidden = [line.strip() for line in lines if line.startswith(("forbidden", "captured from host", "captured to host"))]
    recorded = list(steps(lines))
    # Samplers that draw noise take it from the CPU, which waits for nothing; to read something would be to wait.
    waiting = [events for events in recorded if any(event.startswith("to host") for event in events)]
    graphs = Counter(events[0].split()[-1] for events in recorded)
    print(f"{len(recorded)} steps of recorded shapes, by what their graphs hold: {dict(graphs.most_common())}")
    if not recorded:
        sys.exit("no step was recorded")
    besides = sorted(len(events) - 1 for events in recorded)
    print(f"asked for besides the graph: {besides[0]} to {besides[-1]}, half of them at most {besides[len(besides) // 2]}")
    refused = sum(line == "begin capture\n" for line in lines) - sum(line == "instantiate\n" for line in lines)
    if refused:
        sys.exit(f"{refused} shapes could not be recorded")
    if forbidden:
        sys.exit(f"asked for while a graph was recorded: {dict(Counter(forbidden))}")
    if waiting:
        sys.exit(f"{len(waiting)} steps wait for the GPU before they are all asked for, such as this one: {waiting[0]}")


main()
