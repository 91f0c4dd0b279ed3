"""Responses to prompts in batches by length, and one prompt at a time, in one run: tokens a second and their ratio.

Run: python tests/benchmarks/generation.py --model DIR --data FILE [--prompts 50] [--tokens 64] [--dtype float32]

The two take turns over pieces of the prompts, so that what else the machine does falls on both. Rounding apart, both
give the same responses, for a response has random numbers of its own.
"""

import argparse
import time

from lit_tr.evaluation.policies import Loading, open_policies
from lit_tr.evaluation.prompts import read_prompts, source_of
from lit_tr.evaluation.sampling import Sampling

PIECES = 2


def measured(policy, requests, sampling, batch_tokens):
    """Return the responses and the seconds that they took."""
    policy.batch_tokens = batch_tokens
    start = time.perf_counter()
    made = [one for batch in policy.respond(requests, sampling) for one in batch]
    return made, time.perf_counter() - start


def main():
    parser = argparse.ArgumentParser(description=__doc__.partition("\n")[0])
    parser.add_argument("--model", required=True)
    parser.add_argument("--data", required=True)
    parser.add_argument("--prompts", type=int, default=50)
    parser.add_argument("--tokens", type=int, default=64)
    parser.add_argument("--dtype", default="float32")
    parser.add_argument("--batch_tokens", type=int)
    given = parser.parse_args()
    [policy] = open_policies([given.model], Loading(dtype=given.dtype))
    sampling = Sampling(max_new_tokens=given.tokens)
    prompts = read_prompts(source_of(given.data), policy.reader(sampling), given.prompts).found
    requests = [(prompt, 0) for prompt in prompts]
    lengths = sorted(len(prompt.ids) for prompt in prompts)
    print(f"{len(prompts)} prompts of {lengths[0]} to {lengths[-1]} tokens, median {lengths[len(lengths) // 2]}")
    measured(policy, requests[:1], sampling, 1)
    alone, batched = {}, {}
    seconds = {"one at a time": 0.0, "by length": 0.0}
    for i in range(PIECES):
        for name, budget, found in (("one at a time", 1, alone), ("by length", given.batch_tokens, batched)):
            made, took = measured(policy, requests[i::PIECES], sampling, budget)
            seconds[name] += took
            found.update({one.id: one for one in made})
    for name, found in (("one at a time", alone), ("by length", batched)):
        tokens = sum(one.tokens for one in found.values())
        print(f"{name:<14} {seconds[name]:6.1f} s  {tokens:,} tokens  {tokens / seconds[name]:,.1f} tokens/s")
    same = sum(alone[key].response == batched[key].response for key in alone)
    print(f"ratio {seconds['one at a time'] / seconds['by length']:.2f}; {same} of {len(alone)} responses are the same")


if __name__ == "__main__":
    main()
