"How much of a day the gateway takes: 42 symbols, a dozen positions, one simulated minute a step, in process; seconds of CPU"
import sys, time

from quantlib.core.clock import MINUTE
from quantlib.core.settings import load
from quantlib.execution.gateway import Gateway
from quantlib.execution.rehearsal import Stage

clock = time.process_time  # other work on the machine does not count; waiting for the disk does not either, so the wall clock is printed too


def build(events:bool, hold:int=14):
    "A stage with `hold` positions, and its gateway"
    symbols = load().universe.symbols
    stage = Stage(symbols, hours=60, direct=True)
    g = Gateway(stage.settings, stage.home, stage.journal, stage.client, stage.inbox if events else None)
    g.start(); stage.advance(1000)
    for k, s in enumerate(symbols[:hold]): stage.wish(s, 'BUY' if k % 2 else 'SELL', 300.)
    g.step()
    return stage, g


def walk(stage, g, minutes):
    "Seconds of venue, of gateway, and the time of each step"
    venue, steps = 0., []
    for _ in range(minutes):
        t = clock(); stage.advance(MINUTE); u = clock(); g.step(); v = clock()
        venue += u - t; steps.append(v - u)
    return venue, sum(steps), sorted(steps)


def main(minutes=1440):
    "One day with events, an hour with a reading in every step"
    for events, n in ((True, minutes), (False, 120)):
        stage, g = build(events); wall = time.perf_counter()
        held = len(g.ledger.held)
        venue, gateway, steps = walk(stage, g, n); wall = time.perf_counter() - wall
        q = lambda x: steps[min(len(steps) - 1, int(x*len(steps)))]*1000
        print(f'{"events" if events else "requests"}: {n} steps of a minute, {len(stage.settings.universe.symbols)} symbols, {held} → {len(g.ledger.held)} positions: {venue + gateway:.2f} s of CPU (venue {venue:.2f}, gateway {gateway:.2f}), {wall:.2f} s by the clock')
        print(f'  a step: median {q(.5):.2f} ms, p90 {q(.9):.2f}, p99 {q(.99):.2f}, max {steps[-1]*1000:.1f}; {venue/n*1000:.2f} ms of the venue a minute')
        stage.close()


if __name__ == '__main__': main(*map(int, sys.argv[1:]))
