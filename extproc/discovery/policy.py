# SPDX-License-Identifier: Apache-2.0
"""The policy in force: what the operators wrote, with the routing entries of the admin API merged into it."""

import threading

from extproc.policy import extract, rules
from extproc.policy.config import PolicyConfig, default_policy
from extproc.policy.loading import parse_policy
from extproc.policy.routing import Routes, parse_routing, plain, with_routes


class PolicyStore:
    """Keeps the last good version of both documents; they may come in any order, each from a thread of its own."""

    def __init__(self) -> None:
        """The default policy, and no entries."""
        self._policy = default_policy()
        self._routes: Routes = ()
        self._current = self._policy
        self._merging = threading.Lock()  # files are read in threads: the last merge must have seen both

    def current(self) -> PolicyConfig:
        """The policy in force: the same object until something changes."""
        return self._current

    def apply(self, text: bytes) -> None:
        """Put a policy document in force. Raises DocumentError, and then keeps the one that is."""
        policy = parse_policy(text)
        with self._merging:
            self._policy = policy
            self._merge()

    def apply_routing(self, text: bytes) -> None:
        """Put a routing document in force, an empty one too. Raises DocumentError, and then keeps the one that is."""
        routes = parse_routing(text)
        with self._merging:
            if [*map(plain, routes)] != [*map(plain, self._routes)]:
                self._routes = routes
                self._merge()

    def _merge(self) -> None:
        self._current = with_routes(self._policy, self._routes)
        rules.forget()
        extract.forget()
