"""Several rollout servers as one: requests go where there is room, and to another server when one is lost."""

from __future__ import annotations

import asyncio
import math
import random
import time
from dataclasses import dataclass, field

from megacov.errors import RolloutError
from megacov.rollout.client.connection import BusyError, RequestRefusedError, UnreachableError
from megacov.rollout.client.wire import GenerateRequest, Prefix
from megacov.rollout.fleet.member import LostWeightsError, Member, pick
from megacov.rollout.fleet.membership import Membership
from megacov.types import Completion

_MAX_ATTEMPTS = 8  # per request, over all servers: the request itself may be what kills them
_BUSY_PAUSE_S = 1.0
_MAX_FAILURES = 3  # in a row, of a server that still answers


class ServersWaitError(RolloutError):
    """No server has the current weights, but healthy ones would take them now."""


@dataclass(eq=False)
class Fleet:
    """Sends each request to one of several servers of the same model. Use it within the clients' event loop.

    membership: which servers there are, and which of them serve.
    num_failovers: requests that were moved to another server. [requests]
    """

    membership: Membership
    num_failovers: int = field(default=0, init=False)

    @property
    def num_retries(self) -> int:
        """HTTP requests sent again so far."""
        return self.membership.num_retries

    async def generate(self, request: GenerateRequest) -> list[Completion]:
        """Sample, on another server if one fails. Each request is answered once: only failed ones are sent again.

        Args:
            request: the prompt and how to complete it.

        Returns:
            n completions, all from one server.

        Raises:
            DataError: the prompt has a token outside the vocabulary.
            RolloutError: a server refused the request, or no server answered it.
        """
        tried: set[Member] = set()
        failures, busy_since = 0, math.inf
        while failures < _MAX_ATTEMPTS:
            member = await self._choose(tried, request.prefix)
            # Asking a busy server again is no failover.
            self.num_failovers += failures > 0 or bool(tried - {member})
            lost = member.lost
            member.under_way += 1
            try:
                completions = await member.unless_lost(member.client.generate(request))
                versions = (span.version for one in completions for span in one.version_spans)
                member.check_weights(versions, self.membership.versions)
            except RequestRefusedError:
                raise
            except BusyError:
                # The watch decides whether the server is alive.
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
                # A server lost in the meantime may already be back; the new process has not failed.
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
        membership = self.membership
        deadline = time.monotonic() + membership.start_timeout_s
        while True:
            serving = [member for member in membership.members if member.serves]
            if serving:
                return pick(serving, tried, "" if prefix is None else prefix.address)
            if any(member.receives for member in membership.members):
                raise ServersWaitError("The rollout servers that are left wait for the weights of the next push.")
            left_s = deadline - time.monotonic()
            if not membership.may_recover or left_s <= 0.0:
                whys = "; ".join(member.why for member in membership.members)
                raise RolloutError(f"No rollout server is left: {whys}")
            await membership.wait_for_change(left_s)

    def _note_failure(self, member: Member, error: RolloutError) -> None:
        member.failures += 1
        # It may still answer the next request; the watch also finds servers that do not answer at all.
        is_certain = isinstance(error, UnreachableError | LostWeightsError)
        if member.state == "serving" and (is_certain or member.failures >= _MAX_FAILURES):
            self.membership.lose(member, str(error))
