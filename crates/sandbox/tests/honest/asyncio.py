# Runs an event loop.
import asyncio


async def later(value):
    await asyncio.sleep(0.001)
    return value


def solve(n):
    async def main():
        return sum(await asyncio.gather(later(n), later(1)))

    return asyncio.run(main())
