"""Limits by themselves: memory that requests may hold together, and who waits for whom."""

from __future__ import annotations

import asyncio
import time
from typing import Any

import pytest
from hypothesis import given
from hypothesis import strategies as st

from prunedeploy_engines.serving.core.errors import DeadlineError, InvalidRequestError, OverloadedError, TooLargeError
from prunedeploy_engines.serving.core.image_room import ImageRoom
from prunedeploy_engines.serving.core.limits import BodyBudget, element_count, parse_json
from prunedeploy_engines.serving.core.security import Token
from served_protocol import picture

NESTED = st.recursive(
    st.none() | st.booleans() | st.integers(-9, 9) | st.text(),
    lambda inner: st.lists(inner, max_size=3) | st.dictionaries(st.text(), inner, max_size=3),
    max_leaves=12,
)


def depth_of(value: Any) -> int:
    """Lists and objects inside each other, by going through them."""
    if isinstance(value, dict):
        return 1 + max(map(depth_of, value.values()), default=0)
    return 1 + max(map(depth_of, value), default=0) if isinstance(value, list) else 0


@given(value=NESTED, escaped=st.booleans())
def test_depth_is_counted_exactly_whatever_is_in_strings(value: Any, escaped: bool) -> None:
    import json

    text = json.dumps(value, ensure_ascii=escaped).encode("utf-8", "surrogatepass")
    try:
        text.decode("utf-8")
    except UnicodeDecodeError:
        return
    depth = depth_of(value)
    assert parse_json(text, max(depth, 1)) == value
    if depth > 1:
        with pytest.raises(InvalidRequestError, match=f"deeper than {depth - 1}"):
            parse_json(text, depth - 1)


def test_sides_are_multiplied_without_overflow() -> None:
    assert element_count([2**31 - 1] * 8, "shape") == (2**31 - 1) ** 8
    assert element_count([], "shape") == 1
    assert element_count([5, 0, 7], "shape") == 0


def test_bodies_share_a_budget_and_give_it_back() -> None:
    budget = BodyBudget(10)  # 80 bytes together
    with budget.held() as first, budget.held() as second:
        first(50)
        second(30)
        with pytest.raises(OverloadedError), budget.held() as third:
            third(1)
    with budget.held() as all_of_it:
        all_of_it(80)


def test_decoded_images_together_have_no_more_pixels_than_one_request_may() -> None:
    file = picture(0, (10, 100))

    async def use(room: ImageRoom, number: int, order: list[int], held: list[int], most: list[int]) -> None:
        async with room.opened([file], ["a"], time.monotonic() + 20) as images:
            order.append(number)
            held.append(sum(image.width * image.height for image in images))
            most.append(sum(held))
            await asyncio.sleep(0.001)
            held.pop()

    async def run() -> tuple[int, list[int]]:
        room, order, held, most = ImageRoom(2500), [], [], []
        await asyncio.gather(*(use(room, number, order, held, most) for number in range(20)))
        return max(most), order

    most, order = asyncio.run(run())
    assert most == 2000, "two images of 1000 pixels have room, three do not"
    assert order == list(range(20)), "first come, first served"


def test_waiting_for_room_ends_at_the_deadline_and_leaves_no_trace() -> None:
    file = picture(0, (10, 100))

    async def run() -> None:
        room = ImageRoom(1000)
        async with room.opened([file], ["a"], time.monotonic() + 20):
            with pytest.raises(DeadlineError):
                async with room.opened([file], ["a"], time.monotonic() + 0.01):
                    pass
            waiting = asyncio.create_task(room.opened([file], ["a"], time.monotonic() + 20).__aenter__())
            await asyncio.sleep(0.01)
            waiting.cancel()
            with pytest.raises(asyncio.CancelledError):
                await waiting
        async with room.opened([file], ["a"], time.monotonic() + 0.5):
            pass
        with pytest.raises(TooLargeError, match="together"):
            async with room.opened([file, file], ["a", "b"], time.monotonic() + 1):
                pass

    asyncio.run(run())


@pytest.mark.parametrize(
    "given_header", [None, "", "Bearer", "Bearer ", "Bearer x", "x", b"\xff", "Bearer \udcff", "é"]
)
def test_token_refuses_everything_else(given_header: Any) -> None:
    assert not Token("secret").opens(given_header)
    assert Token(None).opens(given_header)


def test_token_opens_with_itself() -> None:
    assert Token("secret").opens("Bearer secret")
    assert Token("secret").opens(b"bearer secret")
