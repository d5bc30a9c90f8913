"""Failpoints: named places at every durable step where a process is made to fail on purpose.

Wrappers around the store and the coordinator name each call by what it does, such as
`store.put.log` or `etcd.txn.tip`, and ask before and after it whether a rule says to fail there.
Nothing of this is in the way unless the setting `failpoints` is given, which needs `dev`.
"""

from facegrid.failpoint.clock import ShiftedClock
from facegrid.failpoint.coord import FailingCoordinator
from facegrid.failpoint.points import POINTS, Failpoints
from facegrid.failpoint.store import FailingStore

__all__ = ["POINTS", "FailingCoordinator", "FailingStore", "Failpoints", "ShiftedClock"]
