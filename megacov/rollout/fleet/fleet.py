"""Several rollout servers as one: requests go where there is room, and on to another server when one is lost."""

from __future__ import annotations

import asyncio
import contextlib
import math
import random
import time
from dataclasses import dataclass

from megacov.errors import RolloutError
from megacov.rollout.client.connection import BusyError, RequestRefusedError, UnreachableError
from megacov.rollout.client.wire import GenerateRequest, Prefix
from megacov.rollout.fleet.member import LostWeightsError, Member, pick
from megacov.rollout.fleet.membership import Membership
from megacov.types import Completion

_MAX_ATTEMPTS = 8  # of one request, on whatever servers: it may be what ends them
_BUSY_PAUSE_S = 1.0
_MAX_FAILURES = 3  # in a row, of a server that still answers


class ServersWaitError(RolloutError):
    """No server has the current weights, but some that are well would take them now."""


@dataclass(kw_only=True, eq=False)
class Fleet(Membership):
    """Servers of one model, asked as one. Use it within one event loop, that of the clients."""

    async def generate(self, request: GenerateRequest) -> list[Completion]:
        """Sample, on another server if one fails. A request is answered once: only what failed is sent elsewhere.

        Args:
            request: what to sample.

        Returns:
            n completions, all of one server.

        Raises:
            DataError: if the prompt has a token outside the vocabulary.
            RolloutError: if a server refused the request, or no server answered it.
        """
        tried: set[Member] = set()
        failures, busy_since = 0, math.inf
        while failures < _MAX_ATTEMPTS:
            member = await self._choose(tried, request.prefix)
            # A busy server that is asked again is no other one.
            self.num_failovers += failures > 0 or bool(tried - {member})
            lost = member.lost
            member.under_way += 1
            try:
                completions = await self._unless_lost(member, member.client.generate(request))
                member.check_weights((span.version for one in completions for span in one.version_spans), self.versions)
            except RequestRefusedError:
                raise
            except BusyError:
                # Whether it lives is for the watch to say.
                busy_since = min(busy_since, time.monotonic())
                if time.monotonic() - busy_since > member.client.request_timeout_s:
                    raise
                if member in tried:
                    await asyncio.sleep(_BUSY_PAUSE_S * random.uniform(0.5, 1.0))
                tried.add(member)
            except RolloutError as error:
                tried.add(member)
                failures += 1
                last = error
                # A server that was lost meanwhile may be back already: this is no failure of the new one.
                if not lost.is_set():
                    self._note_failure(member, error)
            else:
                member.failures = member.setbacks = 0
                if request.prefix is not None:
                    request.prefix.address = member.client.address
                return completions
            finally:
                member.under_way -= 1
        raise RolloutError(f"A request failed on {_MAX_ATTEMPTS} attempts, the last one with: {last}")

    async def _choose(self, tried: set[Member], prefix: Prefix | None) -> Member:
        deadline = time.monotonic() + self.start_timeout_s
        while True:
            serving = [member for member in self.members if member.serves]
            if serving:
                return pick(serving, tried, "" if prefix is None else prefix.address)
            if any(member.receives for member in self.members):
                raise ServersWaitError("The rollout servers that are left wait for the weights of the next push.")
            left_s = deadline - time.monotonic()
            if not self.may_recover or left_s <= 0.0:
                whys = "; ".join(member.why for member in self.members)
                raise RolloutError(f"No rollout server is left: {whys}")
            self._changed.clear()
            with contextlib.suppress(TimeoutError):
                await asyncio.wait_for(self._changed.wait(), left_s)

    def _note_failure(self, member: Member, error: RolloutError) -> None:
        member.failures += 1
        # It may answer the next request; one that does not answer at all is found out by the watch as well.
        is_certain = isinstance(error, UnreachableError | LostWeightsError)
        if member.state == "serving" and (is_certain or member.failures >= _MAX_FAILURES):
            self._lose(member, str(error))
